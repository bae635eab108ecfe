"""DeepSpeed's gradients are torch's, and a NaN harms nothing: the real DDPO step in every ZeRO stage, on two gloo processes.

DeepSpeed has had silently wrong gradients (#7718, #7839, #8224), so this runs on every update of it. All cases share one pair of processes.
"""

import functools
import pickle
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from benchmarks.workers import free_port, group
from rlhfv_ray.config import DDPOConfig, LossConfig, ModelConfig, OptimConfig, ScaleConfig
from rlhfv_ray.data.reference_table import to_row
from rlhfv_ray.inference.reference import score_pairs
from rlhfv_ray.logps import policy_token_logps
from rlhfv_ray.loss import batch_loss
from rlhfv_ray.models import AnswerPolicy, layout_of, load_policy
from rlhfv_ray.models.batch import collate_pairs, to_device
from rlhfv_ray.records import PairBatch
from rlhfv_ray.training.sampler import micro_batches
from rlhfv_ray.training.train import TrainJob, pairs_to_blame, start_engine, update

WORLD, PAIRS = 2, 6
RATE = (
    10.0  # of plain SGD: a weight changes by RATE * gradient, far above the weight's own rounding
)
# Largest distance of a parameter's gradient from torch's, as a share of its norm plus a tenth of the whole gradient's norm.
TOLERANCE = {"fp32": 1e-5, "bf16": 3e-2}
WATCHED = "model.language_model.layers.0.self_attn.v_proj.weight"  # must move in every update
LOSS = LossConfig(beta=0.5, gamma=5.0, normalize=True)
# ZeRO stage, dtype, forward passes per update and worker, clip. DeepSpeed takes other ways with a clip, even one never reached, than without.
CASES = [
    (stage, dtype, *way)
    for stage in (0, 1, 2, 3)
    for dtype in ("fp32", "bf16")
    for way in ((1, 0.0), (3, 1e9))
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

    optimizer, own = engine.optimizer, {}
    if hasattr(
        optimizer, "fp32_groups"
    ):  # bf16 without ZeRO, which the function above does not know
        own = {
            id(low): high
            for lows, highs in zip(optimizer.fp16_groups, optimizer.fp32_groups)
            for low, high in zip(lows, highs)
        }
    found = {}
    for name, weight in engine.module.named_parameters():
        master = safe_get_full_fp32_param(weight)
        found[name.removeprefix("model.")] = (
            (own.get(id(weight), weight) if master is None else master).detach().clone()
        )
    assert {weight.dtype for weight in found.values()} == {torch.float32}
    return found


def spoil(batch: PairBatch) -> PairBatch:
    reference = batch.reference_token_logps.clone()
    reference[0] = float("nan")
    return batch._replace(reference_token_logps=reference)


def step(engine, batches, job):
    """`train_worker`'s update, after the first, whose gate is another matter."""
    return update(engine, iter(batches), job, step=1, rate=RATE)


def run_case(case, folder: Path) -> dict:
    """Three updates: a clean one, one with a NaN in rank 1's last batch, and a clean one again."""
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
    made = micro_batches(rows, lengths, collate, config, start=0, stop=1)
    batches = [to_device(batch, engine.device, model.dtype) for batch in made]
    job = TrainJob(config, folder, {}, folder, token="")
    start = master_weights(engine)
    step(engine, batches, job)
    clean, skipped = master_weights(engine), engine.skipped_steps
    last = spoil(batches[-1]) if dist.get_rank() == 1 else batches[-1]
    losses, suspects = step(engine, [*batches[:-1], last], job)
    kept, skipped_then = master_weights(engine), engine.skipped_steps
    step(engine, batches, job)
    after = master_weights(engine)
    found = {
        "gradient": {name: (start[name] - clean[name]) / RATE for name in start},
        "ids": list(batches[-1].ids),
        "blamed": pairs_to_blame(losses),
        "suspects": suspects,
        "skipped": (skipped, skipped_then, engine.skipped_steps),
        "untouched": all(torch.equal(kept[name], clean[name]) for name in kept),
        "goes_on": all(after[name].isfinite().all() for name in after)
        and not torch.equal(after[WATCHED], kept[WATCHED]),
    }
    engine.destroy()
    return found


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
    """What both ranks found, case by case."""
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
        made = collate_pairs(reference_pairs, processor, rule="muffin", layout=policy.layout)
        batch = to_device(made, model.device, model.dtype)
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
    """Catches: gradients dropped, doubled or not averaged, over workers or accumulated passes, in one ZeRO stage."""
    wanted = plain[case[1]]
    whole = torch.stack([gradient.norm() for gradient in wanted.values()]).norm()
    assert whole > 0.01
    for got in found[case]:
        assert got["skipped"][0] == 0
        for name, gradient in wanted.items():
            distance = (got["gradient"][name] - gradient).norm()
            assert distance <= TOLERANCE[case[1]] * (gradient.norm() + 0.1 * whole), (
                f"{name}: {distance:.3g}"
            )


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_nan_on_one_rank_skips_the_update_and_nothing_else(case, found):
    """Catches: a NaN that reaches the weights, an update skipped unseen, or a NaN left in buffers that spoils later updates."""
    for got in found[case]:
        assert got["untouched"]
        assert got["suspects"] == got["blamed"]
        assert got["skipped"] == (0, 1, 1)
        assert got["goes_on"]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_pairs_of_the_nan_are_named_on_every_rank(case, found):
    """Catches: another rank's or pass's pairs blamed, or ranks that disagree and so stop at different updates."""
    assert [got["blamed"] for got in found[case]] == [found[case][1]["ids"]] * WORLD
