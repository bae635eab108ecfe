"""Type every command of the README in a fresh clone and a clean shell: `make walk`.

It does so with each Python that the project supports and the machine has.

Placeholders of the README stand for the small model and data of the demo, and GPUs for CPUs.
Commands that leave something out (`...`), and `make test`, are named and not run.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.test_commands import commands_of

ROOT = Path(__file__).parents[1]
SMALL = "--scale.workers 2 --scale.no-gpu --scale.cpus 1 --scale.actors 1 --model.dtype fp32"
REPLACED = {
    "/models/llava-1.5-7b-hf": "rlhfv_ray/shapes/checkpoint_balanced",
    "/data/RLHF-V-Dataset.parquet": "$(ls -d runs/corrections-*/pairs.parquet)",
    "/shared/runs": "runs",
    "--scale.workers 8": f"{SMALL} --optim.steps 3",
    "--model.path MODEL": f"{SMALL} --optim.steps 3 --model.path shapes",
}
NOT_RUN = re.compile(r"\.\.\.|make test")
KEPT = ("HOME", "USER", "LANG", "TMPDIR")  # of the environment; pip's own settings are files
PYTHONS = ("python3.11", "python3.12")
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"


def conversations(folder: Path) -> None:
    """Write `conversations.json`, which the README's fine-tuning reads."""
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
    pythons = [name for name in PYTHONS if is_python(name)]
    return int(not pythons or any(map(walk, pythons)))


def is_python(name: str) -> bool:
    """Return True if a program runs; pyenv has names of Pythons that are not installed."""
    return bool(shutil.which(name)) and subprocess.run([name, "-c", ""]).returncode == 0


def walk(python: str) -> int:
    """Run the commands in one shell; return the exit code of the first that fails, else 0."""
    print(f"walking with {python}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name) / "rlhfv-ray"
        subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
        found = os.environ.get("PATH", SYSTEM_PATH).split(":")
        path = ":".join(folder for folder in found if not folder.startswith(sys.prefix))
        kept = {key: os.environ[key] for key in KEPT if key in os.environ}
        shell = ["bash", "--noprofile", "--norc", "-c", script(clone)]
        return subprocess.run(shell, env=kept | {"PATH": path, "PYTHON": python}).returncode


def script(clone: Path) -> str:
    """Return the README's commands for one shell in a clone, each printed before it runs."""
    lines = ["set -euo pipefail", f"cd {clone}"]
    for command in commands_of((ROOT / "README.md").read_text()):
        if NOT_RUN.search(command):
            print(f"not run: {command}")
            continue
        for placeholder, value in REPLACED.items():
            command = command.replace(placeholder, value)
        if "conversations.json" in command:
            lines.append(f"(cd {ROOT} && {sys.executable} -m tests.walk {clone})")
        lines += [f"echo; echo {shlex.quote('$ ' + command)}", command]
    return "\n".join([*lines, size_check()])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        conversations(Path(sys.argv[1]))
    else:
        sys.exit(main())
