"""Measures every figure that the README and docs/studies.md quote, and writes docs/results/.

    python benchmarks/results.py                        # the demo, and its controls
    python benchmarks/results.py signs                  # the world of signs
    python benchmarks/results.py ablation texts ...     # studies, and what the texts of pairs say

Takes about ten minutes for the demo on two idle cores, 20 minutes for the base models, and an hour
and a half for the studies: they have control arms, and five seeds that no tuning used, each with a
base model and 1,000 pictures of its own. After an interruption, the same command goes on.
`tests/test_results.py` compares the documents with the files.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import tyro

from experiments.recipes import CONTROLS, SHAPES_DPO_BETA, shapes
from experiments.runners.config import StudyConfig
from rlhfv_ray.config import SHAPES, DDPOConfig
from rlhfv_ray.data import load_pairs
from rlhfv_ray.records import PreferencePair
from rlhfv_ray.shapes.captions import caption
from rlhfv_ray.shapes.text_audit import audit_texts, told_apart
from rlhfv_ray.shapes.world import pair_id
from rlhfv_ray.shapes_stages import PAIRS, corrections_stage, training_scenes
from rlhfv_ray.stats import wilson_interval

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
Name = Literal[
    "demo",
    "signs",
    "ablation",
    "over_generalization",
    "segment_rules",
    "data_scaling",
    "texts",
]
STUDY_SEEDS = (0, 1, 2, 3, 4)  # the scenes' seed is the recipe's plus one of these
STUDIED = (  # options of the studies
    *("--seeds", *map(str, STUDY_SEEDS)),
    *("--ddpo.shapes.evaluation-scenes", "1000"),
)
SEEDS = (30, 31, 32)  # of the demo; earlier ones are for tuning
# A study's first seed trains the repository's base model, and the others train these. Those of
# seeds 1 and 8 have not learnt to look (their command says so and fails); 2, 3 and 5 tuned the
# recipe, and 4 was in an earlier report.
BASE_SEEDS = (6, 7, 9, 10)
PRETRAINING = (
    *("experiments/pretrain_shapes.py", "--world", "balanced"),
    *("--careful-steps", "550", "--careless-steps", "500"),
)
# Trainings of the demo: its own with all seeds; with the first seed also on control pairs, plain
# DPO at its own best beta, and a training on true captions.
TRAININGS: dict[str, tuple[str, ...]] = {
    "gamma-5": ("ddpo",),
    "gamma-1": ("ddpo", "--loss.gamma", "1", "--loss.beta", str(SHAPES_DPO_BETA)),
    "true-captions": ("sft",),
}


def main(
    measured: tyro.conf.Positional[tuple[Name, ...]] = ("demo",),
    storage: Path = Path("runs/results"),
) -> None:
    """Measure, and write the results.

    Args:
        measured: the demo, studies, or `texts` of the pairs that the studies have made.
        storage: folder of all stages.
    """
    RESULTS.mkdir(exist_ok=True)
    folder = storage.resolve()
    for name in measured:
        special = {"demo": demo, "signs": signs, "texts": texts}
        result = special[name](folder) if name in special else study(name, folder)
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


def demo(storage: Path) -> dict[str, Any]:
    """Return the scores of the demo's base and trained model, by training and seed."""
    scores: dict[str, Any] = {}
    for training, seed in demo_trainings():
        script, *options = TRAININGS[training]
        name = f"{training}-seed-{seed}"
        if (training, seed) == ("gamma-5", SEEDS[0]):
            options += ["--controls", *CONTROLS]
        options += ["--seed", str(seed), "--shapes.seed", str(seed)]
        models, comparison = experiment(script, "shapes", name, storage, *options)
        scores[name] = {**models, "comparison": comparison}
    return scores


def signs(storage: Path) -> dict[str, Any]:
    """Return the scores of the base and trained model in the world of signs, by seed; of the first
    one also those of the controls.
    """
    scores: dict[str, Any] = {}
    for seed in SEEDS:
        options = ["--seed", str(seed), "--shapes.seed", str(seed)]
        if seed == SEEDS[0]:
            options += ["--controls", *CONTROLS]
        models, comparison = experiment("ddpo", "signs", f"signs-seed-{seed}", storage, *options)
        scores[str(seed)] = {**models, "comparison": comparison}
    return scores


def demo_trainings() -> list[tuple[str, int]]:
    """Return the name and seed of every training of the demo."""
    first, *further = SEEDS
    return [(training, first) for training in TRAININGS] + [("gamma-5", seed) for seed in further]


def base_models(storage: Path) -> tuple[str, ...]:
    """Return the base models of the studies' seeds; pretrain those that are not there."""
    folders = [storage / f"base-model-{seed}" for seed in BASE_SEEDS]
    for seed, folder in zip(BASE_SEEDS, folders, strict=True):
        if not (folder / "processor_config.json").exists():  # the last file that is written
            run(*PRETRAINING, "--seed", str(seed), "--out", str(folder))
    return (SHAPES, *map(str, folders))


def experiment(
    script: str, recipe: str, name: str, storage: Path, *options: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run an experiment; return the scores of its models, and the comparison of the first two."""
    named = ("--name", name, "--storage", str(storage))
    run(f"experiments/{script}.py", recipe, *named, *options)
    (summary,) = storage.glob(f"{name}-*/summary.json")
    scores = json.loads(summary.read_text())
    models = [model for model in ("base", "aligned", *CONTROLS) if model in scores]
    return {model: numbers(scores[model]) for model in models}, scores["comparison"]


def numbers(scores: dict[str, Any]) -> dict[str, Any]:
    """Return a model's rates with their intervals, without what describes the measurement."""
    left_out = ("groups", "extras", "manifest", "missing_reasons")
    return {name: value for name, value in scores.items() if name not in left_out}


def texts(storage: Path) -> dict[str, Any]:
    """Return how often texts alone tell the chosen answers of the studies' pairs: within a seed's
    pairs, and by a classifier that was trained on the pairs of the other seeds. `whole` counts the
    chosen answers that are the whole truth.
    """
    audits: dict[int, dict[str, Any]] = {}
    answers: list[tuple[str, str]] = []
    groups: list[int] = []  # the seed of each pair
    whole = 0
    for seed, config, pairs in studied_pairs(storage):
        scenes = training_scenes(config)
        truths = {pair_id(scene): caption(scene.setting, scene.groups) for scene in scenes}
        whole += sum(pair.chosen == truths[pair.id] for pair in pairs)
        audits[seed] = asdict(audit_texts(pairs))
        answers += [(pair.chosen, pair.rejected) for pair in pairs]
        groups += [seed] * len(pairs)
    told_share = told_apart(answers, groups)
    interval = wilson_interval(round(told_share * len(answers)), len(answers))
    total = {"pairs": len(answers), "told": told_share, "told_interval": interval, "whole": whole}
    return {"within": audits, "across": total}


def studied_pairs(storage: Path) -> Iterator[tuple[int, DDPOConfig, list[PreferencePair]]]:
    """Yield each seed of the studies with its settings and the pairs that it trains on."""
    recipe = StudyConfig(ddpo=shapes(), seeds=STUDY_SEEDS, bases=base_models(storage))
    for seed in STUDY_SEEDS:
        config = recipe.seeded(seed)
        folder = corrections_stage(config).folder(storage)
        yield seed, config, list(load_pairs(str(folder / PAIRS)))


def study(name: str, storage: Path) -> dict[str, Any]:
    """Return what a study writes to its `study.json`."""
    options = ["--ddpo.storage", str(storage), *STUDIED, "--bases", *base_models(storage)]
    if name == "data_scaling":  # the claim's arm has pairs of its own, so each control costs more
        options += ["--controls", "permuted"]
    run(f"experiments/{name}.py", "shapes", *options)
    (result,) = storage.glob(f"{name}-*/study.json")
    return json.loads(result.read_text())


def run(*command: str) -> None:
    """Run one of our scripts; its output goes to the terminal."""
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
