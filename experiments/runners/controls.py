"""Control trainings: the same training on pairs that cannot teach to look.

A claim is about what is learnt from pictures. So it stands as the difference between a training and
its controls, and a sentence says how much of the gain a control keeps. Experiments have control
models, studies have control arms.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from eval.benchmarks.contract import Metric, Scores
from eval.reporting.wording import format_cell, humanize, label
from experiments.runners.contrasts import Claim
from experiments.runners.study_arms import Arm, Change, Study
from experiments.runners.study_results import StudyResults
from rlhfv_ray.config import DDPOConfig
from rlhfv_ray.pipeline import OnRecords, Pipeline, plan_pipeline
from rlhfv_ray.shapes.controls import Control

KEPT = ("response_rate", "phrase_f1")  # metrics whose gain the sentences speak of
SHOWN = ("phrase_f1", "exact_answers", "response_rate", "typical_recall", "untypical_recall")


def control_pipelines(
    config: DDPOConfig, controls: Sequence[Control], storage: Path, *, seen: OnRecords
) -> dict[str, Pipeline]:
    """Plan the same training on control pairs, by the name of the control."""
    return {
        control_name(control): _titled(
            plan_pipeline(with_control(config, control), storage, seen=seen), control
        )
        for control in controls
    }


def with_control(config: DDPOConfig, control: Control) -> DDPOConfig:
    """Return a training's settings with control pairs in the place of the true ones."""
    return replace(config, shapes=replace(config.shapes, control=control))


def control_name(control: Control) -> str:
    """Return a control's name as tables show it."""
    return control.replace("_", " ")


def _titled(pipeline: Pipeline, control: Control) -> Pipeline:
    """Name the control in the titles of the stages that are not shared with the true pairs."""
    first = [stage.name for stage in pipeline.stages].index("control")
    shared, own = pipeline.stages[: first + 1], pipeline.stages[first + 1 :]
    titled = [replace(stage, title=f"{stage.title}, {control_name(control)}") for stage in own]
    return replace(pipeline, stages=(*shared, *titled), train=titled[-1])


def controls_table(models: Mapping[str, Scores]) -> Table:
    """Return the headline numbers of the base, the aligned and the control models, in order."""
    table = Table(title="With controls", box=SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("metric")
    for name in models:
        table.add_column(name, justify="right", min_width=9)
    rates = [scores.rates() for scores in models.values()]
    for metric in shown_metrics(models):
        cells = [format_cell(metric, values.get(metric.name)).number for values in rates]
        table.add_row(label(metric), *cells)
    return table


def shown_metrics(models: Mapping[str, Scores]) -> list[Metric]:
    """Return the metrics of the table of controls, the headline first."""
    metrics = next(iter(models.values())).metrics
    chosen = [metric for metric in metrics if metric.name in SHOWN] or list(metrics[:1])
    order = {name: place for place, name in enumerate(SHOWN)}
    return sorted(chosen, key=lambda metric: order.get(metric.name, 0))


def kept_shares(base: Scores, aligned: Scores, control: Scores) -> dict[str, float]:
    """Return the control's gain over the base as a share of the aligned model's, by metric.

    Metrics of `KEPT` without a gain are left out. A share below 0 is a loss.
    """
    shares: dict[str, float] = {}
    for metric in base.metrics:
        values = [scores.rates().get(metric.name) for scores in (base, aligned, control)]
        rates = [rate for rate in values if rate is not None]
        if metric.name not in KEPT or len(rates) < len(values):
            continue
        share = _share(metric, rates[1] - rates[0], rates[2] - rates[0])
        if share is not None:
            shares[metric.name] = share
    return shares


def kept_sentence(name: str, shares: Mapping[str, float]) -> str:
    """Say how much of the gain a control keeps; empty if nothing was gained."""
    parts = [
        f"{round(100 * share)} % of the gain in {humanize(metric)}"
        for metric, share in shares.items()
    ]
    return f"{name} keeps {' and '.join(parts)}." if parts else ""


def control_arm(arm: str, control: Control) -> str:
    """Return the name of a control arm."""
    return f"{arm}, {control_name(control)}"


def with_controls(study: Study, controls: Sequence[Control]) -> Study:
    """Return a study with control arms of its claimed arm, and with the contrasts against them."""
    claim = study.claim
    (claimed,) = [arm for arm in study.arms if arm.name == claim.arm]
    if claimed.change is None:
        return study
    names = [control_arm(claim.arm, control) for control in controls]
    arms = [
        Arm(name, _controlled(claimed.change, control))
        for name, control in zip(names, controls, strict=True)
    ]
    comparisons = (*claim.others, *((claim.arm, name) for name in names))
    return replace(study, arms=(*study.arms, *arms), claim=claim._replace(others=comparisons))


def kept_gains(
    claim: Claim, results: StudyResults, base: str, controls: Sequence[Control]
) -> list[str]:
    """Say how much of the claimed arm's gain over the base model its controls keep."""
    texts: list[str] = []
    for control in controls:
        name = control_arm(claim.arm, control)
        shares = {metric: kept_gain(results, base, claim.arm, name, metric) for metric in KEPT}
        known = {metric: share for metric, share in shares.items() if share is not None}
        texts.append(kept_sentence(name, known))
    return [text for text in texts if text]


def kept_gain(
    results: StudyResults, base: str, arm: str, control: str, metric: str
) -> float | None:
    """Return the control's gain over the base as a share of the arm's; None without a gain.

    A share below 0 is a loss.
    """
    metrics = {known.name: known for known in results.metrics}
    if metric not in metrics:
        return None
    change, control_change = (
        results.difference(trained, base, metric).mean for trained in (arm, control)
    )
    return _share(metrics[metric], change, control_change)


def _share(metric: Metric, change: float, control_change: float) -> float | None:
    """Return the control's change as a share of the other; None if that one is no gain."""
    sign = -1 if metric.better == "lower" else 1
    return control_change / change if sign * change > 0 else None


def _controlled(change: Change, control: Control) -> Change:
    def trained(config: DDPOConfig, pipeline: Pipeline) -> DDPOConfig:
        return with_control(change(config, pipeline), control)

    return trained
