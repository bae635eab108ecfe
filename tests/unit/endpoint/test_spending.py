"""The cost of a folder's calls, counted by several processes; `test_budget.py` waits and stops."""

import multiprocessing
from pathlib import Path

import pytest

from rlhfv_ray.endpoint.spending import Spending
from rlhfv_ray.errors import JudgeError

PROCESSES, LIMIT = 4, 10


def open_spending(cache: Path, limit: float = LIMIT) -> Spending:
    return Spending(cache, server="s", limit=limit, timeout_s=60)


def claim_until_refused(cache: Path) -> int:
    """Claim 1 USD at a time and return how often it was granted."""
    spending, count = open_spending(cache), 0
    while spending.claim(str(count), 1.0) == "granted":
        count += 1
    return count


@pytest.mark.slow
def test_processes_at_the_same_time_share_one_limit(tmp_path: Path) -> None:
    """Catches: two trials that both take the last dollar."""
    # A fork would copy the locks of this process's threads as they are, some of them held for ever.
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        counts = pool.map(claim_until_refused, [tmp_path] * PROCESSES, chunksize=1)
    assert sum(counts) == LIMIT


def test_a_killed_budgets_calls_stay_counted(tmp_path: Path) -> None:
    """Catches: calls that were made and charged before a kill, and that no later run counts.

    3 settled, but not written yet, and 4 under way: 8 were claimed of 10 when the file was written.
    """
    killed = open_spending(tmp_path)
    assert killed.claim("a", 4.0) == killed.claim("b", 4.0) == "granted"
    killed.settle("a", 3.0)
    later = open_spending(tmp_path)
    assert later.claim("c", 2.0) == "granted"
    assert later.claim("d", 0.5) == "wait"
    killed.close()  # had it lived, 7 were counted
    assert later.claim("d", 1.0) == "granted"
    later.settle("c", 1.0)
    later.settle("d", 0.5)
    assert open_spending(tmp_path).claim("e", 1.5) == "wait"
    later.close()
    assert open_spending(tmp_path).claim("e", 1.5) == "granted"


def test_calls_without_a_price_write_nothing(tmp_path: Path) -> None:
    """Catches: files and locks for servers that cost nothing."""
    spending = open_spending(tmp_path)
    assert spending.claim("a", 0.0) == "granted"
    spending.settle("a", 0.0)
    spending.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"settled": "x", "under_way": 0}'])
def test_a_damaged_file_is_an_error_that_says_the_fix(content: str, tmp_path: Path) -> None:
    """Catches: spent money taken for none."""
    (tmp_path / "spending").mkdir()
    (tmp_path / "spending" / "1.json").write_text(content)
    with pytest.raises(JudgeError, match=r"1\.json cannot be read .* Delete it"):
        open_spending(tmp_path).claim("a", 1.0)
