"""The checker of golden files: it accepts the release's figures and notices any other value."""

import copy
import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from eval.words.lemmas import choose_lemmatizer
from tests.golden.check import KINDS, Comparison, difference, main
from tests.golden.muffin_values import ROUNDING

GOLDEN = Path(__file__).parents[1] / "golden"
# Fields that are read but not recomputed. All others are figures.
INPUTS = re.compile(
    r"about|segments\.\*\.(chosen|rejected)\.\*|.*\.(logits|labels|changed)\..*"
    r"|losses\.\*\.normalize"
    r"|.*\.(caption|question|answer|review|category)|answers\.\*\.objects\.\*|mmhal\.reviews\.\*"
    r"|.*\.(turns|weight|at_cyx)\..*|.*\.(max_length|raw|old_side|new_side|width|height|size)"
    r"|.*\.(formula|text_base64|image_base64)|sentences\.\*\.(image_id|(truth|tagged)\..*)"
)
FILES = [kind for kind in KINDS if kind != "muffin_tiny"]  # whose golden file is JSON
SECTIONS = [
    (kind, name)
    for kind, names in {
        "muffin_ddpo": "segments losses",
        "chair": "categories instances captions answers ground_truth rule extracted",
        "chair_opera": "sentences overall",
        "judge": "mmhal llava_bench",
        "muffin_text": (
            "system labels generation_prompts answers positions images unimm_chat vqa_single_turn"
        ),
    }.items()
    for name in names.split()
]


@pytest.fixture(autouse=True)
def _with_wordnet(request: pytest.FixtureRequest) -> None:
    """OPERA's lemmas are WordNet's by part of speech, for which there is no built-in substitute."""
    kind = getattr(request.node, "callspec", None)
    needed = kind is not None and kind.params.get("kind") == "chair_opera"
    if needed and choose_lemmatizer() != "wordnet":
        pytest.skip("WordNet is missing: sh tests/fetch_wordnet.sh FOLDER; export NLTK_DATA=FOLDER")


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every path to a number, a text or a flag."""
    children = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in children:
        if isinstance(child, dict | list):
            yield from leaves(child, (*path, key))
        else:
            yield (*path, key)


def figure_fields(kind: str) -> dict[str, tuple[Any, ...]]:
    """The path of one value of every field that is recomputed."""
    fields: dict[str, tuple[Any, ...]] = {}
    for path in leaves(read(kind)):
        name = ".".join("*" if str(key).isdigit() else str(key) for key in path)
        if not INPUTS.fullmatch(name):
            fields[name] = path  # the last value of its field
    return fields


def read(kind: str) -> Any:
    return json.loads((GOLDEN / f"{kind}.json").read_text())


def changed(value: Any) -> Any:
    if not isinstance(value, str):
        return value + 0.01
    digit = re.search(r"\d$", value)
    return value[:-1] + str((int(value[-1]) + 1) % 10) if digit else value + "x"


def write(folder: Path, golden: Any) -> str:
    path = folder / "golden.json"
    path.write_text(json.dumps(golden))
    return str(path)


@pytest.mark.parametrize(
    ("kind", "least"),
    [
        ("muffin_ddpo", 2000),
        ("chair", 1000),
        ("chair_opera", 1000),
        ("judge", 200),
        ("muffin_text", 2000),
    ],
)
def test_the_release_s_figures_agree(
    kind: str, least: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: figures that moved, a last line without count or difference, values left out."""
    assert main([kind, str(GOLDEN / f"{kind}.json")]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    report = re.fullmatch(rf"{kind}: (\d+) values compared, worst difference (\S+) \(.+\)", line)
    assert report
    assert int(report[1]) > least
    assert float(report[2]) <= KINDS[kind].tolerance


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_every_field_is_compared(kind: str, tmp_path: Path) -> None:
    """Catches: a field that is never recomputed, so that a wrong figure in it would pass."""
    golden = read(kind)
    fields = figure_fields(kind)
    assert len(fields) > 8
    for name, path in fields.items():
        mutant = copy.deepcopy(golden)
        parent = mutant
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = changed(parent[path[-1]])
        assert main([kind, write(tmp_path, mutant)]) == 1, name


def test_a_small_muffin_agrees_with_the_release(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches: an encoder, projector or LLaMA that computes something else; an output that is not
    compared, or within a wider tolerance than its own."""
    assert main(["muffin_tiny", str(GOLDEN / "muffin_tiny")]) == 0
    assert "muffin_tiny: 13440 values compared" in capsys.readouterr().out
    copy = shutil.copytree(GOLDEN / "muffin_tiny", tmp_path / "tiny")
    golden = load_file(copy / "golden.safetensors")
    for name, rounding in ROUNDING.items():
        changed = golden[name].clone()
        changed[1, 2, 3] += 2 * rounding
        save_file({**golden, name: changed}, copy / "golden.safetensors")
        assert main(["muffin_tiny", str(copy)]) == 1, name
    (copy / "golden.safetensors").unlink()
    assert main(["muffin_tiny", str(copy)]) == 1


@pytest.mark.parametrize(("kind", "name"), SECTIONS)
def test_missing_and_empty_sections_are_errors(kind: str, name: str, tmp_path: Path) -> None:
    """Catches: a truncated file that passes because nothing of it is left to compare."""
    golden = read(kind)
    empty = write(tmp_path, {**golden, name: type(golden[name])()})
    assert main([kind, empty]) == 1
    del golden[name]
    assert main([kind, write(tmp_path, golden)]) == 1


def test_a_shorter_list_is_a_difference(tmp_path: Path) -> None:
    """Catches: values compared by zip, which stops at the shorter list."""
    golden = read("chair")
    golden["rule"]["sentences"].pop()
    assert main(["chair", write(tmp_path, golden)]) == 1
    golden = read("judge")
    del golden["mmhal"]["informativeness"]
    assert main(["judge", write(tmp_path, golden)]) == 1


def test_files_that_cannot_be_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches: success, or a traceback, for a file that is absent, empty or of another kind."""
    (tmp_path / "empty.json").write_text("")
    assert main(["judge", str(tmp_path / "empty.json")]) == 1
    assert main(["judge", str(tmp_path / "absent.json")]) == 1
    assert main(["judge", write(tmp_path, [])]) == 1
    assert main(["judge", str(GOLDEN / "chair.json")]) == 1
    assert main(["judge", write(tmp_path, {**read("judge"), "more": [1]})]) == 1
    assert "section 'more' is unknown" in capsys.readouterr().out


def test_an_unknown_kind_lists_the_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches: a misspelt kind that checks nothing and succeeds."""
    with pytest.raises(SystemExit) as stop:
        main(["chairs", str(GOLDEN / "chair.json")])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert all(f"'{kind}'" in message for kind in KINDS)


def test_labels_beyond_the_vocabulary(tmp_path: Path) -> None:
    """Catches: a traceback from the tensor library for a label that has no logit."""
    golden = read("muffin_ddpo")
    golden["losses"][0]["chosen"]["labels"][0][2] = 1000
    assert main(["muffin_ddpo", write(tmp_path, golden)]) == 1


def test_differences() -> None:
    """Catches: NaN that passes as equal to a number, a missing key, a word that is nearly right."""
    assert difference(math.nan, math.nan) == 0
    assert difference(math.nan, 1.0) == difference("dog", "dogs") == difference(None, 0) == math.inf
    assert difference(-math.inf, -math.inf) == 0
    comparison = Comparison(0.1)
    comparison.compare("x", {"a": [1.0, 2.0], "b": {}}, {"a": [1.05, 2.0], "b": {}})
    assert (comparison.count, comparison.failures) == (3, [])
    assert comparison.worst == pytest.approx(0.05)
    comparison.compare("x", {"a": 1}, {"a": 1, "b": 2})
    comparison.compare("y", [1.0], [1.2])
    assert [failure.split(":")[0] for failure in comparison.failures] == ["x", "y[0]"]
