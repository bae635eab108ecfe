"""Bounds on the readability figures that `benchmarks/density.py` prints."""

import pytest

from benchmarks.density import NUMERIC, PACKAGES, WIDTH, measure, measure_source, python_files

SOURCE = '''"""What a module is."""

def pick(rows):
    """Return the
    first row."""
    # why
    found = [a for row in rows for a in row]  # shape
    kept, rest = [[b] for b in found], 1
    return {c: [d for d in c] for c in kept}
'''


@pytest.fixture(scope="module")
def density():
    return measure(python_files(*PACKAGES))


def test_figures_of_a_small_source_are_counted():
    """Catches: a figure that stays 0 whatever the source holds, and a bound that cannot fail."""
    counted = measure_source(SOURCE)
    assert (counted.lines, counted.code_lines, counted.comments) == (9, 4, 2)
    assert counted.nested == 2  # two `for` in one; one inside another
    assert (counted.local_names, counted.filler_names) == (8, 3)  # found kept rest, and row a b c d
    assert counted.docstrings == ("What", "Return")
    assert measure_source(f"x = '{'y' * WIDTH}'\n").long_lines == 1


def test_numeric_files_explain_their_code():
    """Catches: numeric code whose shapes and reasons the reader has to guess."""
    numeric = measure(NUMERIC)
    comments_per_100 = 100 * numeric.comments / numeric.code_lines
    assert comments_per_100 >= 10


def test_comprehensions_are_rarely_nested(density):
    """Catches: dense code that a reader has to unfold before it makes sense."""
    nested_per_1000 = 1000 * density.nested / density.code_lines
    assert nested_per_1000 <= 2


def test_no_line_is_too_long(density):
    """Catches: lines that wrap in a review, tests included."""
    tests = measure(python_files("tests"))
    assert [density.long_lines, tests.long_lines] == [0, 0]


def test_locals_are_named_for_what_they_hold(density):
    """Catches: `found`, `kept` and their like, which name no value."""
    filler_share = density.filler_names / density.local_names
    assert filler_share <= 0.01


def test_docstrings_state_what_code_does(density):
    """Catches: docstrings that are half a question in place of a sentence."""
    questions = density.opening_with("What", "Whether")
    assert questions == 0
