"""Examples to imitate: every format gives the same turns, what cannot be used says why, and only answers are scored."""

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhfv_ray.data import list_slices, read_slice
from rlhfv_ray.data.encoding import conversation_ids, encode_example, prompt_text
from rlhfv_ray.data.reference_table import EXAMPLES, SCHEMA, from_row, to_row
from rlhfv_ray.data.sft_formats import CAPTION_QUESTION
from rlhfv_ray.errors import ConfigError, DataError
from rlhfv_ray.models.batch import Layout, collate_pairs
from rlhfv_ray.records import EncodedPair, Example
from rlhfv_ray.shapes.scenes import make_scenes, render

PICTURE = render(make_scenes(1, seed=3)[0])
TURNS = (("What is there?", "a red star ."), ("And where?", "at the top left ."))
FIRST = TURNS[:1]


def sharegpt(turns=TURNS) -> list[dict[str, str]]:
    said = [
        {"from": name, "value": text}
        for turn in turns
        for name, text in zip(("human", "gpt"), turn, strict=True)
    ]
    said[0]["value"] = "<image>\n" + said[0]["value"]
    return said


def chat(turns=TURNS) -> list[dict[str, Any]]:
    said = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    said[0]["content"] = [{"type": "image"}, {"type": "text", "text": turns[0][0]}]
    return said


def tsv(content: Any) -> list[str]:
    text = base64.b64encode(json.dumps(content).encode()).decode()
    return ["vqa", base64.b64encode(PICTURE).decode(), text, "VQAv2", "train", "12", "train/1.jpg"]


def in_file(folder: Path, row: Any) -> Path:
    (folder / "a.png").write_bytes(PICTURE)
    if isinstance(row, list):
        (folder / "rows.tsv").write_text("\t".join(row) + "\n")
        return folder / "rows.tsv"
    if any(isinstance(value, bytes) for value in row.values()):
        pq.write_table(pa.Table.from_pylist([row]), folder / "rows.parquet")
        return folder / "rows.parquet"
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return folder / "rows.jsonl"


def read(path: Path, format: str = "auto") -> Example | DataError:
    ((_, found),) = [
        row for part in list_slices(path, format=format, examples=True) for row in read_slice(part)
    ]
    assert not isinstance(found, EncodedPair)
    return found


GOOD = {
    "llava": ({"id": "1", "image": "a.png", "conversations": sharegpt()}, "conversations", TURNS),
    "sharegpt, images": (
        {"conversations": sharegpt(), "images": ["a.png"]},
        "conversations",
        TURNS,
    ),
    "messages": ({"messages": chat(), "images": ["a.png"]}, "messages", TURNS),
    "completion, lists": (
        {"prompt": chat()[:1], "completion": chat()[1:2], "image": "a.png"},
        "completion",
        FIRST,
    ),
    "completion, text": (
        {"prompt": FIRST[0][0], "completion": FIRST[0][1], "image": "a.png"},
        "completion",
        FIRST,
    ),
    "vqa": ({"image": PICTURE, "question": FIRST[0][0], "answer": FIRST[0][1]}, "vqa", FIRST),
    "vqa, ten answers": (
        {
            "image": "a.png",
            "question": "How many?",
            "answers": [{"answer": a} for a in ("2", "3", "2")],
        },
        "vqa",
        (("How many?", "2"),),
    ),
    "caption": (
        {"image": "a.png", "caption": "a street"},
        "caption",
        ((CAPTION_QUESTION, "a street"),),
    ),
    "muffin, conversation": (tsv(sharegpt()), "muffin_tsv", TURNS),
    "muffin, question and answer": (
        tsv({"question": "How many?", "answer": "2"}),
        "muffin_tsv",
        (("How many?", "2"),),
    ),
    "muffin, pair": (tsv(["What?", "a star", "a ring"]), "muffin_tsv", (("What?", "a star"),)),
    "pair": (
        {"image": PICTURE, "question": "What?", "chosen": "a star", "rejected": "a ring"},
        "rlaifv",
        (("What?", "a star"),),
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_every_format_gives_its_turns(name, tmp_path):
    """Catches: a format told wrongly from its columns; roles or placeholders that end up in the text; another picture."""
    row, format, turns = GOOD[name]
    path = in_file(tmp_path, row)
    assert {part.format for part in list_slices(path, examples=True)} == {format}
    found = read(path)
    assert isinstance(found, Example), found
    assert (found.turns, found.image) == (turns, PICTURE)


BAD = {
    "bad_roles": {"messages": chat()[::-1], "images": ["a.png"]},
    "bad_roles: ": {"messages": chat()[:3], "images": ["a.png"]},
    "empty_answer": {"image": "a.png", "question": "What?", "answer": " "},
    "empty_question": {"image": "a.png", "question": "", "answer": "a star"},
    "multi_image": {"messages": [*chat()[:2], *chat()[:2]], "images": ["a.png"]},
    "image_missing": {"image": "b.png", "caption": "a street"},
    "image_path": {"image": "../b.png", "caption": "a street"},
    "system_prompt": {"image": "a.png", "conversations": sharegpt(), "system": "Be brief."},
    "bad_row": {"image": "a.png", "caption": ["a street", "a beach"]},
    "bad_text": {"image": "a.png", "caption": "a\0street"},
}


@pytest.mark.parametrize("code", BAD)
def test_bad_rows_say_why(code, tmp_path):
    """Catches: a row that trains on the wrong thing, or ends the job, instead of being set aside."""
    found = read(in_file(tmp_path, BAD[code]))
    assert isinstance(found, DataError)
    assert str(found).startswith(code.strip(": "))


def test_a_format_of_examples_is_none_of_pairs(tmp_path):
    """Catches: preference training on data that has no rejected answers."""
    path = in_file(tmp_path, GOOD["vqa"][0])
    with pytest.raises(ConfigError, match=r"experiments/sft\.py reads it"):
        list_slices(path, format="vqa")
    with pytest.raises(DataError, match="bad_columns"):
        list_slices(path)


def test_answers_are_scored_and_later_questions_are_not(processor):
    """Catches: a model taught to ask. The scored tokens, read back, are the answers with the ends of their turns."""
    ids, scored = conversation_ids(processor, TURNS)
    said = processor.tokenizer.decode(
        [token for token, flag in zip(ids, scored, strict=True) if flag]
    )
    assert "".join(said.split()) == "aredstar.</s>atthetopleft.</s>"
    user = {"role": "user", "content": [{"type": "text", "text": TURNS[1][0]}]}
    first = {"role": "assistant", "content": [{"type": "text", "text": TURNS[0][1]}]}
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": TURNS[0][0]}]}
    whole = processor.apply_chat_template(
        [asked, first, user], add_generation_prompt=True, tokenize=False
    )
    before = len(processor.tokenizer(whole)["input_ids"]) - len(
        processor.tokenizer(prompt_text(processor, TURNS[0][0]))["input_ids"]
    )
    assert ids[:before] == processor.tokenizer(whole)["input_ids"][-before:]
    assert scored.index(False) < before and all(scored[before:])


def test_too_long_a_conversation_is_set_aside(processor):
    """Catches: a conversation that is cut."""
    example = Example("1", PICTURE, TURNS)
    whole = encode_example(example, processor, max_length=500)
    longest = len(whole.prompt_ids) + len(whole.chosen_ids)
    assert encode_example(example, processor, max_length=longest) == whole
    with pytest.raises(DataError, match="too_long"):
        encode_example(example, processor, max_length=longest - 1)


@pytest.mark.parametrize("shared", [True, False])
def test_batch_of_examples_has_their_answers_alone(processor, encoded, shared):
    """Catches: rows for rejected answers that are not there, a later question that is scored, an example that comes back as a pair."""
    example = encode_example(Example("talk", PICTURE, TURNS), processor, max_length=500)
    stored = pa.Table.from_pylist([to_row(example)], schema=EXAMPLES).to_pylist()[0]
    assert from_row(stored) == example
    row = pa.Table.from_pylist(
        [{**to_row(encoded[0]), "chosen_logps": [0.0], "rejected_logps": [0.0]}], schema=SCHEMA
    )
    alone = from_row(row.to_pylist()[0], chosen_only=True)
    assert (alone.chosen_ids, alone.rejected_ids) == (encoded[0].chosen_ids, [])
    batch = collate_pairs([example, alone], processor, rule="muffin", layout=Layout(shared=shared))
    assert batch.inputs["input_ids"].shape[0] == batch.inputs["pixel_values"].shape[0] == 2
    assert batch.reference_token_logps is None
    wanted = [token for token, flag in zip(example.chosen_ids, example.scored, strict=True) if flag]
    for answer, tokens in enumerate((wanted, alone.chosen_ids)):
        assert batch.targets[batch.answers[answer][batch.answers[answer] >= 0]].tolist() == tokens
    assert (batch.answers[2:] == -1).all()
    assert len(batch.targets) == len(wanted) + len(alone.chosen_ids)
