"""What a sweep refuses, predicts and is named by, before its first trial."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from eval.benchmarks.contract import Metric
from eval.benchmarks.shapes import ShapesBenchmark
from eval.config import JudgeConfig
from experiments.recipes import paper_sweep, shapes_small
from experiments.runners.config import SweepConfig
from experiments.runners.sweep_plan import (
    Forecast,
    cost_line,
    device_line,
    disk_of,
    forecast,
    identity,
    keeps_checkpoints,
    objective_of,
    plan_lines,
    with_shared_pace,
)
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.sweep.search_space import plan_trials
from rlhfv_ray.sweep.setting_value import Measure

SMALL = shapes_small()
CONFIG = replace(SMALL, search=replace(SMALL.search, metric="response_rate"))
ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return ShapesBenchmark(tmp_path_factory.mktemp("shapes"), decoding={})


def searched(**search) -> SweepConfig:
    return replace(CONFIG, search=replace(CONFIG.search, **search))


def test_directions_and_units_are_the_benchmarks(benchmark):
    """Catches: an accuracy that is minimised, a rating that is multiplied by 100."""
    objective = objective_of(searched(metric="object_recall", guard="mention_rate"), benchmark)
    assert objective.metric == Measure("object_recall", "higher", 100.0)
    assert objective.guard == Measure("mention_rate", "lower", 100.0)
    assert objective_of(searched(guard=""), benchmark).guard is None


@pytest.mark.parametrize(
    ("search", "reason"),
    [
        ({"metric": "f1"}, "search.metric = 'f1': no such score on shapes. Choose one of response"),
        (
            {"guard": "recalled"},
            "search.guard = 'recalled': no such score.*Choose one of response_rate_all.*or "
            "--search.guard ''",
        ),
        ({"metric": "words"}, "'words': no value of it is better than another"),
        ({"guard": "response_rate"}, "is the metric itself"),
    ],
)
def test_scores_that_cannot_be_used_are_refused(benchmark, search, reason):
    """Catches: a mistyped guard that is found after hours; a mean that has no better direction."""
    with pytest.raises(ConfigError, match=reason):
        objective_of(searched(**search), benchmark)


def test_budget_pace_and_keys_are_no_part_of_the_name():
    """Catches: a raised budget that starts another sweep; a prompt that does not."""
    judge = JudgeConfig(model="m", price_in=1.0, max_cost=1.0)
    one = identity(replace(CONFIG, judge=judge), "reference-1")
    changes = {"max_cost": 5.0, "timeout_s": 9.0, "key_env": "KEY", "requests_per_minute": 7.0}
    for name, value in changes.items():
        changed = replace(CONFIG, judge=replace(judge, **{name: value}), dry_run=True)
        assert identity(changed, "reference-1") == one, name
    assert identity(searched(concurrent=3, keep=5), "r") == identity(CONFIG, "r")
    assert identity(replace(CONFIG, judge=replace(judge, model="n")), "reference-1") != one
    assert identity(searched(within=3.0), "r") != identity(CONFIG, "r")


def test_all_trials_together_keep_the_pace():
    """Catches: a pace for each trial, so that three trials ask three times as fast."""
    judge = JudgeConfig(requests_per_minute=300.0, tokens_per_minute=90.0, concurrency=8)
    shared = with_shared_pace(replace(CONFIG, judge=judge), 3).judge
    paces = (shared.requests_per_minute, shared.tokens_per_minute, shared.concurrency)
    assert paces == (100.0, 30.0, 2)


def test_a_forecast_counts_rungs_seeds_and_epochs():
    """Catches: epochs of the space left out. 8 settings x 3 seeds; 4 go on. 160 pairs in batches of
    16 are 10 updates an epoch: 5 and 10 at the rungs of one epoch, 10 and 20 of two.
    """
    ddpo = replace(CONFIG.ddpo, optim=replace(CONFIG.ddpo.optim, steps=0, batch=16))
    space = replace(
        CONFIG.space, beta=(0.1, 0.2), gamma=(1.0, 5.0), epochs=(1.0, 2.0), seed=(0, 1, 2)
    )
    config = replace(CONFIG, ddpo=ddpo, space=space)
    trials = plan_trials(space, config.search, ddpo)
    counted = forecast(config, trials, 160)
    assert counted.trials == (24, 12) and counted.looks == 36
    assert counted.updates == 24 * 7.5 + 12 * 7.5
    work = 270 * 2 + 36 * 10
    assert counted.seconds(update_s=2.0, look_s=10.0, cold=36) == work + 36 * 20
    assert counted.seconds(update_s=2.0, look_s=10.0, cold=4) == work + 4 * 20 + 32 * 4
    lines = plan_lines(config, trials, counted, 2)
    assert "8 settings x 3 seeds, 2 at a time; by rung: 24, 12" in lines[0]
    assert "seed 0" in lines[2] and "seed 2" in lines[3] and "--optim.epochs 2.0" in lines[3]
    judged = replace(config, judge=JudgeConfig(model="m", price_in=1.0, price_out=2.0, max_cost=3))
    # 25 models on the rungs' questions, 13 on those that choose, 4 on fresh ones; the base in each.
    line = cost_line(judged, {"rungs": 100, "choice": 200, "fresh": 300}, counted)
    assert line == "judging: 6300 verdicts at most, about 8.19 USD; judge.max_cost stops at 3 USD"


def test_gpu_hours_are_told_before_anything_was_measured():
    """Catches: a grid of eight GPUs a trial that tells nothing of its price."""
    scale = replace(CONFIG.ddpo.scale, gpu=True, workers=(2, 8), micro_batch=1, actors=4)
    batch = replace(CONFIG.ddpo.optim, batch=32)
    config = replace(CONFIG, ddpo=replace(CONFIG.ddpo, scale=scale, optim=batch))
    counted = Forecast((8, 4), 450, 12)
    unknown = "GPU hours: 1.0 for each second of an update (450 updates on 8 GPUs), and those of"
    assert device_line(config, counted, None).startswith(unknown)
    assert device_line(config, counted, 900.0) == "GPU hours: about 2.0, with 8 GPUs a trial"
    assert device_line(CONFIG, counted, 3600.0).startswith("CPU hours: about ")


def test_the_page_on_clusters_has_the_papers_sweep():
    """Catches: a price on the page that is no longer that of the grid."""
    config = paper_sweep()
    counted = forecast(config, plan_trials(config.space, config.search, config.ddpo), 1400)
    page = " ".join((ROOT / "docs/cluster.md").read_text().split())
    assert f"a grid of {counted.trials[0]} trials" in page
    assert f"{counted.updates:,} updates" in page and f"{counted.looks} evaluations" in page
    line = device_line(config, counted, None)
    assert f"{line.split()[2]} GPU hours for each second of an update" in page


def test_a_small_disk_trains_again_and_a_tiny_one_is_refused(tmp_path, monkeypatch):
    """Catches: checkpoints of all waiting trials on a disk that holds those of a few."""
    trials = plan_trials(CONFIG.space, CONFIG.search, CONFIG.ddpo)
    counted = forecast(CONFIG, trials, 160)
    disk = disk_of(CONFIG, counted, 1)
    assert disk.all == 4 * disk.least  # 8 trials wait; 1 runs and 1 is kept
    assert keeps_checkpoints(CONFIG, tmp_path, disk)
    free = SimpleNamespace(free=disk.least)
    monkeypatch.setattr("shutil.disk_usage", lambda path: free)
    assert not keeps_checkpoints(CONFIG, tmp_path, disk)
    free.free = disk.least - 1
    with pytest.raises(ConfigError, match="GiB are needed"):
        keeps_checkpoints(CONFIG, tmp_path, disk)


def test_metrics_are_known_before_any_answer(benchmark):
    """Catches: a benchmark whose scores have other metrics than it declares."""
    names = [metric.name for metric in benchmark.metrics]
    assert isinstance(benchmark.metrics[0], Metric) and names[0] == "response_rate"
