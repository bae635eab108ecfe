"""Recompute every value of a golden file with the project's functions.

    python -m tests.golden.check KIND FILE

The last line of the output states how many values were compared and the worst difference.
The exit code is 0 if all values agree. It is 1 if a value differs by more than the tolerance
of its kind, or if the file cannot be recomputed, for example because a section is missing
or empty. It is 2 if the kind is unknown.
Two values that are not both numbers, such as two words, are equal or differ by infinity.

A new kind is one function and one line in `KINDS`. `SOURCES.md` says where the figures come from.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from eval.benchmarks.chair_coco import TaggedVocabulary
from eval.benchmarks.llava_bench import parse_score_pair, relative_scores
from eval.benchmarks.mmhal_bench import mmhal_scores, rating_informativeness, release_rating
from eval.chair import (
    AnswerScore,
    ObjectVocabulary,
    chair_scores,
    count_words,
    ground_truth,
    score_answer,
)
from rlhfv_ray.errors import DataError
from rlhfv_ray.logps import IGNORED, segment_weights, token_logps, weighted_logps
from rlhfv_ray.loss import dpo_loss
from rlhfv_ray.segments import changed_tokens
from tests.golden.muffin_values import text_values, tiny_values

GOLDEN = Path(__file__).parent
SHOWN = 20  # differences that are printed
LLAVA_DROPPED = [-1, -1]  # the release's mark of a review without two scores


class Comparison:
    """The number of values compared so far, the worst difference, and what exceeds a tolerance."""

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self.count = 0
        self.worst = 0.0
        self.failures: list[str] = []

    def compare(self, name: str, ours: Any, expected: Any) -> None:
        """Compare two values, or all values of two lists or mappings; keys and lengths count."""
        if isinstance(ours, Mapping) and isinstance(expected, Mapping):
            if not expected or ours.keys() != expected.keys():
                self._record(name, sorted(ours), sorted(expected))
            for key in ours.keys() & expected.keys():
                self.compare(f"{name}.{key}", ours[key], expected[key])
        elif isinstance(ours, list | tuple) and isinstance(expected, list | tuple):
            if not expected or len(ours) != len(expected):
                self._record(name, list(ours), list(expected))
            for index, pair in enumerate(zip(ours, expected, strict=False)):
                self.compare(f"{name}[{index}]", *pair)
        else:
            self._record(name, ours, expected)

    def include(self, other: "Comparison") -> None:
        """Add what was compared within another tolerance."""
        self.count += other.count
        self.worst = max(self.worst, other.worst)
        self.failures += other.failures

    def _record(self, name: str, ours: Any, expected: Any) -> None:
        distance = difference(ours, expected)
        self.count += 1
        self.worst = max(self.worst, distance)
        if distance > self.tolerance:
            self.failures.append(f"{name}: ours {ours!r}, the file's {expected!r}")


def difference(ours: Any, expected: Any) -> float:
    """Return the distance of two numbers; of other values, 0 if they are equal, else infinity.

    Example:
        >>> difference(2.5, 2), difference("dog", "dog"), difference(None, 0), difference([], [1])
        (0.5, 0.0, inf, inf)
    """
    if ours == expected:
        return 0.0
    if not isinstance(ours, int | float) or not isinstance(expected, int | float):
        return math.inf
    if math.isnan(ours) and math.isnan(expected):
        return 0.0
    distance = abs(ours - expected)
    return math.inf if math.isnan(distance) else distance


def check_muffin_ddpo(path: Path, comparison: Comparison) -> None:
    """Check changed tokens, log-probabilities, weighted scores, losses and rewards."""
    golden = read_json(path, "segments", "losses")
    for index, case in enumerate(golden["segments"]):
        compare_segments(f"segments[{index}]", case, comparison)
    for index, case in enumerate(golden["losses"]):
        compare_losses(f"losses[{index}]", case, comparison)


def compare_segments(name: str, case: Mapping[str, Any], comparison: Comparison) -> None:
    """Compare the positions of the changed tokens of one pair, by the release's rule."""
    chosen, rejected = changed_tokens(case["chosen"], case["rejected"], rule="muffin")
    positions = {
        "changed_chosen": [index for index, changed in enumerate(chosen) if changed],
        "changed_rejected": [index for index, changed in enumerate(rejected) if changed],
    }
    comparison.compare(name, positions, without(case, "chosen", "rejected"))


def compare_losses(name: str, case: Mapping[str, Any], comparison: Comparison) -> None:
    """Compare one batch of pairs: both sides' log-probabilities and scores, then the DPO loss."""
    sides = {side: answer_logps(case[side], case) for side in ("chosen", "rejected")}
    inputs = ("logits", "labels", "changed")
    for side, ours in sides.items():
        comparison.compare(f"{name}.{side}", ours, without(case[side], *inputs))
    loss = dpo_loss(
        double(sides["chosen"]["score"]),
        double(sides["rejected"]["score"]),
        double(case["ref_chosen"]),
        double(case["ref_rejected"]),
        beta=case["beta"],
    )
    values = {field: tensor.tolist() for field, tensor in loss._asdict().items()}
    settings = ("gamma", "beta", "normalize", "ref_chosen", "ref_rejected")
    comparison.compare(name, values, without(case, *settings, *sides))


def answer_logps(side: Mapping[str, Any], case: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Compute log-probabilities and scores of one side's answers, in float64."""
    logits = double(side["logits"])  # (B, T, V)
    labels = torch.tensor(side["labels"])  # (B, T)
    scored = labels[:, 1:] != IGNORED  # (B, S), S = T - 1
    logps = token_logps(logits, labels)  # (B, S), nats, 0 where nothing is scored
    changed = torch.tensor(side["changed"])  # (B, S)
    weights = segment_weights(scored, changed, gamma=case["gamma"], dtype=torch.float64)
    score = weighted_logps(logps, weights, normalize=case["normalize"])  # (B,)
    # The release replaces the label -100 by token 0 and returns that token's log-probability too.
    release_logps = token_logps(logits, labels.masked_fill(labels == IGNORED, 0))
    return {
        "token_logps": torch.where(scored, logps, release_logps).tolist(),
        "sum_logps": logps.sum(-1).tolist(),
        "mean_logps": (logps.sum(-1) / scored.sum(-1)).tolist(),
        "score": score.tolist(),
    }


def double(values: Sequence[Any]) -> torch.Tensor:
    """Make a float64 tensor."""
    return torch.tensor(values, dtype=torch.float64)


def check_chair(path: Path, comparison: Comparison) -> None:
    """Check Object HalBench's ground truth, mentions, hallucinated words and rates, both modes."""
    inputs = ("categories", "instances", "captions", "answers")
    golden = read_json(path, *inputs, "ground_truth", "rule", "extracted")
    compare_chair(golden, ObjectVocabulary.load(), comparison)


def compare_chair(
    golden: Mapping[str, Any], vocabulary: ObjectVocabulary, comparison: Comparison
) -> None:
    """Compare the truth and both modes, as one vocabulary with its lemmatiser reads them."""
    categories = golden["categories"]
    objects = [vocabulary.objects.get(category) for category in categories]
    comparison.compare("categories", objects, categories)
    instances = [(row["image_id"], row["category"]) for row in golden["instances"]]
    captions = [(row["image_id"], row["caption"]) for row in golden["captions"]]
    truth = ground_truth(instances, captions, vocabulary)
    comparison.compare(
        "ground_truth",
        {str(image): sorted(objects) for image, objects in truth.items()},
        {image: sorted(objects) for image, objects in golden["ground_truth"].items()},
    )
    answers = golden["answers"]
    mentions = {
        "rule": [vocabulary.mentions(row["answer"]) for row in answers],
        "extracted": [vocabulary.match(row["objects"]) for row in answers],
    }
    for mode, mode_mentions in mentions.items():
        comparison.compare(mode, chair_figures(answers, mode_mentions, truth), golden[mode])


def chair_figures(
    answers: Sequence[Mapping[str, Any]],
    mentions: Sequence[Sequence[tuple[str, str]]],
    truth: Mapping[int, set[str]],
) -> dict[str, Any]:
    """Compute what the release's scorer reports, in its layout."""
    truths = [truth.get(row["image_id"], set()) for row in answers]
    scores = [score_answer(*pair) for pair in zip(mentions, truths, strict=True)]
    sentences = [
        {
            "image_id": row["image_id"],
            "hallucinated": [word for word, _ in score.hallucinated],
            "generated": list(named),
            "metrics": {
                "CHAIRs": int(bool(score.hallucinated)),
                "CHAIRi": len(score.hallucinated) / (score.mentions or 1),
            },
        }
        for row, named, score in zip(answers, mentions, scores, strict=True)
    ]
    rates = chair_scores(mentions, truths, [count_words(row["answer"]) for row in answers])
    overall = {
        "CHAIRs": rates.response_rate_all,
        "CHAIRs_refine": rates.response_rate,
        "CHAIRi": rates.mention_rate,
        "obj_rec": rates.object_recall,
        "sentence_num": rates.n,
        "coco_sentence_num": sum(score.mentions > 0 for score in scores),
        "coco_word_count": sum(score.true_objects_named for score in scores),
        "gt_word_count": sum(score.true_objects for score in scores),
        "avg_word_len": rates.words,
        "all_gpt_used_tokens": {},  # no judge was called
        "all_gpt_success_tokens": {},
        "correct_rate": None if rates.response_rate is None else 1 - rates.response_rate,
        "object_correct_rate": None if rates.mention_rate is None else 1 - rates.mention_rate,
    }
    return {"overall": overall, "sentences": sentences}


def check_chair_opera(path: Path, comparison: Comparison) -> None:
    """Check CHAIR by OPERA's protocol: lemmas of tagged sentences, objects and rates."""
    golden = read_json(path, "sentences", "overall")
    loaded = ObjectVocabulary.load(lemmatizer="wordnet")
    vocabulary = TaggedVocabulary(loaded.objects, loaded.phrases, "wordnet")
    scores: list[AnswerScore] = []
    lengths: list[int] = []
    inputs = ("image_id", "caption", "truth", "tagged")
    for index, case in enumerate(golden["sentences"]):
        words = [word for word, _, _ in vocabulary.words(case["tagged"])]
        mentions = vocabulary.mentions_in(words)
        score = score_answer(mentions, set(case["truth"]))
        ours = {
            "words": words,
            "objects": [name for _, name in mentions],
            "hallucinated": list(map(list, score.hallucinated)),
            "CHAIRs": int(bool(score.hallucinated)),
            "CHAIRi": len(score.hallucinated) / (score.mentions or 1),
            "Recall": score.true_objects_named / (score.true_objects or 1),
        }
        expected = without(case, *inputs)
        for name in ("objects", "hallucinated"):  # a list that may be empty is compared as a whole
            ours[name], expected[name] = str(ours[name]), str(expected[name])
        comparison.compare(f"sentences[{index}]", ours, expected)
        scores.append(score)
        lengths.append(len(words))
    hallucinating = sum(bool(score.hallucinated) for score in scores)
    overall = {
        "CHAIRs": hallucinating / len(scores),
        "CHAIRi": sum(len(score.hallucinated) for score in scores)
        / sum(score.mentions for score in scores),
        "Recall": sum(score.true_objects_named for score in scores)
        / sum(score.true_objects for score in scores),
        "Len": sum(lengths) / len(lengths) / 100,
    }
    comparison.compare("overall", overall, golden["overall"])


def check_judge(path: Path, comparison: Comparison) -> None:
    """Check what is read from the reviews of MMHal-Bench and LLaVA Bench, and their scores."""
    golden = read_json(path, "mmhal", "llava_bench")
    compare_mmhal(golden["mmhal"], comparison)
    compare_llava(golden["llava_bench"], comparison)


def compare_mmhal(golden: Mapping[str, Any], comparison: Comparison) -> None:
    """Compare MMHal-Bench's scores; the release states all but informativeness to two decimals."""
    reviews = section(golden, "reviews")
    ratings = [release_rating(review) for review in reviews]
    scores = mmhal_scores(reviews, release_compatible=True)
    ours = {
        "informativeness_each": [rating_informativeness(rating) for rating in ratings],
        "informativeness": scores.informativeness,
        "average_score": two_decimals(scores.average_score),
        "hallucination_rate": two_decimals(scores.hallucination_rate),
        "average_by_type": [two_decimals(average) for average in scores.by_type],
    }
    expected = without(golden, "reviews")
    for name in ("average_score", "hallucination_rate"):
        expected[name] = float(expected[name])
    expected["average_by_type"] = list(map(float, expected["average_by_type"].split(",")))
    comparison.compare("mmhal", ours, expected)


def two_decimals(value: float | None) -> float:
    """Round as the release does; it takes the average of no ratings for 0."""
    return round(value or 0.0, 2)


def compare_llava(golden: Mapping[str, Any], comparison: Comparison) -> None:
    """Compare LLaVA Bench's score pairs, means and relative scores (to one decimal)."""
    reviews = section(golden, "reviews")
    pairs = [parse_score_pair(row["review"]) for row in reviews]
    ours = {
        "reviews": [{"pair": LLAVA_DROPPED if pair is None else pair} for pair in pairs],
        "relative": {
            category: {"mean": [score.reference, score.ours], "relative": round(score.score, 1)}
            for category, score in relative_scores(
                [(row["category"], row["review"]) for row in reviews]
            ).items()
        },
    }
    expected = dict(golden)
    expected["reviews"] = [without(row, "category", "review") for row in reviews]
    comparison.compare("llava_bench", ours, expected)


MUFFIN_INPUTS = {  # fields that are read but not recomputed, by section
    "labels": ("turns", "max_length"),
    "generation_prompts": ("question",),
    "answers": ("raw",),
    "positions": ("old_side", "new_side", "weight"),
    "images": ("width", "height", "size", "formula", "at_cyx"),
    "unimm_chat": ("text_base64", "image_base64"),
    "vqa_single_turn": ("question", "answer"),
}


def check_muffin_text(path: Path, comparison: Comparison) -> None:
    """Check Muffin's texts, labels, prompts, answers, positions, pictures and rows.

    The tokenizer is in the folder `muffin_text` beside the file, or else in the one beside this
    module.
    """
    golden = read_json(path, *MUFFIN_INPUTS)
    folders = [parent / "muffin_text" for parent in (path.parent, GOLDEN)]
    ours = text_values(golden, next(folder for folder in folders if folder.is_dir()))
    comparison.compare("system", ours["system"], section(golden, "system"))
    for name, inputs in MUFFIN_INPUTS.items():
        comparison.compare(name, ours[name], [without(row, *inputs) for row in golden[name]])


def check_muffin_tiny(path: Path, comparison: Comparison) -> None:
    """Check the outputs of a small Muffin: vision tower, image embeddings, logits."""
    if not (path / "golden.safetensors").is_file():
        raise DataError("there is no golden.safetensors")
    for name, ours, expected, tolerance in tiny_values(path):
        part = Comparison(tolerance)
        part.compare(name, ours.tolist(), expected.tolist())
        comparison.include(part)


class Kind(NamedTuple):
    """A layout of golden files: the function that recomputes one, and the tolerance."""

    check: Callable[[Path, Comparison], None]
    tolerance: float  # largest absolute difference


KINDS = {
    "muffin_ddpo": Kind(check_muffin_ddpo, 1e-9),  # float64 on both sides
    "chair": Kind(check_chair, 1e-12),  # ratios of counts
    "chair_opera": Kind(check_chair_opera, 1e-12),  # ratios of counts
    "judge": Kind(check_judge, 1e-9),
    "muffin_text": Kind(check_muffin_text, 1e-6),  # pixels and positions are fp32
    "muffin_tiny": Kind(check_muffin_tiny, 1e-5),  # of the logits; `ROUNDING` has the others
}


def read_json(path: Path, *sections: str) -> dict[str, Any]:
    """Read a golden file that is one JSON object of these sections; other keys may hold a text.

    Raises:
        DataError: the file cannot be read, or a section is missing, empty or unknown.
    """
    try:
        golden = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(golden, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(golden).__name__}")
    for name in sections:
        section(golden, name)
    for name, value in without(golden, *sections).items():
        if not isinstance(value, str):
            raise DataError(f"section {name!r} is unknown; expected: {', '.join(sections)}")
    return golden


def section(golden: Mapping[str, Any], name: str) -> Any:
    """Return a section that must be present and hold something.

    Raises:
        DataError: it does not.
    """
    if not golden.get(name):
        raise DataError(f"section {name!r} is missing or empty; sections: {', '.join(golden)}")
    return golden[name]


def without(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Copy a record without its inputs."""
    return {name: value for name, value in row.items() if name not in names}


def check_file(kind: str, path: Path) -> Comparison:
    """Recompute a golden file of one of `KINDS`.

    Raises:
        DataError: the file does not have the layout of its kind.
    """
    comparison = Comparison(KINDS[kind].tolerance)
    try:
        KINDS[kind].check(path, comparison)
    except DataError as error:
        raise DataError(f"{path} is no complete {kind} file: {error}") from error
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise DataError(f"{path} does not have the layout of {kind}: {error!r}") from error
    return comparison


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden.check", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("file", type=Path, metavar="FILE", help="golden file of that kind")
    options = parser.parse_args(arguments)
    try:
        comparison = check_file(options.kind, options.file)
    except DataError as error:
        print(error)
        return 1
    for failure in comparison.failures[:SHOWN]:
        print(failure)
    if len(comparison.failures) > SHOWN:
        print(f"and {len(comparison.failures) - SHOWN} more")
    print(
        f"{options.kind}: {comparison.count} values compared, worst difference "
        f"{comparison.worst:.3g} (tolerance {comparison.tolerance:g})"
    )
    return 1 if comparison.failures else 0


if __name__ == "__main__":
    sys.exit(main())
