"""What a command shows and how it ends: a bar on a terminal, a line every few seconds in a job's log, errors that say the fix, exit codes."""

import contextlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

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

from rlhfv_ray.errors import JudgeError, RlhfvError, StageFailedError

LINE_EVERY_S = 10.0
STOPPED, TERMINATED = 130, 143
EXIT_CODES = {JudgeError: 5, StageFailedError: 4, RlhfvError: 2}  # the first kind that fits


class ProgressBar:
    """How much of some work is done."""

    def __init__(self, title: str, total: int, bar: Progress | None) -> None:
        self.title, self.total, self.bar = title, total, bar
        self.done, self.started, self.printed = 0, time.monotonic(), time.monotonic()
        self.task = bar.add_task(title, total=total, note="") if bar else None

    def advance(self, to: int, note: str = "") -> None:
        """So much is done by now; `note` says how it goes."""
        self.done = to
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=to, note=note)
        elif time.monotonic() - self.printed > LINE_EVERY_S or to == self.total:
            self.printed = time.monotonic()
            print(
                f"{self.title}: {to}/{self.total} after {self.printed - self.started:.0f} s {note}".rstrip(),
                flush=True,
            )


@contextlib.contextmanager
def progress_bar(title: str, total: int, *, done: int = 0) -> Iterator[ProgressBar]:
    """Show how far some work is; `done` of it was there before."""
    if not sys.stdout.isatty():
        yield ProgressBar(title, total, None)
        return
    columns = (
        TextColumn("{task.description:<26}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), refresh_per_second=2
    ) as bar:
        counter = ProgressBar(title, total, bar)
        counter.advance(done)
        yield counter


@contextlib.contextmanager
def poll(look: Callable[[], None], every: float) -> Iterator[None]:
    """Call `look` every so many seconds while the body runs, and once more after it."""
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
    """Run a command; returns its exit code, after an error of ours was shown."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        body()
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on where this one was.")
        return STOPPED
    except RlhfvError as error:
        Console(stderr=True).print(
            Panel(Text(str(error)), title=type(error).__name__, border_style="red")
        )
        return next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
    return 0
