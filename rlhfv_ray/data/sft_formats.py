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

import zlib
from collections import Counter
from collections.abc import Mapping

from rlhfv_ray.data.files.image_sources import ImageRoots, image_bytes
from rlhfv_ray.data.messages import (
    PLACEHOLDER,
    Message,
    check_image_tokens,
    messages_of,
    question_text,
    split_system,
    system_text,
    turns_of,
)
from rlhfv_ray.data.pair_formats import (
    FORMATS,
    HISTORY,
    IMAGE,
    SYSTEM,
    TSV_COLUMNS,
    Format,
    check_texts,
    from_base64,
    origin_of,
    own_id,
)
from rlhfv_ray.data.row_fields import Row, attempt, check_usage, parse_json, unusable
from rlhfv_ray.errors import DataError
from rlhfv_ray.records import Example

CAPTION_QUESTION = "Describe this image."
# Muffin wraps VQAv2's questions in one of four such wordings; these are our own.
SHORT_ANSWER = (
    "{} Answer in a few words.",
    "Look at the image and answer in three words at most: {}",
    "Reply to this question about the image with a word or a short phrase: {} Reply:",
    "From what the image shows: {} Give the shortest answer that is complete.",
)
TURNS = "turns"  # common field: a list of (question, answer)
LEARNED = "learned_turns"  # common field: a flag per answer
IS_VQA = "is vqa"  # common field: True if the answer is a word or two
DROPPED = "dropped marks"  # common field: marks of a picture that were taken out of later questions


def read_example(
    row: Row,
    *,
    format: str,
    roots: ImageRoots,
    fallback_id: str,
    position: str = "",
    short_answers: bool = False,
) -> tuple[str, Example | DataError]:
    """Return the row's id with its example, or with the error that makes the row unusable.

    Args:
        row: columns as stored.
        format: a key of `EXAMPLE_FORMATS`.
        roots: see `image_bytes`.
        fallback_id: id for a row without its own.
        position: file and line, for messages.
        short_answers: ask for a short answer in the questions of `vqa` rows.
    """
    row_id = own_id(row) or fallback_id
    fields = attempt(lambda: EXAMPLE_FORMATS[format].read(row), position)
    if isinstance(fields, DataError):
        return row_id, fields
    row_id = own_id(fields) or row_id
    if short_answers and fields.get(IS_VQA):
        ((question, answer),) = fields[TURNS]
        fields = {**fields, TURNS: [(short_question(question, row_id), answer)]}
    example = attempt(
        lambda: _example(fields, row_id, image_bytes(fields, roots), position), position
    )
    return row_id, example


def _example(fields: Row, row_id: str, image: bytes, position: str) -> Example:
    check_usage(fields)
    pair_turn = (fields.get("question"), fields.get("chosen"))  # of a preference pair
    turns = fields.get(TURNS, [*(fields.get(HISTORY) or ()), pair_turn])
    questions = question_text(*(_text(question).strip() for question, _ in turns))
    answers = [_text(answer).strip() for _, answer in turns]
    learned = tuple(fields.get(LEARNED, ()))
    if learned and not any(learned):
        raise unusable("not_learnt", "every answer is taken out of the loss")
    message = fields.get(SYSTEM)
    example = Example(
        row_id,
        image,
        tuple(zip(questions, answers, strict=True)),
        origin_of(fields),
        system=system_text(fields, message if isinstance(message, str) else ""),
        learned=() if all(learned) else learned,
        position=position,
        dropped_marks=fields.get(DROPPED, 0),
    )
    check_example(example)
    return example


def check_example(example: Example) -> None:
    """Refuse an example that cannot be trained on.

    Raises:
        DataError: `image_missing`, `empty_question`, `empty_answer`, `image_token` or `bad_text`,
            then the reason.
    """
    if not example.image:
        raise unusable("image_missing", "the image has no bytes")
    for number, (question, answer) in enumerate(example.turns, start=1):
        if not question:
            raise unusable("empty_question", f"question {number} is missing or blank")
        if not answer:
            raise unusable("empty_answer", f"answer {number} is missing or blank")
        check_image_tokens(f"answer {number}", answer)
        check_texts(question, answer)
    check_texts(example.id, example.system, *example.origin, *example.origin.values())


def short_question(question: object, row_id: str) -> object:
    """Return a question that asks for a short answer, in a wording drawn by the row's id.

    A blank one stays as it is: it is refused later.
    """
    if not isinstance(question, str) or not question.strip():
        return question
    drawn = zlib.crc32(row_id.encode(errors="surrogatepass")) % len(SHORT_ANSWER)
    return SHORT_ANSWER[drawn].format(question.replace(PLACEHOLDER, "").strip())


def _text(value: object) -> str:
    """Return a text; a missing one is empty.

    Raises:
        DataError: `bad_row`, if the value is something else.
    """
    if value is None or isinstance(value, str):
        return value or ""
    raise unusable("bad_row", f"a question or answer must be text, not {type(value).__name__}")


def _dialogue(row: Row, messages: list[Message], *, first_mark: bool = False) -> Row:
    """Return a row with the turns of its conversation.

    Args:
        row: the row.
        messages: of its conversation.
        first_mark: leave marks of the picture in the first question alone.
    """
    dropped = 0
    if first_mark:
        messages, dropped = _without_later_marks(messages)
    system, turns = split_system(messages)
    pairs = turns_of(turns)
    learned = [message.learned for message in turns if message.role == "assistant"]
    return {**row, SYSTEM: system, TURNS: pairs, LEARNED: learned, DROPPED: dropped}


def _list_of_messages(value: object) -> list[Message]:
    if not isinstance(value, list):
        raise unusable("bad_row", f"expected messages, found {type(value).__name__}")
    return messages_of(value, "user")


def _conversations(row: Row) -> Row:
    return _dialogue(row, _list_of_messages(row.get("conversations")))


def _unimm_chat(row: Row) -> Row:
    turns = row.get("conversation")
    turns = parse_json(turns) if isinstance(turns, str) else turns
    return _dialogue(row, _list_of_messages(turns), first_mark=True)


def _without_later_marks(messages: list[Message]) -> tuple[list[Message], int]:
    """Take the mark of the picture out of later questions, where it means nothing to Muffin.

    Returns:
        The messages, and the number of marks that were taken out.
    """
    first = next((index for index, turn in enumerate(messages) if turn.role == "user"), 0)
    cleaned = messages[: first + 1]
    dropped = 0
    for turn in messages[first + 1 :]:
        text = turn.text
        if turn.role == "user":
            dropped += text.count(PLACEHOLDER)
            text = text.replace(PLACEHOLDER, "").strip()
        cleaned.append(turn._replace(text=text))
    return cleaned, dropped


def _messages(row: Row) -> Row:
    return _dialogue(row, _list_of_messages(row.get("messages")))


def _completion(row: Row) -> Row:
    prompt = messages_of(row.get("prompt"), "user")
    completion = messages_of(row.get("completion"), "assistant")
    return _dialogue(row, [*prompt, *completion])


def _vqa(row: Row) -> Row:
    return {**row, TURNS: [(row.get("question"), _answer(row))], IS_VQA: True}


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
        return _dialogue(row, messages_of(content, "user"), first_mark=True)
    if isinstance(content, list) and len(content) in (3, 4):  # a preference pair
        return {**row, TURNS: [(content[0], content[1])]}
    reason = "text must hold a conversation, a question with its answer, or a preference pair"
    raise unusable("bad_json", reason)


EXAMPLE_FORMATS: Mapping[str, Format] = {
    **FORMATS,
    "conversations": Format(("conversations", IMAGE), _conversations),
    "unimm_chat": Format(("conversation", IMAGE), _unimm_chat),
    "messages": Format(("messages", IMAGE), _messages),
    "completion": Format(("prompt", "completion", IMAGE), _completion),
    "vqa": Format((IMAGE, "question", "answer|answers|multiple_choice_answer"), _vqa),
    "caption": Format((IMAGE, "caption"), _caption),
    "muffin_tsv": Format(TSV_COLUMNS, _muffin_tsv),
}
