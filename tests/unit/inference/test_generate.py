"""Answers of a policy: batching, stop strings, sampling."""

import random

import pytest
import torch

from rlhfv_ray.config import GenerationConfig, ModelConfig, ScaleConfig
from rlhfv_ray.inference.generate import (
    GenerationActor,
    SampledToken,
    answer_prompts,
    part_rows,
)
from rlhfv_ray.inference.pictures import store_pictures
from rlhfv_ray.records import Prompt
from rlhfv_ray.shapes.scenes import make_scenes, render

QUESTIONS = (
    "What?",
    "Describe this image in detail, please, and leave out nothing that you can see in it.",
    "What is in this picture?",
)
GREEDY = GenerationConfig(max_new_tokens=24)


@pytest.fixture(scope="module")
def prompts():
    """Questions of very different lengths, so that a batch has much padding."""
    return [
        Prompt(str(scene.id), render(scene), QUESTIONS[scene.id % 3])
        for scene in make_scenes(6, seed=8)
    ]


def single_answer(model, processor, prompt: Prompt) -> str:
    [answer] = answer_prompts(model, processor, [prompt], GREEDY)
    return answer


def test_batched_answers_are_the_single_ones(policy, processor, prompts):
    """Catches: padding on the wrong side or attended to, or answers cut at the wrong place."""
    batched = answer_prompts(policy, processor, prompts, GREEDY)
    assert batched == [single_answer(policy, processor, prompt) for prompt in prompts]
    assert len(set(batched)) > 1
    assert all(batched)


def test_greedy_answers_are_the_most_likely_tokens(policy, processor, prompts):
    """Catches: special tokens or the prompt left in an answer.

    The expected answer takes the most likely token, one forward pass after another.
    """
    from rlhfv_ray.data import decode_image
    from rlhfv_ray.data.encoding import prompt_ids
    from rlhfv_ray.models.batch import Layout

    prompt = prompts[0]
    start = prompt_ids(processor, decode_image(prompt.image), prompt.question)
    ids, pixels = list(start), Layout().image_inputs(processor, [prompt.image])
    while len(ids) < len(start) + 8:
        with torch.no_grad():
            logits = policy(input_ids=torch.tensor([ids]), **pixels, use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
    expected = processor.tokenizer.decode(ids[len(start) :], skip_special_tokens=True).strip()
    assert answer_prompts(policy, processor, [prompt], GenerationConfig(max_new_tokens=8)) == [
        expected
    ]


def test_stop_strings_are_cut_off(policy, processor, prompts):
    """Catches: a stop string left in the answer, or only the first of several looked for."""
    [full] = answer_prompts(policy, processor, prompts[:1], GREEDY)
    first, later = full[6:10], full[14:18]
    for stop in ((first,), (first, later), (later, first)):
        [stopped] = answer_prompts(
            policy, processor, prompts[:1], GenerationConfig(max_new_tokens=24, stop=stop)
        )
        assert stopped == min((full.split(word, 1)[0] for word in stop), key=len).strip()
        assert len(stopped) < len(full)
    assert answer_prompts(
        policy, processor, prompts[:1], GenerationConfig(max_new_tokens=24, stop=("%%",))
    ) == [full]


def test_one_answers_stop_does_not_stop_the_others(policy, processor, prompts):
    """Catches: a batch that ends with its first answer."""
    full = answer_prompts(policy, processor, prompts, GREEDY)
    word = full[0][6:10]
    stopped = answer_prompts(
        policy, processor, prompts, GenerationConfig(max_new_tokens=24, stop=(word,))
    )
    assert stopped == [answer.split(word, 1)[0].strip() for answer in full]
    assert len(stopped[0]) < len(full[0])


def test_a_sample_depends_on_its_prompt_and_the_seed_alone(small_model, prompts, tmp_path):
    """Catches: samples that no seed repeats, or that depend on the batch, the shard or the rows
    before them.
    """
    model = ModelConfig(path=str(small_model), dtype="fp32")

    def draw(seed: int, batch: int, shards: list[list[Prompt]]) -> dict[str, str]:
        sampling = GenerationConfig(max_new_tokens=12, temperature=1.0, top_p=0.95, seed=seed)
        pictures = tmp_path / "pictures"
        actor = GenerationActor(model, sampling, batch, pictures)
        rows = []
        for shard in shards:
            rows += actor(store_pictures(shard, pictures)).to_pylist()
        return {row["id"]: row["text"] for row in rows}

    together = draw(0, 6, [prompts])
    assert draw(0, 4, [prompts[::-1]]) == together
    assert draw(0, 1, [prompts[3:], prompts[:3]]) == together
    assert len(set(together.values())) == len(prompts)
    assert draw(1, 6, [prompts]) != together


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sampled_tokens_have_the_scores_probabilities(dtype):
    """Catches: a token too likely by its place, or an impossible one.

    100,000 draws: a rate's standard error is 0.0016 at most, the bound is four of them.
    """
    scores = torch.tensor([[1.0, -torch.inf, 2.0, 0.0, -torch.inf]], dtype=dtype)
    draws = 100_000
    sampler = SampledToken([random.Random(f"0 {row}") for row in range(draws)])
    left = sampler(torch.empty(draws, 0), scores.expand(draws, -1))
    assert left.dtype == dtype
    assert torch.equal((left == 0).sum(1), torch.ones(draws, dtype=torch.long))
    assert torch.equal(left.isinf().sum(1), torch.full((draws,), 4))
    rates = (left == 0).double().mean(0)
    assert torch.allclose(rates, scores[0].double().softmax(-1), atol=0.0064)
    assert rates[1] == rates[4] == 0


def test_the_last_bound_is_no_token_too_many():
    """Catches: an index past the vocabulary where rounding puts a draw on the last bound."""

    class Highest(random.Random):
        def random(self) -> float:
            return 1.0

    left = SampledToken([Highest()])(torch.empty(1, 0), torch.zeros(1, 3))
    assert left.tolist() == [[-torch.inf, -torch.inf, 0.0]]


def test_actors_table_names_its_prompts(small_model, prompts, tmp_path):
    """Catches: answers shifted against ids where a part is cut into batches."""
    model, pictures = ModelConfig(path=str(small_model), dtype="fp32"), tmp_path / "pictures"
    actor = GenerationActor(model, GREEDY, 4, pictures)
    rows = actor(store_pictures(prompts, pictures)).to_pylist()
    assert [(row["id"], row["question"]) for row in rows] == [
        (prompt.id, prompt.question) for prompt in prompts
    ]
    singles = [single_answer(actor.model, actor.processor, prompt) for prompt in prompts]
    assert [row["text"] for row in rows] == singles


@pytest.mark.parametrize(
    ("prompts", "actors", "rows", "busiest"),
    [(300, 8, 64, 3), (300, 4, 64, 5), (1_000, 8, 64, 8), (130, 8, 64, 2), (100, 8, 64, 1)],
)
def test_every_actor_has_a_part_of_whole_batches(prompts, actors, rows, busiest):
    """Catches: idle actors, one that has most of the work, or batches of other rows than before."""
    size = part_rows(prompts, ScaleConfig(actors=actors, rows=rows, inference_batch=16))
    parts = -(-prompts // size)
    assert parts >= min(actors, -(-prompts // 16))
    assert size % 16 == 0
    assert -(-parts // actors) * (size // 16) == busiest


def test_parts_are_as_large_as_asked_where_all_actors_have_some():
    """Catches: one actor's parts that are cut anew, or parts of a batch where there are many."""
    demo = ScaleConfig(rows=100, inference_batch=64)
    assert part_rows(600, demo) == part_rows(5, demo) == 100
    assert part_rows(10_000, ScaleConfig(actors=8, rows=64, inference_batch=16)) == 64
    assert part_rows(0, ScaleConfig(actors=8)) == 16
