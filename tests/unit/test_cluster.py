"""Which Ray a command joins, without a Ray."""

import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import grpc
import pytest

from rlhfv_ray import cluster
from rlhfv_ray.cluster import answer_to_sigterm, answers, cluster_address, without_level_line
from rlhfv_ray.errors import ConfigError


@pytest.fixture(autouse=True)
def no_address(monkeypatch):
    """Neither the environment nor a record of `ray start` names a cluster."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "find_bootstrap_address", lambda folder: None)
    monkeypatch.setattr(cluster, "ANSWER_S", 30)


@pytest.fixture
def live() -> Iterator[str]:
    """The address of a gRPC server."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def dead() -> str:
    """An address at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def test_only_a_server_that_answers_is_alive(live, silent, dead):
    """Catches: a stopped head, or a port that another program has now, taken for a cluster."""
    assert answers(live, timeout=30)
    assert not answers(silent, timeout=0.1)
    assert not answers(dead, timeout=0.1)
    assert answers("ray://head:10001", timeout=0.5)  # left to Ray


def test_without_an_address_a_ray_of_its_own_is_started():
    """Catches: joining the private Ray of another command, which ends with that command."""
    assert cluster_address() == ""


def test_the_cluster_that_people_started_is_joined(live, monkeypatch):
    """Catches: a recorded cluster, or one in RAY_ADDRESS, that is left alone."""
    monkeypatch.setattr(cluster, "find_bootstrap_address", lambda folder: live)
    assert cluster_address() == live
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert cluster_address() == ""
    monkeypatch.setenv("RAY_ADDRESS", live)
    monkeypatch.setattr(cluster, "find_bootstrap_address", lambda folder: None)
    assert cluster_address() == live


def test_a_stale_record_is_named_and_passed_over(dead, monkeypatch, caplog):
    """Catches: minutes of waiting for a Ray that died and left its address behind."""
    monkeypatch.setattr(cluster, "ANSWER_S", 0.1)
    monkeypatch.setattr(cluster, "find_bootstrap_address", lambda folder: dead)
    with caplog.at_level(logging.WARNING):
        assert cluster_address() == ""
    assert dead in caplog.text and "ray stop" in caplog.text


def test_a_dead_ray_address_is_an_error_that_says_the_fix(dead, monkeypatch):
    """Catches: silently working on this machine where the user named a cluster."""
    monkeypatch.setattr(cluster, "ANSWER_S", 0.1)
    monkeypatch.setenv("RAY_ADDRESS", dead)
    with pytest.raises(ConfigError, match="RAY_ADDRESS.*no Ray answers there.*correct the address"):
        cluster_address()


def test_one_line_of_rays_start_is_left_out(capfd):
    """Catches: Ray's line on its log level on the terminal; another line, or an error, that is lost
    with it; a standard error that stays redirected.
    """
    with pytest.raises(ZeroDivisionError), without_level_line():
        os.write(2, b"[2026 I 1 1] logging.cc:303: Set ray log level from environment variable X\n")
        os.write(2, b"the disk is full\n")
        raise ZeroDivisionError
    os.write(2, b"later\n")
    assert capfd.readouterr().err == "the disk is full\nlater\n"


def test_sigterm_while_ray_starts_is_answered_by_this_process():
    """Catches: a driver that ends without a word, and with Ray's code, while Ray starts."""
    former = signal.getsignal(signal.SIGTERM)

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    try:
        signal.signal(signal.SIGTERM, stop)
        with pytest.raises(KeyboardInterrupt), answer_to_sigterm():
            signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))  # as `ray.init` does
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is stop
    finally:
        signal.signal(signal.SIGTERM, former)
