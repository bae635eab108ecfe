"""Addresses and their mirrors: one follows from the other, by the path alone."""

from pathlib import Path

import pytest

from rlhfv_ray.errors import ConfigError
from rlhfv_ray.storage.mirror import address_of, mirror_path, mirror_root


@pytest.mark.parametrize("address", ["s3://lab", "s3://lab/runs/train-1", "gs://lab/a b/ü"])
def test_an_address_survives_the_way_to_its_mirror_and_back(address):
    """Catches: two addresses with one mirror, or a mirror that forgets its bucket."""
    assert address_of(mirror_path(address)) == address


@pytest.mark.parametrize("address", ["s3://", "://lab/runs", "s3://lab/../other", "runs"])
def test_what_is_no_address_is_refused(address):
    """Catches: a mirror outside the user's own folder."""
    with pytest.raises(ConfigError, match="is no address of a folder"):
        mirror_path(address)


@pytest.mark.parametrize("address", ["s3://lab/runs[1]", "s3://lab/run*", "s3://lab/run?"])
def test_a_pattern_is_no_address(address):
    """Catches: a folder deleted because its name fits the pattern that another address is."""
    with pytest.raises(ConfigError, match="without them"):
        mirror_path(address)


def test_only_paths_inside_a_mirror_have_an_address():
    """Catches: a disk's path sent to a bucket; a name inside a mirror that opens another one."""
    root = Path("/tmp/rlhfv-ray-mirror-7")
    for path in (
        Path("/tmp/runs"),
        Path("runs"),
        root,
        root / "s3",
        Path("/tmp/a-rlhfv-ray-mirror-7/s3/b"),
    ):
        assert address_of(path) is None
    nested = root / "s3" / "lab" / "rlhfv-ray-mirror-8" / "s3" / "other"
    assert address_of(nested) == "s3://lab/rlhfv-ray-mirror-8/s3/other"
    assert mirror_root(nested) == root and mirror_root(Path("/tmp/runs")) is None
