"""Files of answers, in the layouts that benchmarks and model repositories publish.

| source | a row |
|---|---|
| RLHF-V and Muffin | question_id (number or row), prompt, text |
| LLaVA | question_id, prompt, text, answer_id |
| POPE's readme | question, answer |
| AMBER | id, response |
| CHAIR and OPERA | image_id, caption |
| MMHal-Bench | image_id, question, gt_answer, model_answer |
| lmms-eval's samples | doc_id, target, filtered_resps |
| HallusionBench | category, subcategory, set_id, figure_id, question_id, model_prediction |
| MME | a line of TASK.txt: image, question, truth and answer, separated by tabs |
| RefoMB | image_url, question, answer |

Rows are matched by id where their ids are the benchmark's. Otherwise they are matched by their
place in the file, if that many rows ask the same questions in the same order.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eval.inputs.json_rows import JsonRow, read_json_rows
from rlhfv_ray.data.files.text import read_text
from rlhfv_ray.errors import DataError
from rlhfv_ray.records import Answer, Prompt

IDS = ("id", "question_id", "image_id", "image", "doc_id")
TEXTS = ("text", "answer", "model_answer", "model_prediction", "response", "caption")
TEXTS += ("filtered_resps", "resps")  # of lmms-eval
QUESTIONS = ("prompt", "question", "query", "input")
KEYS = ("category", "subcategory", "set_id", "figure_id", "question_id")  # one id in five fields
TABLE = ".txt"  # ending of MME's files
TABLE_COLUMNS = 4
ENDINGS = (".jsonl", ".json", TABLE)
ROW_NUMBERS = "doc_id"  # lmms-eval's number of a row, in place of an id

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """One row of a file of answers."""

    ids: Mapping[str, str]  # by field
    question: str  # empty if the row has none
    text: str


def read_answer_file(path: str, prompts: Sequence[Prompt]) -> list[Answer]:
    """Read answers to a benchmark's prompts, in the prompts' order.

    Args:
        path: a file, or a folder with one file for each group of questions: the file of group
            `random` has this word in its name.
        prompts: of the benchmark. An id `<group>-<number>` has the number of a question that is
            unique in its group alone.

    Raises:
        DataError: an answer is missing, superfluous or there twice, or rows match neither by id nor
            by place.
    """
    files = _files_of(path, prompts)
    answers: list[Answer] = []
    for file, own_prompts in files:
        rows = _read(file)
        source = f"answers = {str(file)!r}"
        matched = _match(rows, own_prompts, source)
        _compare_questions(own_prompts, matched, source)
        answers += [
            Answer(prompt.id, prompt.question, row.text)
            for prompt, row in zip(own_prompts, matched, strict=True)
        ]
    return answers


def _files_of(path: str, prompts: Sequence[Prompt]) -> list[tuple[Path, Sequence[Prompt]]]:
    """Return each file with the prompts that it answers."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return [(folder, prompts)]
    groups: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.id.rpartition("-")[0], []).append(prompt)
    files = sorted(file for file in folder.iterdir() if file.suffix in ENDINGS)
    pairs: list[tuple[Path, Sequence[Prompt]]] = []
    for group, own_prompts in groups.items():
        named = [file for file in files if group and group in file.stem]
        if len(named) != 1:
            raise DataError(
                f"answers = {path!r} is a folder: expected one file for each group of questions, "
                f"with its name in the file's. {len(named)} files are named after {group!r}."
            )
        pairs.append((named[0], own_prompts))
    return pairs


def _read(path: Path) -> list[Row]:
    """Read the rows of a file.

    Raises:
        DataError: no field of `TEXTS` is in every row, or a row holds no text there.
    """
    if path.suffix == TABLE:
        return _read_table(path)
    rows = read_json_rows(path, (), what="answers")
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"answers = {str(path)!r}: expected JSON objects, one for each answer.")
    in_all = set(rows[0]).intersection(*rows)
    field = next((name for name in TEXTS if name in in_all), None)
    if field is None:
        raise DataError(
            f"answers = {str(path)!r}: no field holds a text in every row; looked for "
            f"{', '.join(TEXTS)}. The first row has {', '.join(rows[0])}."
        )
    return [
        _parse(row, field, f"answers = {str(path)!r}, row {n}") for n, row in enumerate(rows, 1)
    ]


def _read_table(path: Path) -> list[Row]:
    """Read a file of MME's; the id of a question is its image and its number there.

    Raises:
        DataError: the file cannot be read, or a line has no answer.
    """
    source = f"answers = {str(path)!r}"
    try:
        lines = read_text(path).split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{source} cannot be read: {error}") from error
    seen: Counter[str] = Counter()
    rows = []
    for number, line in enumerate(lines, 1):
        cells = line.split("\t")
        if not line.strip():
            continue
        if len(cells) != TABLE_COLUMNS:
            raise DataError(
                f"{source}, line {number}: {len(cells)} columns; expected image, question, truth "
                "and answer, separated by tabs."
            )
        image = Path(cells[0]).stem
        seen[image] += 1
        rows.append(Row({"id": f"{image}_{seen[image]}"}, cells[1], cells[3]))
    return rows


def _parse(row: JsonRow, field: str, source: str) -> Row:
    text = row[field]
    while isinstance(text, list) and len(text) == 1:  # lmms-eval's replies are lists of one
        text = text[0]
    ids = {name: str(row[name]) for name in IDS if row.get(name) is not None}
    if all(name in row for name in KEYS):
        ids["id"] = "_".join(str(row[name]) for name in KEYS)
    if not isinstance(text, str):
        place = "".join(f", {name} {value}" for name, value in ids.items())
        raise DataError(f"{source}{place}: {field} = {text!r} is no text.")
    inner = row.get("doc")  # lmms-eval's copy of the question
    fields: Mapping[str, Any] = {**(inner if isinstance(inner, dict) else {}), **row}
    texts = (fields[name] for name in QUESTIONS if isinstance(fields.get(name), str))
    return Row(ids, next(texts, ""), text)


def _match(rows: Sequence[Row], prompts: Sequence[Prompt], source: str) -> list[Row]:
    """Return the rows in the order of the prompts: by id, else by their place in the file.

    Raises:
        DataError: they match neither way.
    """
    matched, problem = _by_id(rows, prompts)
    if _agree(rows, prompts) and not (matched and _agree(matched, prompts)):
        log.warning("%s: matched by place in the file, where all questions agree.", source)
        return list(rows)
    if matched:
        return matched
    if problem:
        raise DataError(f"{source}: {problem}")
    numbers = [row.ids.get(ROW_NUMBERS) for row in rows]
    has_questions = any(row.question for row in rows)
    if numbers == [str(index) for index in range(len(prompts))] and not has_questions:
        log.warning(
            "%s: matched by %s. The file has no questions to compare: make sure that its order is "
            "the benchmark's.",
            *(source, ROW_NUMBERS),
        )
        return list(rows)
    raise DataError(f"{source}: {_mismatch(rows, prompts)}")


def _by_id(rows: Sequence[Row], prompts: Sequence[Prompt]) -> tuple[list[Row], str]:
    """Match rows by the first field whose values all are ids of the benchmark.

    Returns:
        The rows in the order of the prompts and no problem; or no rows and the problem, which is
        empty if there is no such field.
    """
    prompt_ids = _names_of(prompts)
    for name in IDS:
        values = [_short_id(row.ids.get(name)) for row in rows]
        if not all(value in prompt_ids for value in values):
            continue
        row_of: dict[str, Row] = {}
        for value, row in zip(values, rows, strict=True):
            if row_of.setdefault(prompt_ids[value], row) is not row:
                return [], f"two rows have {name} {row.ids[name]}."
        missing = [prompt.id for prompt in prompts if prompt.id not in row_of]
        if missing:
            return [], (
                f"{len(rows)} rows for {len(prompts)} prompts; {len(missing)} prompts are without "
                f"an answer ({', '.join(missing[:5])})."
            )
        return [row_of[prompt.id] for prompt in prompts], ""
    return [], ""


def _names_of(prompts: Sequence[Prompt]) -> dict[str, str]:
    """Return the ids of prompts by every name that rows may call them."""
    prompt_ids: dict[str, str] = {}
    for prompt in prompts:
        prompt_ids |= {prompt.id: prompt.id, _short_id(prompt.id): prompt.id}
    groups = {prompt.id.rpartition("-")[0] for prompt in prompts}
    if len(groups) == 1:  # the number of a question in its group is enough
        for prompt in prompts:
            prompt_ids.setdefault(_short_id(prompt.id.rpartition("-")[2]), prompt.id)
    return prompt_ids


def _mismatch(rows: Sequence[Row], prompts: Sequence[Prompt]) -> str:
    """Say why rows match neither by id nor by place."""
    fault = "it has no ids"
    if ids := dict(rows[0].ids):
        fault = f"its ids are not the benchmark's. It has rows such as {ids}"
    text = (
        f"{fault}, the benchmark has {', '.join(prompt.id for prompt in prompts[:3])}, ... Ids are "
        f"read from the fields {', '.join(IDS)}."
    )
    if len(rows) != len(prompts):
        return f"{text} It has {len(rows)} rows, and the benchmark {len(prompts)} prompts."
    index, question = next(
        (index, row.question)
        for index, (row, prompt) in enumerate(zip(rows, prompts, strict=True))
        if not _asks(row, prompt)
    )
    asking = f"asks {question!r}" if question else "has no question"
    return (
        f"{text} Nor do rows match by place: row {index + 1} {asking}, and the benchmark asks "
        f"{prompts[index].question!r} there."
    )


def _agree(rows: Sequence[Row], prompts: Sequence[Prompt]) -> bool:
    """Return True if there is a row for every prompt, and it asks its question."""
    return len(rows) == len(prompts) and all(map(_asks, rows, prompts))


def _asks(row: Row, prompt: Prompt) -> bool:
    """Return True if a row asks a prompt's question, with any words around it."""
    return bool(row.question) and _plain(prompt.question) in _plain(row.question)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _short_id(name: str | None) -> str:
    """Return an id without folder, ending, AMBER's or COCO's prefix and leading zeros.

    Example:
        >>> _short_id("val2014/COCO_val2014_000000000042.jpg"), _short_id("0007"), _short_id("a_1")
        ('42', '7', 'a_1')
        >>> _short_id("AMBER_12.jpg")
        '12'
    """
    if name is None:
        return ""
    short = re.sub(r"\.(?:jpe?g|png)$", "", name.rsplit("/", 1)[-1], flags=re.IGNORECASE)
    if short.startswith("COCO_"):
        short = short.rsplit("_", 1)[-1]
    return short.removeprefix("AMBER_").lstrip("0") or "0"


def _compare_questions(prompts: Sequence[Prompt], rows: Sequence[Row], source: str) -> None:
    """Warn if the file's answers are to other questions than the benchmark's."""
    differing = list(_differing(prompts, rows))
    if differing:
        log.warning(
            "%s: %d of %d answers are to another question than the benchmark asks, the first "
            "%s: %r",
            *(source, len(differing), len(prompts), *differing[0]),
        )


def _differing(prompts: Sequence[Prompt], rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """Ids of prompts with the other questions that their rows ask."""
    for prompt, row in zip(prompts, rows, strict=True):
        if row.question and not _asks(row, prompt):
            yield prompt.id, row.question
