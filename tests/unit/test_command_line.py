"""`--config FILE`, the short help, and flags with another name than before."""

import json
import logging
import re
import sys
from dataclasses import replace

import pytest

from eval.config import EvalConfig
from experiments.ablation import AblationConfig
from experiments.recipes import (
    EXPERIMENT_FLAGS,
    RECIPES,
    STUDY_FLAGS,
    SWEEP_FLAGS,
    SWEEPS,
    study_config,
)
from experiments.runners.config import ExperimentConfig, StudyConfig
from rlhfv_ray.command_line import call, choose, current_flags, print_short_help, read_arguments
from rlhfv_ray.config import ModelConfig, TrackingConfig, plain
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.storage.files import write_json

EXPERIMENTS = {
    name: lambda recipe=recipe: ExperimentConfig.of(recipe()) for name, recipe in RECIPES.items()
}


@pytest.fixture
def typed(monkeypatch):
    """Read a command line as `ddpo.py` does."""

    def read(*words: object) -> ExperimentConfig:
        monkeypatch.setattr(sys, "argv", ["ddpo.py", *map(str, words)])
        return choose(EXPERIMENTS, description="d", main_flags=EXPERIMENT_FLAGS)

    return read


def test_the_file_of_a_run_repeats_its_settings(typed, tmp_path):
    """Catches: a setting that is lost or changed between config.json and the command line."""
    config = ExperimentConfig.of(RECIPES["released"]())
    config = replace(
        config,
        name="mine",
        benchmarks=("pope", "amber"),
        model=ModelConfig("/m o d e l", trainable=("language",), dtype="bf16"),
        generation=replace(config.generation, stop=("###", "a b"), temperature=0.0),
    )
    write_json(tmp_path / "config.json", {"config": plain(config), "stages": []})
    assert typed("--config", tmp_path / "config.json") == config
    changed = typed("--loss.gamma=3", f"--config={tmp_path / 'config.json'}", "--scale.no-gpu")
    assert changed.loss == replace(config.loss, gamma=3.0) and not changed.scale.gpu


def test_a_file_of_a_windows_program_is_read(typed, tmp_path):
    """Catches: the mark that Windows' programs write at a file's start, taken for a setting."""
    for name, text in (("my.yaml", "loss: {beta: 0.3}"), ("my.json", '{"loss": {"beta": 0.3}}')):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert typed("paper", "--config", tmp_path / name).loss.beta == 0.3


def test_a_yaml_file_changes_a_recipe(typed, tmp_path):
    """Catches: a file that replaces the recipe, wins over flags, or reads 1e-5 as a text."""
    file = tmp_path / "my.yaml"
    file.write_text("recipe: paper\noptim: {learning_rate: 1e-5, batch: 64}\nbenchmarks: [pope]\n")
    config = typed("--config", file, "--optim.batch", "16")
    expected = EXPERIMENTS["paper"]()
    optim = replace(expected.optim, learning_rate=1e-5, batch=16)
    assert config == replace(expected, optim=optim, benchmarks=("pope",))
    assert typed("dpo", "--config", file).loss == RECIPES["dpo"]().loss


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("loss: {gamma: 3}", "names no recipe. Add a line `recipe: NAME`"),
        ("- 1\n- 2", "is no mapping of names to settings"),
        ("a: [", "cannot be read"),
        ("recipe: papr", "recipe = 'papr' is not one of"),
        ("recipe: paper\nloss: {beta: [1, 2]}", "loss.beta = [1, 2]: it takes one value"),
        ("recipe: paper\nscale: {gpu: 'no'}", 'scale.gpu = "no": true or false is expected'),
        ("recipe: paper\nscale: {gpu: 0}", "scale.gpu = 0: true or false is expected"),
        ("recipe: paper\noptim: 3", "optim = 3: it is a group of settings (learning_rate, "),
        ("recipe: paper\noptim: {steps: on}", "optim.steps = true: no true or false is expected"),
        ("recipe: paper\ndata: {columns: {chosen: good}}", "data.columns is one setting, and no"),
        ("recipe: paper\ntracking: {uri: 'http://***@host'}", "without its password. Add --track"),
    ],
)
def test_a_file_that_cannot_be_used(typed, tmp_path, content, said):
    """Catches: a traceback, or a run with other settings than the file's."""
    file = tmp_path / "my.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=re.escape(said)):
        typed("--config", file)


def test_unknown_settings_and_missing_files(typed, tmp_path, capsys):
    """Catches: a mistyped name in a file that is ignored."""
    file = tmp_path / "my.yaml"
    file.write_text("recipe: paper\nloss: {gama: 3}\n")
    with pytest.raises(SystemExit):
        typed("--config", file)
    assert "--loss.gamma" in capsys.readouterr().err.replace("│", "")
    with pytest.raises(ConfigError, match="cannot be read"):
        typed("paper", "--config", tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="needs a file"):
        typed("paper", "--config")
    with pytest.raises(ConfigError, match="given twice"):
        typed("paper", "--config", file, "--config", file)


def test_the_file_of_another_commands_run_is_refused_in_a_sentence(typed, tmp_path):
    """Catches: hundreds of unrecognised flags, as of the newest run, which was a study."""
    file = tmp_path / "config.json"
    settings = {"name": "ablation", "seeds": [0, 1], "ddpo": {"seed": 0}}
    write_json(file, {"config": settings})
    with pytest.raises(ConfigError, match="run named 'ablation', whose settings ddpo, seeds"):
        typed("--config", file)


def test_a_misspelt_flag_is_corrected_for_the_recipe_that_was_typed(typed, capsys):
    """Catches: one screen of all recipes' defaults, with commands that do not exist."""
    with pytest.raises(SystemExit):
        typed("paper", "--loss.bata", "0.3")
    error = capsys.readouterr().err
    assert error.count("--loss.beta") == 1 and "ddpo.py paper --help" in error


def test_a_study_takes_flags_without_a_recipe(monkeypatch):
    """Catches: `study ablation --dry-run` refused, although `study ablation` means a recipe."""
    monkeypatch.setattr(sys, "argv", ["ablation.py", "--dry-run", "--seeds", "0", "7"])
    config = study_config(AblationConfig, None)
    monkeypatch.setattr(sys, "argv", ["ablation.py", "shapes", "--dry-run", "--seeds", "0", "7"])
    assert config == study_config(AblationConfig, None)
    assert config.dry_run and config.seeds == (0, 7) and config.ddpo.name == "shapes"


def test_a_password_that_is_typed_again_replaces_the_hidden_one(typed, tmp_path):
    """Catches: a file that cannot be used any more because it had a password."""
    config = replace(EXPERIMENTS["dpo"](), tracking=TrackingConfig("http://me:secret@host"))
    write_json(tmp_path / "config.json", {"config": plain(config)})
    assert "secret" not in (tmp_path / "config.json").read_text()
    again = typed("--config", tmp_path / "config.json", "--tracking.uri", "http://me:secret@host")
    assert again == config


def test_lists_numbers_and_nothing(monkeypatch, tmp_path):
    """Catches: a list, a switch or an empty value of a file that reads otherwise on the command
    line.
    """
    written = {"judge": {"seed": None, "structured": True}, "model": [], "answers": ["a.json"]}
    (tmp_path / "eval.json").write_text(json.dumps(written))
    monkeypatch.setattr(sys, "argv", ["run.py", "--config", str(tmp_path / "eval.json")])
    words = ["--judge.seed=None", "--judge.structured", "--model", "--answers", "a.json"]
    assert read_arguments() == words


@pytest.mark.parametrize(
    ("config", "flags"),
    [
        (EXPERIMENTS["paper"](), EXPERIMENT_FLAGS),
        (SWEEPS["paper"](), SWEEP_FLAGS),
        (StudyConfig(), STUDY_FLAGS),
        (EvalConfig, ("model", "judge.base_url")),
    ],
)
def test_the_short_help_fits_on_a_screen(monkeypatch, capsys, config, flags):
    """Catches: a flag without help, a value that is not shown, more than 40 lines."""
    monkeypatch.setenv("COLUMNS", "80")
    print_short_help(config, flags)
    printed = capsys.readouterr().out
    assert printed.count("\n") <= 40
    for name in flags:
        flag = f"--{name.replace('_', '-')} "
        (line,) = (text for text in printed.splitlines() if flag in text)
        assert len(line.split()) > 2, line
    assert "--help-all" in printed and "--config FILE" in printed


def test_the_short_help_says_that_updates_win_over_epochs(monkeypatch, capsys):
    """Catches: `--optim.epochs 1` that changes nothing in a recipe with a number of updates."""
    monkeypatch.setenv("COLUMNS", "200")
    print_short_help(EXPERIMENTS["shapes"](), EXPERIMENT_FLAGS)
    printed = capsys.readouterr().out
    assert "not used where optim.steps is set" in printed and "--optim.steps" in printed


def test_help_all_lists_every_setting(typed, capsys):
    """Catches: a setting that no help shows."""
    for word, shown in (("--help", False), ("--help-all", True)):
        with pytest.raises(SystemExit):
            typed("paper", word)
        assert ("--scale.zero-stage" in capsys.readouterr().out) is shown


def test_an_old_name_works_and_warns_once(caplog):
    """Catches: an old flag that fails or works silently; a warning for every use."""
    with caplog.at_level(logging.WARNING):
        flags = current_flags(["paper", "--data.max-rejected", "0.1", "--data.max_rejected=0.2"])
    assert flags == ["paper", "--data.max-unusable", "0.1", "--data.max-unusable=0.2"]
    assert [record.getMessage() for record in caplog.records] == [
        "--data.max-rejected is now called --data.max-unusable."
    ]


def test_values_and_other_flags_stay(caplog):
    """Catches: a value that is taken for a flag, or a flag whose end looks like an old one."""
    arguments = ["--data.path", "data.max-rejected", "--mydata.max-rejected", "1"]
    assert current_flags(arguments) == arguments
    assert not caplog.records


def test_the_short_help_of_a_function_leaves_out_a_group(monkeypatch, capsys):
    """Catches: a group that nobody can set any more; a help that is not about the function."""

    def shown(rows: int = 3, *, data: ModelConfig = ModelConfig()) -> tuple[int, str]:  # noqa: B008
        """Show rows.

        Args:
            rows: how many to show.
            data: where they are.
        """
        return rows, data.path

    for word, has_all in (("--help", False), ("--help-all", True)):
        monkeypatch.setattr(sys, "argv", ["show", word])
        with pytest.raises(SystemExit):
            call(shown, description="Show rows.\n\n    show --rows 3\n\nMore.", group="data")
        printed = capsys.readouterr().out
        assert "how many to show" in printed and "show --rows 3" in printed
        assert ("--data.path" in printed, "More." in printed) == (has_all, has_all)
    monkeypatch.setattr(sys, "argv", ["show", "--rows", "4", "--data.path", "model"])
    assert call(shown, description=None, group="data") == (4, "model")
