"""Progress, errors and exit codes of a command.

Progress is a bar on a terminal, and a line every few seconds in a job's log.
"""

import atexit
import contextlib
import functools
import logging
import os
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from rlhfv_ray.errors import MENDED_BY_USERS, JudgeError, RlhfvError, StageFailedError

LINE_EVERY_S = 10.0
REPEATED_S = 60.0
TIME_FORMAT = "%Y-%m-%d %H:%M:%S"
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LARGEST_BAR, BESIDE_BAR = 40, 70  # characters
STOPPED, NO_READER, TERMINATED = 130, 141, 143
EXIT_CODES = {JudgeError: 5, StageFailedError: 4, RlhfvError: 2}  # the first class that matches


def new_console() -> Console:
    """Return this process's console, which prints names as they are: `[x]` in a path is no markup.

    It is one for all, so that a line that is printed while a bar is shown stands above the bar.
    """
    return _console_of(os.environ.get("COLUMNS", ""))


@functools.cache
def _console_of(columns: str) -> Console:
    """Return the console of a width, which it reads from COLUMNS when it is made."""
    return Console(markup=False, highlight=False)


def print_sentence(console: Console, text: str) -> None:
    """Print a text whose lines end between words on a terminal, and which is one line in a log."""
    console.print(text, highlight=False, soft_wrap=not console.is_terminal)


def stage_line(title: str, state: str, place: int, total: int) -> Text:
    """Return the line that begins a stage: "stage 2 of 6: training (running)"; with the time in a
    job's log.
    """
    head = f"{time_stamp()}stage {place} of {total}: "
    return Text.assemble(head, (title, "bold"), f" ({state})")


def time_stamp() -> str:
    """Return the time for the head of a line in a job's log; empty on a terminal."""
    return "" if sys.stdout.isatty() else time.strftime(f"{TIME_FORMAT} ")


class TerminalHandler(logging.StreamHandler):
    """Writes warnings to the standard error of the moment, which a bar keeps for itself while it is
    shown; the same text again within a minute is left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(LOG_FORMAT, TIME_FORMAT))
        self.addFilter(self.is_new)
        self.times: dict[str, float] = {}

    @property
    def stream(self) -> Any:
        """The standard error of the moment."""
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        """Leave it as it is."""

    def is_new(self, record: logging.LogRecord) -> bool:
        """Return False for a text that was written less than a minute ago."""
        text, now = record.getMessage(), time.monotonic()
        last = self.times.get(text)
        if last is not None and now - last < REPEATED_S:
            return False
        self.times[text] = now
        return True


def program(name: str) -> str:
    """Return how people call a program of this environment: by its name if their shell finds it,
    else by its path.
    """
    own = Path(sys.executable).with_name(name)
    is_found = shutil.which(name) == str(own) or not own.exists()
    return name if is_found else shlex.quote(str(own))


class ProgressBar:
    """The progress of one piece of work."""

    def __init__(self, title: str, total: int, bar: Progress | None) -> None:
        self.title = title
        self.total = total
        self.bar = bar  # None where there is no terminal
        self.task = bar.add_task(title, total=total, note="") if bar else None
        self.done = 0
        self.started = time.monotonic()
        self.printed = self.started

    def advance(self, to: int, note: str = "") -> None:
        """Show that `to` units of the total are done; `note` is a short text beside the bar."""
        self.done = to
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=to, note=note)
        elif time.monotonic() - self.printed > LINE_EVERY_S or to == self.total:
            self.printed = time.monotonic()
            seconds = self.printed - self.started
            line = f"{time_stamp()}{self.title}: {to}/{self.total} after {seconds:.0f} s {note}"
            print(line.rstrip(), flush=True)


@contextlib.contextmanager
def progress_bar(title: str, total: int, *, done: int = 0) -> Iterator[ProgressBar]:
    """Show the progress of the body's work; `done` units of `total` were done before."""
    if not sys.stdout.isatty():
        yield ProgressBar(title, total, None)
        return
    console = new_console()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(max(8, min(LARGEST_BAR, console.width - BESIDE_BAR))),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    own = {"console": console, "redirect_stderr": sys.stderr.isatty()}
    with Progress(*columns, refresh_per_second=2, **own) as bar:
        counter = ProgressBar(title, total, bar)
        counter.advance(done)
        yield counter


@contextlib.contextmanager
def poll(look: Callable[[], None], every: float) -> Iterator[None]:
    """Call `look` every `every` seconds while the body runs, and once more after it."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(every):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        look()


def run_command(body: Callable[[], int | None]) -> int:
    """Run a command; show an error of ours without a traceback; return the exit code, which a body
    without an error may return itself.

    SIGTERM stops it as Ctrl-C does: of an exit in a signal's handler, Ray makes one with code 1.
    """
    received: list[int] = []

    def terminate(number: int, _: object) -> NoReturn:
        received.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    logging.basicConfig(level=logging.WARNING, handlers=[TerminalHandler()])
    try:
        return body() or 0
    except KeyboardInterrupt:
        print("\nStopped. The same command continues from what is finished.")
        return TERMINATED if received else STOPPED
    except RlhfvError as error:
        _print_error(type(error).__name__, str(error))
        return next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
    except OSError as error:
        if isinstance(error, BrokenPipeError) and not _has_reader():
            return NO_READER
        if error.errno not in MENDED_BY_USERS:
            raise
        location = f": {error.filename}" if error.filename else ""
        text = f"{error.strerror}{location}. Mend that, then run the same command again to go on."
        _print_error("The system refused a file", text)
        return EXIT_CODES[StageFailedError]


def leave(code: int) -> NoReturn:
    """End this process with an exit code, after Ray and all others have cleaned up.

    Python would go on to take every object apart, which takes seconds after torch was imported.
    """
    atexit._run_exitfuncs()
    with contextlib.suppress(BrokenPipeError):  # the reader has seen enough, as `head` has
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _has_reader() -> bool:
    """Return False if nobody reads what is printed any more, as after `| head`."""
    try:
        print(flush=True)
    except BrokenPipeError:
        return False
    return True


def _print_error(title: str, text: str) -> None:
    Console(stderr=True).print(Panel(Text(text), title=title, border_style="red"))
