"""Progress of long work: a bar on a terminal, a line every few seconds in a job's log."""

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_S = 10.0


class Counter:
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
                f"{self.title}: {to}/{self.total} after {self.printed - self.started:.0f} s {note}".rstrip(), flush=True
            )


@contextlib.contextmanager
def counting(title: str, total: int, *, done: int = 0) -> Iterator[Counter]:
    """Show how far some work is; `done` of it was there before."""
    if not sys.stdout.isatty():
        yield Counter(title, total, None)
        return
    columns = (TextColumn("{task.description:<26}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), refresh_per_second=2) as bar:
        counter = Counter(title, total, bar)
        counter.advance(done)
        yield counter
