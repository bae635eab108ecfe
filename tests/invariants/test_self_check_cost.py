"""The self-check costs little beside the reference pass that it stands before."""

import time
from dataclasses import replace

import torch

from benchmarks.settings import LLAVA, make_setting
from rlhfv_ray.data.encoding import encode_pair
from rlhfv_ray.inference.reference import score_pairs
from rlhfv_ray.models import AnswerPolicy
from rlhfv_ray.models.self_check import Sample, checked_layout, choose_samples, self_check
from tests.conftest import careless_pairs

RLHFV = 5733  # pairs of RLHF-V-Dataset
LARGEST_SHARE = 0.03
ANSWER = 380  # characters, about 87 tokens


def lengthened(text: str) -> str:
    """Return an answer of the paper's length that begins as this one does."""
    return (f"{text} " * (ANSWER // len(text) + 1))[:ANSWER]


def test_the_check_takes_three_percent_of_the_papers_reference_pass_at_most():
    """Catches: a check that takes as long as what it stands before."""
    size = replace(LLAVA, width=128, layers=4, feedforward=344, words=500)
    setting = make_setting(size, pairs=1, device=torch.device("cpu"), dtype=torch.float32)
    model, processor = setting.model, setting.processor
    processor.patch_size = 14
    model.config.image_token_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    samples = []
    for row in careless_pairs(8):
        chosen, rejected = lengthened(row.chosen), lengthened(row.rejected)
        pair = replace(row, chosen=chosen, rejected=rejected)
        encoded = encode_pair(pair, processor, min_match=3, max_length=1024)
        samples.append(Sample(row.question, encoded))
    pairs = [sample.pair for sample in samples]
    assert min(len(pair.prompt_ids) for pair in pairs) > 576

    began = time.process_time()
    outcome = self_check(model, processor, choose_samples(samples))
    check_s = time.process_time() - began
    policy = AnswerPolicy(model, checked_layout(model, outcome))
    score_pairs(policy, processor, pairs[:2])  # the first pass of a process is slower
    began = time.process_time()
    score_pairs(policy, processor, pairs)
    pair_s = (time.process_time() - began) / len(pairs)
    assert check_s <= LARGEST_SHARE * RLHFV * pair_s
