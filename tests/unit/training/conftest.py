"""A real DeepSpeed engine in a process group of one, for the unit tests of training."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from rlhfv_ray.config import DDPOConfig, ModelConfig, OptimConfig, Part, ScaleConfig
from rlhfv_ray.models import AnswerPolicy, layout_of, load_policy, prepare_training
from rlhfv_ray.training.worker import start_engine

RANK_0_OF_1 = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}


@pytest.fixture(scope="session")
def group(tmp_path_factory):
    """A process group of one; one for all files, because DeepSpeed keeps the first it meets."""
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def new_engine(group) -> Iterator[Callable[..., Any]]:
    """A function that starts an engine with AdamW on a saved model."""

    def start(
        model: Path,
        zero: int = 2,
        dtype: str = "fp32",
        lora_rank: int = 0,
        trainable: tuple[Part, ...] = ModelConfig().trainable,
        **optim: Any,
    ) -> Any:
        loaded, _ = load_policy(model, dtype=dtype, device="cpu")
        parts = {"lora_rank": lora_rank, "trainable": trainable}
        settings = ModelConfig(path=str(model), dtype=dtype, **parts)
        prepare_training(loaded, settings)
        policy = AnswerPolicy(loaded, layout_of(loaded))
        config = DDPOConfig(
            model=settings,
            optim=OptimConfig(**{"batch": 1, **optim}),
            scale=ScaleConfig(zero_stage=zero),
        )
        trained = [weight for weight in policy.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)
        return start_engine(policy, optimizer, config)

    with pytest.MonkeyPatch.context() as environment:  # ZeRO 3 reads it in later updates too
        for name, value in RANK_0_OF_1.items():
            environment.setenv(name, value)
        yield start
