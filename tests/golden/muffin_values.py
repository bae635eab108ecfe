"""What the project's own functions give for the inputs of Muffin's golden files."""

import base64
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer

from rlhfv_ray.config import ModelConfig
from rlhfv_ray.data import decode_image
from rlhfv_ray.data.files.image_sources import ImageRoots
from rlhfv_ray.data.release_labels import piece_lengths, release_labels
from rlhfv_ray.data.sft_formats import read_example
from rlhfv_ray.data.templates import (
    answer_of,
    answering_prompt,
    assistant_message,
    before_end,
    render,
    user_message,
)
from rlhfv_ray.errors import DataError
from rlhfv_ray.logps import IGNORED
from rlhfv_ray.models.loading import load_weights
from rlhfv_ray.models.muffin import resized_positions
from rlhfv_ray.models.muffin_processor import SYSTEM, image_processor, muffin_processor
from rlhfv_ray.records import Example

IMAGE = "<image>\n"
FORMULA = re.compile(r".*\(x\*\((\d+)\+c\) \+ y\*\((\d+)-(\d+)c\) \+ (\d+)\) mod 256")
SIDE = 32  # pixels, of the processor whose texts are compared
# Largest distance of ours, in fp32 and fp64, from the release's: its rounding in fp32.
ROUNDING = {"vision_output": 3e-6, "image_embeddings": 2e-6, "logits": 1e-5}


def text_values(golden: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the recomputed sections, without their inputs, of a file of Muffin's texts.

    Args:
        golden: the file's content.
        folder: of the tokenizer that it was made with.
    """
    queries = golden["labels"][0]["text"].count("<im_patch>")
    processor = muffin_processor(AutoTokenizer.from_pretrained(folder), queries, SIDE)
    any_image = golden["unimm_chat"][0]["image_base64"]
    return {
        "system": SYSTEM,
        "labels": [label_values(processor, case) for case in golden["labels"]],
        "generation_prompts": [
            {"prompt": answering_prompt(processor, case["question"])}
            for case in golden["generation_prompts"]
        ],
        "answers": [
            {
                "benchmark": before_end(processor, case["raw"]),
                "chat": answer_of(processor, case["raw"]),
            }
            for case in golden["answers"]
        ],
        "positions": [position_values(case) for case in golden["positions"]],
        "images": [image_values(case) for case in golden["images"]],
        "unimm_chat": [chat_values(case) for case in golden["unimm_chat"]],
        "vqa_single_turn": [vqa_values(case, any_image) for case in golden["vqa_single_turn"]],
    }


def label_values(processor: Any, case: Mapping[str, Any]) -> dict[str, Any]:
    """Return a conversation's text, and its ids and labels up to the largest length."""
    messages = [message(role, text) for role, text in case["turns"]]
    tokens = release_labels(processor, messages)
    labels = [
        number if covered else IGNORED
        for number, covered in zip(tokens.ids, tokens.covered, strict=True)
    ]
    return {
        "text": render(processor, messages),
        "ids": tokens.ids[: case["max_length"]],
        "labels": labels[: case["max_length"]],
        "piece_lengths_with_bos": piece_lengths(processor, messages),
    }


def message(role: str, text: str) -> dict[str, Any]:
    """Return a turn of the release as a message of ours."""
    if role != "human":
        return assistant_message(text)
    return user_message(text.removeprefix(IMAGE), image=text.startswith(IMAGE))


def position_values(case: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table of positions for the new side."""
    table = resized_positions(torch.tensor(case["weight"]), case["new_side"] ** 2 + 3)
    return {"new_weight": table.tolist()}


def image_values(case: Mapping[str, Any]) -> dict[str, Any]:
    """Return some values of a drawn picture behind the transform, and their mean and deviation."""
    found = FORMULA.fullmatch(case["formula"])
    if found is None:
        raise DataError(f"formula {case['formula']!r} is unknown")
    a, b, d, e = map(int, found.groups())
    y, x, c = np.mgrid[: case["height"], : case["width"], :3]
    drawn = (x * (a + c) + y * (b - d * c) + e) % 256
    picture = Image.fromarray(drawn.astype(np.uint8))
    pixels = image_processor(case["size"])([picture], return_tensors="pt")["pixel_values"][0]
    return {
        "mean": pixels.double().mean().item(),
        "std": pixels.double().std(correction=0).item(),
        "values": [pixels[tuple(place)].item() for place in case["at_cyx"]],
    }


def chat_values(case: Mapping[str, Any]) -> dict[str, Any]:
    """Return the picture's size and the conversation of a row of UniMM-Chat."""
    row = {"image": case["image_base64"], "text": case["text_base64"]}
    example = read(row, "muffin_tsv")
    size = decode_image(example.image).size
    return {"image_size": list(size), "conversation": conversation(example)}


def vqa_values(case: Mapping[str, Any], image: str) -> dict[str, Any]:
    """Return a question and its answer as a conversation."""
    row = {**case, "image": base64.b64decode(image)}
    return {"conversation": conversation(read(row, "vqa"))}


def read(row: Mapping[str, Any], format: str) -> Example:
    """Read a row as the data of fine-tuning.

    Raises:
        DataError: it is unusable.
    """
    _, example = read_example(
        dict(row), format=format, roots=ImageRoots((Path(),)), fallback_id="0"
    )
    if isinstance(example, DataError):
        raise example
    return example


def conversation(example: Example) -> list[dict[str, str]]:
    """Return an example as the release writes its turns; the picture is in the first one."""
    turns: list[dict[str, str]] = []
    for number, (question, answer) in enumerate(example.turns):
        mark = "" if number else IMAGE
        turns.append({"from": "human", "value": mark + question})
        turns.append({"from": "gpt", "value": answer})
    return turns


def tiny_values(folder: Path) -> Iterator[tuple[str, torch.Tensor, torch.Tensor, float]]:
    """Yield name, our value, the release's value and the tolerance of a checkpoint's outputs.

    The release's are sums in fp32, which processors add up in different orders: they are 2.7e-6,
    1.4e-6 and 4.7e-6 from ours in fp64, which every processor has.
    """
    golden = load_file(folder / "golden.safetensors")
    model = load_weights(str(folder), ModelConfig(path=str(folder)), "fp32").eval()
    for dtype in (torch.float32, torch.float64):
        model, pixels = model.to(dtype), golden["pixel_values"].to(dtype)
        with torch.no_grad():
            features = model.get_image_features(pixels)
            logits = model(input_ids=golden["input_ids"], pixel_values=pixels).logits
        ours = (features.last_hidden_state, features.pooler_output, logits)
        for (name, tolerance), values in zip(ROUNDING.items(), ours, strict=True):
            yield f"{name} in {dtype}", values, golden[name], tolerance
