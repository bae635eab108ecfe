"""Scores as a file: one JSON object, from which they come back exactly as they were; pictures are not in it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.benchmarks.contract import JudgedAnswer, Metric, Ratio, Scores, Span
from rlhfv_ray.errors import DataError
from rlhfv_ray.records import Answer
from rlhfv_ray.storage.files import write_json

FORMAT = "rlhfv-ray scores 1"
HEAD = 100  # characters in which the format is named


def save_scores(scores: Scores, path: Path) -> None:
    """Write scores to a file that is there whole or not at all; its folder is made.

    Raises:
        DataError: the manifest, or what stands beside the scores, would not come back as it is, e.g. a tuple as a list.
    """
    for name, value in (("manifest", scores.manifest), ("extras", scores.extras)):
        _check_kept(f"{name} of the scores for {path}", value)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        path,
        {
            "format": FORMAT,
            "metrics": [metric._asdict() for metric in scores.metrics],
            "answers": [{**asdict(item.answer), **_verdict(item)} for item in scores.answers],
            "manifest": scores.manifest,
            "extras": scores.extras,
        },
    )


def load_scores(path: Path) -> Scores:
    """Read scores written by `save_scores`.

    Raises:
        DataError: there is no such file, or it holds something else.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise DataError(
                f"{path} holds no scores: expected a JSON object with format {FORMAT!r}"
            )
        metrics = tuple(Metric(**metric) for metric in record["metrics"])
        answers = tuple(_judged(item) for item in record["answers"])
        return Scores(metrics, answers, record["manifest"], record["extras"])
    except OSError as error:
        raise DataError(f"scores cannot be read: {error}") from error
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} holds no scores that can be read: {type(error).__name__}: {error}; was it cut off or changed?"
        ) from error


def holds_scores(path: Path) -> bool:
    """Whether a file begins as one written by `save_scores` does."""
    with path.open(encoding="utf-8", errors="replace") as stream:
        return FORMAT in stream.read(HEAD)


def _check_kept(what: str, value: Any) -> None:
    try:
        kept = json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} cannot be written as JSON: {error}") from error
    if kept != value:
        raise DataError(
            f"{what} would not come back as it is; write only dicts with names, lists, text and numbers"
        )


def _verdict(item: JudgedAnswer) -> dict[str, Any]:
    return {
        "ratios": item.ratios,
        "spans": item.spans,
        "group": item.group,
        "verdict": item.verdict,
        "missing": item.missing,
    }


def _judged(item: dict[str, Any]) -> JudgedAnswer:
    return JudgedAnswer(
        Answer(item["id"], item["question"], item["text"]),
        ratios={name: Ratio(*part) for name, part in item["ratios"].items()},
        spans=tuple(Span(*span) for span in item["spans"]),
        group=item["group"],
        verdict=item["verdict"],
        missing=item["missing"],
    )
