"""The public contract, frozen: signatures of functions, fields of results, and the error tree.

A change here changes the contract. It belongs into the changelog, and never happens in passing.
"""

import importlib
import importlib.util
import inspect
import pickle
import re

import pytest

from rlhfv_ray import errors

SIGNATURES = {
    "rlhfv_ray.segments:changed_tokens": (
        "(chosen: Sequence[int], rejected: Sequence[int], *, "
        "rule: Literal['muffin', 'both_sides'], min_match: int = 3) "
        "-> tuple[list[bool], list[bool]]"
    ),
    "rlhfv_ray.logps:token_logps": (
        "(logits: Float[Tensor, 'B T V'], labels: Int[Tensor, 'B T']) -> Float[Tensor, 'B S']"
    ),
    "rlhfv_ray.logps:weighted_logps": (
        "(token_logps: Float[Tensor, 'B S'], weights: Float[Tensor, 'B S'], *, normalize: bool) "
        "-> Float[Tensor, 'B']"
    ),
    "rlhfv_ray.loss:dpo_loss": (
        "(chosen_logps: Float[Tensor, 'P'], rejected_logps: Float[Tensor, 'P'], "
        "reference_chosen_logps: Float[Tensor, 'P'], reference_rejected_logps: Float[Tensor, 'P'], "
        "*, beta: float) -> PreferenceLoss"
    ),
    "rlhfv_ray.data:load_pairs": (
        "(path: str | Path, *, format: str = 'auto') -> Iterator[PreferencePair]"
    ),
    "rlhfv_ray.models:load_policy": (
        "(path: str | Path, *, dtype: str = 'auto', device: str = 'auto') "
        "-> tuple[PreTrainedModel, Any]"
    ),
    "eval.chair:ObjectVocabulary.load": (
        "(path: str | Path | None = None, *, "
        "lemmatizer: Optional[Literal['wordnet', 'builtin']] = None) -> Self"
    ),
    "eval.chair:ObjectVocabulary.mentions": "(self, text: str) -> list[tuple[str, str]]",
    "eval.chair:ObjectVocabulary.match": ("(self, names: Iterable[str]) -> list[tuple[str, str]]"),
    "eval.chair:chair_scores": (
        "(mentions: Sequence[Sequence[tuple[str, str]]], truth: Sequence[Set[str]], "
        "words: Sequence[int]) -> ChairScores"
    ),
    "eval.chair:ground_truth": (
        "(instances: Iterable[tuple[int, str]], captions: Iterable[tuple[int, str]], "
        "vocabulary: ObjectVocabulary) -> dict[int, set[str]]"
    ),
    "eval.benchmarks.mmhal_bench:mmhal_scores": (
        "(reviews: Sequence[str], *, release_compatible: bool) -> MMHalScores"
    ),
    "eval.benchmarks.llava_bench:parse_score_pair": ("(review: str) -> tuple[float, float] | None"),
}
FIELDS = {
    "rlhfv_ray.loss:PreferenceLoss": ("losses", "chosen_rewards", "rejected_rewards"),
    "eval.chair:ChairScores": (
        "response_rate",
        "response_rate_all",
        "mention_rate",
        "object_recall",
        "words",
    ),
}
ERRORS = {
    "ConfigError": ValueError,
    "DataError": ValueError,
    "StaleReferenceError": errors.DataError,
    "CheckpointError": RuntimeError,
    "StageFailedError": RuntimeError,
    "StorageError": errors.StageFailedError,
    "JudgeError": RuntimeError,
}


def find(name: str):
    module, _, path = name.partition(":")
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not written yet")
    public = importlib.import_module(module)
    for part in path.split("."):
        public = getattr(public, part)
    return public


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    """Catches: a renamed, reordered or now positional parameter, or a changed default.

    Callers outside this repository would break.
    """
    signature = str(inspect.signature(find(name)))
    without_modules = re.sub(r"(?<![\w.'])(?:\w+\.)+(?=\w)", "", signature)
    assert without_modules == SIGNATURES[name]


@pytest.mark.parametrize("name", FIELDS)
def test_result_fields(name):
    """Catches: a renamed or moved field of a result that callers unpack."""
    assert find(name)._fields[: len(FIELDS[name])] == FIELDS[name]


def test_errors_are_standard_errors_and_travel():
    """Catches: an error that breaks the contract.

    `except ValueError` misses it, it is not in the table, or Ray cannot pickle it to the driver.
    """
    ours = {
        name: kind
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and kind is not errors.RlhfvError
    }
    assert ours.keys() == ERRORS.keys()
    for name, kind in ours.items():
        assert issubclass(kind, errors.RlhfvError)
        assert issubclass(kind, ERRORS[name])
        back = pickle.loads(pickle.dumps(kind("what, and how to fix it")))
        assert type(back) is kind and str(back) == "what, and how to fix it"
