"""Images under other names than the question file has; `test_pope.py` has the errors."""

from pathlib import Path

from eval.inputs.images import find_images


def test_a_name_as_it_is_wins_over_other_spellings(tmp_path: Path) -> None:
    """Catches: another file of the folder taken although the named one exists."""
    for name in ("COCO_val2014_000000000042.jpg", "000000000042.jpg", "42.png"):
        (tmp_path / name).write_bytes(b"")
    paths = find_images(tmp_path, ["42.png", "000000000042.jpg", "42", "000000000042"])
    assert {name: path.name for name, path in paths.items()} == {
        "42.png": "42.png",
        "000000000042.jpg": "000000000042.jpg",
        "42": "42.png",  # own spelling, another extension
        "000000000042": "000000000042.jpg",
    }


def test_aliases_come_after_the_name(tmp_path: Path) -> None:
    """Catches: an alias that hides the image itself."""
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"")
    aliases = {"a.jpg": ["b.jpg"], "c.jpg": ["", "b.jpg"]}
    paths = find_images(tmp_path, ["a.jpg", "c.jpg"], aliases=aliases)
    assert [path.name for path in paths.values()] == ["a.jpg", "b.jpg"]
