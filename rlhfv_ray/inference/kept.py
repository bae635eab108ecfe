"""The model that a process keeps between the tasks of a stage, as long as tasks ask for it.

Ray ends an actor's process with its stage, and the next stage's actors import torch and
transformers again, for 6 s each. A task's process goes on to the next task, also to that of another
stage. It keeps the imports for good. The model it keeps for one stage.
"""

import gc
import threading
from collections.abc import Callable
from typing import Any

IDLE_S = 5.0  # without a task for so long, a process gives its model up: training needs the memory


class Kept:
    """One value, made at its first use, and made again for another key or after a pause.

    Args:
        idle: seconds without a use after which the value is given up.
    """

    def __init__(self, idle: float = IDLE_S) -> None:
        self.idle = idle
        self._lock = threading.Lock()
        self._key: str | None = None
        self._value: Any = None
        self._timer: threading.Timer | None = None

    def use(self, key: str, make: Callable[[], Any], work: Callable[[Any], Any]) -> Any:
        """Return what `work` returns for the key's value, which is made if it is not kept."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            if self._key != key:
                self._drop()  # before the new one needs the memory
                self._value, self._key = make(), key
            try:
                return work(self._value)
            finally:
                self._timer = threading.Timer(self.idle, self._give_up, (key,))
                self._timer.daemon = True
                self._timer.start()

    def drop(self) -> None:
        """Give the value up now."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            if self._key is not None:
                self._drop()

    def _give_up(self, key: str) -> None:
        with self._lock:
            is_newest = self._timer is threading.current_thread()
            if is_newest and self._key == key:
                self._drop()

    def _drop(self) -> None:
        self._key, self._value = None, None
        gc.collect()  # models have cycles
        gc.freeze()  # what is left are modules: the next collection need not look through them
