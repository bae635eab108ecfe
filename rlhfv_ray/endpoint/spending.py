"""The cost of all calls whose replies are in one folder, counted on disk.

Every budget has a file of its own below `spending/`, and reads the others' under a lock. A call is
claimed at the most that it can cost before it is made, and settled at its true cost afterwards. So
the sum never is too low, whoever dies: the calls of a dead budget stay counted at their most.
In a bucket the lock holds on one machine; budgets on several see each other's files.

The time of the last call is the change time of another file there. A budget that starts right after
another one's calls has no burst left, so that many short runs keep the pace of one.
"""

import json
import math
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from filelock import FileLock

from rlhfv_ray.config import fingerprint
from rlhfv_ray.errors import JudgeError
from rlhfv_ray.storage.files import write_json
from rlhfv_ray.storage.folder import display_path, fetch
from rlhfv_ray.storage.transfers import State, state_of

SLACK_S = 30.0  # after its time limit, a call that nobody settled is taken for lost
ROUNDING = 1e-9  # share of the limit
Claimed = Literal["granted", "wait", "spent"]


class _Claim(NamedTuple):
    cost: float  # USD, the most that the call can cost
    until: float  # seconds on this process's clock, when the call has ended or is lost


@dataclass
class _Other:
    """The file of another budget, as it was read last."""

    state: State  # of the file
    cost: float  # USD, settled and under way
    until: float  # seconds on this process's clock, when its calls have ended or are lost


class Spending:
    """The share of one budget in the cost of a folder's calls, and the sum over all budgets."""

    def __init__(self, cache: Path, *, server: str, limit: float, timeout_s: float) -> None:
        """Read nothing and write nothing yet.

        Args:
            cache: folder of the replies.
            server: address of the server, whose pace all budgets share.
            limit: USD that all calls together may cost; 0: no limit.
            timeout_s: time limit of a call, in seconds.
        """
        self.folder = cache / "spending"
        self.last_call = self.folder / f"{fingerprint({'server': server})}.last-call"
        self.limit = limit
        self.lasting = timeout_s + SLACK_S
        self.file = self.folder / f"{uuid.uuid4().hex}.json"
        self.settled = 0.0  # USD
        self.claims: dict[str, _Claim] = {}  # by call
        self.others: dict[Path, _Other] = {}
        self.written = {"settled": 0.0, "under_way": 0.0}
        self.threads = threading.Lock()

    @property
    def under_way(self) -> float:
        """The most, in USD, that this budget's calls without a known cost can cost."""
        return sum(claim.cost for claim in self.claims.values())

    def claim(self, call: str, cost: float) -> Claimed:
        """Claim the most that a call can cost, in USD, before it is made.

        Returns:
            `granted`; `wait` if calls under way may turn out cheaper than they were claimed;
            `spent` if none will.

        Raises:
            JudgeError: the cost of earlier calls cannot be read.
        """
        if not cost:
            return "granted"
        with self.threads:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock"):
                now = time.monotonic()
                exceeds = self.limit and self._total(now) + cost > self.limit * (1 + ROUNDING)
                if not exceeds:
                    self.claims[call] = _Claim(cost, now + self.lasting)
                self._write()
        if not exceeds:
            return "granted"
        ends = [holder.until for holder in (*self.claims.values(), *self.others.values())]
        return "wait" if max(ends, default=now) > now else "spent"

    def settle(self, call: str, cost: float) -> None:
        """Replace a call's claim by its true cost in USD. The file follows with the next claim."""
        with self.threads:
            self.claims.pop(call, None)
            self.settled += cost

    def close(self) -> None:
        """Write the cost as it is now; calls that were not settled stay counted at their most."""
        with self.threads:
            self._write()

    def mark_call(self) -> None:
        """Mark that a call to the server is made now."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.last_call.touch()

    def idle_s(self) -> float:
        """Return the seconds since the last call to the server, by any budget of this folder."""
        try:
            return max(0.0, time.time() - self.last_call.stat().st_mtime)
        except FileNotFoundError:
            return math.inf

    def _write(self) -> None:
        amounts = {"settled": self.settled, "under_way": self.under_way}
        if amounts != self.written:
            write_json(self.file, amounts)
            self.written = amounts

    def _total(self, now: float) -> float:
        """Return the cost in USD of all budgets' calls, settled and under way."""
        self._read_others(now)
        cost_of_others = sum(budget.cost for budget in self.others.values())
        return cost_of_others + self.settled + self.under_way

    def _read_others(self, now: float) -> None:
        """Read the files of other budgets that have changed."""
        fetch(self.folder)
        for path in self.folder.glob("*.json"):
            state = state_of(path)
            known = self.others.get(path)
            if path == self.file or (known and known.state == state):
                continue
            settled, under_way = self._read(path)
            until = now + self.lasting if under_way else now
            self.others[path] = _Other(state, settled + under_way, until)

    @staticmethod
    def _read(path: Path) -> tuple[float, float]:
        try:
            amounts = json.loads(path.read_text())
            return float(amounts["settled"]), float(amounts["under_way"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise JudgeError(
                f"{display_path(path)} cannot be read ({error!r}), so the cost of earlier calls is "
                "unknown. Delete it to let its calls count for nothing."
            ) from error
