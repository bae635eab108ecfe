"""Progress, errors and exit codes of a command.

Progress is a bar on a terminal, and a line every few seconds in a job's log.
"""

import atexit
import contextlib
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
from typing import NoReturn

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
STOPPED, TERMINATED = 130, 143
EXIT_CODES = {JudgeError: 5, StageFailedError: 4, RlhfvError: 2}  # the first class that matches


def new_console() -> Console:
    """Return a console that prints names as they are: `[x]` in a path is no markup."""
    return Console(markup=False, highlight=False)


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
            line = f"{self.title}: {to}/{self.total} after {seconds:.0f} s {note}"
            print(line.rstrip(), flush=True)


@contextlib.contextmanager
def progress_bar(title: str, total: int, *, done: int = 0) -> Iterator[ProgressBar]:
    """Show the progress of the body's work; `done` units of `total` were done before."""
    if not sys.stdout.isatty():
        yield ProgressBar(title, total, None)
        return
    columns = (
        TextColumn("{task.description:<26}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    note = TextColumn("{task.fields[note]}", markup=False)
    with Progress(*columns, TimeRemainingColumn(), note, refresh_per_second=2) as bar:
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


def run_command(body: Callable[[], None]) -> int:
    """Run a command; show an error of ours without a traceback; return the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        body()
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on where this one was.")
        return STOPPED
    except RlhfvError as error:
        _print_error(type(error).__name__, str(error))
        return next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
    except OSError as error:
        if error.errno not in MENDED_BY_USERS:
            raise
        location = f": {error.filename}" if error.filename else ""
        text = f"{error.strerror}{location}. Mend that, then run the same command again to go on."
        _print_error("The system refused a file", text)
        return EXIT_CODES[StageFailedError]
    return 0


def leave(code: int) -> NoReturn:
    """End this process with an exit code, after Ray and all others have cleaned up.

    Python would go on to take every object apart, which takes seconds after torch was imported.
    """
    atexit._run_exitfuncs()
    with contextlib.suppress(BrokenPipeError):  # the reader has seen enough, as `head` has
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _print_error(title: str, text: str) -> None:
    Console(stderr=True).print(Panel(Text(text), title=title, border_style="red"))
