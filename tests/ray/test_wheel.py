"""The wheel outside of the checkout: a small demo, an evaluation of answers, the doctor."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

SMALL = (
    *("--shapes.scenes", "40", "--shapes.evaluation-scenes", "10", "--optim.steps", "2"),
    *("--controls", "blank"),
)
POPE = ("question_id", "image", "text", "label")


def run(installed_wheel: Path, folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "rlhfv_ray.entry", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed_wheel), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "logging.cc" not in done.stderr
    return done.stdout


def test_demo_evaluation_and_doctor_need_no_checkout(installed_wheel, tmp_path):
    """Catches: a file that the wheel lacks; workers that import the checkout's code; Ray's own
    lines on the terminal.
    """
    printed = run(installed_wheel, tmp_path, "demo", *SMALL)
    assert "stage 1 of 11: " in printed and "stage 11 of 11: " in printed
    assert "With controls" in printed
    (report,) = (tmp_path / "runs").glob("shapes-*/report.html")
    assert report.stat().st_size > 10_000
    questions = [dict(zip(POPE, (place, "a.jpg", "Is there a dog?", "no"))) for place in range(4)]
    answers = [{"question": row["text"], "answer": "No."} for row in questions]
    for name, rows in (("coco_pope_random.json", questions), ("answers.jsonl", answers)):
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    pope = ("--benchmarks", "pope", "--pope.questions", "coco_pope_random.json")
    assert "100.0" in run(installed_wheel, tmp_path, "eval", "--answers", "answers.jsonl", *pope)
    doctor = ("doctor", "--storage", "runs", "--free-gib", "0")
    assert "all is well" in run(installed_wheel, tmp_path, *doctor)
