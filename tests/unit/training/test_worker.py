"""The learning rate, and the checks of `update` on a real engine in a process group of one."""

import functools
import json
import math
from dataclasses import replace

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from rlhfv_ray.config import DDPOConfig, LossConfig, ModelConfig, OptimConfig, ScaleConfig
from rlhfv_ray.data.encoding import encode_pair
from rlhfv_ray.data.reference_table import PairSizes, to_row
from rlhfv_ray.errors import CheckpointError, ConfigError, StaleReferenceError
from rlhfv_ray.inference.reference import score_pairs
from rlhfv_ray.logps import policy_token_logps
from rlhfv_ray.loss import batch_loss
from rlhfv_ray.models import AnswerPolicy, layout_of, load_policy, load_processor
from rlhfv_ray.models.batch import collate_pairs
from rlhfv_ray.records import ReferencePair
from rlhfv_ray.training.checkpoint import weights_of
from rlhfv_ray.training.job import TrainJob
from rlhfv_ray.training.metrics_log import append_records
from rlhfv_ray.training.sampler import micro_batches
from rlhfv_ray.training.step_checks import check_repeated_loss, loss_to_repeat
from rlhfv_ray.training.worker import (
    fit_worker,
    learning_rate,
    start_engine,
    update,
    weight_groups,
)
from tests.families import save
from tests.families_a import FAMILIES_A
from tests.unit.training.conftest import RANK_0_OF_1


@pytest.fixture(scope="module")
def engine(new_engine, small_model):
    return new_engine(small_model, batch=2)


@pytest.fixture(scope="module")
def batches(engine, encoded, processor):
    """Two batches of one pair, whose reference is the engine's model."""
    policy = engine.module
    with torch.no_grad():
        pairs = score_pairs(policy, processor, encoded[:2])
    return [collate_pairs([pair], processor, rule="muffin", layout=policy.layout) for pair in pairs]


@pytest.fixture
def job(small_model, tmp_path):
    """Updates of two passes, with a loss that is ln 2 to rounding where the reference is right."""
    (tmp_path / "config.json").write_text(json.dumps({"dtype": "fp32"}))
    config = DDPOConfig(
        model=ModelConfig(path=str(small_model), dtype="fp32"),
        loss=LossConfig(beta=0.1, gamma=1.0, normalize=True),
        optim=OptimConfig(batch=2),
        scale=ScaleConfig(micro_batch=1),
    )
    return TrainJob(config, tmp_path, {"dtype": "fp32"}, tmp_path, token="")


def shifted(batch, shift: float):
    """The batch with its first answer's reference log-probs moved by some nats a token."""
    logps = batch.reference_token_logps.clone()
    logps[0] += shift
    return batch._replace(reference_token_logps=logps)


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.01, -0.01, math.nan])
def test_first_update_stops_at_another_models_reference(engine, batches, job, shift):
    """Catches: a run that trains against another model's log-probs, the gate switched off."""
    with pytest.raises(StaleReferenceError, match="not those of the model to be trained"):
        update(engine, iter([shifted(batches[0], shift), batches[1]]), job, step=0, rate=0.0)


@pytest.mark.slow
def test_every_batch_of_the_first_update_is_checked(new_engine, small_model, batches, job):
    """Catches: a gate that looks at the first batch alone."""
    engine = new_engine(small_model, batch=2)  # one that stops amid an update is of no further use
    with pytest.raises(StaleReferenceError, match="not those of the model to be trained"):
        update(engine, iter([batches[0], shifted(batches[1], 0.01)]), job, step=0, rate=0.0)


@pytest.mark.slow
def test_only_the_first_update_must_start_at_the_reference(engine, batches, job):
    """Catches: a gate that refuses the right reference, or a trained policy for leaving it."""
    losses, suspects = update(engine, iter(batches), job, step=0, rate=0.0)
    assert [loss.total.item() for _, loss in losses] == pytest.approx([math.log(2)] * 2, abs=1e-6)
    assert suspects == []
    moved = [shifted(batch, 0.01) for batch in batches]
    assert update(engine, iter(moved), job, step=1, rate=0.0)[1] == []


@pytest.mark.slow
def test_skipped_update_blames_the_pairs_of_the_non_finite_pass(engine, batches, job):
    """Catches: a skipped update that blames no pair, or the pairs of a finite pass."""
    broken = [batches[0], shifted(batches[1], math.nan)]
    _, suspects = update(engine, iter(broken), job, step=1, rate=0.0)
    assert suspects == list(batches[1].ids)
    assert update(engine, iter(batches), job, step=2, rate=0.0)[1] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("zero_stage", "value"),
    [(0, math.inf), (1, math.inf), (2, math.inf), (3, math.inf), (2, math.nan)],
)
def test_update_with_a_non_finite_gradient_changes_no_weight(
    new_engine, small_model, batches, job, zero_stage, value
):
    """Catches: a gradient that overflows under a finite loss and reaches the weights, unnamed."""
    engine = new_engine(small_model, zero_stage, batch=2)
    update(engine, iter(batches), job, step=0, rate=1e-3)
    before = weights_of(engine)
    weight = next(weight for weight in engine.module.parameters() if weight.requires_grad)
    hook = weight.register_hook(lambda gradient: torch.full_like(gradient, value))
    losses, suspects = update(engine, iter(batches), job, step=1, rate=1e-3)
    hook.remove()
    assert all(loss.total.isfinite() for _, loss in losses)
    assert suspects == [*batches[0].ids, *batches[1].ids]
    for name, tensor in weights_of(engine).items():
        assert torch.equal(tensor, before[name])
    assert update(engine, iter(batches), job, step=2, rate=1e-3)[1] == []
    moved = weights_of(engine)
    assert all(tensor.isfinite().all() for tensor in moved.values())
    assert any(not torch.equal(moved[name], before[name]) for name in before)


@pytest.mark.slow
def test_fine_tuning_has_no_first_loss_to_check(engine, batches, job):
    """Catches: an SFT run refused because its first loss is not ln 2."""
    sft = LossConfig(gamma=1.0, normalize=True, sft_weight=1.0, preference_weight=0.0)
    job = replace(job, config=replace(job.config, loss=sft))
    assert update(engine, iter(batches), job, step=0, rate=0.0)[1] == []


@pytest.mark.slow
def test_first_update_after_a_resume_repeats_the_recorded_one(engine, batches, job):
    """Catches: a resume with other weights, pairs or reference than those of the record."""
    losses, _ = update(engine, iter(batches), job, step=4, rate=0.0)
    loss = sum(loss.total.item() for _, loss in losses) / 2
    append_records(job.folder, [{"step": 4, "loss": 9.0}, {"step": 5, "loss": loss}])
    recorded = loss_to_repeat(job.folder, 4)
    check_repeated_loss(losses, recorded, step=5, dtype="fp32")
    moved, _ = update(engine, iter([shifted(batches[0], 1.0), batches[1]]), job, step=4, rate=0.0)
    with pytest.raises(CheckpointError, match=r"Update 5 was repeated.*metrics\.jsonl has"):
        check_repeated_loss(moved, recorded, step=5, dtype="fp32")
    check_repeated_loss(moved, recorded, step=6, dtype="fp32")  # the resume was before update 5


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 2])
def test_nothing_to_repeat_is_not_compared(engine, batches, job, step):
    """Catches: a start, or a resume from the last recorded update, stopped for lack of a record."""
    append_records(job.folder, [{"step": number, "loss": 9.0} for number in (1, 2)])
    recorded = loss_to_repeat(job.folder, step)
    losses, _ = update(engine, iter(batches), job, step=4, rate=0.0)
    check_repeated_loss(losses, recorded, step=step + 1, dtype="fp32")


def test_learning_rate_by_hand():
    """Catches: warm-up off by one (first rate 0), or a cosine that does not start at the peak.

    10 steps, 2 of warm-up, then cos(pi k / 8), k = 0..7: 1, .924, .707, .383, 0, -.383, ...
    """
    optim = OptimConfig(learning_rate=2.0, warmup=0.2)
    rates = [learning_rate(optim, step, 10) for step in range(10)]
    cosine = [1 + math.cos(math.pi * k / 8) for k in range(8)]
    assert rates == pytest.approx([1.0, 2.0, *cosine], abs=1e-12)
    assert rates[6] == pytest.approx(1.0)
    assert 0 < rates[-1] < 0.1


def test_learning_rate_without_warmup_and_constant():
    """Catches: a division by zero warm-up steps; a constant schedule that decays."""
    assert learning_rate(OptimConfig(learning_rate=2.0, warmup=0.0), 0, 1) == 2.0
    constant = OptimConfig(learning_rate=2.0, warmup=0.5, schedule="constant")
    assert [learning_rate(constant, step, 4) for step in range(4)] == [1.0, 2.0, 2.0, 2.0]
    assert learning_rate(OptimConfig(learning_rate=2.0, warmup=1.0), 3, 4) == 2.0


@pytest.mark.parametrize(("steps", "warmup"), [(20, 0.1), (7, 0.3), (5, 0.0)])
def test_the_trainers_schedule_to_the_update(steps, warmup):
    """Catches: a warm-up that is one update ahead of transformers' Trainer."""
    optim = OptimConfig(learning_rate=0.3, warmup=warmup, schedule="trainer")
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=optim.learning_rate)
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(warmup * steps), steps)
    for step in range(steps):
        assert learning_rate(optim, step, steps) == pytest.approx(
            schedule.get_last_lr()[0], abs=1e-12
        )
        optimizer.step()
        schedule.step()


def test_the_trainers_number_of_updates():
    """Catches: RLHF-V's 5,733 pairs in 32s for 7 epochs, which are 1,260 updates in the Trainer."""
    optim = OptimConfig(batch=32, epochs=7)
    assert optim.total_steps(5733) == 1254
    assert replace(optim, schedule="trainer").total_steps(5733) == 1260


def test_biases_and_norms_do_not_decay(policy):
    """Catches: weight decay on vectors; a weight in no group, or in two."""
    (everything,) = weight_groups(policy, OptimConfig())
    decaying, others = weight_groups(policy, OptimConfig(weight_decay=0.1))
    assert decaying["weight_decay"] == 0.1 and others["weight_decay"] == 0.0
    names = {id(weight): name for name, weight in policy.named_parameters()}
    kept = {names[id(weight)] for weight in others["params"]}
    assert {name for name in names.values() if name.endswith((".bias", "norm.weight"))} <= kept
    both = [*decaying["params"], *others["params"]]
    assert sorted(map(id, both)) == sorted(map(id, everything["params"]))


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_weights_at_rate_0_stay_and_the_others_move(group, small_model, batches, job, zero_stage):
    """Catches: a group whose rate is set with the others'; a pattern that no name has."""
    model, _ = load_policy(small_model, dtype="fp32", device="cpu")
    policy = AnswerPolicy(model, layout_of(model))
    optim = OptimConfig(batch=2, zero_rate=("vision_tower", "norm[.]weight"))
    with pytest.raises(ConfigError, match=r"zero_rate = 'beit4': no trained weight"):
        weight_groups(policy, replace(optim, zero_rate=("norm", "beit4")))
    config = DDPOConfig(optim=optim, scale=ScaleConfig(zero_stage=zero_stage))
    config = replace(config, model=replace(config.model, dtype="fp32"))
    optimizer = torch.optim.AdamW(weight_groups(policy, optim), lr=1e-3, fused=True)
    with pytest.MonkeyPatch.context() as environment:
        for name, value in RANK_0_OF_1.items():
            environment.setenv(name, value)
        engine = start_engine(policy, optimizer, config)
        before = weights_of(engine)
        update(engine, iter(batches), job, step=0, rate=1e-3)
        after = weights_of(engine)
    moved = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    resting = {name for name in before if "vision_tower" in name or name.endswith("norm.weight")}
    assert not moved & resting
    assert moved >= {name for name in before if "language_model.layers" in name} - resting


@pytest.mark.slow
def test_fine_tuning_weighs_tokens_alike(new_engine, small_model, encoded, processor):
    """Catches: a token of a short answer that weighs more; a mean that depends on the passes."""
    tokens = [len(pair.chosen_ids) for pair in encoded]
    short, long = encoded[tokens.index(min(tokens))], encoded[tokens.index(max(tokens))]
    assert len(short.chosen_ids) < len(long.chosen_ids)
    rows = [to_row(ReferencePair(**vars(one), chosen_logps=[], rejected_logps=[]))
            for one in (short, long)]  # fmt: skip
    sizes = PairSizes([1, 2], [len(short.chosen_ids), len(long.chosen_ids)])
    loss = LossConfig(preference_weight=0.0, sft_weight=1.0, gamma=1.0, sft_mean="tokens")
    policy = new_engine(small_model, batch=2).module
    collate = functools.partial(collate_pairs, processor=processor, rule="muffin")
    totals = {}
    for passes in (1, 2):
        config = DDPOConfig(
            loss=loss, optim=OptimConfig(batch=2), scale=ScaleConfig(micro_batch=2 // passes)
        )
        batches = list(micro_batches(rows, sizes, collate, config, start=0, stop=1))
        assert len(batches) == passes
        with torch.no_grad():
            steps = [batch_loss(policy_token_logps(policy, one), one, loss) for one in batches]
        totals[passes] = sum(step.total.item() for step in steps) / passes  # as the engine does
    one_pass = replace(config, scale=ScaleConfig(micro_batch=2))
    (whole,) = micro_batches(rows, sizes, collate, one_pass, start=0, stop=1)
    with torch.no_grad():
        logps = policy_token_logps(policy, whole)
    expected = -logps.sum().item() / sum(sizes.scored)
    assert totals == pytest.approx({1: expected, 2: expected}, abs=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("group")
def test_memory_that_cannot_be_predicted_stops_nothing(tmp_path, pairs, caplog):
    """Catches: a model whose code cannot run without weights, refused after its reference pass."""
    make = next(make for make in FAMILIES_A if make.__name__ == "qwen3_vl_moe")
    folder = save(make, tmp_path / "model")
    encoded = encode_pair(pairs[0], load_processor(folder), min_match=3, max_length=4096)
    row = to_row(ReferencePair(**vars(encoded), chosen_logps=[], rejected_logps=[]))
    config = DDPOConfig(
        model=ModelConfig(path=str(folder), dtype="fp32"),
        optim=OptimConfig(batch=1),
        scale=ScaleConfig(memory_gib=1.0),
    )
    fitting, gib = fit_worker(config, [row], PairSizes([1], [1]))
    assert (fitting.scale.recompute, gib) == (0, 0.0)
    assert "memory of a step is not known" in caplog.text
