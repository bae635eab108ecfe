"""The stages of the shapes world's data: their order, the gate of texts, and control pairs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.recipes import shapes, shapes_biased
from rlhfv_ray.config import DDPOConfig
from rlhfv_ray.data import load_pairs, write_pairs
from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.records import PreferencePair
from rlhfv_ray.shapes.controls import controlled
from rlhfv_ray.shapes.text_audit import FEWEST
from rlhfv_ray.shapes_stages import (
    CORRECTED,
    PAIRS,
    audit_stage,
    control_stage,
    left_out,
    pairs_stage,
    read_audit,
    shapes_stages,
)
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.stages import Stage, run_stages
from tests.conftest import careless_pairs

# Names of the stages of the released recipes: same names, same results.
RELEASED = {"shapes": "corrections-c22e64b63d32", "shapes_biased": "corrections-61d441ade0e4"}


def config(**changes: object) -> DDPOConfig:
    recipe = shapes()
    return replace(recipe, shapes=replace(recipe.shapes, **changes))


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, ["corrections", "audit"]),
        ({"control": "blank"}, ["corrections", "audit", "control"]),
        ({"world": "biased"}, ["corrections"]),
        ({"world": "biased", "control": "permuted"}, ["corrections", "control"]),
        ({"pairs": "rankings", "control": "blank"}, ["rankings", "control"]),
    ],
)
def test_stages_and_the_one_that_holds_the_pairs(changes, names, tmp_path):
    """Catches: a control that makes its own answers; training on the gate's folder."""
    stages = shapes_stages(config(**changes), tmp_path)
    assert [stage.name for stage in stages] == names
    assert pairs_stage(stages).name == [name for name in names if name != "audit"][-1]
    answers = replace(config(**changes).shapes, control="none")
    assert stages[0].inputs == shapes_stages(config(**vars(answers)), tmp_path)[0].inputs


def test_settings_have_stages_of_their_own(tmp_path):
    """Catches: one world's pairs taken for another's; results of today's default made anew."""
    changes = ({}, {"world": "biased"}, {"left": 0.2}, {"wrong": 0.2}, {"seed": 1})
    folders = [shapes_stages(config(**change), tmp_path)[0].folder(tmp_path) for change in changes]
    assert len(set(folders)) == len(changes)
    for recipe in (shapes(), shapes_biased()):
        (first, *_) = shapes_stages(recipe, tmp_path)
        assert first.folder(tmp_path).name == RELEASED[recipe.name.replace("-", "_")]
    controls = [
        shapes_stages(config(control=control, seed=seed), tmp_path)[-1].folder(tmp_path)
        for control in ("permuted", "blank", "blind")
        for seed in (0, 1)
    ]
    assert len(set(controls)) == 6


@pytest.fixture
def corrections(tmp_path: Path) -> Path:
    folder = tmp_path / "corrections"
    folder.mkdir()
    write_pairs(careless_pairs(120), folder / PAIRS)
    return folder


def test_the_gate_stops_pairs_that_texts_tell(corrections, tmp_path):
    """Catches: a gate that measures and lets everything pass; a failure without the figure."""
    stage = audit_stage(corrections)
    with pytest.raises(StageFailedError, match=r"tells \d\d\.\d % .*--shapes.temperature 1"):
        run_stages([stage], tmp_path)
    audit = read_audit([stage], tmp_path)
    assert audit is not None and audit["told"] > 0.7
    assert read_audit([], tmp_path) is None


def test_the_gate_lets_mirrored_pairs_pass(corrections, tmp_path):
    """Catches: a gate that nothing passes.

    Half of the pairs have chosen and rejected swapped, so no text can tell.
    """
    pairs = list(load_pairs(str(corrections / PAIRS)))
    write_pairs([mirrored(pair, number % 2) for number, pair in enumerate(pairs)],
                corrections / PAIRS)  # fmt: skip
    stage = audit_stage(corrections)
    run_stages([stage], tmp_path)
    audit = json.loads((stage.folder(tmp_path) / "audit.json").read_text())
    assert audit["pairs"] == 120 and audit["told_interval"][0] < 0.5


def test_the_gate_leaves_no_figure_of_too_few_pairs(corrections, tmp_path):
    """Catches: a small trial run that fails for want of pairs; a figure that nothing was trained
    for.
    """
    write_pairs(careless_pairs(FEWEST - 1), corrections / PAIRS)
    stage = audit_stage(corrections)
    run_stages([stage], tmp_path)
    assert read_audit([stage], tmp_path) == {"pairs": FEWEST - 1}


def test_corrections_that_are_left_out_are_counted(tmp_path):
    """Catches: pairs dropped for balance without a trace; a count without the number of all."""

    def run(folder: Path, _: str) -> None:
        write_pairs(careless_pairs(FEWEST - 10), folder / PAIRS)
        write_json(folder / CORRECTED, {"scenes": 80, "corrected": FEWEST})

    corrections = Stage("corrections", {}, run, title="corrections")
    stages = [corrections, audit_stage(corrections.folder(tmp_path))]
    run_stages(stages, tmp_path)
    assert left_out(stages, tmp_path) == (10, FEWEST)
    assert left_out([corrections], tmp_path) is None  # no gate
    (corrections.folder(tmp_path) / CORRECTED).unlink()
    assert left_out(stages, tmp_path) is None  # made before the numbers were recorded


def mirrored(pair: PreferencePair, is_odd: int) -> PreferencePair:
    return replace(pair, chosen=pair.rejected, rejected=pair.chosen) if is_odd else pair


def test_control_pairs_are_made_of_the_true_ones(corrections, tmp_path):
    """Catches: a control stage that writes the true pairs, or those of another control."""
    for control in ("permuted", "blind"):
        stage = control_stage(config(control=control), corrections)
        run_stages([stage], tmp_path)
        written = list(load_pairs(str(stage.folder(tmp_path) / PAIRS)))
        true_pairs = list(load_pairs(str(corrections / PAIRS)))
        expected = controlled(true_pairs, control, seed=shapes().shapes.seed)
        assert [(pair.image, pair.chosen, pair.rejected) for pair in written] == [
            (pair.image, pair.chosen, pair.rejected) for pair in expected
        ]
        assert [pair.image for pair in written] != [pair.image for pair in true_pairs] or (
            control == "blind"
        )
