"""Settings of an evaluation that contradict each other are refused."""

from collections.abc import Callable
from typing import Any

import pytest

from eval.config import (
    RELEASED_DECODING,
    EvalConfig,
    InferenceConfig,
    JudgeConfig,
    ShapesBenchConfig,
)
from rlhfv_ray.config import GenerationConfig
from rlhfv_ray.errors import ConfigError

MODELS: dict[str, Any] = {"model": ("a",)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EvalConfig(), "model = .*--answers"),
        (lambda: EvalConfig(model=("a",), answers=("b.jsonl",)), "model = .*--answers"),
        (lambda: EvalConfig(model=("a", "a")), "different models"),
        (lambda: EvalConfig(model=("a",), benchmarks=()), "at least one"),
        (lambda: EvalConfig(answers=("a",), benchmarks=("pope", "amber")), "one, with --answers"),
        (lambda: EvalConfig(model=("api",)), "endpoint.model = ''"),
        (
            lambda: EvalConfig(
                model=("a",), decoding="released", generation=GenerationConfig(beams=2)
            ),
            "custom, as generation fields are set too",
        ),
        (lambda: JudgeConfig(votes=0), "judge.votes = 0: must be >= 1"),
        (lambda: JudgeConfig(votes=3, temperature=0.0), "judge.votes = 3: must be 1"),
        (lambda: JudgeConfig(kind="replay"), "judge.verdicts = ''"),
        (lambda: JudgeConfig(max_missing=1.5), "between 0 and 1"),
        (lambda: ShapesBenchConfig(scenes=0), "shapes.scenes = 0: must be >= 1"),
        (lambda: InferenceConfig(batch=0), "inference.batch = 0: must be >= 1"),
        (lambda: InferenceConfig(cpus=0), "inference.cpus = 0: must be > 0"),
    ],
)
def test_contradictions_are_refused(make: Callable[[], object], message: str) -> None:
    """Catches: a setting without effect, or one that fails after hours, accepted at the start."""
    with pytest.raises(ConfigError, match=message):
        make()


def test_released_decoding_replaces_the_generation_fields() -> None:
    """Catches: `--decoding released` that still answers by the defaults."""
    assert EvalConfig(**MODELS, decoding="released").decoded == RELEASED_DECODING
    custom = GenerationConfig(beams=2)
    assert EvalConfig(**MODELS, generation=custom).decoded == custom
