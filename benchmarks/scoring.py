"""Measure scoring and reporting of many answers: `python benchmarks/scoring.py [--answers N]`.

Two models answer POPE's kind of questions. Their answers are scored, saved, read back, compared,
and shown as a table, a summary, figures and a page. Each part's process time is printed, and the
most memory that the process held.
"""

import argparse
import json
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eval.benchmarks.contract import Scores
from eval.benchmarks.pope import POPE
from eval.config import POPEConfig
from eval.reporting.html import Heading, Section, write_page
from eval.reporting.mlflow_log import description
from eval.reporting.score_files import load_scores, save_scores
from eval.reporting.tables import draw, summary, table
from rlhfv_ray.records import Answer

RIGHT = {"base": 0.78, "aligned": 0.84}  # share of right answers


def main() -> None:
    """Score and report once, and print where the time went."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--answers", type=int, default=100_000, help="of each of the two models")
    parser.add_argument("--per-image", type=int, default=1, help="questions about each image")
    sizes = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        times = score_and_report(Path(folder), sizes.answers, per_image=sizes.per_image)
    for part, seconds in times.items():
        print(f"{part:<24}{seconds:8.2f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{'all':<24}{sum(times.values()):8.2f} s, at most {peak:.2f} GiB")


def score_and_report(folder: Path, count: int, *, per_image: int = 1) -> dict[str, float]:
    """Return the process time of each part of an evaluation, in seconds.

    Args:
        folder: for files; it is empty.
        count: answers of each model.
        per_image: questions about each image.
    """
    times: dict[str, float] = {}
    questions = folder / "coco_pope_random.json"
    write_questions(questions, count, per_image)
    benchmark = POPE(POPEConfig(str(questions)), decoding={})
    timed(times, "questions", lambda: benchmark.prompts)
    models: dict[str, Scores] = {}
    for name, share in RIGHT.items():
        answers = make_answers(benchmark, share, seed=len(models))
        scores = timed(times, "scores", lambda answers=answers: benchmark.score(answers, {}))
        path = folder / f"{name}.json"
        timed(times, "files", lambda path=path, scores=scores: save_scores(scores, path))
        models[name] = timed(times, "files", lambda path=path: load_scores(path))
    timed(times, "summary", lambda: summary(models))
    timed(times, "table", lambda: table(models))
    figures = timed(times, "figures", lambda: draw(models, folder))
    sections = [Section("pope", models, benchmark.prompts, figures)]
    timed(
        times,
        "page",
        lambda: write_page(folder / "report.html", sections, heading=Heading("Report")),
    )
    timed(times, "description for MLflow", lambda: description(sections))
    return times


def timed(times: dict[str, float], part: str, work: Callable[[], Any]) -> Any:
    """Do the work, and add its process time to that of its part."""
    start = time.process_time()
    result = work()
    times[part] = times.get(part, 0.0) + time.process_time() - start
    return result


def write_questions(path: Path, count: int, per_image: int) -> None:
    """Write a question file of POPE's form."""
    rows = [
        {
            "question_id": number,
            "image": f"COCO_val2014_{number // per_image:012d}.jpg",
            "text": f"Is there an object {number % per_image} in the image?",
            "label": ("yes", "no")[number % 2],
        }
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_answers(benchmark: POPE, share: float, *, seed: int) -> list[Answer]:
    """Return answers of which a share is right; those about one image are alike."""
    draw = random.Random(seed)
    skill: dict[str, float] = {}  # by image
    answers = []
    for question in benchmark.questions:
        right = draw.random() < skill.setdefault(question.image, draw.betavariate(share, 1 - share))
        words = " ".join(["indeed"] * draw.randrange(12))
        text = f"{'Yes' if right == question.present else 'No'}, {words} in the picture."
        answers.append(Answer(question.id, question.text, text))
    return answers


if __name__ == "__main__":
    main()
