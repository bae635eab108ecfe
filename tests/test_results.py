"""Figures that the documents quote are those of the committed results (docs/results/)."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import tyro

from benchmarks import results
from eval.benchmarks.contract import Metric
from experiments.recipes import SHAPES_DPO_BETA, shapes, shapes_small
from experiments.runners.study_report import row_texts
from experiments.runners.study_results import StudyResults
from rlhfv_ray.shapes_stages import MOST_TOLD

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
OTHERS = ("demo", "signs", "texts", "tuning")
STUDIES = [file.stem for file in sorted(RESULTS.glob("*.json")) if file.stem not in OTHERS]
TABLE = (
    "phrase_f1",
    "exact_answers",
    "response_rate",
    "mention_rate",
    "typical_recall",
    "untypical_recall",
    "wrong_attributes",
    "wrong_numbers",
    "wrong_positions",
    "wrong_settings",
)
# Metrics of the tables in docs/studies.md; the results have more.
PAGE = (
    *("over_generalization", "rate_in_scene", "phrase_f1", "exact_answers", "response_rate"),
    *("object_recall", "untypical_recall", "wrong_settings", "words"),
)
HELD_OUT = ("f1_new_setting_and_shape", "f1_new_colour_and_shape", "f1_five_groups")
FIRST, *FURTHER = results.SEEDS
MOST_KEPT = {"permuted": 0.25, "blank": 0.15, "blind": 0.15}  # of the gain in F1


def text_of(page: str) -> str:
    """Return a page's text, without its line ends."""
    return " ".join((ROOT / page).read_text().split())


@pytest.fixture(scope="module")
def demo() -> dict[str, Any]:
    return json.loads((RESULTS / "demo.json").read_text())


@pytest.fixture(scope="module")
def texts() -> dict[str, Any]:
    return json.loads((RESULTS / "texts.json").read_text())


def per_cent(value: float) -> str:
    return f"{100 * value:.1f}"


def cell(scores: dict[str, Any], name: str) -> str:
    low, high = scores["intervals"][name]
    return f"{per_cent(scores[name])} ({per_cent(low)} to {per_cent(high)})"


def trained(demo: dict[str, Any], training: str, seed: int = FIRST) -> dict[str, Any]:
    """Return the scores of a trained model."""
    return demo[f"{training}-seed-{seed}"]["aligned"]


def gain(demo: dict[str, Any], model: str) -> float:
    """Return what the demo's training, or one on control pairs, adds to the F1 of phrases."""
    scores = demo[f"gamma-5-seed-{FIRST}"]
    return scores[model]["phrase_f1"] - scores["base"]["phrase_f1"]


def test_without_arguments_the_demo_is_measured(tmp_path, monkeypatch):
    """Catches: the command of the README that ends at its own default."""
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(results, "demo", str)
    tyro.cli(results.main, args=[])
    storage = json.loads((tmp_path / "results" / "demo.json").read_text())
    assert storage.endswith("runs/results")
    with pytest.raises(SystemExit):
        tyro.cli(results.main, args=["no_study"])


def test_the_demo_is_the_recipe(demo):
    """Catches: figures of other seeds than those of `make demo`, or of seeds that tuned it."""
    recipe = shapes()
    assert recipe.seed == recipe.shapes.seed == FIRST and min(results.SEEDS) >= 30
    assert shapes_small().ddpo.shapes.seed < 10
    trainings = results.demo_trainings()
    assert demo.keys() == {f"{training}-seed-{seed}" for training, seed in trainings}


def test_the_recipe_was_frozen_before_its_reports():
    """Catches: a setting that changed after a report was seen."""
    recipe = asdict(shapes())
    settings = {name: recipe[name] for name in ("data", "generation", "loss", "optim", "shapes")}
    del settings["shapes"]["seed"]
    assert settings["loss"].pop("kind") == "dpo"  # the field came later
    text = json.dumps(settings, sort_keys=True, default=str)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "1d87feb76ee7a5d5"  # docs/LOG.md


@pytest.mark.parametrize("base", ["repository", 2, 3, 5])
def test_tables_of_tuning_are_as_measured(base):
    """Catches: a grid that no file holds; the recipe's own cell missing from it."""
    measured: dict[tuple[str, float], dict[float, str]] = {}
    for row in json.loads((RESULTS / "tuning.json").read_text()):
        if (row["balance"], row["base_model"]) == (4, base):
            text = f"{per_cent(row['exact_answers'])} / {per_cent(row['wrong_settings'])}"
            sft = f" + {row['sft_weight']:g} SFT" if row["sft_weight"] else ""
            row_of = (row["method"] + sft, row["learning_rate"])
            measured.setdefault(row_of, {})[row["beta"]] = text
    page = text_of("docs/studies.md")
    for (method, rate), cells in measured.items():
        shown = " ".join(f"| {cells.get(beta, '')}" for beta in (0.3, 1.0, 3.0, 10.0, 30.0))
        assert " ".join(f"| {method}, {rate:g} {shown} |".split()) in page
    recipe = shapes()
    sft = f" + {recipe.loss.sft_weight:g} SFT" if base != 2 else ""  # this one came before the term
    for method, beta in (("DDPO", recipe.loss.beta), ("DPO", SHAPES_DPO_BETA)):
        assert beta in measured[method + sft, recipe.optim.learning_rate]


def test_texts_alone_say_little(texts):
    """Catches: pairs that can be won without looking; figures that no result has."""
    assert max(audit["told"] for audit in texts["within"].values()) <= MOST_TOLD
    across = texts["across"]
    low, high = map(per_cent, across["told_interval"])
    assert across["told"] <= MOST_TOLD
    for page in ("README.md", "docs/studies.md"):
        assert f"tells {per_cent(across['told'])} % of the pairs ({low} to {high})" in text_of(page)


@pytest.mark.parametrize("name", TABLE)
def test_readme_table_is_the_demos(name, demo):
    """Catches: a table of an earlier version, which `make demo` no longer shows."""
    scores = demo[f"gamma-5-seed-{FIRST}"]
    base, aligned = scores["base"], scores["aligned"]
    change = f"{100 * (aligned[name] - base[name]):+.1f}"
    controls = " | ".join(per_cent(scores[control][name]) for control in MOST_KEPT)
    row = f"| {cell(base, name)} | {cell(aligned, name)} | {change} | {controls} |"
    assert row in text_of("README.md")


@pytest.mark.parametrize("control", MOST_KEPT)
def test_controls_keep_little_of_the_gain(control, demo):
    """Catches: a gain that needs no look at the picture; a share that no result has."""
    share = gain(demo, control) / gain(demo, "aligned")
    assert share <= MOST_KEPT[control]
    assert f"{control}: {round(100 * share)} %" in text_of("README.md")


def test_readme_sentences_are_the_demos(demo):
    """Catches: a rate in a sentence that no result has."""
    readme = text_of("README.md")
    first = demo[f"gamma-5-seed-{FIRST}"]
    base, aligned = first["base"], first["aligned"]
    assert f"from {base['words']:.1f} to {aligned['words']:.1f} words" in readme
    low, high = map(per_cent, first["comparison"]["relative_reduction_interval"])
    reduction = per_cent(first["comparison"]["relative_reduction"])
    assert first["comparison"]["p_value"] < 0.001
    test = "exact McNemar test, p < 0.001"
    assert f"falls by {reduction} % of its value ({low} to {high}; {test})" in readme
    assert per_cent(base["wrong_settings"]) == "0.0"
    others = [per_cent(trained(demo, "gamma-5", seed)["phrase_f1"]) for seed in FURTHER]
    assert f"Two more random seeds give an F1 of {others[0]} and {others[1]} %" in readme
    lost = [per_cent(trained(demo, "gamma-5", seed)["wrong_settings"]) for seed in FURTHER]
    assert f"{lost[0]} and {lost[1]} % of their answers name another setting" in readme
    held = [f"{per_cent(base[name])} to {per_cent(aligned[name])}" for name in HELD_OUT]
    assert f"from {held[0]} % on shapes in settings" in readme
    assert f"from {held[1]} % on shapes in colours" in readme
    assert f"from {held[2]} % on five groups" in readme


def test_every_base_model_is_told():
    """Catches: a table of the base models that no result has; only the good ones of them told."""
    arms = json.loads((RESULTS / "ablation.json").read_text())["arms"]
    shown = (
        *(("phrase_f1", arm) for arm in ("base", "DDPO", "DDPO, permuted", "DDPO, blank")),
        *((name, arm) for name in ("exact_answers", "response_rate") for arm in ("base", "DDPO")),
        ("wrong_settings", "DDPO"),
    )
    page = text_of("docs/studies.md")
    models = ("repository", *results.BASE_SEEDS)
    assert len(models) == len(results.STUDY_SEEDS)
    for place, model in enumerate(models):
        values = [per_cent(arms[arm][name]["values"][place]) for name, arm in shown]
        assert f"| {model} | {' | '.join(values)} |" in page
    means = {
        name: [per_cent(arms[arm][name]["mean"]) for arm in ("base", "DDPO")]
        for name in ("phrase_f1", "response_rate")
    }
    readme = text_of("README.md")
    assert f"takes the F1 from {means['phrase_f1'][0]} to {means['phrase_f1'][1]} %" in readme
    rates = means["response_rate"]
    assert f"the response rate from {rates[0]} to {rates[1]} %" in readme
    assert set(arms["DDPO"]["wrong_settings"]["values"]) == {0.0}
    assert "and none of 3,000 answers names another setting" in readme
    cells = json.loads((RESULTS / "tuning.json").read_text())
    recipe = shapes()
    alone = [
        cell["wrong_settings"]
        for cell in cells
        if (cell["balance"], cell["method"], cell["sft_weight"]) == (4, "DDPO", 0)
        and (cell["learning_rate"], cell["beta"]) == (recipe.optim.learning_rate, recipe.loss.beta)
    ]
    assert f"another setting in up to {per_cent(max(alone))} % of the answers on the base" in readme


def test_signs_are_read_by_looking():
    """Catches: a second world whose gain needs no look, or a table of it that no result has."""
    scores = json.loads((RESULTS / "signs.json").read_text())
    assert scores.keys() == set(map(str, results.SEEDS))
    page = text_of("docs/studies.md")
    for seed, models in scores.items():
        base, aligned = models["base"], models["aligned"]
        names = ("phrase_f1", "exact_answers", "response_rate", "wrong_settings")
        cells = [cell(scores, name) for name in names for scores in (base, aligned)]
        assert f"| {seed} | {' | '.join(cells)} |" in page
        assert aligned["intervals"]["phrase_f1"][0] > base["intervals"]["phrase_f1"][1]
    first = scores[str(FIRST)]
    gains = {
        model: first[model]["phrase_f1"] - first["base"]["phrase_f1"]
        for model in ("aligned", *MOST_KEPT)
    }
    rates = [per_cent(first[model]["phrase_f1"]) for model in ("base", "aligned")]
    assert f"take the F1 from {rates[0]} to {rates[1]} %" in text_of("README.md")
    for control, most in MOST_KEPT.items():
        share = gains[control] / gains["aligned"]
        assert share <= most
        assert f"{control} {round(100 * share)} %" in page


def test_chosen_answers_are_no_whole_truth(texts):
    """Catches: corrections that are complete, as people's are not; a share that no result has."""
    across = texts["across"]
    share = per_cent(across["whole"] / across["pairs"])
    assert across["whole"] < 0.9 * across["pairs"]
    for page in ("README.md", "docs/studies.md"):
        assert f"{share} % of the chosen answers are the whole truth" in text_of(page)


def test_true_captions_teach_to_look(demo):
    """Catches: a world that a model of this size cannot learn, in which no gain means anything."""
    rate = trained(demo, "true-captions")["phrase_f1"]
    assert rate >= 0.95
    assert f"on true captions reaches {per_cent(rate)} %" in text_of("README.md")


def test_readme_says_what_gamma_1_gave(demo):
    """Catches: a rate of plain DPO that no result has."""
    rate = trained(demo, "gamma-1")["phrase_f1"]
    said = f"With gamma 1 and beta {SHAPES_DPO_BETA:g}, the best for it at this learning rate on"
    assert f"{said} three base models, the F1 is {per_cent(rate)} % on" in text_of("README.md")


def test_readme_table_of_studies_is_that_of_their_results():
    """Catches: rows that an earlier report gave, beside a page that has the new ones."""
    arms = {name: json.loads((RESULTS / f"{name}.json").read_text())["arms"] for name in STUDIES}

    def mean(study: str, arm: str, metric: str = "phrase_f1") -> str:
        return per_cent(arms[study][arm][metric]["mean"])

    exact = [mean("ablation", arm, "exact_answers") for arm in ("DDPO", "DPO")]
    rises = [
        mean("over_generalization", arm, "over_generalization").lstrip("-")
        for arm in ("base", "DDPO", "DDPO, permuted", "DPO")
    ]
    more = [mean("data_scaling", f"{count} corrections") for count in (150, 300, 600)]
    gaps = [
        arms["data_scaling"][f"{count} corrections"]["phrase_f1"]["mean"]
        - arms["data_scaling"][f"{count} rankings"]["phrase_f1"]["mean"]
        for count in (150, 300, 600)
    ]
    rule = "segment_rules"
    readme = text_of("README.md")
    for said in (
        f"{mean('ablation', 'DDPO')} against {mean('ablation', 'DPO')} %, and {exact[0]} against "
        f"{exact[1]} % of answers",
        f"on the chosen answers gives {mean('ablation', 'SFT on chosen')} %",
        f"{rises[0]} points more often in their setting before, and {rises[1]} less often after; "
        f"with permuted pictures {rises[2]} more often. Plain DPO takes it to {rises[3]}",
        f"{mean(rule, 'human spans')} against {mean(rule, 'no weighting')} %; spans that are "
        f"compared on both sides give {mean(rule, 'both sides')} %",
        f"{mean('data_scaling', 'base')} %, then {more[0]}, {more[1]} and {more[2]} % with",
        f"give {per_cent(min(gaps))} to {per_cent(max(gaps))} points less",
    ):
        assert said in readme


@pytest.mark.parametrize("name", STUDIES)
def test_tables_of_studies_are_those_of_their_results(name):
    """Catches: a table in docs/studies.md that was not measured, or not with this code."""
    result = json.loads((RESULTS / f"{name}.json").read_text())
    metrics = tuple(Metric(**metric) for metric in result["metrics"])
    values = {
        (arm, metric): tuple(mean["values"])
        for arm, means in result["arms"].items()
        for metric, mean in means.items()
    }
    errors = {
        (arm, metric): mean["scene_error"]
        for arm, means in result["arms"].items()
        for metric, mean in means.items()
    }
    arms, seeds = tuple(result["arms"]), tuple(result["seeds"])
    study = StudyResults(arms, seeds, metrics, values, errors=errors)
    page = text_of("docs/studies.md")
    rows = zip(metrics, row_texts(study), strict=True)
    shown = [cells for metric, cells in rows if metric.name in PAGE]
    assert len(shown) >= 7
    for cells in shown:
        assert " ".join(f"| {' | '.join(cells)} |".split()) in page
