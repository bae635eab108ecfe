"""Progress, errors and exit codes of a command, without a terminal."""

import contextlib
import errno
import io
import logging
import os
import pty
import re
import signal
import subprocess
import sys

import pytest
from rich.console import Console
from rich.table import Table

from rlhfv_ray import console
from rlhfv_ray.console import new_console, poll, print_sentence, progress_bar, run_command
from rlhfv_ray.errors import ConfigError, JudgeError, StageFailedError, StorageError

STAMP = len("2026-01-01 00:00:00 ")


@pytest.fixture(autouse=True)
def former_handler():
    """Give back the handler that `run_command` replaces."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def failing(error: BaseException):
    def body() -> None:
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("lower beta"), 2),
        (StageFailedError("lower beta"), 4),
        (StorageError("lower beta"), 4),
        (JudgeError("lower beta"), 5),
    ],
)
def test_an_error_of_ours_is_shown_and_has_its_code(error, code, capsys):
    """Catches: a traceback for a user's mistake; a script that cannot tell why a command failed."""
    assert run_command(failing(error)) == code
    shown = capsys.readouterr().err
    assert "lower beta" in shown and type(error).__name__ in shown and "Traceback" not in shown


def test_a_full_or_read_only_disk_is_no_traceback(capsys):
    """Catches: a page of Python where the user has to make room; a defect that passes for one."""
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/runs/part-00000.parquet")
    assert run_command(failing(error)) == 4
    printed = capsys.readouterr().err
    assert "No space left on device: /runs/part-00000.parquet" in printed
    assert "again" in printed  # the panel breaks lines
    with pytest.raises(FileNotFoundError):
        run_command(failing(FileNotFoundError(errno.ENOENT, "No such file", "x")))


def test_success_interruption_and_defects_differ(capsys):
    """Catches: Ctrl-C that looks like success; a defect of ours whose traceback is swallowed."""
    assert (run_command(lambda: None), run_command(lambda: 1)) == (0, 1)
    assert run_command(failing(KeyboardInterrupt())) == 130
    assert "The same command continues from what is finished." in capsys.readouterr().out
    with pytest.raises(ZeroDivisionError):
        run_command(failing(ZeroDivisionError()))


def test_sigterm_is_a_stop_like_ctrl_c(capsys):
    """Catches: a job that a scheduler ends, taken for a failed one, or without a word."""
    assert run_command(lambda: os.kill(os.getpid(), signal.SIGTERM)) == 143
    assert "The same command continues from what is finished." in capsys.readouterr().out


LEAVING = """
import atexit
from rlhfv_ray.console import leave

class Slow:
    def __del__(self):
        print("taken apart")

slow = Slow()
atexit.register(print, "cleaned up")
print("done", end=" ")
leave(4)
"""


@pytest.mark.slow
def test_a_command_cleans_up_and_leaves():
    """Catches: seconds of taking torch apart; output or clean-up lost, or another exit code."""
    left = subprocess.run([sys.executable, "-c", LEAVING], capture_output=True, text=True)
    assert (left.stdout, left.stderr, left.returncode) == ("done cleaned up\n", "", 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("print(1); sys.stdin.read(); leave(4)", 4),
        ("leave(run_command(lambda: print(sys.stdin.read() or 100_000 * 'x')))", 141),
    ],
)
def test_a_reader_that_is_gone_is_no_error(ending, code):
    """Catches: a traceback where the reader has seen enough, as of `rlhfv-ray --help | head -1`."""
    start = "import sys; from rlhfv_ray.console import leave, run_command"
    with subprocess.Popen(
        [sys.executable, "-c", f"{start}; {ending}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == code


def test_a_job_s_log_gets_a_line_every_few_seconds(monkeypatch, capsys):
    """Catches: a log with a line per step, or without the last one."""
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    with progress_bar("Trials", 4) as bar:
        for done, now in ((1, 9.0), (2, 11.0), (3, 12.0), (4, 13.0)):
            clock[0] = now
            bar.advance(done, "well")
    lines = capsys.readouterr().out.splitlines()
    assert [line[STAMP:] for line in lines] == [
        "Trials: 2/4 after 11 s well",
        "Trials: 4/4 after 13 s well",
    ]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)


def test_the_last_look_comes_after_the_body():
    """Catches: the work since the last look never shown; a last look lost to an error."""
    events = []
    with pytest.raises(ZeroDivisionError), poll(lambda: events.append("look"), every=60):
        events.append("body")
        raise ZeroDivisionError
    assert events == ["body", "look"]


def test_names_are_printed_as_they_are(capsys):
    """Catches: a model's path or a row's id with brackets that ends the print, or loses a part."""
    table = Table("[model]")
    table.add_row("runs/[/bold]x[red]")
    new_console().print(table)
    new_console().print("id [/] of a[1]")
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("[model]", "runs/[/bold]x[red]", "id [/] of a[1]"))


def test_a_program_is_called_as_people_can_type_it(monkeypatch, tmp_path):
    """Catches: a printed `mlflow ui` that the shell does not find, or finds in another place."""
    own, other = tmp_path / "my own" / "mlflow", tmp_path / "other" / "mlflow"
    for file in (own, other):
        file.parent.mkdir()
        file.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(own.with_name("python")))
    for path, expected in (
        (own.parent, "mlflow"),
        (other.parent, f"'{own}'"),
        (tmp_path, f"'{own}'"),
    ):
        monkeypatch.setenv("PATH", str(path))
        assert console.program("mlflow") == expected
    assert console.program("absent") == "absent"


def test_a_warning_is_written_once_with_its_time(capsys):
    """Catches: the same warning twice in a row; a job's log that does not say when."""
    handler = console.TerminalHandler()
    logger = logging.Logger("rlhfv_ray.storage")
    logger.addHandler(handler)
    for text in ("the server is away", "the server is away", "the server is back"):
        logger.warning(text)
    lines = capsys.readouterr().err.splitlines()
    assert [line[STAMP:] for line in lines] == [
        "WARNING rlhfv_ray.storage: the server is away",
        "WARNING rlhfv_ray.storage: the server is back",
    ]
    handler.times["the server is away"] -= console.REPEATED_S
    logger.warning("the server is away")
    assert "is away" in capsys.readouterr().err


TERMINAL = """
import logging, sys
from rlhfv_ray.console import new_console, progress_bar, run_command, stage_line

def body():
    new_console().print(stage_line("training", "running", 2, 6))
    with progress_bar("DDPO updates", 306) as bar:
        for update in range(300, 307):
            bar.advance(update, "loss 0.499  margin 0.471")
            new_console().print(f"line {update}")
            logging.getLogger("rlhfv_ray").warning(f"warning {update}")

sys.exit(run_command(body))
"""


@pytest.mark.parametrize("columns", [80, 120])
def test_lines_stand_above_the_bar(columns):
    """Catches: a bar that another console's line or a warning tears; one wider than the screen."""
    process, terminal = pty.fork()
    if process == 0:  # the child has a terminal of its own
        os.environ |= {"COLUMNS": str(columns), "TERM": "xterm"}
        os.execv(sys.executable, [sys.executable, "-c", TERMINAL])
    written = b""
    with contextlib.suppress(OSError):  # the end of the child
        while data := os.read(terminal, 65536):
            written += data
    os.waitpid(process, 0)
    lines = re.split(r"\r\n|\r", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode()))
    shown = [line.strip() for line in lines if line.strip()]
    assert shown[0] == "stage 2 of 6: training (running)"
    bars = [line for line in shown if line.startswith("DDPO updates")]
    assert re.search(r"306/306 \d:\d\d:\d\d 0:00:00 loss 0.499  margin 0.471$", bars[-1])
    assert all(len(line) <= columns for line in bars)
    others = [line for line in shown[1:] if line not in bars]
    assert len(others) == 14
    assert all(re.match(r"line \d+$|\S+ \S+ WARNING rlhfv_ray: warning", line) for line in others)


@pytest.mark.parametrize(("is_terminal", "lines"), [(True, 3), (False, 1)])
def test_a_sentence_ends_its_lines_between_words(is_terminal, lines):
    """Catches: a terminal that breaks a sentence inside a word, or a log that has it in pieces."""
    out = io.StringIO()
    terminal = Console(file=out, width=30, force_terminal=is_terminal, color_system=None)
    sentence = "Gradients are within 1.3e-06 nats of those of the unchanged model."
    print_sentence(terminal, sentence)
    printed = out.getvalue().splitlines()
    assert len(printed) == lines and " ".join(line.strip() for line in printed) == sentence
