"""Time two functions with the same result side by side.

Calls are interleaved in one process. Before any timing, `assert_close` checks that results agree.
"""

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
    """One cell of the benchmark. Times are medians, in seconds per call."""

    cell: str
    ours: float
    peer: float
    ratio: float  # peer / ours: above 1, ours is faster or takes less memory
    goal: float
    passed: bool
    unit: str = "s"
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the row as JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True)
class Timing:
    """Number of timed calls of each side, after one warm-up call, and the device they run on."""

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
    """Time two functions by turns, with process time on a CPU and events on CUDA."""
    times: tuple[list[float], list[float]] = ([], [])
    for function in (ours, peer):
        function()
    for _ in range(timing.rounds):
        for function, measured in zip((ours, peer), times, strict=True):
            measured.append(seconds(function, timing.device))
    our_time, peer_time = (median(measured) for measured in times)
    # The ratio of each round cancels what slows the whole machine down for a while.
    ratio = median(peer_s / our_s for our_s, peer_s in zip(*times, strict=True))
    return Row(cell, our_time, peer_time, ratio, goal, ratio >= goal, note=note)


def seconds(function: Callable[[], Any], device: torch.device) -> float:
    """Return the time of one call, in seconds."""
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
    """Return the peak memory of a call, in bytes above the memory in use before it.

    CUDA's allocator counts it on a GPU, torch's profiler on a CPU.
    """
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
    """Return the bytes allocated (+) and freed (-) on the CPU, in order of time."""
    events = [
        event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


def assert_close(ours: Any, peer: Any, *, tolerance: float, what: str) -> None:
    """Check that two results agree, because a ratio of times means nothing where they differ.

    Raises:
        AssertionError: the results differ by more than `tolerance` times the peer's norm.
    """
    distance = float((ours - peer).float().norm() / peer.float().norm().clamp_min(1e-30))
    assert distance <= tolerance, (
        f"{what}: ours differs from the peer's by {distance:.2g} of its norm"
    )


def shown(rows: Sequence[Row]) -> list[Row]:
    """Print rows, and return them as a list."""
    for row in rows:
        print(line(row), flush=True)
    return list(rows)


def line(row: Row) -> str:
    """Format one row as a line of text."""
    verdict = "ok    " if row.passed else "MISSED"
    sides = f"ours {row.ours:9.4g} {row.unit}  peer {row.peer:9.4g} {row.unit}"
    ratio = f"ratio {row.ratio:5.2f} (goal {row.goal:.2f})"
    return f"{verdict} {row.cell:<52} {sides}  {ratio}  {row.note}"


def page(rows: Sequence[Row]) -> str:
    """Format rows as a Markdown page."""
    processor = platform.processor() or platform.machine()
    python = platform.python_version()
    head = [
        f"# Speed, {date.today().isoformat()}",
        "",
        f"Machine: {processor}, one thread, Python {python}, torch {torch.__version__},",
        f"transformers {transformers.__version__}.",
        "Times are medians of process time; both sides are timed by turns.",
        "A cell is timed only after both sides agreed. Cells of workers use the wall clock.",
        "The entry of this date in docs/LOG.md explains each missed goal.",
        "",
        "| cell | ours | peer | ratio | goal | |",
        "|---|---|---|---|---|---|",
    ]
    body = [
        f"| {row.cell} | {row.ours:.4g} {row.unit} | {row.peer:.4g} {row.unit} "
        f"| {row.ratio:.2f} | {row.goal:.2f} | {'' if row.passed else '**missed** '}{row.note} |"
        for row in rows
    ]
    return "\n".join([*head, *body, ""])
