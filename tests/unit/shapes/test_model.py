"""The base models that ship with the package."""

from rlhfv_ray.config import GenerationConfig
from rlhfv_ray.inference.generate import answer_prompts
from rlhfv_ray.models import load_policy
from rlhfv_ray.shapes.annotator import mistakes
from rlhfv_ray.shapes.balance import setting_of
from rlhfv_ray.shapes.captions import read_phrases
from rlhfv_ray.shapes.model import BALANCED
from rlhfv_ray.shapes.world import prompts_of, scenes_to_correct


def test_the_balanced_base_model_looks_and_is_careless():
    """Catches: a base model that names wrong settings, that does not look, or that errs too rarely
    to be corrected.
    """
    scenes = scenes_to_correct(48, seed=1, world="balanced")
    model, processor = load_policy(BALANCED, dtype="fp32", device="cpu")
    sampling = GenerationConfig(max_new_tokens=80, temperature=1.0, seed=1)
    answers = answer_prompts(model, processor, prompts_of(scenes), sampling)
    pictures = list(zip(scenes, answers, strict=True))
    assert all(setting_of(answer) == scene.setting for scene, answer in pictures)
    named = sum(len(read_phrases(answer)) for _, answer in pictures)
    wrong = sum(len({one.start for one in mistakes(*picture)}) for picture in pictures)
    # Careless captions have 46 % wrong phrases; a model that does not look had 84 %.
    assert 0.3 < wrong / named < 0.65
