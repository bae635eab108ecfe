"""Read examples to imitate (supervised fine-tuning) stored in many formats into one record.

An example is an image with questions and answers.

| format          | origin and file                             | needed columns                   |
|-----------------|---------------------------------------------|----------------------------------|
| `conversations` | LLaVA, LLaMA-Factory ShareGPT; JSON,        | `conversations`, `image`         |
|                 | JSON Lines, Parquet                         |                                  |
| `unimm_chat`    | UniMM-Chat's Parquet on the hub             | `conversation`, `image`          |
| `messages`      | TRL, ms-swift, OpenAI's chat form           | `messages`, `images`             |
| `completion`    | TRL prompt-completion                       | `prompt`, `completion`, `images` |
| `vqa`           | question, its answer or VQAv2's ten answers | `image`, `question`, `answer`    |
| `caption`       | caption; `CAPTION_QUESTION` is the question | `image`, `caption`               |
| `muffin_tsv`    | Muffin; conversation, or question, answer   | as for pairs                     |

Preference pairs are examples too: their chosen answers are imitated.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from rlhfv_ray.data.pair_formats import (
    FORMATS,
    PLACEHOLDER,
    ROLES,
    TSV_COLUMNS,
    Format,
    Row,
    check_texts,
    from_base64,
    image_bytes,
    origin_of,
    own_id,
    parse_json,
    part_text,
    unusable,
)
from rlhfv_ray.errors import DataError
from rlhfv_ray.records import Example

CAPTION_QUESTION = "Describe this image."
TURNS = "turns"  # common field: a list of (question, answer)


def read_example(
    row: Row, *, format: str, root: Path, fallback_id: str
) -> tuple[str, Example | DataError]:
    """Return the row's id with its example, or with the error that makes the row unusable.

    Args:
        row: columns as stored.
        format: a key of `EXAMPLE_FORMATS`.
        root: resolved folder that image paths are relative to and may not leave.
        fallback_id: id for a row without its own.
    """
    row_id = own_id(row) or fallback_id
    try:
        fields = EXAMPLE_FORMATS[format].fields(row)
        row_id = own_id(fields) or row_id
        pair_turn = (fields.get("question"), fields.get("chosen"))  # of a preference pair
        turns = tuple(map(_cleaned, fields.get(TURNS, [pair_turn])))
        example = Example(row_id, image_bytes(fields, root), turns, origin_of(fields))
        check_example(example)
    except DataError as error:
        return row_id, error
    return row_id, example


def check_example(example: Example) -> None:
    """Refuse an example that cannot be trained on.

    Raises:
        DataError: `image_missing`, `empty_question`, `empty_answer` or `bad_text`, then the reason.
    """
    if not example.image:
        raise unusable("image_missing", "the image has no bytes")
    for number, (question, answer) in enumerate(example.turns, start=1):
        if not question:
            raise unusable("empty_question", f"question {number} is missing or blank")
        if not answer:
            raise unusable("empty_answer", f"answer {number} is missing or blank")
        check_texts(question, answer)
    check_texts(example.id, *example.origin, *example.origin.values())


def _cleaned(turn: tuple[object, object]) -> tuple[str, str]:
    """Return question and answer without placeholder and outer blanks; what is no text is empty."""
    question, answer = (text if isinstance(text, str) else "" for text in turn)
    return question.replace(PLACEHOLDER, "").strip(), answer.strip()


def turns_of(messages: object, *, later_marks: bool = False) -> list[tuple[str, str]]:
    """Return the questions and answers of a conversation, as pairs in order.

    Args:
        messages: user's and assistant's in turn.
        later_marks: the image's mark may stand again in later questions, where it means nothing, as
            Muffin reads its data.

    Raises:
        DataError: `bad_row`, `bad_roles` or `multi_image`, then the reason.

    Example:
        >>> question = {"from": "human", "value": "<image>What?"}
        >>> turns_of([question, {"from": "gpt", "value": "A cat."}])
        [('<image>What?', 'A cat.')]
    """
    if not isinstance(messages, list) or not all(isinstance(turn, dict) for turn in messages):
        raise unusable("bad_row", f"expected messages, found {type(messages).__name__}")
    names = [str(turn.get("role") or turn.get("from")) for turn in messages]
    roles = [ROLES.get(name, name) for name in names]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        reason = f"expected user and assistant in turn, found {', '.join(roles) or 'none'}"
        raise unusable("bad_roles", reason)
    texts = [_message_text(turn) for turn in messages]
    if sum(text.count(PLACEHOLDER) for text in (texts[:1] if later_marks else texts)) > 1:
        raise unusable("multi_image", "the conversation shows more than one image")
    return list(zip(texts[::2], texts[1::2], strict=True))


def _message_text(turn: Mapping[str, object]) -> str:
    content = turn.get("content") or turn.get("value") or ""
    return "".join(map(part_text, content)) if isinstance(content, list) else str(content)


def _conversations(row: Row) -> Row:
    if row.get("system"):
        raise unusable("system_prompt", "a system prompt is not supported")
    return {**row, TURNS: turns_of(row.get("conversations"))}


def _unimm_chat(row: Row) -> Row:
    turns = row.get("conversation")
    turns = parse_json(turns) if isinstance(turns, str) else turns
    return {**row, TURNS: turns_of(turns, later_marks=True)}


def _messages(row: Row) -> Row:
    return {**row, TURNS: turns_of(row.get("messages"))}


def _completion(row: Row) -> Row:
    prompt = row.get("prompt")
    if not isinstance(prompt, list):
        prompt = [{"role": "user", "content": prompt}]
    completion = row.get("completion")
    if not isinstance(completion, list):
        completion = [{"role": "assistant", "content": completion}]
    return {**row, TURNS: turns_of([*prompt, *completion])}


def _vqa(row: Row) -> Row:
    return {**row, TURNS: [(row.get("question"), _answer(row))]}


def _answer(row: Row) -> object:
    """Return a question's answer; of several people's answers, the most frequent one."""
    for name in ("answer", "multiple_choice_answer"):
        if row.get(name) is not None:
            return row[name]
    answers = row.get("answers")
    if isinstance(answers, str):
        return answers
    counts: Counter[str] = Counter()
    for answer in answers if isinstance(answers, list) else []:
        text = answer.get("answer") if isinstance(answer, dict) else answer
        if isinstance(text, str):
            counts[text] += 1
    return counts.most_common(1)[0][0] if counts else None


def _caption(row: Row) -> Row:
    caption = row.get("caption")
    if isinstance(caption, list) and len(caption) != 1:
        raise unusable("bad_row", f"{len(caption)} captions in one row; give each a row of its own")
    text = caption[0] if isinstance(caption, list) else caption
    return {**row, TURNS: [(CAPTION_QUESTION, text)]}


def _muffin_tsv(row: Row) -> Row:
    row = {**row, **from_base64(row, "image", "text")}
    content = parse_json(row["text"])
    if isinstance(content, dict) and "question" in content:
        if "chosen" in content:  # a preference pair
            return {**row, **content}
        return _vqa({**row, **content, "image": row["image"]})
    if isinstance(content, list) and content and all(isinstance(turn, dict) for turn in content):
        return {**row, TURNS: turns_of(content, later_marks=True)}
    if isinstance(content, list) and len(content) in (3, 4):  # a preference pair
        return {**row, TURNS: [(content[0], content[1])]}
    reason = "text must hold a conversation, a question with its answer, or a preference pair"
    raise unusable("bad_json", reason)


EXAMPLE_FORMATS: Mapping[str, Format] = {
    **FORMATS,
    "conversations": Format(("conversations", "image|images"), _conversations),
    "unimm_chat": Format(("conversation", "image|images"), _unimm_chat),
    "messages": Format(("messages", "image|images"), _messages),
    "completion": Format(("prompt", "completion", "image|images"), _completion),
    "vqa": Format(("image|images", "question", "answer|answers|multiple_choice_answer"), _vqa),
    "caption": Format(("image|images", "caption"), _caption),
    "muffin_tsv": Format(TSV_COLUMNS, _muffin_tsv),
}
