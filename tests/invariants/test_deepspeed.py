"""DeepSpeed's gradients equal torch's, and a NaN changes nothing, in every ZeRO stage.

The real DDPO step runs on two gloo processes, which all cases share. DeepSpeed has had silently
wrong gradients (#7718, #7839, #8224), so these tests run on every update of DeepSpeed.
"""

import functools
import itertools
import pickle
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from benchmarks.workers import free_port, group
from rlhfv_ray.config import DDPOConfig, LossConfig, ModelConfig, OptimConfig, ScaleConfig
from rlhfv_ray.data.reference_table import PairSizes, to_row
from rlhfv_ray.inference.reference import score_pairs
from rlhfv_ray.logps import policy_token_logps
from rlhfv_ray.loss import batch_loss
from rlhfv_ray.models import AnswerPolicy, layout_of, load_policy
from rlhfv_ray.models.batch import collate_pairs, to_device
from rlhfv_ray.records import PairBatch
from rlhfv_ray.training.job import TrainJob
from rlhfv_ray.training.sampler import micro_batches
from rlhfv_ray.training.step_checks import pairs_to_blame
from rlhfv_ray.training.worker import start_engine, update

WORLD, PAIRS = 2, 6
# Of plain SGD: a weight changes by RATE * gradient, far above the weight's own rounding.
RATE = 10.0
# Largest distance of a parameter's gradient from torch's, relative to its norm plus a tenth of the
# norm of the gradient of all parameters.
TOLERANCE = {"fp32": 1e-5, "bf16": 3e-2}
WATCHED = "model.language_model.layers.0.self_attn.v_proj.weight"  # must move in every update
LOSS = LossConfig(beta=0.5, gamma=5.0, normalize=True)
# ZeRO stage, dtype, (forward passes per update and worker, clip). With a clip, even one that is
# never reached, DeepSpeed runs other code than without.
CASES = [
    (stage, dtype, *passes_and_clip)
    for stage, dtype, passes_and_clip in itertools.product(
        (0, 1, 2, 3), ("fp32", "bf16"), ((1, 0.0), (3, 1e9))
    )
]


def config_of(case, model: Path) -> DDPOConfig:
    stage, dtype, passes, clip = case
    return DDPOConfig(
        model=ModelConfig(path=str(model), dtype=dtype),
        loss=LOSS,
        optim=OptimConfig(batch=PAIRS, steps=3, clip=clip),
        scale=ScaleConfig(workers=WORLD, micro_batch=PAIRS // WORLD // passes, zero_stage=stage),
    )


def master_weights(engine) -> dict[str, torch.Tensor]:
    from deepspeed.utils import safe_get_full_fp32_param

    optimizer = engine.optimizer
    fp32_weights = {}  # by id of the low-precision weight
    if hasattr(optimizer, "fp32_groups"):  # bf16 without ZeRO, unknown to safe_get_full_fp32_param
        for lows, highs in zip(optimizer.fp16_groups, optimizer.fp32_groups):
            fp32_weights |= {id(low): high for low, high in zip(lows, highs)}
    masters = {}
    for name, weight in engine.module.named_parameters():
        master = safe_get_full_fp32_param(weight)
        if master is None:
            master = fp32_weights.get(id(weight), weight)
        masters[name.removeprefix("model.")] = master.detach().clone()
    assert {master.dtype for master in masters.values()} == {torch.float32}
    return masters


def spoil(batch: PairBatch) -> PairBatch:
    reference = batch.reference_token_logps.clone()
    reference[0] = float("nan")
    return batch._replace(reference_token_logps=reference)


def step(engine, batches, job):
    """Do one update of `train_worker`; not the first one, whose loss must be ln 2."""
    return update(engine, iter(batches), job, step=1, rate=RATE)


def run_case(case, folder: Path) -> dict:
    """Do three updates: clean, with a NaN in rank 1's last batch, and clean again."""
    config = config_of(case, folder / "model")
    model, processor = load_policy(config.model.path, dtype=config.model.dtype, device="cpu")
    policy = AnswerPolicy(model, layout_of(model))
    engine = start_engine(policy, torch.optim.SGD(policy.parameters(), lr=RATE), config)
    rows = [to_row(pair) for pair in pickle.loads((folder / "pairs.pickle").read_bytes())]
    collate = functools.partial(
        collate_pairs, processor=processor, rule=config.data.rule, layout=policy.layout
    )
    lengths = [
        len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows
    ]
    on_cpu = micro_batches(rows, PairSizes(lengths, lengths), collate, config, start=0, stop=1)
    batches = [to_device(batch, engine.device, model.dtype) for batch in on_cpu]
    job = TrainJob(config, folder, {}, folder, token="")
    start = master_weights(engine)
    step(engine, batches, job)
    clean, skipped = master_weights(engine), engine.skipped_steps
    last = spoil(batches[-1]) if dist.get_rank() == 1 else batches[-1]
    losses, suspects = step(engine, [*batches[:-1], last], job)
    after_nan, skipped_then = master_weights(engine), engine.skipped_steps
    step(engine, batches, job)
    after = master_weights(engine)
    results = {
        "gradient": {name: (start[name] - clean[name]) / RATE for name in start},
        "ids": list(batches[-1].ids),
        "blamed": pairs_to_blame(losses),
        "suspects": suspects,
        "skipped": (skipped, skipped_then, engine.skipped_steps),
        "untouched": all(torch.equal(after_nan[name], clean[name]) for name in clean),
        "goes_on": all(after[name].isfinite().all() for name in after)
        and not torch.equal(after[WATCHED], after_nan[WATCHED]),
    }
    engine.destroy()
    return results


def run_cases(rank: int, port: int, folder: Path) -> None:
    with group(rank, WORLD, port):
        torch.save([run_case(case, folder) for case in CASES], folder / f"rank-{rank}.pt")


@pytest.fixture(scope="module")
def reference_pairs(small_model, encoded):
    """Pairs whose reference is not quite the policy, so that margins are not 0 and differ."""
    model, processor = load_policy(small_model, dtype="fp32", device="cpu")
    rng = random.Random(0)
    with torch.no_grad():
        scored = score_pairs(AnswerPolicy(model, layout_of(model)), processor, encoded[:PAIRS])
    return [
        replace(pair, chosen_logps=[value + rng.gauss(0, 0.5) for value in pair.chosen_logps])
        for pair in scored
    ]


@pytest.fixture(scope="module")
def found(tmp_path_factory, small_model, reference_pairs):
    """The results of both ranks, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "model").symlink_to(small_model)
    (folder / "pairs.pickle").write_bytes(pickle.dumps(reference_pairs))
    torch.multiprocessing.spawn(run_cases, args=(free_port(), folder), nprocs=WORLD)
    ranks = [torch.load(folder / f"rank-{rank}.pt") for rank in range(WORLD)]
    return dict(zip(CASES, zip(*ranks, strict=True), strict=True))


@pytest.fixture(scope="module")
def plain(small_model, reference_pairs):
    """Plain torch's gradient of the whole global batch, by dtype."""
    gradients = {}
    for dtype in TOLERANCE:
        model, processor = load_policy(small_model, dtype=dtype, device="cpu")
        policy = AnswerPolicy(model, layout_of(model))
        on_cpu = collate_pairs(reference_pairs, processor, rule="muffin", layout=policy.layout)
        batch = to_device(on_cpu, model.device, model.dtype)
        batch_loss(policy_token_logps(policy, batch), batch, LOSS).total.backward()
        gradients[dtype] = {
            name: torch.zeros_like(weight, dtype=torch.float32)
            if weight.grad is None
            else weight.grad.float()
            for name, weight in model.named_parameters()
        }
    return gradients


def name_of(case) -> str:
    stage, dtype, passes, clip = case
    return f"zero{stage}-{dtype}-{passes}passes-{'clip' if clip else 'noclip'}"


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_gradient_is_torchs(case, found, plain):
    """Catches: gradients dropped, doubled or not averaged over workers or passes."""
    expected = plain[case[1]]
    total = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    assert total > 0.01
    for got in found[case]:
        assert got["skipped"][0] == 0
        for name, gradient in expected.items():
            distance = (got["gradient"][name] - gradient).norm()
            assert distance <= TOLERANCE[case[1]] * (gradient.norm() + 0.1 * total), (
                f"{name}: {distance:.3g}"
            )


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_nan_on_one_rank_skips_the_update_and_nothing_else(case, found):
    """Catches: a NaN that reaches the weights or later updates, or a skip that is not counted."""
    for got in found[case]:
        assert got["untouched"]
        assert got["suspects"] == got["blamed"]
        assert got["skipped"] == (0, 1, 1)
        assert got["goes_on"]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_pairs_of_the_nan_are_named_on_every_rank(case, found):
    """Catches: pairs of another rank or pass blamed, or ranks that disagree and so diverge."""
    assert [got["blamed"] for got in found[case]] == [found[case][1]["ids"]] * WORLD


def test_deepspeed_comes_without_what_workers_do_not_need_and_mlflow_stays_importable():
    """Catches: workers that import MLflow or torch's compiler, which doubles their start."""
    code = (
        "import sys; from rlhfv_ray.training.worker import import_deepspeed; "
        "assert import_deepspeed().zero; assert 'mlflow' not in sys.modules; "
        "import deepspeed.runtime.zero.stage3, deepspeed.runtime.zero.muon.muon_optimizer; "
        "assert 'torch._inductor.compile_fx' not in sys.modules; "
        "import mlflow; assert mlflow.__version__"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
