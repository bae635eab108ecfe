"""Replies on disk: asked for at most twice, shared, and never torn."""

import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from rlhfv_ray.config import EndpointConfig
from rlhfv_ray.endpoint.cache import ReplyCache
from rlhfv_ray.endpoint.records import Reply, Request

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


def write_for_ever(folder: Path) -> None:
    cache = ReplyCache(folder)
    for number in range(10**6):
        key = Request(str(number), f"text {number}").key(ENDPOINT)
        cache.put(key, Reply("ok", "Rating: 3 " * 2000))


def test_a_kill_leaves_whole_replies(tmp_path: Path) -> None:
    """Catches: a torn file taken for a reply after kill -9."""
    writer = multiprocessing.get_context("fork").Process(target=write_for_ever, args=(tmp_path,))
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
