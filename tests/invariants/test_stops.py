"""A model that is fine-tuned on a template without an end token still learns to stop."""

import functools

import pytest
import torch

from rlhfv_ray.config import GenerationConfig, LossConfig
from rlhfv_ray.data.encoding import encode_example
from rlhfv_ray.inference.generate import answer_prompts
from rlhfv_ray.logps import policy_token_logps
from rlhfv_ray.loss import batch_loss
from rlhfv_ray.models import AnswerPolicy, layout_of, load_policy
from rlhfv_ray.models.batch import collate_pairs
from rlhfv_ray.records import Example, Prompt
from rlhfv_ray.shapes.captions import QUESTIONS
from rlhfv_ray.shapes.scenes import make_scenes, render
from tests.conftest import careless_pairs
from tests.unit.data.test_encoding import LLAVA_1_5, with_template

UPDATES, BATCH, LIMIT = 40, 8, 70
LOSS = LossConfig(gamma=1.0, preference_weight=0.0, sft_weight=1.0)


@pytest.mark.slow
def test_the_published_template_of_llava_1_5_ends(processor):
    """Catches: answers that are learnt without an end, so that none of them stops."""
    model, _ = load_policy("shapes", dtype="fp32", device="cpu")
    processor = with_template(processor, LLAVA_1_5)
    policy = AnswerPolicy(model, layout_of(model))
    collate = functools.partial(
        collate_pairs, processor=processor, rule="muffin", layout=policy.layout
    )
    encoded = [
        encode_example(
            Example(pair.id, pair.image, ((pair.question, pair.chosen),)), processor, max_length=512
        )
        for pair in careless_pairs(UPDATES * BATCH // 4)
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for update in range(UPDATES):
        rows = [encoded[(update * BATCH + row) % len(encoded)] for row in range(BATCH)]
        batch = collate(rows)
        loss = batch_loss(policy_token_logps(policy, batch), batch, LOSS).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    prompts = [
        Prompt(f"{scene.id}", render(scene), QUESTIONS[0]) for scene in make_scenes(64, seed=99)
    ]
    answers = answer_prompts(model, processor, prompts, GenerationConfig(max_new_tokens=LIMIT))
    lengths = [len(processor.tokenizer(answer)["input_ids"]) for answer in answers]
    assert sum(length < LIMIT - 2 for length in lengths) == len(answers) == 64
