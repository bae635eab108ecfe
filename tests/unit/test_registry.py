"""Names of tables that lead nowhere."""

import pytest

from rlhfv_ray.errors import ConfigError
from rlhfv_ray.registry import registered


@pytest.mark.parametrize(
    "place", ["math:no_such", "no_such_module:sqrt", "rlhfv_ray.no_such:f", "losses/new.py:f"]
)
def test_a_place_that_cannot_be_imported_is_named(place):
    """Catches: four lost workers, and an AttributeError, for a slip in the line of a new loss."""
    with pytest.raises(ConfigError, match=f"loss.kind = 'new' is registered at '{place}'"):
        registered({"new": place}, "new", setting="loss.kind")
