"""Figures as files, for any number of models and groups."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from eval.benchmarks.contract import WORDS, Scores
from eval.reporting.figures import (
    COLORS,
    grouped_metric,
    groups_figure,
    rates_figure,
    training_figure,
)
from rlhfv_ray.errors import DataError
from tests.hand_scores import base, judged, models, pets, rated


def check_png(path: Path) -> None:
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width > 800 and image.height > 400
        colors = image.convert("RGB").getcolors(maxcolors=1 << 24)
    assert colors is not None and len(colors) > 50  # something is drawn


def record(step: int) -> dict[str, float]:
    rewards = {
        "rewards/chosen": 0.1 * step,
        "rewards/rejected": -0.1 * step,
        "rewards/margins": 0.2 * step,
    }
    return {
        "step": step,
        "loss/preference": 0.69 / step,
        "rewards/accuracies": 0.75,
        "skipped": 0,
        **rewards,
    }


@pytest.mark.parametrize("count", [1, 40])
def test_training_figure(count: int, tmp_path: Path) -> None:
    training_figure([record(step) for step in range(1, count + 1)], tmp_path / "training.png")
    check_png(tmp_path / "training.png")


def test_training_figure_bridges_skipped_updates(tmp_path: Path) -> None:
    records = [
        record(1),
        {"step": 2, "skipped": 1},
        record(3),
    ]  # a non-finite loss is not in the record
    training_figure(records, tmp_path / "training.png")
    check_png(tmp_path / "training.png")
    with pytest.raises(DataError, match="no records"):
        training_figure([], tmp_path / "training.png")


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_rates_figure(count: int, tmp_path: Path) -> None:
    scores = [*models().values()] * 2
    rates_figure({f"model {n}": scores[n] for n in range(count)}, tmp_path / "rates.png")
    check_png(tmp_path / "rates.png")


def test_rates_figure_of_nothing_counted_and_above_100_per_cent(tmp_path: Path) -> None:
    silent = pets([replace(judged(0), ratios={})])
    rates_figure({"base": silent, "aligned": silent}, tmp_path / "rates.png")
    check_png(tmp_path / "rates.png")
    above = rated([6, 5])
    metrics = (above.metrics[0], above.metrics[1]._replace(scale=100.0))  # 550 %
    rates_figure({"base": replace(above, metrics=metrics)}, tmp_path / "rates.png")
    check_png(tmp_path / "rates.png")


def test_each_model_has_its_color(tmp_path: Path) -> None:
    rates_figure(models(), tmp_path / "rates.png")
    with Image.open(tmp_path / "rates.png") as image:
        pixels = {color for _, color in image.convert("RGB").getcolors(maxcolors=1 << 24) or []}
    as_tuples = [tuple(int(color[i : i + 2], 16) for i in (1, 3, 5)) for color in COLORS[:4]]
    assert [color in pixels for color in as_tuples] == [True, True, False, False]


def test_figures_refuse_what_they_cannot_show(tmp_path: Path) -> None:
    many = {str(n): base() for n in range(len(COLORS) + 1)}
    for figure in (rates_figure, groups_figure):
        for wrong_number in ({}, many):
            with pytest.raises(DataError, match="models side by side"):
                figure(wrong_number, tmp_path / "x.png")
    with pytest.raises(DataError, match="none of words is in per cent"):
        rates_figure({"base": Scores((WORDS,), base().answers, {})}, tmp_path / "x.png")
    with pytest.raises(DataError, match="two groups"):
        groups_figure(models(), tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_groups_figure(tmp_path: Path) -> None:
    groups_figure(
        {"base": rated([0, 6, 2, "refused"]), "aligned": rated([5, 6, 2, 1])},
        tmp_path / "groups.png",
    )
    check_png(tmp_path / "groups.png")


def test_groups_are_shown_by_a_metric_that_they_share() -> None:
    """Catches: an empty figure where the first metric belongs to one group of questions only."""
    scores = rated([0, 6, 2, 5])
    counting_only = tuple(
        replace(
            item,
            ratios={
                name: ratio for name, ratio in item.ratios.items() if name != "hallucination_rate"
            },
        )
        if item.group == "other"
        else item
        for item in scores.answers
    )
    percent = replace(scores, metrics=(scores.metrics[0], scores.metrics[1]._replace(scale=100.0)))
    assert grouped_metric({"m": percent}) == percent.metrics[0]
    assert grouped_metric({"m": replace(percent, answers=counting_only)}) == percent.metrics[1]
    assert grouped_metric({"m": replace(scores, answers=counting_only)}) is None
    assert grouped_metric({"m": base()}) is None
