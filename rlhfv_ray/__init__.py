"""RLHF-V's line - corrected preference pairs in, fewer hallucinations out - as Ray jobs.

The functions that other programs call can be imported from here. Their modules, and torch with
them, are loaded when a name is asked for.
"""

import gc
import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# torch, transformers and DeepSpeed make about a million objects that stay. The collector would look
# through them again and again while they are imported, for a tenth of the time.
gc.set_threshold(100_000, 50, 100)

PUBLIC = {
    "PreferencePair": "records",
    "changed_tokens": "segments",
    "dpo_loss": "loss",
    "load_pairs": "data",
    "load_policy": "models",
    "token_logps": "logps",
    "weighted_logps": "logps",
    "write_pairs": "data",
}
if TYPE_CHECKING:
    from rlhfv_ray.data import load_pairs as load_pairs
    from rlhfv_ray.data import write_pairs as write_pairs
    from rlhfv_ray.logps import token_logps as token_logps
    from rlhfv_ray.logps import weighted_logps as weighted_logps
    from rlhfv_ray.loss import dpo_loss as dpo_loss
    from rlhfv_ray.models import load_policy as load_policy
    from rlhfv_ray.records import PreferencePair as PreferencePair
    from rlhfv_ray.segments import changed_tokens as changed_tokens


def __getattr__(name: str) -> Any:
    """Load a public name's module, and return what the name stands for."""
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})
