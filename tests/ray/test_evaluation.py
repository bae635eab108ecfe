"""A whole evaluation by its command: two models, two actors, a judge over HTTP; stopped, and gone
on with.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest
import torch

from eval.benchmarks.shapes import ShapesBenchmark
from eval.chair import ObjectVocabulary
from eval.config import JudgeConfig
from rlhfv_ray.config import GenerationConfig, plain
from rlhfv_ray.console import EXIT_CODES
from rlhfv_ray.endpoint.records import Reply
from rlhfv_ray.errors import JudgeError
from rlhfv_ray.inference.generate import answer_prompts, read_answers
from rlhfv_ray.models import load_policy
from rlhfv_ray.records import Answer
from rlhfv_ray.shapes.world import SYNONYMS
from tests.conftest import wait_for
from tests.openai_server import OpenAIServer
from tests.s3_server import taking_only

ROOT = Path(__file__).parents[2]
KEY = "sk-canary-77d1c0"
ROWS, SCENES = 10, 40
PARTS = "answers-*/part-*"
GENERATION = GenerationConfig(max_new_tokens=60)
WORDS = ObjectVocabulary.load(SYNONYMS, lemmatizer="builtin")
pytestmark = pytest.mark.ray


def judge(prompt: str) -> str:
    """Lists the shapes that the text between the marks names; says ok where it is only asked
    whether it is there.
    """
    if "\n---" not in prompt:
        return "ok"
    return json.dumps([m.word for m in WORDS.locate(prompt.split("\n---")[1])])


@pytest.fixture(scope="module")
def aligned(tmp_path_factory) -> Path:
    """The embedded model with its head turned a little: other answers, as after training."""
    folder = tmp_path_factory.mktemp("models") / "aligned" / "model"
    model, processor = load_policy("shapes", dtype="fp32")
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head += 0.05 * torch.randn(head.shape, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def command(storage: str, aligned: Path, url: str) -> list[str]:
    return [
        *(sys.executable, "eval/run.py", "--model", "shapes", str(aligned), "--storage", storage),
        *("--shapes.scenes", str(SCENES), "--shapes.mode", "judge", "--loading.dtype", "fp32"),
        *(
            "--generation.max-new-tokens",
            "60",
            "--inference.rows",
            str(ROWS),
            "--inference.batch",
            str(ROWS),
        ),
        *("--inference.actors", "2", "--inference.cpus", "0.5"),
        *(
            "--judge.model",
            "judge-2026-01-01",
            "--judge.base-url",
            url,
            "--judge.key-env",
            "CANARY_KEY",
        ),
        *("--judge.requests-per-minute", "600", "--judge.actors", "2"),
    ]


def run(arguments: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess:
    environment = {**os.environ, **environment, "CANARY_KEY": KEY}
    done = subprocess.run(
        arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def interrupted(
    arguments: list[str],
    environment: Mapping[str, str],
    there: Callable[[], bool],
    number: signal.Signals,
) -> int:
    """Start a driver, wait until something is there, and send the driver a signal.

    Ctrl-C reaches all processes that were started, as in a terminal. Another signal reaches the
    driver alone; the processes that it leaves are killed.

    Returns:
        The exit code.
    """
    environment, nowhere = {**os.environ, **environment, "CANARY_KEY": KEY}, subprocess.DEVNULL
    pressable = partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # what a shell starts in the background ignores it
    driver = subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=environment,
        stdout=nowhere,
        stderr=nowhere,
        start_new_session=True,
        preexec_fn=pressable,
    )
    wait_for(lambda: driver.poll() is not None or there(), 180)
    family = psutil.Process(driver.pid).children(recursive=True) if driver.poll() is None else []
    if number == signal.SIGINT:
        os.killpg(driver.pid, number)
    else:
        driver.send_signal(number)
    code = driver.wait(60)
    if number != signal.SIGINT:
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    psutil.wait_procs(family, 30)
    return code


def expected(storage: Path, model: str) -> tuple[list[Answer], dict[str, float | None]]:
    """Return a model's answers, made here without a stop, batch by batch, and their scores by the
    world itself.
    """
    (folder,) = storage.glob("benchmark-*")
    by = JudgeConfig(kind="oracle")
    benchmark = ShapesBenchmark(folder, decoding=plain(GENERATION), judge=by)
    policy, processor = load_policy(model, dtype="fp32")
    texts = [
        text
        for start in range(0, SCENES, ROWS)
        for text in answer_prompts(
            policy, processor, benchmark.prompts[start : start + ROWS], GENERATION
        )
    ]
    answers = [
        Answer(p.id, p.question, text) for p, text in zip(benchmark.prompts, texts, strict=True)
    ]
    oracle = benchmark.oracle(answers)
    verdicts = {
        request.id: [Reply("ok", oracle(request))] for request in benchmark.requests(answers)
    }
    return answers, benchmark.score(answers, verdicts).rates()


def holding_key(folders: list[Path], since: float) -> list[Path]:
    files = [
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    ]
    recent = [path for path in files if path.stat().st_mtime >= since]
    assert len(recent) > 50
    return [path for path in recent if KEY.encode() in path.read_bytes()]


@dataclass(frozen=True)
class Place:
    """Where an evaluation is stopped by one driver, and gone on with by another."""

    storage: str
    stop: signal.Signals  # that ends the first driver
    first: Mapping[str, str]  # the drivers' environments
    second: Mapping[str, str]
    files: Callable[
        [str], dict[str, object]
    ]  # of a pattern that are there, and when each was written
    seen: Path  # the storage as the second driver has it
    written: Callable[[], list[Path]]  # folders with all that was written
    # Lets the storage take no further part; on a disk, the first driver is stopped in time.
    taking_only: Callable[[int], AbstractContextManager[None]]


@pytest.fixture(params=[pytest.param("folder", marks=pytest.mark.soak), "bucket"])
def place(request: pytest.FixtureRequest, bucket, tmp_path: Path) -> Iterator[Place]:
    """A folder and Ctrl-C; or a bucket, a kill, and drivers that have nothing else in common."""
    started, storage = time.time(), tmp_path / "runs"

    def sessions(of: Path) -> list[Path]:
        found = [path for path in of.glob("ray/session_2*") if path.stat().st_mtime >= started - 1]
        assert found
        return found

    if request.param == "folder":

        def files(pattern: str) -> dict[str, object]:
            return {str(path): path.stat().st_mtime_ns for path in storage.glob(pattern)}

        yield Place(
            str(storage),
            signal.SIGINT,
            {},
            {},
            files,
            storage,
            lambda: [storage, *sessions(Path("/tmp"))],
            contextlib.nullcontext,
        )
        return
    address, objects = bucket.address("evaluated"), bucket.objects()
    with (
        TemporaryDirectory(prefix="rr") as one,
        TemporaryDirectory(prefix="rr") as other,
    ):  # short names: Ray puts sockets there

        def files(pattern: str) -> dict[str, object]:
            found = objects.glob(f"{address}/{pattern}", detail=True)
            return {path: info["LastModified"] for path, info in found.items()}

        def written() -> list[Path]:
            objects.get(address, str(tmp_path / "objects"), recursive=True)
            return [
                tmp_path / "objects",
                *(Path(name) for name in (one, other) if sessions(Path(name))),
            ]

        first, second = ({**bucket.environment, "TMPDIR": name} for name in (one, other))
        mirror = bucket.mirror(Path(other), address)
        yield Place(
            address,
            signal.SIGKILL,
            first,
            second,
            files,
            mirror,
            written,
            partial(taking_only, word="/part-"),
        )


def test_stopped_and_gone_on_with_it_ends_where_it_should(
    aligned: Path, tmp_path: Path, place: Place
) -> None:
    """Catches: answers or verdicts lost, repeated, changed or of the wrong model after a stop in
    answering; scores that depend on actors; the key in any file; what a driver on another machine
    needs and the bucket lacks.
    """
    started = time.time()
    with OpenAIServer(judge, log=tmp_path / "log", latency=(0.1, 0.3)) as server:
        arguments = command(place.storage, aligned, server.url)
        parts_each = SCENES // ROWS
        with place.taking_only(parts_each + 1):
            code = interrupted(
                arguments, place.first, lambda: len(place.files(PARTS)) > parts_each, place.stop
            )
        assert code == (130 if place.stop == signal.SIGINT else -place.stop)
        assert not place.files("eval-*/summary.json")
        parts = place.files(PARTS)
        assert parts_each < len(parts) < 2 * parts_each  # amid the second model's answers
        done = run(arguments, place.second)
        assert parts.items() <= place.files(PARTS).items()
        served = server.requests()
    (summary,) = place.seen.glob("eval-*/summary.json")
    models = json.loads(summary.read_text())["shapes"]["models"]
    stored = [read_answers(folder) for folder in place.seen.glob("answers-*")]
    assert len(stored) == 2
    for name, path in (("shapes", "shapes"), ("aligned", str(aligned))):
        answers, wanted = expected(place.seen, path)
        assert answers in stored
        assert {metric: models[name][metric] for metric in wanted} == pytest.approx(wanted)
    assert models["shapes"]["mention_rate"] != models["aligned"]["mention_rate"]
    named = json.loads((summary.parent / "config.json").read_text())["stages"]
    assert {folder.name for folder in place.seen.glob("answers-*")} < set(named)  # none is pruned
    assert max(Counter(entry["prompt"] for entry in served).values()) == 1
    assert len(list((place.seen / "judge-cache").rglob("*.json"))) == len(served)
    assert all(entry["key"] == f"Bearer {KEY}" for entry in served)
    assert KEY not in done.stdout + done.stderr
    assert holding_key(place.written(), started) == []


def test_a_wrong_key_is_one_error_before_any_answer(aligned: Path, tmp_path: Path) -> None:
    """Catches: hours of answers made before a judge turns out to be out of reach."""
    arguments = command(str(tmp_path / "runs"), aligned, "http://127.0.0.1:9/v1")
    done = subprocess.run(
        [name for name in arguments if name != str(aligned)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "CANARY_KEY is empty or not set" in " ".join(
        done.stderr.replace("│", " ").split()
    )
    assert (
        "ConfigError" in done.stderr and "ray::" not in done.stderr
    )  # not where in Ray it happened
    assert not list((tmp_path / "runs").glob("answers-*"))


def test_models_behind_servers_without_a_key_and_too_few_verdicts(tmp_path: Path) -> None:
    """Catches: a key that a local server is said to need; models that share a name; a report that
    is not written, or an exit code of 0, where the judge's replies cannot be read.
    """
    environment = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    texts = {"base": "There is a red circle.", "tuned": "There is a street.", "judge": "hm"}
    with contextlib.ExitStack() as stack:
        base, tuned, judging = (
            stack.enter_context(OpenAIServer(lambda _, text=text: text, log=tmp_path / name)).url
            for name, text in texts.items()
        )
        models = (f"api:org/base@{base}", f"api:tuned@{tuned}")
        answered = ["--model", *models, "--shapes.scenes", "6", "--shapes.mode", "judge"]
        judged = ["--judge.model", "judge", "--judge.base-url", judging]
        stored = ["--storage", str(tmp_path / "runs")]
        done = subprocess.run(
            [sys.executable, "eval/run.py", *stored, *answered, *judged],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == EXIT_CODES[JudgeError], done.stdout + done.stderr
    assert "12 of 12 answers have no readable verdict" in " ".join(done.stderr.split())
    (report,) = tmp_path.glob("runs/eval-*/report.html")
    page = report.read_text()
    assert "Do not rely on these scores yet" in page
    assert "<th>base</th>" in page and "<th>tuned</th>" in page
