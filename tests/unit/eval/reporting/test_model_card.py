"""The card that a trained model gets after its evaluation."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import AutoProcessor

from eval.reporting.html import Section
from eval.reporting.model_card import Trained, card_text, write_card
from rlhfv_ray.models import weights_digest
from rlhfv_ray.shapes.model import BIASED
from rlhfv_ray.storage.digests import check_payload, payload_digests
from tests.hand_scores import models

SECTION = Section("pets", models())
HUB = Trained(
    "paper beta 0.5 gamma 5 seed 0",
    "llava-hf/llava-1.5-7b-hf",
    "DDPO",
    {"pairs": "40", "digest": "9f3c"},
    {"loss.beta": 0.5, "seed": 0},
)
LOCAL = HUB._replace(base=str(BIASED))


def header_of(card: str) -> Any:
    """Return the header of a card as a hub reads it."""
    return ModelCard(card).data


def test_a_hub_reads_the_card() -> None:
    """Catches: a header that is no YAML, scores as fractions, a base that no hub has."""
    read = header_of(card_text(HUB, [SECTION], has_adapter=False))
    assert read.base_model == "llava-hf/llava-1.5-7b-hf"
    assert read.pipeline_tag == "image-text-to-text" and read.get("license") is None
    results = {result.metric_type: result.metric_value for result in read.eval_results}
    rate = SECTION.models["aligned"].rates()["response_rate"]
    assert rate is not None and results["response_rate"] == round(100 * rate, 2)
    assert header_of(card_text(LOCAL, [SECTION], has_adapter=False)).base_model is None


def test_the_card_says_data_recipe_scores_and_no_path_of_this_machine() -> None:
    """Catches: a card without what a reader needs, or with the folders of its author."""
    text = card_text(LOCAL, [SECTION], has_adapter=True)
    for part in ("| digest | 9f3c |", "| loss.beta | 0.5 |", "| seed | 0 |", "(95 % interval"):
        assert part in text
    assert SECTION.models["base"].manifest_hash in text and "adapter/" in text
    assert str(BIASED.parent) not in text
    assert "adapter/" not in card_text(LOCAL, [SECTION], has_adapter=False)
    unscored = card_text(LOCAL, [], has_adapter=False)
    assert "was not scored" in unscored and header_of(unscored).eval_results is None


def test_a_card_changes_neither_the_seal_nor_the_model(tmp_path: Path) -> None:
    """Catches: a finished training that counts as damaged after its evaluation, or after the next
    one; another identity of the same weights.
    """
    model = tmp_path / "train-1" / "model"
    model.mkdir(parents=True)
    for file in BIASED.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    weights, sealed = weights_digest(model), payload_digests(model.parent)
    for title in ("first", "second"):
        write_card(model, LOCAL._replace(title=title), [SECTION])
        check_payload(model.parent, sealed)
        assert payload_digests(model.parent) == sealed
    assert weights_digest(model) == weights
    assert (model / "README.md").read_text().count("# second\n") == 1
    assert not list(model.glob(".*")) and AutoProcessor.from_pretrained(model) is not None
    write_card(tmp_path / "elsewhere" / "model", LOCAL, [SECTION])
    assert not (tmp_path / "elsewhere").exists()
