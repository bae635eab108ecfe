"""Small files as people have them, each read as it should be; each was once learnt or lost wrongly.

They stand in tests/unit/data/cases, with one picture.
"""

import shutil
from pathlib import Path

import pytest

from rlhfv_ray.config import DataConfig, ModelConfig
from rlhfv_ray.data import ReadOptions, list_slices, read_slice
from rlhfv_ray.data.encoding import encode_example
from rlhfv_ray.data.reference_table import SCHEMA
from rlhfv_ray.data.repeats import check_ids
from rlhfv_ray.errors import DataError
from rlhfv_ray.inference.model_check import encoded_row
from rlhfv_ray.inference.reference import ReferenceActor, encode_slice, part_table
from rlhfv_ray.models.self_check import SelfCheck
from rlhfv_ray.records import PreferencePair
from tests.families import qwen2_vl

CASES = Path(__file__).parent / "cases"
PLAIN = SelfCheck("shared", True, "float32", 0, 0.0, None, {})
QUESTION, CHOSEN = "what is there ?", "a street with a red star ."
REJECTED = "a street with a blue ring ."


def rows_of(path: Path, *, examples: bool = False, **options) -> list:
    """All rows of a file: pairs, examples, and errors."""
    slices = list_slices(path, examples=examples, options=ReadOptions(**options))
    return [row for part in slices for _, row in read_slice(part)]


def outcome(row, processor) -> str:
    """The reason why a row is set aside at encoding; nothing for one that is used."""
    encoded = encoded_row(row, processor, DataConfig(max_length=256))
    return str(encoded) if isinstance(encoded, DataError) else ""


def assert_usual(row) -> None:
    assert isinstance(row, PreferencePair), row
    assert (row.question, row.chosen, row.rejected) == (QUESTION, CHOSEN, REJECTED)
    assert row.image == (CASES / "a.png").read_bytes()


@pytest.mark.parametrize("name", ["01_image_token_in_question", "10_base64_in_json"])
@pytest.mark.parametrize("other", ["18_img_path_layout", "17_povid_layout"])
def test_rows_that_are_read_as_any_other(name, other, processor):
    """Catches: an `<image>` that is learnt as text, base64 taken for a path, a public layout that
    is refused.
    """
    for file in (name, other):
        for row in rows_of(CASES / f"{file}.jsonl"):
            assert_usual(row)
            assert outcome(row, processor) == ""


def test_an_image_token_in_an_answer_costs_its_row(small_model):
    """Catches: a token of a picture that the answer does not have, which ends the whole job."""
    model = ModelConfig(path=str(small_model), dtype="fp32")
    (part,) = list_slices(CASES / "02_image_token_in_answer.jsonl")
    rows = encode_slice(part, model=model, data=DataConfig(max_length=256))
    table = ReferenceActor(model, batch=2, check=lambda *_: PLAIN)(rows)
    assert table["id"].to_pylist() == [f"02_image_token_in_answer.jsonl:{row}" for row in (0, 1)]
    fine, reason = table["reason"].to_pylist()
    assert fine is None
    assert reason.startswith("image_token: the rejected answer holds '<image>'")
    assert reason.endswith("(02_image_token_in_answer.jsonl:2)")


@pytest.mark.parametrize(
    ("name", "examples"), [("03_system_dropped_pairs", False), ("04_system_dropped_sft", True)]
)
def test_a_system_prompt_is_used_or_costs_its_row(name, examples, processor):
    """Catches: a system prompt that is dropped, or that is written as a turn of the assistant."""
    (row,) = rows_of(CASES / f"{name}.jsonl", examples=examples)
    assert row.system == "Answer in French."
    assert outcome(row, processor).startswith("system_prompt: ")  # its template has no such role
    _, with_role = qwen2_vl()
    encoded = encoded_row(row, with_role, DataConfig(max_length=512))
    assert not isinstance(encoded, DataError), encoded
    assert "Answer in French." in with_role.tokenizer.decode(encoded.prompt_ids)


def test_an_answer_taken_out_of_the_loss_is_not_learnt(processor):
    """Catches: an answer that its data says not to learn."""
    (row,) = rows_of(CASES / "06_swift_loss_false.jsonl", examples=True)
    assert row.learned == (False, True)
    encoded = encode_example(row, processor, max_length=256)
    scored = zip(encoded.chosen_ids, encoded.scored or [], strict=True)
    learnt = processor.tokenizer.decode([token for token, flag in scored if flag])
    assert learnt == "a street with a red star .</s>"


def test_content_that_is_no_text_costs_its_row():
    """Catches: Python's form of a value, learnt as an answer."""
    (row,) = rows_of(CASES / "07_sft_content_not_text.jsonl", examples=True)
    assert str(row).startswith("bad_row: a message's content must be text")


def test_repeated_ids_are_told_before_anything_is_computed():
    """Catches: a job that ends after its log-probs; an error that names no line and no way out."""
    path = CASES / "08_llava_instruct_ids_repeat.json"
    with pytest.raises(DataError, match=r"row 1 and in .* row 2.*--data.ids position"):
        check_ids(list_slices(path, examples=True))
    options = ReadOptions(ids="position")
    slices = list_slices(path, examples=True, options=options)
    check_ids(slices)
    ids = [row_id for part in slices for row_id, _ in read_slice(part)]
    assert ids == [f"{path.name}:{row}" for row in range(3)]


def test_an_absolute_path_is_read_below_the_image_root_alone(tmp_path):
    """Catches: any file of the machine that data names; absolute paths that nothing allows."""
    name = "09_absolute_path.jsonl"
    text = (
        (CASES / name).read_text().replace("/REPLACE-WITH-THE-FOLDER-OF-THIS-FILE", str(tmp_path))
    )
    (tmp_path / name).write_text(text)
    shutil.copy(CASES / "a.png", tmp_path)
    (row,) = rows_of(tmp_path / name)
    assert str(row).startswith("image_path: ") and "--data.image-root" in str(row)
    assert_usual(rows_of(tmp_path / name, image_root=str(tmp_path))[0])
    (tmp_path / "elsewhere").mkdir()
    (row,) = rows_of(tmp_path / name, image_root=str(tmp_path / "elsewhere"))
    assert_usual(row)  # the data's own folder is allowed, too
    shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    (row,) = rows_of(tmp_path / "elsewhere" / name, image_root=str(tmp_path / "elsewhere"))
    assert str(row).startswith("image_path: ")


def test_a_reason_can_be_stored():
    """Catches: a reason that Arrow refuses, after the row was set aside."""
    (part,) = list_slices(CASES / "11_role_with_half_surrogate.jsonl")
    ((row_id, error),) = read_slice(part)
    assert isinstance(error, DataError)
    table = part_table([(row_id, str(error))], SCHEMA)
    assert table["reason"][0].as_py() == str(error)
    assert "\\ud83d" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("name", ["13_array_in_jsonl.jsonl", "14_pretty_object.json"])
def test_rows_across_lines_are_read(name):
    """Catches: "columns there: none" for a file whose rows anybody can see."""
    rows = rows_of(CASES / name)
    assert len(rows) == (2 if "array" in name else 1)
    assert_usual(rows[0])


def test_one_more_column_changes_no_format():
    """Catches: a format detected by a column that holds something else."""
    path = CASES / "15_extra_text_column.jsonl"
    assert list_slices(path)[0].format == "rlaifv"
    assert_usual(rows_of(path)[0])


def test_every_case_has_its_test():
    """Catches: a case that nobody looks at."""
    source = Path(__file__).read_text()
    names = [path.stem for path in CASES.iterdir() if path.name[0].isdigit()]
    assert [name for name in names if name not in source] == []
    assert len(names) == 15
