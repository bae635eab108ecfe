"""Shared fixtures: small real models and pairs of the shapes world.

Importing this module switches jaxtyping's shape checks on for the numeric modules. It does not
import torch or transformers: the process that hands tests out to others needs neither.
"""

import os
import sys

# Jobs, and scripts for clusters, call `python`: this environment's, also where it is not activated.
os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from jaxtyping import install_import_hook

install_import_hook(["rlhfv_ray.logps", "rlhfv_ray.loss"], "beartype.beartype")

import contextlib
import gc
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlhfv_ray.records import PreferencePair
from rlhfv_ray.shapes.annotator import correct
from rlhfv_ray.shapes.captions import QUESTIONS, careless_caption
from rlhfv_ray.shapes.scenes import make_scenes, render

ROOT = Path(__file__).parents[1]


def pytest_collection() -> None:
    """Collect no garbage during imports, which make many objects and hardly any garbage."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Let the garbage collector skip the imported modules: it would look through them for every
    model that is given up.
    """
    gc.collect()
    gc.freeze()
    gc.enable()


def careless_pairs(count: int, seed: int = 0) -> list[PreferencePair]:
    """Make pairs of the shapes world from careless captions instead of a model's answers."""
    rng = random.Random(seed)
    pairs = []
    for scene in make_scenes(4 * count, seed=seed):
        caption = careless_caption(scene, rng)
        corrected = correct(scene, caption)
        if corrected is not None and len(pairs) < count:
            image, question = render(scene), QUESTIONS[scene.id % len(QUESTIONS)]
            pair = PreferencePair(f"shapes:{scene.id}", image, question, corrected.text, caption)
            pairs.append(pair)
    return pairs


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until the condition holds, and fail after `seconds`.

    A look into a bucket takes 50 to 80 ms of CPU, one at all processes 8 ms. The pause grows with
    it, so that what is waited for has the CPU.
    """
    end = time.monotonic() + seconds
    while True:
        start = time.monotonic()
        if condition():
            return
        checked = time.monotonic()
        assert checked < end, f"the condition did not hold within {seconds} s"
        time.sleep(min(max(0.01, 4 * (checked - start)), 0.25))


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a SQLite file with MLflow's tables: creating takes seconds, copying takes no time.

    The processes of pytest-xdist share one.
    """
    from filelock import FileLock
    from mlflow import MlflowClient

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all processes of this run
    path = folder / "empty_mlflow.db"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            MlflowClient(f"sqlite:///{path}").search_experiments(max_results=1)
    return path


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Mount a file system of `size` bytes until the body ends; only root can do it."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture(scope="session")
def processor():
    from rlhfv_ray.models import load_processor
    from rlhfv_ray.shapes.model import BIASED

    return load_processor(BIASED)


@pytest.fixture(scope="session")
def policy():
    """Load the shipped shapes model, fp32 on the CPU."""
    from rlhfv_ray.models import load_policy
    from rlhfv_ray.shapes.model import BIASED

    model, _ = load_policy(BIASED, dtype="fp32", device="cpu")
    return model


@pytest.fixture(scope="session")
def small_model(tmp_path_factory, processor) -> Path:
    """Save a LLaVA with 60 k random parameters, and return its folder."""
    import torch

    from rlhfv_ray.shapes.model import build_model

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("small")
    build_model(processor, width=32, layers=2).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def installed_wheel(tmp_path_factory) -> Path:
    """Build the wheel and install it into a folder outside of the checkout; return the folder.

    With the folder in PYTHONPATH, imports find it before the checkout.
    """
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(ROOT)]
    subprocess.run([*pip, *build], check=True, capture_output=True)
    (wheel,) = folder.glob("rlhfv_ray-*.whl")
    packages = folder / "packages"
    install = ["install", "--no-deps", "--target", str(packages), str(wheel)]
    subprocess.run([*pip, *install], check=True, capture_output=True)
    return packages


@pytest.fixture(scope="session")
def pairs() -> list[PreferencePair]:
    return careless_pairs(24)


@pytest.fixture(scope="session")
def encoded(pairs, processor):
    from rlhfv_ray.data.encoding import encode_pair

    return [encode_pair(pair, processor, min_match=3, max_length=256) for pair in pairs]
