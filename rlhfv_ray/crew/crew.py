"""A crew: processes that train and answer for one training after another.

The process of a sweep's or study's trials keeps one, and so does an experiment for its control
trainings. A process takes many seconds to import torch, transformers and DeepSpeed, and a trial may
take less. Each process of a crew holds what Ray reserves for a training worker, which is the same
as for an actor that answers: it trains, and then it answers.

After any error the crew is replaced, so that no training begins with what another one broke. It
ends with the process that keeps it. Elastic jobs have none, because the number of their workers may
change while they train.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlhfv_ray.cluster import unwrap, wait_for_resources
from rlhfv_ray.config import ScaleConfig
from rlhfv_ray.crew.group_watch import start_watch
from rlhfv_ray.crew.member import Member
from rlhfv_ray.errors import StageFailedError, StorageError

T = TypeVar("T")


@dataclass(frozen=True)
class Crew:
    """Processes that run, those of one node side by side."""

    members: tuple[Any, ...]  # handles of `Member`
    nodes: tuple[str, ...]  # ids of the members' nodes

    def each(self, count: int, calls: Iterable[Callable[[], Any]]) -> Iterator[Any]:
        """Yield what calls return as they end; each is made by one of the first `count` members.

        A call is taken when there is a member for it.
        """
        idle, waiting = list(self.members[:count]), iter(calls)
        running: dict[ray.ObjectRef, Any] = {}
        while True:
            while idle and (call := next(waiting, None)) is not None:
                member = idle.pop()
                running[member.call.remote(call)] = member
            if not running:
                return
            (ended, *_), _ = ray.wait(list(running), num_returns=1)
            idle.append(running.pop(ended))
            yield ray.get(ended)


class Keeper:
    """Keeps the crew of this process."""

    def __init__(self) -> None:
        self.is_wanted = False
        self.scale: ScaleConfig | None = None  # that the crew was started for
        self.crew: Crew | None = None
        self.group: PlacementGroup | None = None
        self.watch: Any = None

    def crew_for(self, scale: ScaleConfig, purpose: str) -> Crew:
        """Return the crew, which is started if there is none, or if it is of another size."""
        if self.crew is None or self.scale is None or _size(self.scale) != _size(scale):
            self.end()
            self.crew, self.scale = self._start(scale, purpose), scale
        return self.crew

    def end(self) -> None:
        """End the crew's processes, and free what they hold."""
        if self.group is not None:
            remove_placement_group(self.group)
        self.crew, self.group = None, None

    def _start(self, scale: ScaleConfig, purpose: str) -> Crew:
        count, resources, _ = _size(scale)
        bundles = [dict(resources) for _ in range(count)]
        wait_for_resources(purpose, bundles, timeout=scale.start_timeout)
        self.group = group = self._hold(bundles)
        actor: Any = ray.remote(Member)
        members = [
            actor.options(
                num_cpus=scale.resources["CPU"],
                num_gpus=scale.resources.get("GPU", 0),
                max_concurrency=2,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    group, placement_group_bundle_index=index
                ),
            ).remote()
            for index in range(count)
        ]
        nodes = ray.get([member.node.remote() for member in members], timeout=scale.start_timeout)
        order = sorted(range(count), key=lambda index: nodes[index])
        return Crew(
            tuple(members[index] for index in order), tuple(nodes[index] for index in order)
        )

    def _hold(self, bundles: list[dict[str, float]]) -> PlacementGroup:
        """Return a new group, which is freed when this process ends."""
        if ray.get_runtime_context().get_actor_id() is None:  # a driver, whose job ends with it
            return placement_group(bundles, strategy="PACK")
        if self.watch is None:
            self.watch = start_watch()
        group: Any = ray.get(self.watch.hold.remote(bundles))
        return group


def _size(scale: ScaleConfig) -> tuple[int, dict[str, float], int]:
    """Return the number of processes, the resources of each, and how many of them train."""
    return max(scale.most_workers, scale.actors), scale.resources, scale.most_workers


_keeper = Keeper()


def keep_crew() -> None:
    """Let this process, an actor, train and answer with a crew from now on."""
    _keeper.is_wanted = True


@contextlib.contextmanager
def crew_kept() -> Iterator[None]:
    """Let this process, a driver, train and answer with a crew inside the block, and end it."""
    keep_crew()
    try:
        yield
    finally:
        _keeper.is_wanted = False
        end_crew()


def end_crew() -> None:
    """End the crew of this process; the next work starts another."""
    _keeper.end()


def keeps_crew(scale: ScaleConfig) -> bool:
    """Return True if this process trains and answers with a crew."""
    return _keeper.is_wanted and not scale.is_elastic


def with_crew(scale: ScaleConfig, purpose: str, work: Callable[[Crew], T]) -> T:
    """Return what `work` returns for the crew of this process.

    If a process is lost, the work is tried again with a new crew.

    Args:
        scale: number and resources of the processes, and how often they may be lost.
        purpose: what needs them, for messages.
        work: finds what an earlier try has finished.

    Raises:
        RlhfvError, OSError: as raised by the work.
        StageFailedError: processes were lost more often than `scale.max_failures`.
    """
    cause: BaseException | None = None
    for _ in range(scale.max_failures + 1):
        try:
            return work(_keeper.crew_for(scale, purpose))
        except (RayError, StorageError) as error:
            _keeper.end()
            cause = unwrap(error)
            if cause is not error and not isinstance(cause, StorageError):
                raise cause from error
        except BaseException:
            _keeper.end()
            raise
    raise StageFailedError(
        f"{purpose}: processes were lost {scale.max_failures + 1} times (scale.max_failures). Run "
        "the same command again to continue from what is finished. The last error: "
        f"{str(cause).strip().splitlines()[-1]}"
    ) from cause
