"""Examples to imitate: formats give the same turns, bad rows say why, only answers are scored."""

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhfv_ray import config
from rlhfv_ray.data import EXAMPLE_FORMATS, ReadOptions, list_slices, read_slice
from rlhfv_ray.data.encoding import conversation_ids, encode_example
from rlhfv_ray.data.reference_table import EXAMPLES, SCHEMA, from_row, to_row
from rlhfv_ray.data.sft_formats import CAPTION_QUESTION, SHORT_ANSWER
from rlhfv_ray.data.templates import prompt_text
from rlhfv_ray.errors import ConfigError, DataError
from rlhfv_ray.models.batch import Layout, collate_pairs
from rlhfv_ray.records import EncodedPair, Example
from rlhfv_ray.shapes.scenes import make_scenes, render

PICTURE = render(make_scenes(1, seed=3)[0])
TURNS = (("What is there?", "a red star ."), ("And where?", "at the top left ."))
FIRST = TURNS[:1]


def sharegpt(turns=TURNS) -> list[dict[str, str]]:
    messages = []
    for question, answer in turns:
        messages += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    messages[0]["value"] = "<image>\n" + messages[0]["value"]
    return messages


def chat(turns=TURNS) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    messages[0]["content"] = [{"type": "image"}, {"type": "text", "text": turns[0][0]}]
    return messages


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
    (part,) = list_slices(path, format=format, examples=True)
    ((_, example),) = read_slice(part)
    assert not isinstance(example, EncodedPair)
    return example


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
    """Catches: a wrongly detected format; roles or placeholders in the text; another picture."""
    row, format, turns = GOOD[name]
    path = in_file(tmp_path, row)
    assert {part.format for part in list_slices(path, examples=True)} == {format}
    result = read(path)
    assert isinstance(result, Example), result
    assert (result.turns, result.image) == (turns, PICTURE)


BAD = {
    "bad_roles": {"messages": chat()[::-1], "images": ["a.png"]},
    "bad_roles: ": {"messages": chat()[:3], "images": ["a.png"]},
    "empty_answer": {"image": "a.png", "question": "What?", "answer": " "},
    "empty_question": {"image": "a.png", "question": "", "answer": "a star"},
    "multi_image": {"messages": [*chat()[:2], *chat()[:2]], "images": ["a.png"]},
    "image_missing": {"image": "b.png", "caption": "a street"},
    "image_path": {"image": "../b.png", "caption": "a street"},
    "not_learnt": {"messages": [chat()[0], {**chat()[1], "loss": False}], "image": "a.png"},
    "bad_row": {"image": "a.png", "caption": ["a street", "a beach"]},
    "bad_text": {"image": "a.png", "caption": "a\0street"},
}


@pytest.mark.parametrize("code", BAD)
def test_bad_rows_say_why(code, tmp_path):
    """Catches: a bad row that is trained on, or that ends the job instead of being set aside."""
    result = read(in_file(tmp_path, BAD[code]))
    assert isinstance(result, DataError)
    assert str(result).startswith(code.strip(": "))


def test_formats_of_the_command_line_are_those_of_the_table():
    """Catches: a format that `--help` lists and nothing reads, or one that it does not list."""
    assert {*config.PAIR_FORMATS, *config.EXAMPLE_FORMATS} == set(EXAMPLE_FORMATS)


def test_a_format_of_examples_is_none_of_pairs(tmp_path):
    """Catches: preference training on data that has no rejected answers."""
    path = in_file(tmp_path, GOOD["vqa"][0])
    with pytest.raises(ConfigError, match="`rlhfv-ray sft` reads it"):
        list_slices(path, format="vqa")
    with pytest.raises(DataError, match="bad_columns"):
        list_slices(path)


def test_answers_are_scored_and_later_questions_are_not(processor):
    """Catches: a model taught to ask. Scored tokens are the answers and the ends of their turns."""
    ids, scored = conversation_ids(processor, TURNS)
    answer_tokens = [token for token, flag in zip(ids, scored, strict=True) if flag]
    text = processor.tokenizer.decode(answer_tokens)
    assert "".join(text.split()) == "aredstar.</s>atthetopleft.</s>"
    user = {"role": "user", "content": [{"type": "text", "text": TURNS[1][0]}]}
    first = {"role": "assistant", "content": [{"type": "text", "text": TURNS[0][1]}]}
    opening = {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": TURNS[0][0]}],
    }
    conversation = processor.apply_chat_template(
        [opening, first, user], add_generation_prompt=True, tokenize=False
    )
    conversation_tokens = processor.tokenizer(conversation)["input_ids"]
    prompt_tokens = processor.tokenizer(prompt_text(processor, TURNS[0][0]))["input_ids"]
    before = len(conversation_tokens) - len(prompt_tokens)
    assert ids[:before] == conversation_tokens[-before:]
    assert scored.index(False) < before and all(scored[before:])


def test_too_long_a_conversation_is_set_aside(processor):
    """Catches: a conversation that is cut."""
    example = Example("1", PICTURE, TURNS)
    uncut = encode_example(example, processor, max_length=500)
    longest = len(uncut.prompt_ids) + len(uncut.chosen_ids)
    assert encode_example(example, processor, max_length=longest) == uncut
    with pytest.raises(DataError, match="too_long"):
        encode_example(example, processor, max_length=longest - 1)


@pytest.mark.parametrize("shared", [True, False])
def test_batch_of_examples_has_their_answers_alone(processor, encoded, shared):
    """Catches: rows for missing rejected answers, a scored later question, a pair read back."""
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
    flags = zip(example.chosen_ids, example.scored, strict=True)
    scored = [token for token, flag in flags if flag]
    for answer, tokens in enumerate((scored, alone.chosen_ids)):
        assert batch.targets[batch.answers[answer][batch.answers[answer] >= 0]].tolist() == tokens
    assert (batch.answers[2:] == -1).all()
    assert len(batch.targets) == len(scored) + len(alone.chosen_ids)


@pytest.mark.parametrize("as_text", [True, False])
def test_unimm_chat_of_the_hub_and_its_later_marks(tmp_path, as_text):
    """Catches: Muffin's data refused for a column of another name, or for a mark of the image in a
    later question; two images in the first question taken for one."""
    turns = sharegpt()
    turns[2]["value"] = "<image>\n" + turns[2]["value"]
    row = {"image": PICTURE, "conversation": json.dumps(turns) if as_text else turns, "idx": 3}
    path = in_file(tmp_path, row)
    ((_, example),) = read_slice(*list_slices(str(path), format="auto", rows=8, examples=True))
    assert (example.turns, example.dropped_marks) == (TURNS, 1)
    turns[0]["value"] = "<image>" + turns[0]["value"]
    path = in_file(tmp_path, {**row, "conversation": turns})
    ((_, error),) = read_slice(*list_slices(str(path), format="auto", rows=8, examples=True))
    assert isinstance(error, DataError) and "multi_image" in str(error)


def test_short_answers_are_asked_for_where_the_option_says_so(tmp_path):
    """Catches: a wording without the question, the same one for every row, one that another read
    draws anew; a request for short answers before long ones, or unasked."""
    (tmp_path / "a.png").write_bytes(PICTURE)
    rows = [
        {"id": str(number), "image": "a.png", "question": "Is it {red}?", "answer": "yes"}
        for number in range(40)
    ]
    (tmp_path / "vqa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = ReadOptions(short_answers=True)

    def questions(file: str, **settings: Any) -> list[str]:
        parts = list_slices(tmp_path / file, examples=True, **settings)
        examples = [example for part in parts for _, example in read_slice(part)]
        return [example.turns[0][0] for example in examples if isinstance(example, Example)]

    short = questions("vqa.jsonl", options=asked)
    assert short == questions("vqa.jsonl", options=asked, rows=7)
    assert set(short) == {wording.format("Is it {red}?") for wording in SHORT_ANSWER}
    assert len(SHORT_ANSWER) == 4
    assert questions("vqa.jsonl") == ["Is it {red}?"] * 40
    of_muffin = in_file(tmp_path, tsv({"question": "Is it?", "answer": "yes"})).name
    assert questions(of_muffin, options=asked)[0] in {
        word.format("Is it?") for word in SHORT_ANSWER
    }
    chat_row = {"image": "a.png", "conversations": sharegpt(FIRST)}
    (tmp_path / "chat.jsonl").write_text(json.dumps(chat_row))
    assert questions("chat.jsonl", options=asked) == [FIRST[0][0]]
    rows[0]["question"] = " "
    (tmp_path / "blank.jsonl").write_text(json.dumps(rows[0]))
    (part,) = list_slices(tmp_path / "blank.jsonl", examples=True, options=asked)
    ((_, error),) = read_slice(part)
    assert isinstance(error, DataError) and "empty_question" in str(error)
