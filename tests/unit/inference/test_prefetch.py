"""Items made one ahead, in a thread."""

import threading
import time

import pytest

from rlhfv_ray.inference.prefetch import prefetched


def test_prefetched_passes_everything_in_order():
    """Catches: the first or last batch lost, or batches out of order."""
    assert list(prefetched(iter(range(1, 50)))) == list(range(1, 50))
    assert list(prefetched(iter([]))) == []


def test_next_batch_is_made_while_one_is_used():
    """Catches: no overlap, so that every update waits for images to be decoded."""
    is_ready = threading.Event()

    def source():
        yield "first"
        is_ready.set()
        yield "second"

    batches = prefetched(source())
    assert next(batches) == "first"
    assert is_ready.wait(timeout=10)  # before anybody asks for the second
    assert next(batches) == "second"


def test_producers_exception_reaches_the_loop():
    """Catches: a broken row that ends training early as if all were done, or hangs it."""

    def source():
        yield 1
        yield 2
        raise OSError("row 3 cannot be read")

    batches = prefetched(source())
    assert [next(batches), next(batches)] == [1, 2]
    with pytest.raises(OSError, match="row 3"):
        next(batches)


def test_loop_that_stops_early_lets_go_of_its_thread():
    """Catches: a thread that goes on decoding for a run that is over."""

    def endless():
        while True:
            time.sleep(0.001)
            yield 1

    before = set(threading.enumerate())
    batches = prefetched(endless())
    next(batches)
    batches.close()
    assert not set(threading.enumerate()) - before
