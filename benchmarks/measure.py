"""Time two functions with the same result side by side.

Calls are interleaved in one process. Before any timing, `assert_close` checks that results agree.
A row is void if other processes used more than a tenth of a core meanwhile.
"""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from statistics import median, quantiles
from typing import Any

import psutil
import torch
import transformers

MOST_OTHERS = 0.1  # cores that other processes may use
FEWEST_ROUNDS = 5  # of a ratio that is published
IDLE = ("idle", "iowait", "steal", "guest", "guest_nice")  # guests are part of user and nice


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
    low: float | None = None  # quartiles of the rounds' ratios; None: there is one round
    high: float | None = None
    others: float | None = None  # cores that other processes used; None: it does not matter

    @property
    def is_void(self) -> bool:
        """Return True if other processes disturbed the times."""
        return self.others is not None and self.others > MOST_OTHERS

    def as_dict(self) -> dict[str, Any]:
        """Return the row as JSON-ready values."""
        return {**asdict(self), "void": self.is_void}


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
    load = OtherLoad()
    times: tuple[list[float], list[float]] = ([], [])
    for function in (ours, peer):
        function()
    for _ in range(timing.rounds):
        for function, measured in zip((ours, peer), times, strict=True):
            measured.append(seconds(function, timing.device))
    our_time, peer_time = (median(measured) for measured in times)
    # The ratio of each round cancels what slows the whole machine down for a while.
    ratios = [peer_s / our_s for our_s, peer_s in zip(*times, strict=True)]
    row = Row(cell, our_time, peer_time, median(ratios), goal, passed=False, note=note)
    low, high = quartiles(ratios)
    return judged(replace(row, low=low, high=high, others=load.cores()))


def quartiles(ratios: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the first and third quartile, or None twice of a single value.

    Example:
        >>> quartiles([1.0, 2.0, 3.0, 4.0, 5.0])
        (2.0, 4.0)
    """
    if len(ratios) < 2:
        return None, None
    low, _, high = quantiles(ratios, n=4, method="inclusive")
    return low, high


def judged(row: Row) -> Row:
    """Return the row with its verdict: the goal is met, and nothing disturbed the times."""
    return replace(row, passed=row.ratio >= row.goal and not row.is_void)


class OtherLoad:
    """Measures how many cores other processes use from now on."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.busy, self.own = busy_seconds(), own_seconds()

    def cores(self) -> float:
        """Return the cores in use by others, on average since the start."""
        wall = time.perf_counter() - self.started
        others = (busy_seconds() - self.busy) - (own_seconds() - self.own)
        return max(0.0, others / wall)


def busy_seconds() -> float:
    """Return the CPU seconds of all processes of the machine since it booted."""
    spent = psutil.cpu_times()._asdict()
    return sum(seconds_of for state, seconds_of in spent.items() if state not in IDLE)


def own_seconds() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def idle_load(duration_s: float = 2.0) -> float:
    """Return the cores that are in use while this process sleeps."""
    load = OtherLoad()
    time.sleep(duration_s)
    return load.cores()


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


def assert_gradients_close(
    ours: Mapping[str, Any], peer: Mapping[str, Any], *, tolerance: float, what: str
) -> None:
    """Check the gradient of every parameter.

    A distance counts relative to the parameter's own norm plus a tenth of the norm of all: a
    parameter that hardly matters may differ by what the others round away.

    Raises:
        AssertionError: a parameter has a gradient on one side alone, or one that differs.
    """
    assert ours.keys() == peer.keys(), (
        f"{what}: parameters with a gradient on one side alone: {sorted(ours.keys() ^ peer.keys())}"
    )
    total = torch.stack([gradient.float().norm() for gradient in peer.values()]).norm()
    for name, gradient in peer.items():
        distance = (ours[name].float() - gradient.float()).norm()
        allowed = tolerance * (gradient.float().norm() + 0.1 * total)
        assert distance <= allowed, f"{what}: {name} differs by {float(distance):.2g}"


def shown(rows: Sequence[Row]) -> list[Row]:
    """Print rows, and return them as a list."""
    for row in rows:
        print(line(row), flush=True)
    return list(rows)


def line(row: Row) -> str:
    """Format one row as a line of text."""
    verdict = "VOID  " if row.is_void else "ok    " if row.passed else "MISSED"
    sides = f"ours {row.ours:9.4g} {row.unit}  peer {row.peer:9.4g} {row.unit}"
    ratio = f"ratio {row.ratio:5.2f}{spread(row)} (goal {row.goal:.2f})"
    others = "" if row.others is None else f"others {row.others:.2f} cores  "
    return f"{verdict} {row.cell:<52} {sides}  {ratio}  {others}{row.note}"


def spread(row: Row) -> str:
    """Return the quartiles of a row's ratio as text."""
    return "" if row.low is None else f" ({row.low:.2f} to {row.high:.2f})"


def page(rows: Sequence[Row]) -> str:
    """Format rows as a Markdown page."""
    processor = platform.processor() or platform.machine()
    python = platform.python_version()
    loads = ", ".join(f"{load:.2f}" for load in os.getloadavg())
    head = [
        f"# Speed, {date.today().isoformat()}",
        "",
        f"Machine: {processor}, one thread, Python {python}, torch {torch.__version__},",
        f"transformers {transformers.__version__}.",
        "Times are medians of process time; both sides are timed by turns. The ratio is the median",
        f"of the rounds' ratios, of at least {FEWEST_ROUNDS} unless it has no quartiles, with its",
        "quartiles. `others` are the cores that other processes used meanwhile; a row is void",
        f"above {MOST_OTHERS}. Load averages at the end: {loads}.",
        "A cell is timed only after both sides agreed, in the gradients of all parameters.",
        "Cells of workers use the wall clock.",
        "The entry of this date in docs/LOG.md explains each missed goal.",
        "",
        "| cell | ours | peer | ratio (quartiles) | goal | others | |",
        "|---|---|---|---|---|---|---|",
    ]
    body = [
        f"| {row.cell} | {row.ours:.4g} {row.unit} | {row.peer:.4g} {row.unit} "
        f"| {row.ratio:.2f}{spread(row)} | {row.goal:.2f} "
        f"| {'' if row.others is None else f'{row.others:.2f}'} | {verdict(row)}{row.note} |"
        for row in rows
    ]
    return "\n".join([*head, *body, ""])


def verdict(row: Row) -> str:
    """Return what the page says of a row that is void or misses its goal."""
    if row.is_void:
        return "**void** "
    return "" if row.passed else "**missed** "
