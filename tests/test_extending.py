"""The code of docs/extending.md, in a copy of the project: one file and one line each."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
BLOCK = re.compile(
    r"^```python\n# (\S+\.py)(?:, as the last line of (\w+))?\n(.*?)^```", re.MULTILINE | re.DOTALL
)
LOSS = """
import sys
import torch
from experiments.recipes import RECIPES, experiment_config
from rlhfv_ray.loss import batch_loss
from tests.unit.test_loss import batch_of
labels = torch.tensor([[-100, 1, 2], [-100, 2, 1]])
batch = batch_of(labels, torch.zeros(2, 2, dtype=torch.bool), torch.full((2, 2), -1.0))
scored = torch.tensor([[-0.5, -0.5], [-1.0, -1.0]])
sys.argv = ["ddpo.py", "shapes", "--loss.kind", "hinge", "--loss.beta", "0.5"]
print(batch_loss(scored, batch, experiment_config(RECIPES, None).loss).preference.losses.item())
"""
PAIRS = """
from rlhfv_ray.data import load_pairs
print([(pair.chosen, pair.rejected) for pair in load_pairs("ranked.jsonl")])
"""

SCORES = """
from pathlib import Path
from eval.benchmarks import make_benchmark
from eval.config import EvalConfig
from rlhfv_ray.records import Answer
files = ("one_word.questions=questions.json", "one_word.images=.")
config = EvalConfig(model=("m",), benchmarks=("one_word",), files=files)
benchmark = make_benchmark("one_word", config, decoding={}, storage=Path("."))
texts = ("Red.", "It is red", "reddish", "blue")
answers = [Answer(prompt.id, prompt.question, text)
           for prompt, text in zip(benchmark.prompts, texts)]
print(benchmark.score(answers, {}).rates())
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A copy of the project with the page's files and lines."""
    copy = tmp_path_factory.mktemp("extended")
    for name in ("rlhfv_ray", "eval", "experiments", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "golden", "checkpoint")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    shutil.copytree(ROOT / "tests/golden", copy / "tests/golden")
    for file, table, code in BLOCK.findall(PAGE):
        path = copy / file
        if not table:
            assert not path.exists(), f"{file} is no new file"
            path.write_text(code)
            continue
        (line,) = code.splitlines()  # one line of registration
        head, opening, rest = path.read_text().partition(f"\n{table} = {{\n")
        entries, end, tail = rest.partition("\n}\n")
        assert opening and end
        path.write_text(f"{head}{opening}{entries}\n{line}{end}{tail}")
    return copy


def run(extended: Path, *arguments: str) -> str:
    """What a fresh process with the extended project prints."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=extended,
        env={**os.environ, "PYTHONPATH": str(extended), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_each_extension_is_one_file_and_one_line():
    """Catches: a page that asks for more than it promises, or a block that is not found."""
    places = [(file, table) for file, table, _ in BLOCK.findall(PAGE)]
    assert len(places) == PAGE.count("```python") == 6
    assert sorted(table for _, table in places if table) == [
        "BENCHMARKS",
        "PAIR_FORMATS",
        "PREFERENCE_LOSSES",
    ]


@pytest.mark.slow
def test_a_new_loss_trains_under_its_name(extended):
    """Catches: a loss that its line does not reach. By hand: r_w = 0.5 * 1, r_l = 0."""
    assert float(run(extended, "-c", LOSS)) == pytest.approx(0.5)


@pytest.mark.slow
def test_a_new_format_is_recognised(extended):
    """Catches: a format that its line does not reach, or that no file is recognised as."""
    Image.new("RGB", (32, 32)).save(extended / "a.png")
    row = {"image": "a.png", "question": "What?", "ranked": ["Good.", "Fair.", "Bad."]}
    (extended / "ranked.jsonl").write_text(json.dumps(row))
    assert "[('Good.', 'Bad.')]" in run(extended, "-c", PAIRS)


@pytest.mark.slow
def test_a_new_benchmark_scores_answers(extended):
    """Catches: a benchmark that its line does not reach; files that it does not get; images that it
    asks for where answers are there.
    """
    questions = [
        {"id": f"{place}", "image": f"{place}.png", "question": "Which colour?", "word": "red"}
        for place in range(4)
    ]
    (extended / "questions.json").write_text(json.dumps(questions))
    for row in questions:
        Image.new("RGB", (32, 32)).save(extended / row["image"])
    assert "{'accuracy': 0.5, 'n': 4, 'missing': 0}" in run(extended, "-c", SCORES)
    assert "one_word" in run(extended, "-m", "experiments.command", "eval", "--help-all")
    rows = [{"id": row["id"], "text": "red" if row["id"] == "0" else "blue"} for row in questions]
    (extended / "said.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    scored = ("--answers", "said.jsonl", "--benchmarks", "one_word", "--files")
    files = "one_word.questions=questions.json"
    printed = run(extended, "-m", "experiments.command", "eval", *scored, files)
    assert "25.0 (" in printed
