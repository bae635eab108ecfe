"""What docs/cluster.md says about more GPUs is what `benchmarks/scale.py` predicts."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.scale import LLAVA_PAPER, PAPER, Rates, checkpoint_seconds, predict, table

ROOT = Path(__file__).parents[1]
PAGE = " ".join((ROOT / "docs" / "cluster.md").read_text().split())


def test_the_page_quotes_the_table():
    """Catches: figures of an earlier formula, a script that does not start."""
    command = [sys.executable, "benchmarks/scale.py"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = list(table(Rates()))
    assert len(lines) == 10
    assert "\n".join(lines) in printed
    assert "\n".join(lines) in (ROOT / "docs" / "cluster.md").read_text()


def test_the_page_says_where_it_stops_scaling():
    """Catches: a sentence of the page that the figures contradict."""
    rates = Rates()
    fast = replace(rates, between=160.0)
    shares = []
    for training in (PAPER, LLAVA_PAPER):
        eight, sixteen = (predict(training, gpus, rates) for gpus in (8, 16))
        assert sixteen.update > eight.update  # "16 GPUs are slower than 8"
        assert predict(training, 32, rates) and predict(training, 64, rates) is None
        # "fits beside the backward pass within a node"
        assert eight.update < eight.compute + eight.exchange
        assert sixteen.exchange > 2 * sixteen.compute
        shares.append(predict(training, 16, fast).update / predict(training, 8, fast).update)
    ours = f"16 GPUs need {shares[0]:.1f} of the time of 8 for 13B, and {shares[1]:.1f} for 7B"
    assert ours in PAGE


def test_an_update_by_hand():
    """Catches: bytes for bits, a pass too few, an all-reduce that is counted once.

    13e9 parameters on 16 GPUs: 2 pairs each in one pass. Gradients go twice and weights once:
    3 * 26 GB * 15 / 16 at 40 GB/s. A checkpoint: 26 + 9.75 GB hashed and written.
    """
    prediction = predict(PAPER, 16, Rates())
    assert (prediction.pairs, prediction.gpus) == (2, 16)
    assert prediction.exchange == pytest.approx(3 * 26 * 15 / 16 / 40)
    pair = PAPER.size.flops(shared=True)
    assert prediction.compute == pytest.approx(2 * pair / 156e12)
    optimizer = 28 * 13 / 16 / 2000
    rest = 26 * 15 / 16 / 40 + optimizer
    assert prediction.update == pytest.approx(prediction.compute / 3 + 2 * 26 * 15 / 16 / 40 + rest)
    assert prediction.minutes == pytest.approx(306 * prediction.update / 60)
    assert checkpoint_seconds(13e9, 16, Rates()) == pytest.approx(35.75 / 0.39 + 35.75 / 1.93)
