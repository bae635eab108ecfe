"""Parts of a benchmark: no image in two, and only the questions of a part answered and judged."""

import base64
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from eval.benchmarks.contract import Benchmark
from eval.benchmarks.mmhal_bench import TYPES
from eval.config import JudgeConfig, MMHalBenchConfig, ShapesBenchConfig
from eval.plan import Candidate, plan_answers, plan_evaluation
from experiments.recipes import shapes_small
from experiments.runners.config import Part
from experiments.runners.picture_parts import PartBenchmark, check_parts, part_of_image
from rlhfv_ray.endpoint.records import Reply
from rlhfv_ray.errors import ConfigError, DataError
from rlhfv_ray.records import Answer, Prompt

PARTS: tuple[Part, ...] = ("rungs", "choice", "fresh")
CONFIG = shapes_small()
MODELS = {"shapes": Candidate("shapes", model=CONFIG.ddpo.model)}


def write_questions(path: Path, images: list[bytes]) -> MMHalBenchConfig:
    """Write MMHal-Bench's file with two questions about each image."""
    rows = [
        {
            "question_type": TYPES[number % len(TYPES)],
            "image_id": f"id{number}",
            "image_content": ["Circle"],
            "question": f"Question {number}?",
            "gt_answer": "A circle.",
            "image": base64.b64encode(images[number // 2]).decode(),
        }
        for number in range(2 * len(images))
    ]
    path.write_text(json.dumps(rows))
    return MMHalBenchConfig(questions=str(path))


@pytest.fixture
def planning(tmp_path: Path):
    """The settings of 120 questions about 60 images, and the other arguments of a plan."""
    file = write_questions(tmp_path / "questions.json", [b"picture %d" % n for n in range(60)])
    config = replace(CONFIG, mmhal_bench=file, judge=JudgeConfig(model="judge"))
    ddpo = config.ddpo
    options = {"generation": ddpo.generation, "scale": ddpo.scale, "storage": tmp_path}
    return config.with_shapes(ShapesBenchConfig()), options


def answers_to(benchmark: Benchmark) -> list[Answer]:
    return [Answer(item.id, item.question, f"To {item.id}.") for item in benchmark.prompts]


def test_too_few_images_are_refused():
    """Catches: a choice and a report on the same images, or on none."""
    prompts = [Prompt(str(n), bytes([n]), "q") for n in range(2)]
    with pytest.raises(ConfigError, match="its 2 images leave none for"):
        check_parts(SimpleNamespace(name="pope", prompts=prompts))  # pyright: ignore
    prompts = [Prompt(str(n), str(n).encode(), "q") for n in range(100)]
    check_parts(SimpleNamespace(name="pope", prompts=prompts))  # pyright: ignore
    check_parts(SimpleNamespace(name="shapes"))  # pyright: ignore # drawn for each part


def test_parts_share_no_image_and_cover_all(planning):
    """Catches: questions about one image in two parts; questions in none; one stage for all."""
    settings, options = planning
    plan = plan_evaluation(MODELS, ("mmhal_bench",), settings, **options)
    (whole,) = plan.benchmarks
    parts = {part: PartBenchmark(whole, part) for part in PARTS}
    images = {part: {item.image for item in each.prompts} for part, each in parts.items()}
    assert sum(map(len, images.values())) == 60 == len(set.union(*images.values()))
    assert sum(len(each.prompts) for each in parts.values()) == 120
    assert 0 < len(images["rungs"]) < len(images["choice"]) and len(images["fresh"]) > 12
    assert all({part_of_image(image) for image in images[part]} == {part} for part in PARTS)
    plans = [plan, *(plan_answers(MODELS, [each], settings, **options) for each in parts.values())]
    assert len({each.stages[-1].folder(options["storage"]) for each in plans}) == 4


def test_only_the_questions_of_a_part_are_asked_and_scored(planning):
    """Catches: all questions answered and judged at every rung; other numbers than the whole
    benchmark's on the same answers; parts that are taken for comparable.
    """
    settings, options = planning
    (whole,) = plan_evaluation(MODELS, ("mmhal_bench",), settings, **options).benchmarks
    answers = answers_to(whole)
    verdicts = {
        item.id: [Reply("ok", f"Rating: {n % 7}", model="judge")] for n, item in enumerate(answers)
    }
    of_whole = {item.answer.id: item for item in whole.score(answers, verdicts).answers}
    for part in PARTS:
        benchmark = PartBenchmark(whole, part)
        ours = answers_to(benchmark)
        requests = benchmark.requests(ours)
        assert [item.id for item in requests] == [item.id for item in benchmark.prompts]
        assert requests[0] in whole.requests(answers) and benchmark.judged
        asked = {item.id: verdicts[item.id] for item in requests}
        scores = benchmark.score(ours, asked)
        assert list(scores.answers) == [of_whole[item.id] for item in benchmark.prompts]
        assert scores.manifest["n"] == len(ours)
        assert scores.manifest["part"] == part
        assert benchmark.readable("Rating: 3") and not benchmark.readable("no")
    with pytest.raises(DataError, match="prompts need one answer each"):
        PartBenchmark(whole, "rungs").score(answers_to(PartBenchmark(whole, "fresh")), {})
