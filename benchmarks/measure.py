"""Two ways to the same result, measured side by side: interleaved in one process, the ratio of medians, and only after they agree."""

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from statistics import median
from typing import Any

import torch
import transformers


@dataclass(frozen=True)
class Row:
    """One cell of the benchmark; times in seconds per call, medians."""

    cell: str
    ours: float
    peer: float
    ratio: float  # peer / ours: how many times faster ours is; for memory how many times less ours takes
    goal: float
    passed: bool
    unit: str = "s"
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Timing:
    """How often each side is called, after one call that does not count, and on which clock."""

    rounds: int
    device: torch.device


def compare(
    cell: str,
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    *,
    goal: float,
    timing: Timing,
    note: str = "",
) -> Row:
    """Time two functions in turn; process time on a CPU, events on CUDA."""
    times: tuple[list[float], list[float]] = ([], [])
    for function in (ours, peer):
        function()
    for _ in range(timing.rounds):
        for function, measured in zip((ours, peer), times, strict=True):
            measured.append(seconds(function, timing.device))
    mine, theirs = (median(measured) for measured in times)
    ratio = median(b / a for a, b in zip(*times, strict=True))
    return Row(cell, mine, theirs, ratio, goal, ratio >= goal, note=note)


def seconds(function: Callable[[], Any], device: torch.device) -> float:
    """Time of one call."""
    if device.type != "cuda":
        start = time.process_time()
        function()
        return time.process_time() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def peak_bytes(function: Callable[[], Any], device: torch.device) -> int:
    """Most memory a call has on top of what was there before: counted by CUDA's allocator, else from torch's own events."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        function()
    now = peak = 0
    for change in allocations(profile):
        now += change
        peak = max(peak, now)
    return peak


def allocations(profile: Any) -> Sequence[int]:
    """Bytes taken (+) and given back (-) on the CPU, in order of time."""
    events = [
        event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


def assert_close(ours: Any, peer: Any, *, tolerance: float, what: str) -> None:
    """The gate: a ratio is void where results differ.

    Raises:
        AssertionError: they differ by more than `tolerance` of the peer's norm.
    """
    distance = float((ours - peer).float().norm() / peer.float().norm().clamp_min(1e-30))
    assert distance <= tolerance, (
        f"{what}: ours differs from the peer's by {distance:.2g} of its norm"
    )


def shown(rows: Sequence[Row]) -> list[Row]:
    """The same rows, printed."""
    for row in rows:
        print(line(row), flush=True)
    return list(rows)


def line(row: Row) -> str:
    """One row as text."""
    verdict = "ok    " if row.passed else "MISSED"
    sides = f"ours {row.ours:9.4g} {row.unit}  peer {row.peer:9.4g} {row.unit}"
    return f"{verdict} {row.cell:<52} {sides}  ratio {row.ratio:5.2f} (goal {row.goal:.2f})  {row.note}"


def page(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    head = [
        f"# Speed, {date.today().isoformat()}",
        "",
        f"{platform.processor() or platform.machine()}, one thread, Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}. Process time, interleaved, medians; each cell only after both sides agreed. "
        "Cells of workers: wall clock. Why a goal is missed: the entry of this date in docs/LOG.md.",
        "",
        "| cell | ours | peer | ratio | goal | |",
        "|---|---|---|---|---|---|",
    ]
    body = [
        f"| {row.cell} | {row.ours:.4g} {row.unit} | {row.peer:.4g} {row.unit} | {row.ratio:.2f} | {row.goal:.2f} "
        f"| {'' if row.passed else '**missed** '}{row.note} |"
        for row in rows
    ]
    return "\n".join([*head, *body, ""])
