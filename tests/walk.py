"""Type every command of the README in a fresh clone and a clean shell: `make walk`.

    python -m tests.walk --folder /tmp/walk --pythons python3.11 ~/.pyenv/versions/3.12.1/bin/python

It does so with both Pythons that the project supports, and fails without either of them. With
`--folder`, the clones stay there: the same command goes on with the newest commit and with the
commands that did not end before.

Placeholders of the README stand for the small model and data of the demo, GPUs for CPUs, and sizes
of a sweep or a study for small ones. A job goes to a cluster of its own (`ray start --head`), and
models behind servers are two servers of this process. What has no such value is named and not run.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks.workers import free_port
from tests.openai_server import OpenAIServer
from tests.test_commands import BLOCK, commands_of

ROOT = Path(__file__).parents[1]
PYTHONS = ("python3.11", "python3.12")
KEPT = ("HOME", "USER", "LANG", "TMPDIR")  # of the environment; pip's own settings are files
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"

PAIRS = "$(ls -d $PWD/runs/corrections-*/pairs.parquet | sed 1q)"
MODEL = "rlhfv_ray/shapes/checkpoint_balanced"
SMALL = (
    "--scale.workers 2 --scale.no-gpu --scale.cpus 1 --scale.actors 1 --model.dtype fp32"
    " --optim.steps 3"
)
SMALL_TRIALS = (
    "--ddpo.storage small --ddpo.optim.steps 8 --ddpo.shapes.scenes 120"
    " --ddpo.shapes.evaluation-scenes 40"
)
CLUSTER = """(
    export RAY_AUTH_MODE=disabled TMPDIR="$(mktemp -d)"
    export RAY_API_SERVER_ADDRESS=http://127.0.0.1:{dashboard}
    ray start --head --block --num-cpus 2 --port {head} --dashboard-port {dashboard} \\
        > "$TMPDIR/head.log" 2>&1 &
    head=$!
    trap 'kill $head; wait $head || true' EXIT
    for _ in $(seq 60); do ray job list > "$TMPDIR/jobs.log" 2>&1 && break; sleep 2; done
    {command}
)"""
REPLACED = {
    "/models/llava-1.5-7b-hf": MODEL,
    "/data/RLHF-V-Dataset.parquet": PAIRS,
    "/shared/runs": "runs",
    "--scale.workers 8": SMALL,
    "--model.path MODEL": f"{SMALL} --model.path {MODEL}",
    "--model PATH": f"--model {MODEL}",
    "<storage>": "runs",
    "ddpo.py paper ...": f"ddpo.py paper {SMALL} --model.path {MODEL} --data.path {PAIRS}"
    " --storage $PWD/runs",
    "api:base@http://host:8000/v1": "api:base@{base}",
    "api:tuned@http://host:8001/v1 ...": "api:tuned@{tuned} --benchmarks shapes --shapes.scenes 20",
    "--pope.questions coco/pope ...": "--pope.questions coco/pope",
    "sft shapes": "sft shapes --optim.steps 8",
    "study data_scaling shapes": "study data_scaling shapes --pairs 8 16 --ranked 8",
    "sweep shapes-small": f"sweep shapes-small {SMALL_TRIALS}",
    "PAIRS ...": f"{PAIRS} --benchmark shapes --dry-run",
    "--ddpo.model.path MODEL": f"--ddpo.model.path {MODEL}",
}
STUDY = re.compile(r"(study \w+)$")
INPUTS = re.compile(r"conversations\.json|answers\.jsonl")  # which `write_inputs` writes
NOT_RUN = re.compile(r"\.\.\.|make test|benchmarks/results")
INLINE = re.compile(r"`((?:rlhfv-ray|python|ray job submit|make)\s[^`]+)`")
COMPLETE = ("rlhfv-ray doctor", "make docs")  # inline commands of two words; others are names


class Step(NamedTuple):
    """A command of the README, and what the walk types for it: nothing where it has no value."""

    command: str
    typed: str


def readme_commands(text: str) -> Iterator[str]:
    """All commands of a page in order, those inside of sentences and tables too.

    An inline `rlhfv-ray train` without an argument is a name, and no command.
    """
    start = 0
    for block in BLOCK.finditer(text):
        yield from inline_commands(text[start : block.start()])
        yield from commands_of(block[0])
        start = block.end()
    yield from inline_commands(text[start:])


def inline_commands(text: str) -> Iterator[str]:
    """The commands in a text without code blocks that can be typed as they stand."""
    for command in INLINE.findall(text):
        words = command.split()
        if len(words) > 2 or " ".join(words) in COMPLETE:
            yield " ".join(words)


def step(command: str, addresses: Mapping[str, str]) -> Step:
    """Give a command the walk's values.

    Args:
        command: of the README.
        addresses: of the servers `base` and `tuned`.
    """
    typed = STUDY.sub(rf"\1 shapes --seeds 0 1 {SMALL_TRIALS}", command)
    for placeholder, value in REPLACED.items():
        typed = typed.replace(placeholder, value)
    for name, url in addresses.items():
        typed = typed.replace(f"{{{name}}}", url)
    if NOT_RUN.search(typed):
        return Step(command, "")
    if typed.startswith("ray job submit"):
        typed = CLUSTER.format(head=free_port(), dashboard=free_port(), command=typed)
    return Step(command, typed)


def write_inputs(clone: str) -> None:
    """Write the files of data that the README's commands read into a clone."""
    folder = Path(clone)
    pictures = sorted(folder.glob("runs/benchmark-*/images/*"))[:16]
    rows = [
        {
            "id": f"{place}",
            "image": picture.relative_to(folder).as_posix(),
            "conversations": [
                {"from": "human", "value": "<image>\nDescribe the picture."},
                {"from": "gpt", "value": "a beach with a blue heart at the top left."},
            ],
        }
        for place, picture in enumerate(pictures)
    ]
    (folder / "conversations.json").write_text(json.dumps(rows))
    questions, answers = [], []
    for number, (thing, label) in enumerate((("dog", "yes"), ("cat", "no"), ("cup", "yes"))):
        question = f"Is there a {thing} in the image?"
        row = {"question_id": number, "image": "a.jpg", "text": question, "label": label}
        questions.append(json.dumps(row))
        answers.append(json.dumps({"question": question, "answer": "Yes, there is."}))
    (folder / "coco" / "pope").mkdir(parents=True, exist_ok=True)
    (folder / "coco" / "pope" / "coco_pope_random.json").write_text("\n".join(questions))
    (folder / "answers.jsonl").write_text("\n".join(answers))


def size_check() -> str:
    """A shell line that fails if `.venv` is far larger than the README says.

    CUDA's torch is larger, by another amount with each release.
    """
    (gigabytes,) = re.findall(r"about\s+(\d+) GB for `\.venv`", (ROOT / "README.md").read_text())
    smallest, largest = 700 * int(gigabytes), 1300 * int(gigabytes)
    return (
        "[ -e .venv/lib/*/site-packages/nvidia ] || { size=$(du -sm .venv | cut -f1); "
        f'echo ".venv takes $size MB"; [ $size -gt {smallest} ] && [ $size -lt {largest} ]; }}'
    )


def main() -> int:
    """Walk with every Python; return the exit code, 0 if all commands ran with each."""
    parser = argparse.ArgumentParser(description="Type the README's commands in a fresh clone.")
    parser.add_argument("--folder", type=Path, help="keep the clones here, and go on with them")
    parser.add_argument("--pythons", nargs="+", default=PYTHONS, help="programs to walk with")
    arguments = parser.parse_args()
    missing = [name for name in arguments.pythons if not is_python(name)]
    if missing:
        print(f"{' and '.join(missing)} does not run here: name programs by --pythons.")
        return 1
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or stack.enter_context(tempfile.TemporaryDirectory())
        return int(any(walk(python, Path(folder).resolve()) for python in arguments.pythons))


def is_python(name: str) -> bool:
    """Return True if a program runs; pyenv has names of Pythons that are not installed."""
    return bool(shutil.which(name)) and subprocess.run([name, "-c", ""]).returncode == 0


def walk(python: str, folder: Path) -> int:
    """Run the commands in one shell; return the exit code of the first that fails, else 0."""
    print(f"walking with {python}", flush=True)
    home = folder / Path(python).name
    clone = newest_clone(home)
    folders = os.environ.get("PATH", SYSTEM_PATH).split(":")
    path = ":".join(each for each in folders if not each.startswith(sys.prefix))
    kept = {key: os.environ[key] for key in KEPT if key in os.environ}
    with (
        OpenAIServer(lambda _: "a beach with a blue heart.", log=home / "base.jsonl") as base,
        OpenAIServer(lambda _: "a beach with a red star.", log=home / "tuned.jsonl") as tuned,
    ):
        typed = script(clone, {"base": base.url, "tuned": tuned.url})
        shell = ["bash", "--noprofile", "--norc", "-c", typed]
        return subprocess.run(shell, env=kept | {"PATH": path, "PYTHON": python}).returncode


def newest_clone(home: Path) -> Path:
    """Return a clone of this repository's newest commit: a fresh one, or the former one with it."""
    clone = home / "rlhfv-ray"
    (home / "done").mkdir(parents=True, exist_ok=True)
    if not clone.exists():
        subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    subprocess.run(["git", "-C", clone, "fetch", "-q", ROOT, "HEAD"], check=True)
    subprocess.run(["git", "-C", clone, "checkout", "-q", "FETCH_HEAD"], check=True)
    return clone


def script(clone: Path, addresses: Mapping[str, str]) -> str:
    """Return the README's commands for one shell in a clone, each printed before it runs.

    A command that ended leaves a file, named by the command's digest, and is not run again.
    """
    lines = ["set -euo pipefail", f"cd {clone}"]
    for command in dict.fromkeys(readme_commands((ROOT / "README.md").read_text())):
        typed = step(command, addresses).typed
        if not typed:
            print(f"not run: {command}")
        elif typed.startswith("source "):  # changes the shell, so it is typed each time
            lines += [typed, size_check()]
        else:
            lines += marked(command, typed, clone)
    return "\n".join(lines)


def marked(command: str, typed: str, clone: Path) -> list[str]:
    """Return the shell lines of a command that runs unless its mark is there."""
    mark = clone.parent / "done" / hashlib.sha256(command.encode()).hexdigest()[:16]
    prepared = []
    if INPUTS.search(typed):
        ours = f"from tests.walk import write_inputs; write_inputs({str(clone)!r})"
        prepared = [f"(cd {ROOT} && {sys.executable} -c {shlex.quote(ours)})"]
    return [
        f"if [ ! -e {mark} ]; then",
        f"echo; echo {shlex.quote('$ ' + command)}",
        *prepared,
        typed,
        f"touch {mark}",
        "fi",
    ]


if __name__ == "__main__":
    sys.exit(main())
