"""The texts that the shapes world's base models learn from."""

import math
import random

import pytest
import torch

from experiments import pretrain_shapes
from experiments.pretrain_shapes import (
    SETTING_WEIGHT,
    Pretraining,
    caption_batch,
    caption_loss,
    careful_caption,
    check_it_looks,
    draw_pixels,
    is_confused,
    pretrain_captions,
    setting_tokens,
)
from rlhfv_ray.errors import StageFailedError
from rlhfv_ray.models import load_policy
from rlhfv_ray.shapes.balanced import make_balanced_scenes
from rlhfv_ray.shapes.captions import caption
from rlhfv_ray.shapes.model import BALANCED, SIGNS, build_model
from rlhfv_ray.shapes.scenes import SETTINGS, Group, Scene
from rlhfv_ray.shapes.worlds import WORLDS


def test_only_the_answer_is_learnt(processor):
    """Catches: a loss on the question, on padding, or none on the end."""
    scenes = make_balanced_scenes(4, seed=3)
    ids, mask, labels = caption_batch(processor, scenes, random.Random(0), careful_caption)
    assert ids.shape == mask.shape == labels.shape
    for row, scene in enumerate(scenes):
        learnt = processor.tokenizer.decode(labels[row][labels[row] >= 0])
        assert learnt == f"{caption(scene.setting, scene.groups)}</s>"


def test_a_setting_counts_more_than_another_word():
    """Catches: a weight on the wrong token, on the question, or none."""
    labels = torch.tensor([[-100, -100, 7, 3, 4]])  # 7 names the setting
    likely = torch.full((1, 5, 9), -1e9)
    for place, token in enumerate([0, 7, 3, 4]):  # logits predict the next token
        likely[0, place, token] = 0
    likely[0, 1] = 0  # nine equally likely settings: the only loss
    assert caption_loss(likely, labels, []).item() == pytest.approx(math.log(9) / 3)
    share = SETTING_WEIGHT / (SETTING_WEIGHT + 2)
    assert caption_loss(likely, labels, [7]).item() == pytest.approx(share * math.log(9))


def test_each_setting_is_one_token_of_its_caption(processor):
    """Catches: tokens of a setting at the start of a text, which captions never hold."""
    scenes = make_balanced_scenes(8, seed=3)
    _, _, labels = caption_batch(processor, scenes, random.Random(0), careful_caption)
    tokens = torch.tensor(setting_tokens(processor, SETTINGS))
    assert torch.isin(labels, tokens).sum() == len(scenes)


@pytest.mark.parametrize(
    ("said", "confused"),
    [
        (("circle", "star"), False),
        (("ring", "star"), False),  # as careless captions of streets have it
        (("circle",), False),  # an omission is no confusion
        (("circle", "heart"), True),
        (("circle", "star", "triangle"), True),
    ],
)
def test_shapes_that_careless_captions_would_not_name(said, confused):
    """Catches: a base model that is called blind for the mistakes that it was taught, or that is
    not for others.
    """
    corners = ("top left", "top right", "bottom left")
    groups = [Group(1, "red", shape, corner) for shape, corner in zip(said, corners, strict=False)]
    truth = (Group(1, "red", "circle", corners[0]), Group(1, "blue", "star", corners[1]))
    scene = Scene(0, "street", truth)
    assert is_confused(scene, caption("street", groups)) is confused


@pytest.mark.parametrize("rests", [True, False])
def test_a_resting_vision_tower_keeps_what_patches_taught_it(rests, processor):
    """Catches: captions that make the tower forget the words of signs; one that rests unasked."""
    torch.manual_seed(0)
    model = build_model(processor, width=32, layers=2)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    scenes = make_balanced_scenes(8, seed=3)
    config = Pretraining(
        world="balanced", careful_steps=1, careless_steps=1, vision_rests=rests, learning_rate=1e-2
    )
    pretrain_captions(model, processor, scenes, draw_pixels(scenes), config)
    rested = {
        name for name, weight in model.named_parameters() if torch.equal(weight, before[name])
    }
    tower = {name for name in before if "vision_tower" in name}
    assert (tower <= rested) is rests
    assert any("projector" in name for name in before.keys() - rested)


@pytest.mark.slow
def test_a_base_model_must_have_learnt_to_look(policy, processor, monkeypatch):
    """Catches: a base model that takes one shape for another everywhere, which balanced corrections
    cannot mend.
    """
    monkeypatch.setattr(pretrain_shapes, "CHECKED", 40)
    check_it_looks(*load_policy(BALANCED, dtype="fp32"), WORLDS["balanced"], seed=0)
    check_it_looks(*load_policy(SIGNS, dtype="fp32"), WORLDS["signs"], seed=0)
    with pytest.raises(StageFailedError, match="has not learnt to look"):
        # Its own world's captions name other shapes.
        check_it_looks(policy, processor, WORLDS["balanced"], seed=0)
