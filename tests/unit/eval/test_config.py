"""Settings of an evaluation that contradict each other are refused."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from eval.config import (
    RELEASED_DECODING,
    BenchmarkSettings,
    EvalConfig,
    InferenceConfig,
    JudgeConfig,
    ShapesBenchConfig,
)
from eval.plan import candidates_of
from rlhfv_ray.config import EndpointConfig, GenerationConfig
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


@pytest.mark.parametrize(
    "entry", ["pope.questions=a.json", "one_word.questions", "other.questions=a.json", "a.json"]
)
def test_a_file_that_no_benchmark_reads_is_refused(entry: str) -> None:
    """Catches: a misspelt name, or a built-in benchmark's own flag, that is left unread."""
    benchmarks = ("pope", "one_word")
    BenchmarkSettings(files=("one_word.questions=a=b.json",)).check_files(benchmarks)
    with pytest.raises(ConfigError, match=f"files = {re.escape(repr(entry))}"):
        BenchmarkSettings(files=(entry,)).check_files(benchmarks)


def test_a_file_that_is_missing_is_asked_for() -> None:
    """Catches: an error that tells what is there, and not what to add."""
    with pytest.raises(ConfigError, match=r"add --files one_word\.questions=PATH"):
        BenchmarkSettings().file("one_word.questions")


def test_released_decoding_replaces_the_generation_fields() -> None:
    """Catches: `--decoding released` that still answers by the defaults."""
    assert EvalConfig(**MODELS, decoding="released").decoded == RELEASED_DECODING
    custom = GenerationConfig(beams=2)
    assert EvalConfig(**MODELS, generation=custom).decoded == custom


def test_models_behind_several_servers_keep_their_names() -> None:
    """Catches: every `api` model taken for that of --endpoint, and an @ in a model's own name."""
    endpoint = EndpointConfig(model="judge", base_url="http://c/v1", key_env="KEY")
    models = ("api", "api:org/base@http://a:8000/v1", "api:tuned@2024", "org/checkpoint")
    config = EvalConfig(model=models, endpoint=endpoint)
    assert [config.endpoint_of(path) for path in models] == [
        endpoint,
        replace(endpoint, model="org/base", base_url="http://a:8000/v1"),
        replace(endpoint, model="tuned@2024"),
        None,
    ]
    candidates = candidates_of(config)
    assert list(candidates) == ["api", "base", "tuned@2024", "checkpoint"]
    assert candidates["base"].endpoint == config.endpoint_of(models[1])
    assert candidates["checkpoint"].endpoint is None


@pytest.mark.parametrize(
    "model",
    ["api:", "api:@http://a/v1", "api:a@host:80/v1", "api:a@localhost:80", "api:a@b.org/v1"],
)
def test_a_server_without_a_model_is_refused(model: str) -> None:
    """Catches: requests for a model without a name."""
    with pytest.raises(ConfigError, match="model = 'api:.*must be api:NAME@URL"):
        EvalConfig(model=(model,))
