"""The texts that the shapes world's base models learn from."""

import random

from experiments.pretrain_shapes import caption_batch, careful_caption
from rlhfv_ray.shapes.balanced import make_balanced_scenes
from rlhfv_ray.shapes.captions import caption


def test_only_the_answer_is_learnt(processor):
    """Catches: a loss on the question, on padding, or none on the end."""
    scenes = make_balanced_scenes(4, seed=3)
    ids, mask, labels = caption_batch(processor, scenes, random.Random(0), careful_caption)
    assert ids.shape == mask.shape == labels.shape
    for row, scene in enumerate(scenes):
        learnt = processor.tokenizer.decode(labels[row][labels[row] >= 0])
        assert learnt == f"{caption(scene.setting, scene.groups)}</s>"
