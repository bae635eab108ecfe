"""Every module has its unit file, or a named test that covers it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Modules that only a real Ray, DeepSpeed, command line or server shows at work: the test that does.
COVERED_ELSEWHERE = {
    "rlhfv_ray/doctor/__main__.py": "tests/ray/test_experiment.py",
    "rlhfv_ray/pipeline.py": "tests/unit/test_cli.py",
    "rlhfv_ray/errors.py": "tests/unit/test_cli.py",
    "rlhfv_ray/records.py": "tests/unit/models/test_batch.py",
    "rlhfv_ray/data/audit_page.py": "tests/unit/data/test_audit.py",
    "rlhfv_ray/data/detection.py": "tests/unit/data/test_reading.py",
    "rlhfv_ray/data/files/image_sources.py": "tests/unit/data/test_pair_formats.py",
    "rlhfv_ray/data/messages.py": "tests/unit/data/test_cases.py",
    "rlhfv_ray/data/row_fields.py": "tests/unit/data/test_fuzz.py",
    "rlhfv_ray/data/templates.py": "tests/unit/data/test_encoding.py",
    "rlhfv_ray/models/checkpoint_files.py": "tests/unit/models/test_loading.py",
    "rlhfv_ray/models/processors.py": "tests/unit/models/test_loading.py",
    "rlhfv_ray/crew/crew.py": "tests/ray/test_crew.py",
    "rlhfv_ray/crew/member.py": "tests/ray/test_crew.py",
    "rlhfv_ray/crew/group_watch.py": "tests/ray/test_train.py",
    "rlhfv_ray/training/job.py": "tests/ray/test_train.py",
    "rlhfv_ray/training/metrics_reporter.py": "tests/ray/test_train.py",
    "rlhfv_ray/training/train.py": "tests/ray/test_train.py",
    "rlhfv_ray/training/warm.py": "tests/ray/test_crew.py",
    "rlhfv_ray/training/reshard.py": "tests/invariants/test_deepspeed.py",
    "rlhfv_ray/sweep/trials.py": "tests/ray/test_sweep.py",
    "rlhfv_ray/sweep/trainings.py": "tests/ray/test_trainings.py",
    "rlhfv_ray/tracking/lineage.py": "tests/unit/tracking/test_run.py",
    "rlhfv_ray/tracking/replay.py": "tests/unit/tracking/test_run.py",
    "eval/run.py": "tests/ray/test_evaluation.py",
    "eval/reporting/tables.py": "tests/unit/eval/test_report.py",
    "eval/reporting/comparison.py": "tests/unit/eval/test_report.py",
    "experiments/audit_pairs.py": "tests/unit/data/test_audit.py",
    "experiments/data_scaling.py": "tests/unit/test_cli.py",
    "experiments/ddpo.py": "tests/unit/test_cli.py",
    "experiments/over_generalization.py": "tests/ray/test_sweep_line.py",
    "experiments/recipes.py": "tests/unit/test_config.py",
    "experiments/segment_rules.py": "tests/unit/test_cli.py",
    "experiments/sft.py": "tests/unit/test_cli.py",
    "experiments/sweep.py": "tests/unit/test_cli.py",
    "experiments/sync_tracking.py": "tests/unit/tracking/test_run.py",
    "experiments/runners/study_arms.py": "tests/unit/experiments/runners/test_controls.py",
    "experiments/runners/sweep.py": "tests/ray/test_sweep_line.py",
}


def unit_file(module: str) -> Path:
    """The place of a module's unit file; those of `rlhfv_ray` stand at the top of tests/unit."""
    *folders, name = module.removeprefix("rlhfv_ray/").split("/")
    return ROOT.joinpath("tests/unit", *folders, f"test_{name}")


MODULES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in ("rlhfv_ray", "eval", "experiments")
    for path in (ROOT / package).rglob("*.py")
    if path.name != "__init__.py"
)


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_its_unit_file_or_names_its_test(module):
    """Catches: a module without a test; a named test that is gone or needless."""
    own = unit_file(module).exists()
    elsewhere = COVERED_ELSEWHERE.get(module)
    asked = f"add {unit_file(module).relative_to(ROOT)}, or a line in COVERED_ELSEWHERE, not both"
    assert own != (elsewhere is not None), f"{module}: {asked}"
    if elsewhere is not None:
        assert any(test.startswith("test_") for test in functions(ROOT / elsewhere)), elsewhere


def test_no_module_that_is_gone_is_named():
    """Catches: a table that outlives what it speaks of."""
    assert set(COVERED_ELSEWHERE) - set(MODULES) == set()


def functions(path: Path) -> list[str]:
    """Names of the functions of a test file."""
    return [node.name for node in ast.parse(path.read_text()).body if hasattr(node, "name")]
