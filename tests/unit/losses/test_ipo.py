"""IPO against the value of TRL's own trainer (huggingface/trl, dpo_trainer.py, July 2026)."""

from dataclasses import replace

import pytest
import torch

from rlhfv_ray.config import LossConfig
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.loss import batch_loss, dpo_loss
from rlhfv_ray.losses.ipo import ipo_loss
from tests.unit.test_loss import batch_of

CHOSEN = [-31.935044098807, -44.101166155863, -51.441374495162, -53.221414444507, -63.24611760829]
REFERENCE_CHOSEN = [
    -34.585556583743,
    -45.630258649248,
    -45.876527657889,
    -51.383583526973,
    -68.829221532711,
]
REJECTED = [-53.404486435781, -78.09806893587, -33.49543533555, -79.667584049139, -17.401979200395]
REFERENCE_REJECTED = [
    -50.909746514664,
    -76.300166519514,
    -33.032586254519,
    -67.583103457547,
    -20.282827224115,
]
TOKENS = [23, 14, 16, 17, 18], [10, 16, 25, 14, 9]
MEAN_LOSS = 23.16783114842744


def double(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_value_of_trl():
    """Catches: sums in place of means over tokens, beta at another place, a sign."""
    chosen, rejected = map(double, TOKENS)
    result = ipo_loss(
        double(CHOSEN) / chosen,
        double(REJECTED) / rejected,
        double(REFERENCE_CHOSEN) / chosen,
        double(REFERENCE_REJECTED) / rejected,
        beta=0.1,
    )
    assert result.losses.mean().item() == pytest.approx(MEAN_LOSS, abs=1e-9)
    like_dpo = dpo_loss(*map(double, ([-1.0], [-2.0], [-3.0], [-5.0])), beta=0.1)[1:]
    assert ipo_loss(*map(double, ([-1.0], [-2.0], [-3.0], [-5.0])), beta=0.1)[1:] == like_dpo


def test_a_training_takes_the_loss_that_its_settings_name():
    """Catches: a setting that changes nothing; a mistyped name that trains with another loss."""
    labels = torch.tensor([[-100, 1, 2], [-100, 2, 1]])
    batch = batch_of(labels, torch.zeros(2, 2, dtype=torch.bool), torch.full((2, 2), -1.0))
    scored = torch.full((2, 2), -1.0)
    config = LossConfig(beta=0.5)
    assert batch_loss(scored, batch, config).total.item() == pytest.approx(0.693147, abs=1e-6)
    total = batch_loss(scored, batch, replace(config, kind="ipo")).total
    assert total.item() == pytest.approx(1.0)
    with pytest.raises(ConfigError, match="loss.kind = 'ip0': must be one of dpo, ipo"):
        LossConfig(kind="ip0")
    with pytest.raises(ConfigError, match="loss.kind = 'ipo': must be dpo in fine-tuning"):
        LossConfig(kind="ipo", preference_weight=0.0, sft_weight=1.0, gamma=1.0)
