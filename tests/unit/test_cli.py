"""Bad input on the command line: one screen, the fix, exit code 2, no traceback, no Ray started."""

import json
import shutil
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from experiments import (
    ablation,
    audit_pairs,
    data_scaling,
    ddpo,
    over_generalization,
    segment_rules,
    sft,
    sweep,
)
from experiments.command import STUDIES
from rlhfv_ray.config import DDPOConfig, ModelConfig
from rlhfv_ray.console import run_command
from rlhfv_ray.data import write_pairs
from rlhfv_ray.pipeline import with_full_path
from rlhfv_ray.storage.files import write_json
from tests.conftest import careless_pairs


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the command line in an empty folder; returns exit code and everything printed."""

    def command(*arguments: str, of=ddpo) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"{of.__name__}.py", *arguments])
        monkeypatch.setenv(
            "COLUMNS", "200"
        )  # paths of temporary folders are long: none is to be broken
        try:
            code = run_command(of.main)
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        return code, " ".join((printed.out + printed.err).replace("│", " ").split())

    return command


@pytest.fixture
def small(small_model, tmp_path):
    """A copy of the small model that a test may spoil, and pairs for it."""
    folder = tmp_path / "model"
    shutil.copytree(small_model, folder)
    write_pairs(careless_pairs(4), tmp_path / "pairs.parquet")
    return folder


def paper(small, *more: str) -> list[str]:
    return [
        "paper",
        "--model.path",
        str(small),
        "--data.path",
        str(small.parent / "pairs.parquet"),
        *more,
    ]


def assert_explained(result: tuple[int, str], *said: str) -> None:
    code, printed = result
    assert code == 2, printed
    assert "Traceback" not in printed
    for part in said:
        assert part in printed
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nosuch"], "shapes, signs, shapes_biased, paper, released, released_2023, dpo"),
        (["shapes", "--loss.gama", "3"], "--loss.gamma"),
        (["shapes", "--loss.gamma", "0.5"], "loss.gamma = 0.5: must be >= 1"),
        (["shapes", "--loss.gamma", "many"], "--loss.gamma"),
        (["shapes", "--scale.micro-batch", "5"], "optim.batch = 16: must be a multiple"),
        (
            ["shapes", "--storage", "nowhere://bucket/runs"],
            "Install fsspec's package for nowhere://",
        ),
        (["paper"], "data.path is not set"),
        (["paper", "--data.path", "rows.parquet"], "model.path is not set"),
        (
            ["paper", "--data.path", "rows.parquet", "--model.path", "/no/such/model"],
            "no such folder",
        ),
    ],
)
def test_arguments(run, arguments, said):
    """Catches: a mistyped or missing setting that starts a job, or ends in a traceback."""
    assert_explained(run(*arguments), said)


@pytest.mark.parametrize(
    ("of", "arguments", "said"),
    [
        (sft, ["shapes", "--loss.sft-weight", "0"], "loss.sft_weight = 0.0: must be above 0"),
        (sft, ["llava15", "--model.path", "x"], "data.path is not set"),
        (
            sweep,
            ["shapes-small", "--space.gamma", "0.5", "5"],
            "Trial gamma 0.5, beta 0.3: loss.gamma = 0.5: must be >= 1",
        ),
        (
            sweep,
            ["shapes-small", "--space.beta-normalized", "1"],
            "space.beta_normalized = (1.0,): no trial has normalised",
        ),
        (sweep, ["paper"], "data.path is not set"),
        (ablation, ["shapes", "--seeds", "0"], "seeds = (0,): must be two different ones at least"),
        (ablation, ["paper", "--ddpo.data.path", "rows.parquet"], "model.path is not set"),
        (segment_rules, ["paper", "--ddpo.model.path", "x"], "data.path is not set"),
        (over_generalization, ["shapes", "--benchmark", "nosuch"], "object_halbench"),
        (data_scaling, ["shapes", "--epochs", "0"], "optim.epochs = 0.0: must be > 0"),
        (
            ablation,
            ["paper", "--controls", "blank"],
            "must be empty with data of your own",
        ),
        (ablation, ["shapes", "--controls", "none"], "without `none`"),
        (audit_pairs, ["nosuch.parquet"], "nosuch.parquet"),
        (ddpo, ["shapes", "--shapes.left", "2"], "shapes.left = 2.0: must be 0 to 1"),
    ],
)
def test_arguments_of_the_other_commands(run, of, arguments, said):
    """Catches: a study or sweep that starts a job on a setting that cannot be, or ends in a
    traceback.
    """
    assert_explained(run(*arguments, of=of), said)


def test_workers_get_a_model_s_full_path(small, monkeypatch):
    """Catches: a folder given from the current one on, which training workers do not find."""
    monkeypatch.chdir(small.parent)
    for given, full in (("model", str(small.resolve())), ("owner/name", "owner/name")):
        config = DDPOConfig(model=ModelConfig(path=given))
        assert with_full_path(config).model.path == full


def test_mixed_data_is_counted_before_anything_starts(small, run):
    """Catches: weights of sources that are not there, which mix something else; pairs that are
    mixed although DDPO reads one source."""
    said = ("data.mix_weights = (50, 50)", "sources (1:", "--data.mixed-with")
    assert_explained(run("muffin_vqa", *paper(small)[1:], of=sft), *said)
    mixed = run(*paper(small, "--data.mixed-with", "more.parquet"))
    assert_explained(mixed, "data.mixed_with", "fine-tuning")


@pytest.mark.parametrize(
    "of", [sft, sweep, ablation, data_scaling, over_generalization, segment_rules]
)
def test_every_command_explains_itself(run, of):
    """Catches: a command without help, or one that starts on --help."""
    code, printed = run("--help", of=of)
    assert code == 0
    name = of.__name__.split(".")[-1]
    command = f"study {name}" if name in STUDIES else name
    assert f"rlhfv-ray {command} " in printed and "subcommands" in printed


def test_missing_data_path(run, small):
    """Catches: a missing file found only by a worker."""
    (small.parent / "pairs.parquet").unlink()
    assert_explained(run(*paper(small)), "pairs.parquet")


def test_data_without_the_needed_columns(run, small):
    """Catches: a message that leaves people guessing which layout was expected."""
    pq.write_table(pa.table({"question": ["?"], "chosen": ["a"]}), small.parent / "pairs.parquet")
    assert_explained(run(*paper(small)), "rejected", "rlaifv")


def test_image_tokens_do_not_match_the_template(run, small):
    """Catches: a mismatch that shows up as a shape error on the first batch."""
    settings = json.loads((small / "processor_config.json").read_text())
    write_json(small / "processor_config.json", {**settings, "patch_size": 8})
    assert_explained(run(*paper(small)), "64 image tokens", "16 features")


def test_reference_folder_of_another_model(run, small, tmp_path):
    """Catches: reference log-probs reused because their folder has the right name."""
    folder = tmp_path / "reference"
    folder.mkdir()
    assert_explained(
        run(*paper(small, "--data.reference", str(folder))), "no finished reference folder"
    )
    from rlhfv_ray.config import DataConfig, ModelConfig
    from rlhfv_ray.inference.reference import reference_inputs

    inputs = reference_inputs(ModelConfig(str(small)), DataConfig(str(tmp_path / "pairs.parquet")))
    write_json(folder / "config.json", {**inputs, "weights": "other"})
    write_json(folder / "SUCCESS", {"seconds": 1, "files": {}})
    assert_explained(
        run(*paper(small, "--data.reference", str(folder))),
        "StaleReferenceError",
        "weights: 'other' in the folder",
    )


def test_model_without_a_chat_template(run, small):
    """Catches: prompts in a made-up template."""
    (small / "chat_template.jinja").unlink()
    assert_explained(run(*paper(small)), "no chat template")


def test_help_lists_recipes_and_fields(run):
    """Catches: a field without help."""
    code, printed = run("--help")
    assert code == 0
    assert all(
        recipe in printed for recipe in ("shapes", "paper", "released", "released_2023", "dpo")
    )
    code, printed = run("shapes", "--help")
    assert code == 0
    assert "--loss.gamma" in printed
    assert "Weight of corrected tokens" in printed


def test_an_audit_of_pairs_prints_its_figures(run, tmp_path):
    """Catches: an audit of another file, or one whose figures nobody sees."""
    write_pairs(careless_pairs(60), tmp_path / "pairs.parquet")
    code, printed = run("pairs.parquet", of=audit_pairs)
    assert code == 0
    for figure in ("pairs 60", "answer told", "more typical shapes 0", "60 of 60 rows"):
        assert figure in " ".join(printed.replace("│", " ").split())
