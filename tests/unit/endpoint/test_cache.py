"""Replies on disk: asked for at most twice, shared, and never torn."""

import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from rlhfv_ray.config import EndpointConfig
from rlhfv_ray.endpoint.cache import ReplyCache, Settled
from rlhfv_ray.endpoint.records import Reply, Request
from rlhfv_ray.errors import ConfigError

ENDPOINT = EndpointConfig(model="judge-2026-01-01", base_url="http://127.0.0.1:1/v1")


def never(text: str) -> bool:
    return False


def always(text: str) -> bool:
    return True


def test_useless_replies_are_asked_for_once_more(tmp_path: Path) -> None:
    """Catches: an unreadable reply taken as it is, or asked for for ever."""
    cache, request = ReplyCache(tmp_path), Request("1", "text")
    first, second = request.key(ENDPOINT), replace(request, again=1).key(ENDPOINT)
    assert cache.settle(request, ENDPOINT, always).ask == request
    cache.put(first, Reply("ok", "hm"))
    assert cache.settle(request, ENDPOINT, always).ask is None
    assert cache.settle(request, ENDPOINT, never).ask == replace(request, again=1)
    cache.put(second, Reply("refused"))
    settled = cache.settle(request, ENDPOINT, never)
    assert settled.ask is None
    assert settled.reply == Reply("ok", "hm")  # its words are there for people to read
    cache.put(second, Reply("ok", "Rating: 3"))
    settled = cache.settle(request, ENDPOINT, lambda text: "Rating" in text)
    assert settled.reply == Reply("ok", "Rating: 3")


DAMAGE = {
    "empty": b"",
    "half": b'{"status": "ok", "te',
    "zeros": b"\0" * 60,
    "not UTF-8": b'{"status": "ok", "text": "\xff"}',
    "another object": b'{"hello": 1}',
    "a list": b"[]",
    "an unknown status": b'{"status": "good", "text": "Rating: 3"}',
    "text is no text": b'{"status": "ok", "text": 3}',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_reply_is_asked_for_again(name: str, tmp_path: Path) -> None:
    """Catches: one damaged file that ends every run with a traceback, or counts as a verdict."""
    cache, request = ReplyCache(tmp_path), Request("1", "text")
    key = request.key(ENDPOINT)
    cache.put(key, Reply("ok", "Rating: 3"))
    cache.path(key).write_bytes(DAMAGE[name])
    assert cache.settle(request, ENDPOINT, always) == Settled(request, None)
    cache.put(key, Reply("ok", "Rating: 4"))
    assert cache.settle(request, ENDPOINT, always) == Settled(None, Reply("ok", "Rating: 4"))


@pytest.mark.parametrize("obstacle", ["cache", "cache/ab"])
def test_a_cache_that_cannot_be_written_is_an_error_with_the_fix(
    obstacle: str, tmp_path: Path
) -> None:
    """Catches: the first reply paid for and then lost. A file in the way stops root as well."""
    (tmp_path / obstacle).parent.mkdir(exist_ok=True)
    (tmp_path / obstacle).touch()
    with pytest.raises(ConfigError, match=r"cannot be written .* --judge\.cache"):
        ReplyCache(tmp_path / "cache").check_writable()
    ReplyCache(tmp_path / "other" / "cache").check_writable()
    assert list((tmp_path / "other" / "cache").iterdir()) == []


def test_another_models_cached_reply_is_asked_for_again_where_one_is_pinned(
    tmp_path: Path,
) -> None:
    """Catches: scores of two judges mixed under one name, because the verdicts were there."""
    cache, request = ReplyCache(tmp_path), Request("1", "text")
    first, second = request.key(ENDPOINT), replace(request, again=1).key(ENDPOINT)
    mini = Reply("ok", "Rating: 3", model="judge-mini")
    cache.put(first, mini)
    assert cache.settle(request, ENDPOINT, always) == Settled(None, mini)
    judge = replace(ENDPOINT, reported_model="judge")
    other = replace(mini, status="other_model")
    assert cache.settle(request, judge, always) == Settled(replace(request, again=1), other)
    cache.put(second, mini)
    assert cache.settle(request, judge, always) == Settled(None, other)
    cache.put(second, replace(mini, model="judge"))
    assert cache.settle(request, judge, always).reply == replace(mini, model="judge")
    assert cache.settle(request, replace(judge, reported_model="judge-mini"), always).reply == mini


def write_for_ever(folder: Path) -> None:
    cache = ReplyCache(folder)
    for number in range(10**6):
        key = Request(str(number), f"text {number}").key(ENDPOINT)
        cache.put(key, Reply("ok", "Rating: 3 " * 2000))


@pytest.mark.slow
def test_a_kill_leaves_whole_replies(tmp_path: Path) -> None:
    """Catches: a torn file taken for a reply after kill -9."""
    writer = multiprocessing.get_context("spawn").Process(target=write_for_ever, args=(tmp_path,))
    writer.start()
    while len(list(tmp_path.glob("*/*.json"))) < 20:
        time.sleep(0.01)
    os.kill(writer.pid or 0, signal.SIGKILL)
    writer.join()
    cache, number = ReplyCache(tmp_path), 0
    while (reply := cache.get(Request("", f"text {number}").key(ENDPOINT))) is not None:
        assert reply == Reply("ok", "Rating: 3 " * 2000)
        number += 1
    assert number == len(list(tmp_path.glob("*/*.json"))) >= 20
