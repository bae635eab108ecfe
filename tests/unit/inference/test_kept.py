"""What a process keeps between tasks."""

import gc
import weakref

import pytest

from rlhfv_ray.inference.kept import Kept
from tests.conftest import wait_for


class Model:
    """Refers to itself, as a model's modules do."""

    def __init__(self) -> None:
        self.itself = self


def test_a_value_is_made_once_for_a_key():
    """Catches: a model loaded for every task; the last stage's model taken for this stage's."""
    kept, made = Kept(), []

    def use(key: str) -> Model:
        return kept.use(key, lambda: made.append(key) or Model(), lambda model: model)

    first = use("reference")
    assert use("reference") is first
    assert use("answers") is not first
    use("reference")
    assert made == ["reference", "answers", "reference"]


def test_a_value_is_given_up_for_the_next_and_after_a_pause():
    """Catches: models that stay in memory beside the next one, or while training runs."""
    gc.collect()
    kept = Kept(idle=0.05)
    first = weakref.ref(kept.use("first", Model, lambda model: model))

    def make() -> Model:
        assert first() is None
        return Model()

    second = weakref.ref(kept.use("second", make, lambda model: model))
    wait_for(lambda: second() is None, 10)


def test_work_that_fails_and_a_model_that_cannot_be_made_leave_nothing_wrong():
    """Catches: a lock that is never released; a half-made value under the new key."""
    kept = Kept()
    with pytest.raises(ZeroDivisionError):
        kept.use("stage", Model, lambda model: 1 / 0)
    with pytest.raises(KeyError):
        kept.use("other", lambda: {}["model"], lambda model: model)
    assert isinstance(kept.use("other", Model, lambda model: model), Model)


def test_a_value_is_given_up_at_once_when_asked():
    """Catches: a model that stays beside the one that is trained next, in the same process."""
    gc.collect()
    kept = Kept()
    kept.drop()  # of nothing
    model = weakref.ref(kept.use("answers", Model, lambda model: model))
    kept.drop()
    assert model() is None
    assert isinstance(kept.use("answers", Model, lambda model: model), Model)
