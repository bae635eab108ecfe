"""Audits the pairs and pictures of the shapes world's studies, as a sceptic would.

    python -m tests.audit_world --storage runs/results

It reads what `benchmarks/results.py` left in its storage folder and prints tables: how well texts
alone tell the chosen answer, by other classifiers than the gate's, each trained on the pairs of the
other seeds; which counts differ in one direction only; how much of the truth the chosen answers
hold; and which compositions of the report were seen in training or tuning.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import tyro
from rich.table import Table

from benchmarks.results import studied_pairs
from experiments.recipes import REPORT_SEED
from rlhfv_ray.console import new_console
from rlhfv_ray.records import PreferencePair
from rlhfv_ray.shapes.annotator import mistakes
from rlhfv_ray.shapes.balance import Counts, change_of, setting_of, words_of
from rlhfv_ray.shapes.balanced import hold_out, make_benchmark_scenes
from rlhfv_ray.shapes.captions import caption, read_phrases
from rlhfv_ray.shapes.scenes import Scene, composition
from rlhfv_ray.shapes.text_audit import told_apart
from rlhfv_ray.shapes.world import pair_id
from rlhfv_ray.shapes_stages import training_scenes

TUNING_SEED = 1
TUNING_SCENES, REPORT_SCENES = 600, 1000
WINDOW = 3  # words of the longest sequence that is counted


def runs_of_words(text: str) -> Mapping[str, int]:
    """Count sequences of up to `WINDOW` words, and each word by setting."""
    words, setting = words_of(text), setting_of(text)
    runs = Counter(
        " ".join(words[start : start + length])
        for length in range(1, WINDOW + 1)
        for start in range(len(words) - length + 1)
    )
    runs.update(f"{setting}: {word}" for word in words[2:])
    return runs


def structure(text: str) -> Mapping[str, int]:
    """Count what phrases say: each property, pairs of properties, pairs of phrases, by setting."""
    groups = [group for group, _ in read_phrases(text)]
    setting = setting_of(text)
    found: Counter[str] = Counter()
    for group in groups:
        said = (group.shape, group.color, group.corner, str(group.number))
        found.update(said)
        found.update(f"{first} {second}" for first, second in itertools.combinations(said, 2))
        found.update(f"{setting}: {name}" for name in said)
    for first, second in itertools.combinations(groups, 2):
        found.update(
            f"{name}: {' '.join(sorted((getattr(first, name), getattr(second, name))))}"
            for name in ("shape", "color", "corner")
        )
        found["the same colour"] += first.color == second.color
        found["the same number"] += first.number == second.number
    found[f"{len(groups)} phrases"] += 1
    return found


def classifiers(pairs: Mapping[int, Sequence[PreferencePair]]) -> list[tuple[str, str]]:
    """Return the share of pairs that each classifier tells, trained on the other seeds' pairs."""
    texts = [(pair.chosen, pair.rejected) for found in pairs.values() for pair in found]
    groups = [seed for seed, found in pairs.items() for _ in found]
    kinds = {"the gate's": None, "runs of words": runs_of_words, "structure": structure}
    return [
        (f"told by {name} classifier / %", f"{100 * told_apart(texts, groups, features):.1f}")
        for name, features in kinds.items()
    ]


def one_sided(pairs: Mapping[int, Sequence[PreferencePair]]) -> list[tuple[str, str]]:
    """Return how many chosen texts have more of each count than the rejected ones, and fewer."""
    changes = [change_of(pair) for found in pairs.values() for pair in found]
    rows = []
    for place, name in enumerate(Counts._fields):
        more = sum(change[place] > 0 for change in changes)
        fewer = sum(change[place] < 0 for change in changes)
        rows.append((f"{name}: chosen more, fewer", f"{more}, {fewer}"))
    return rows


def truth(
    pairs: Sequence[PreferencePair], scenes: Mapping[str, Scene]
) -> tuple[float, float, float]:
    """Return the share of whole truths, and the mean mistakes of the chosen and the rejected."""
    whole = chosen = rejected = 0
    for pair in pairs:
        scene = scenes[pair.id]
        whole += pair.chosen == caption(scene.setting, scene.groups)
        chosen += len(mistakes(scene, pair.chosen))
        rejected += len(mistakes(scene, pair.rejected))
    return whole / len(pairs), chosen / len(pairs), rejected / len(pairs)


def overlaps(seed: int, trained: Sequence[Scene]) -> tuple[int, int, int]:
    """Return the headline's pictures, and how many share a composition with training or tuning."""
    report = [
        scene for scene in make_benchmark_scenes(REPORT_SCENES, seed=seed) if not hold_out(scene)
    ]
    tuning = make_benchmark_scenes(TUNING_SCENES, seed=TUNING_SEED, part="choice")
    seen = {composition(scene) for scene in trained}
    tuned = {composition(scene) for scene in tuning}
    return (
        len(report),
        sum(composition(scene) in seen for scene in report),
        sum(composition(scene) in tuned for scene in report),
    )


def main(storage: Path = Path("runs/results")) -> None:
    """Audit the pairs and pictures of the studies.

    Args:
        storage: folder of all stages of `benchmarks/results.py`.
    """
    table = Table("measure", "value")
    pairs: dict[int, list[PreferencePair]] = {}
    for seed, config, corrections in studied_pairs(storage.resolve()):
        pairs[seed] = corrections
        scenes = training_scenes(config)
        whole, chosen, rejected = truth(pairs[seed], {pair_id(scene): scene for scene in scenes})
        shown, seen, tuned = overlaps(REPORT_SEED + seed, scenes)
        table.add_row(f"seed {REPORT_SEED + seed}: pairs", str(len(pairs[seed])))
        table.add_row("  chosen answers that are the whole truth / %", f"{100 * whole:.1f}")
        table.add_row("  mistakes of a chosen, a rejected answer", f"{chosen:.2f}, {rejected:.2f}")
        table.add_row(
            "  pictures, of a composition in training, in tuning", f"{shown}, {seen}, {tuned}"
        )
    for row in (*classifiers(pairs), *one_sided(pairs)):
        table.add_row(*row)
    new_console().print(table)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
