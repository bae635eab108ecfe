"""The doctor on one model."""

import pytest
import torch
from rich.console import Console

from rlhfv_ray.config import ModelConfig
from rlhfv_ray.doctor import Checkup, doctor
from rlhfv_ray.doctor.model_report import report_model
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.models import load_policy
from tests.families import save
from tests.families_d import emu3


def test_a_model_is_told_of(small_model, capsys):
    """Catches: a doctor that says nothing of layout, end, parts or memory; a bar in a file."""
    assert doctor(Checkup(model=str(small_model))) == 0
    streams = capsys.readouterr()
    assert "\r" not in streams.out + streams.err
    printed = " ".join(streams.out.split())
    assert "LlavaForConditionalGeneration" in printed
    assert "shared rows, the head on answer tokens alone" in printed
    assert "answers end with one of </s>" in printed
    assert "projector" in printed and "trained" in printed
    assert "GiB a worker" in printed


def test_a_model_that_does_not_look_is_refused(small_model, tmp_path):
    """Catches: a doctor that cannot fail."""
    model, processor = load_policy(small_model, dtype="fp32", device="cpu")
    with torch.no_grad():
        for weight in model.model.multi_modal_projector.parameters():
            weight.zero_()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="does not look at its picture"):
        report_model(ModelConfig(path=str(tmp_path), dtype="fp32"), Console())


def test_a_model_that_pictures_of_two_sizes_confuse_is_refused(tmp_path):
    """Catches: a model that the doctor accepts and a job on pictures of two sizes refuses."""
    folder = save(emu3, tmp_path / "emu3")
    with pytest.raises(ConfigError, match="is not understood, so it is not trained"):
        report_model(ModelConfig(path=str(folder), dtype="fp32"), Console())
