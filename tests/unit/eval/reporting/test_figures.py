"""Figures as files, for any number of models and groups."""

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from eval.benchmarks.contract import WORDS, Ratio, Scores
from eval.reporting.figures import (
    COLORS,
    grouped_metric,
    groups_figure,
    rates_figure,
    training_figure,
)
from eval.reporting.svg import DARK, width_of
from eval.reporting.tables import draw
from rlhfv_ray.errors import DataError
from tests.hand_scores import RATING, base, judged, models, pets, rated

SVG = "{http://www.w3.org/2000/svg}"


def check_svg(path: Path) -> ElementTree.Element:
    """Return a figure; fail if it cannot be read, is small, or shows nothing."""
    figure = ElementTree.parse(path).getroot()
    assert width_of(path.read_text()) > 600
    assert len(list(figure.iter(f"{SVG}path"))) > 20  # something is drawn
    return figure


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
    training_figure([record(step) for step in range(1, count + 1)], tmp_path / "training.svg")
    check_svg(tmp_path / "training.svg")


def test_training_figure_bridges_skipped_updates(tmp_path: Path) -> None:
    records = [
        record(1),
        {"step": 2, "skipped": 1},
        record(3),
    ]  # a non-finite loss is not in the record
    training_figure(records, tmp_path / "training.svg")
    check_svg(tmp_path / "training.svg")
    with pytest.raises(DataError, match="no records"):
        training_figure([], tmp_path / "training.svg")


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_rates_figure(count: int, tmp_path: Path) -> None:
    scores = [*models().values()] * 2
    rates_figure({f"model {n}": scores[n] for n in range(count)}, tmp_path / "rates.svg")
    check_svg(tmp_path / "rates.svg")


def test_many_rates_stand_one_below_the_other(tmp_path: Path) -> None:
    """Catches: a figure so wide that a page shows it with numbers that nobody can read."""
    first = models()["base"]
    metric = first.metrics[0]
    metrics = tuple(
        metric._replace(name=f"rate {place}", better=better)
        for place in range(8)
        for better in ("lower", "higher")
    )
    many = {name: replace(first, metrics=metrics) for name in ("base", "aligned")}
    rates_figure(many, tmp_path / "many.svg")
    rates_figure(models(), tmp_path / "few.svg")
    sizes = [size_of((tmp_path / name).read_text()) for name in ("many.svg", "few.svg")]
    (width, height), (few_width, few_height) = sizes
    assert height > few_height * 1.5 and width < 2.5 * few_width


def size_of(drawing: str) -> tuple[float, ...]:
    """Return the width and height of an SVG in points."""
    names = ("width", "height")
    numbers = [re.search(rf'{name}="([\d.]+)', drawing) for name in names]
    return tuple(float(number[1]) for number in numbers if number)


def test_rates_figure_of_nothing_counted_and_above_100_per_cent(tmp_path: Path) -> None:
    silent = pets([replace(judged(0), ratios={})])
    rates_figure({"base": silent, "aligned": silent}, tmp_path / "rates.svg")
    check_svg(tmp_path / "rates.svg")
    above = rated([6, 5])
    metrics = (above.metrics[0], above.metrics[1]._replace(scale=100.0))  # 550 %
    rates_figure({"base": replace(above, metrics=metrics)}, tmp_path / "rates.svg")
    check_svg(tmp_path / "rates.svg")


def test_each_model_has_its_color(tmp_path: Path) -> None:
    rates_figure(models(), tmp_path / "rates.svg")
    drawn = (tmp_path / "rates.svg").read_text()
    body = drawn[drawn.index("</style>") :]
    number = list(DARK).index(COLORS[1])
    assert COLORS[0] in body and f"var(--c{number})" in body
    assert f"--c{number}:{COLORS[1]};" in drawn and f"--c{number}:{DARK[COLORS[1]]};" in drawn
    assert COLORS[4] not in body and COLORS[1] not in body


def heights(figure: Path) -> list[float]:
    """Return the heights of a figure's bars, in points, in the order of drawing."""
    bars = []
    for shape in check_svg(figure).iter(f"{SVG}path"):
        if "stroke-linejoin: miter" in shape.get("style", "") and "clip-path" in shape.attrib:
            words = shape.get("d", "").split()
            numbers = [float(word) for word in words if word[-1].isdigit()]
            bars.append(max(numbers[1::2]) - min(numbers[1::2]))  # x and y take turns
    return bars


def test_small_bars_are_seen(tmp_path: Path) -> None:
    """Catches: bars of a few per cent on an axis up to 100, which all look like none."""
    answers = [judged(number) for number in range(100)]
    wrong = {"response_rate": Ratio(1, 1)}
    few = [
        replace(item, ratios={**item.ratios, **wrong}) if number < 4 else item
        for number, item in enumerate(answers)
    ]
    rates_figure({"base": pets(few), "aligned": pets(answers)}, tmp_path / "rates.svg")
    bars = heights(tmp_path / "rates.svg")
    assert max(bars) > 50 and min(bars) == pytest.approx(0, abs=1)  # points, of some 250


def test_figures_refuse_what_they_cannot_show(tmp_path: Path) -> None:
    many = {str(n): base() for n in range(len(COLORS) + 1)}
    for figure in (rates_figure, groups_figure):
        for wrong_number in ({}, many):
            with pytest.raises(DataError, match="models side by side"):
                figure(wrong_number, tmp_path / "x.svg")
    with pytest.raises(DataError, match="none of words is in per cent"):
        rates_figure({"base": Scores((WORDS,), base().answers, {})}, tmp_path / "x.svg")
    with pytest.raises(DataError, match="two groups"):
        groups_figure(models(), tmp_path / "x.svg")
    assert not list(tmp_path.iterdir())


def test_a_benchmark_without_a_rate_has_no_figure_of_rates(tmp_path: Path) -> None:
    """Catches: answers that are paid for, and no report, because a score is not in per cent."""
    scores = rated([5])
    (answer,) = scores.answers
    only = replace(answer, ratios={RATING.name: Ratio(5, 1)}, group="")
    assert draw({"one": replace(scores, metrics=(RATING,), answers=(only,))}, tmp_path) == {}
    assert "All rates" in draw({"one": scores}, tmp_path)


def test_groups_figure(tmp_path: Path) -> None:
    groups_figure(
        {"base": rated([0, 6, 2, "refused"]), "aligned": rated([5, 6, 2, 1])},
        tmp_path / "groups.svg",
    )
    check_svg(tmp_path / "groups.svg")


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


def test_the_rates_of_four_models_stay_readable(tmp_path: Path) -> None:
    """Catches: a row of so many bars that a page shows its numbers at half their size."""
    first = models()["base"]
    metrics = tuple(
        first.metrics[0]._replace(name=f"rate {place}", better=better)
        for place in range(8)
        for better in ("lower", "higher")
    )
    scores = replace(first, metrics=metrics)
    rates_figure({f"model {n}": scores for n in range(4)}, tmp_path / "rates.svg")
    width, _ = size_of((tmp_path / "rates.svg").read_text())
    assert width < 1000  # points; the page has some 840
