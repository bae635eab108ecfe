"""Scores as a JSON file, which is read back without any loss. Images are not in it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.benchmarks.contract import JudgedAnswer, Metric, Ratio, Scores, Span
from rlhfv_ray.errors import DataError
from rlhfv_ray.records import Answer
from rlhfv_ray.storage.files import write_json

FORMAT = "rlhfv-ray scores 1"
HEAD = 100  # characters at the start of a file that contain the format


def save_scores(scores: Scores, path: Path) -> None:
    """Write scores to a file atomically, and make its folder.

    Raises:
        DataError: JSON would change the manifest or the extras, e.g. a tuple into a list.
    """
    for name, value in (("manifest", scores.manifest), ("extras", scores.extras)):
        _check_round_trip(f"{name} of the scores for {path}", value)
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
        DataError: the file does not exist, or it holds no scores.
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
            f"{path} holds no scores that can be read: {type(error).__name__}: {error}; "
            "was it cut off or changed?"
        ) from error


def holds_scores(path: Path) -> bool:
    """Return True if a file starts like one written by `save_scores`."""
    with path.open(encoding="utf-8", errors="replace") as stream:
        return FORMAT in stream.read(HEAD)


def _check_round_trip(description: str, value: Any) -> None:
    try:
        read_back = json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise DataError(f"{description} cannot be written as JSON: {error}") from error
    if read_back != value:
        raise DataError(
            f"{description} would be changed by JSON; "
            "use only dicts with text as keys, lists, text and numbers"
        )


def _verdict(item: JudgedAnswer) -> dict[str, Any]:
    return {
        "ratios": item.ratios,
        "spans": item.spans,
        "group": item.group,
        "verdict": item.verdict,
        "missing": item.missing,
        "cluster": item.cluster,
    }


def _judged(item: dict[str, Any]) -> JudgedAnswer:
    return JudgedAnswer(
        Answer(item["id"], item["question"], item["text"]),
        ratios={name: Ratio(*ratio) for name, ratio in item["ratios"].items()},
        spans=tuple(Span(*span) for span in item["spans"]),
        group=item["group"],
        verdict=item["verdict"],
        missing=item["missing"],
        cluster=item.get("cluster", ""),  # absent from files of earlier versions
    )
