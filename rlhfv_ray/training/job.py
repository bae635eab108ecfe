"""One training run, as the driver describes it to its workers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhfv_ray.config import DDPOConfig


@dataclass(frozen=True)
class TrainJob:
    """One training run, as the driver describes it to every worker."""

    config: DDPOConfig
    reference: Path  # finished reference folder
    reference_inputs: dict[str, Any]  # what its config.json should say
    folder: Path  # of this stage
    token: str  # of the lease on `folder`
    stop_after: int = 0  # updates, with a checkpoint to continue from; 0: train to the end
    export: Path | None = None  # folder that receives `model/`; None: `folder`

    @property
    def failure(self) -> Path:
        """Return the file in which workers leave an error for their own driver."""
        return self.folder / f"failure-{self.token}.pickle"
