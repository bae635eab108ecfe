"""The audit counts usable and unusable rows before a job starts."""

import base64
import html
import json
import re
import sys
from collections import Counter
from dataclasses import replace
from difflib import SequenceMatcher
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from experiments import command
from rlhfv_ray.config import DataConfig
from rlhfv_ray.data import audit_pairs, list_slices, write_pairs
from rlhfv_ray.data.audit_page import UNNAMED, audit_page, marked_answers
from rlhfv_ray.data.encoding import encode_pair
from rlhfv_ray.data.images import MAX_PIXELS
from rlhfv_ray.data.reference_table import SCHEMA
from rlhfv_ray.inference.parts import write_part
from rlhfv_ray.inference.reference import collect_unusable, part_table
from rlhfv_ray.pipeline import audit_job
from rlhfv_ray.segments import changed_tokens
from rlhfv_ray.shapes.balance import change_of
from rlhfv_ray.shapes.model import BIASED
from rlhfv_ray.shapes.text_audit import told_apart
from rlhfv_ray.stats import wilson_interval
from tests.conftest import careless_pairs
from tests.unit.data.rows import RED, jsonl, plain_row


def test_audit_counts_what_is_there(tmp_path: Path) -> None:
    """Bug: duplicates and unusable rows are found after hours of training."""
    rows = [
        plain_row(id="a", chosen="one two three", rejected="one"),
        plain_row(id="a", chosen="one", rejected="one two"),
        plain_row(id="b", chosen=""),
        plain_row(id="c", image="absent.png"),
        plain_row(id="d", image="broken.png"),
    ]
    path = jsonl(tmp_path / "x.jsonl", rows)
    (tmp_path / "broken.png").write_bytes(b"broken")
    audit = audit_pairs(list_slices(path))
    assert (audit.rows, audit.usable, audit.duplicated_ids) == (5, 3, ("a",))
    assert audit.unusable == {"empty_answer": 1, "image_missing": 1}
    assert audit.examples["empty_answer"].endswith("(x.jsonl:3)")
    decoded = audit_pairs(list_slices(path), decode=MAX_PIXELS)
    assert decoded.unusable["image_unreadable"] == 1
    assert decoded.chosen is not None
    lengths = decoded.chosen  # 3 and 1 words
    assert (lengths.mean, lengths.median, lengths.longest) == (2, 2, 3)
    assert audit_pairs([]).chosen is None


def runs(operation: str, pairs: list, units) -> int:
    """Runs of one kind from each rejected to its chosen answer."""
    count = 0
    for pair in pairs:
        chosen, rejected = units(pair)
        codes = SequenceMatcher(None, rejected, chosen, autojunk=False).get_opcodes()
        count += sum(code[0] == operation for code in codes)
    return count


def expected_figures(usable: list, units) -> dict:
    """The figures of usable pairs, counted in another way than the audit's."""
    words = [(len(pair.chosen.split()), len(pair.rejected.split())) for pair in usable]
    images = Counter(Counter(pair.image for pair in usable).values())
    opened = [Image.open(BytesIO(pair.image)) for pair in usable]
    return {
        "usable": len(usable),
        "unusable": {"image_unreadable": 1},
        "chosen_longer": sum(a > b for a, b in words),
        "chosen_shorter": sum(a < b for a, b in words),
        "sources": {"not said": len(usable) - 6, "coco": 6},
        "kinds": {"not said": len(usable) - 6, "detailed_description": 6},
        "changes": {name: runs(name, usable, units) for name in ("insert", "delete", "replace")},
        "duplicates": 1,
        "pairs_per_image": {str(pairs): count for pairs, count in images.items()},
        "image_modes": Counter(f"{image.format} {image.mode}" for image in opened),
        "image_sizes": {"0 to 256 pixels": len(usable)},
    }


def audited(rows: list, folder: Path, monkeypatch, *options: str) -> tuple[dict, str]:
    """Figures and page of the command on some rows."""
    write_pairs(rows, folder / "pairs.parquet")
    arguments = ["audit", str(folder / "pairs.parquet"), "--out", str(folder / "out"), *options]
    monkeypatch.setattr(sys, "argv", ["rlhfv-ray", *arguments])
    assert command.main() == 0
    out = folder / "out"
    return json.loads((out / "audit.json").read_text()), (out / "audit.html").read_text()


def rows_to_audit(pairs: list) -> list:
    """Pairs, one of them twice and one without a picture."""
    split = '{"type": "detailed_description"}'
    origin = {"origin_dataset": "coco", "origin_split": split, "image_path": "a/val_0007.png"}
    named = [replace(pair, origin=origin) for pair in pairs[:6]]
    torn = replace(pairs[1], id="torn", image=b"torn")
    return [*named, *pairs[6:], replace(pairs[0], id="again"), torn]


def test_every_number_of_the_page_is_recomputed(pairs, tmp_path: Path, monkeypatch) -> None:
    """Catches: a figure of the page that is of other rows, of the other answer, or of no rule."""
    rows = rows_to_audit(pairs)
    bench = tmp_path / "bench.jsonl"
    bench.write_text('{"image_id": 7}\n{"image_id": "9"}\n')
    figures, page = audited(rows, tmp_path, monkeypatch, "--evaluation", str(bench))
    expected = expected_figures(rows[:-1], in_words)
    expected |= {"rows": len(rows), "unit": "words", "evaluated_images": {str(bench): 6}}
    assert {name: figures[name] for name in expected} == expected
    assert min(expected["changes"].values()) >= 0 and sum(expected["changes"].values()) > 0
    lengths = [len(pair.chosen.split()) for pair in rows[:-1]]
    assert figures["chosen"]["mean"] == pytest.approx(sum(lengths) / len(lengths))
    shown = dict(re.findall(r'scope="row">([^<]*)</th><td class="n">([^<]*?)\s*</td>', page))
    assert shown["delete"] == str(expected["changes"]["delete"])
    assert shown["chosen, mean"] == f"{sum(lengths) / len(lengths):.1f}"
    assert shown["pairs that repeat an earlier one"] == "1"
    assert page.count("<article>") == 24 and "<mark>" in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)  # one page, without links to elsewhere


def tables_of(page: str) -> dict[str, dict[str, str]]:
    """All tables of a page: labels and values, by caption."""
    tables = {}
    for table in re.findall(r"<table>(.*?)</table>", page, re.DOTALL):
        caption = html.unescape(re.findall(r"<caption>(.*?)</caption>", table)[0])
        cells = re.findall(r'scope="row">([^<]*)</th><td class="n">([^<]*?)\s*</td>', table)
        tables[caption] = {html.unescape(label): value for label, value in cells}
    return tables


def of(part: int, whole: int) -> str:
    return f"{part} ({100 * part / whole:.1f} %)"


def in_words(pair) -> tuple[list[str], list[str]]:
    return pair.chosen.split(), pair.rejected.split()


def as_text(table: dict) -> dict[str, str]:
    return {str(name): str(value) for name, value in table.items()}


def expected_rule(usable: list, rule: Any) -> dict[str, str]:
    """The page's figures of a rule over words."""
    counts, empty = Counter(), 0
    for pair in usable:
        words = in_words(pair)
        numbers = {word: number for number, word in enumerate(sorted({*words[0], *words[1]}))}
        sides = [list(map(numbers.__getitem__, side)) for side in words]
        masks = changed_tokens(sides[0], sides[1], rule=rule)
        empty += sum(masks[0]) + sum(masks[1]) == 0
        for name, mask in zip(("chosen", "rejected"), masks, strict=True):
            counts.update({name: sum(mask), f"all {name}": len(mask)})
    shares = {
        f"share of the {name} answers": f"{100 * counts[name] / counts[f'all {name}']:.1f} %"
        for name in ("chosen", "rejected")
    }
    return {**shares, "pairs without extra weight": of(empty, len(usable))}


def expected_tables(usable: list, bench: str) -> dict[str, dict[str, str]]:
    """Every table of the page about the pairs of `rows_to_audit`."""
    figures = expected_figures(usable, in_words)
    words = [[len(side) for side in in_words(pair)] for pair in usable]
    sides = [sorted(pair[side] for pair in words) for side in (0, 1)]
    count, middle = len(usable), len(usable) // 2
    texts = [(pair.chosen, pair.rejected) for pair in usable]
    low, high = wilson_interval(round(told_apart(texts) * count), count)
    shorter = sum((a < b) + 0.5 * (a == b) for a, b in words) / count
    return {
        "Unusable rows by reason": {"image_unreadable": "1"},
        "Words per answer": {
            "chosen, mean": f"{sum(sides[0]) / count:.1f}",
            "rejected, mean": f"{sum(sides[1]) / count:.1f}",
            "chosen, median": f"{(sides[0][middle] + sides[0][~middle]) / 2:g}",
            "rejected, median": f"{(sides[1][middle] + sides[1][~middle]) / 2:g}",
            "longest": str(max(sides[0][-1], sides[1][-1])),
            "chosen longer": of(figures["chosen_longer"], count),
            "chosen shorter": of(figures["chosen_shorter"], count),
        },
        "Corrected words, rule muffin": expected_rule(usable, "muffin"),
        "Corrected words, rule both_sides": expected_rule(usable, "both_sides"),
        "Changes, runs of words": as_text(figures["changes"]),
        "Sources": as_text(figures["sources"]),
        "Kinds of question": as_text(figures["kinds"]),
        "Repeats": {"pairs that repeat an earlier one": "1", "ids of several rows": "1"},
        "Images by their number of pairs": as_text(figures["pairs_per_image"]),
        "Images by size": {"0 to 256 pixels": str(count)},
        "Images by type and mode": as_text(figures["image_modes"]),
        "Pairs with an image of an evaluation set": {bench: "6", UNNAMED: str(count - 6)},
        "Texts without their images": {
            "pairs": str(count),
            "chosen answer told": f"{100 * told_apart(texts):.1f} %",
            "95 % interval": f"{100 * low:.1f} to {100 * high:.1f} %",
            "told by being shorter": f"{100 * shorter:.1f} %",
            "more typical shapes": "0",
        },
    }


def test_images_are_searched_for_by_the_names_that_they_are_read_by(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    """Catches: no pair found in an evaluation set, because the data names its images otherwise."""
    bench = tmp_path / "bench.jsonl"
    bench.write_text("".join(f'{{"image": "val_{number}.png"}}\n' for number in range(3)))
    (tmp_path / "images").mkdir()
    answers = {"prompt": "What is there?", "chosen": "A cat.", "rejected": "A dog."}
    rows: list[dict[str, Any]] = []
    for number in range(5):
        path = f"images/val_{number}.png"
        (tmp_path / path).write_bytes(RED)
        stored = [{"images": [path]}, {"image": path}, {"images": [{"path": path}]}][number % 3]
        rows.append({"id": str(number), **answers, **stored})
    code = base64.b64encode(RED).decode()
    rows.append({"id": "5", **answers, "image": f"data:image/png;base64,{code}"})
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--out", str(tmp_path / "out"), "--evaluation", str(bench)]
    monkeypatch.setattr(sys, "argv", ["rlhfv-ray", "audit", str(pairs), *options])
    assert command.main() == 0
    figures = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert (figures["usable"], figures["evaluated_images"]) == (6, {str(bench): 3})
    assert "1 pairs have images without a name" in capsys.readouterr().out


def test_no_number_of_the_page_is_without_its_check(tmp_path: Path, monkeypatch) -> None:
    """Catches: a figure, or a whole table, that no other count stands behind."""
    rows = rows_to_audit(careless_pairs(60))
    rows.insert(3, replace(rows[8], id=rows[0].id))  # an id that repeats
    bench = tmp_path / "bench.jsonl"
    bench.write_text('{"image_id": 7}\n')
    _, page = audited(rows, tmp_path, monkeypatch, "--evaluation", str(bench))
    shown = tables_of(page)
    usable = [pair for pair in rows if pair.id != "torn"]
    expected = expected_tables(usable, str(bench))
    changes = [change_of(pair) for pair in usable]
    expected["Texts without their images"] |= {
        "fewer typical shapes": str(sum(change.typical < 0 for change in changes)),
        "more phrases": str(sum(change.phrases > 0 for change in changes)),
        "fewer phrases": str(sum(change.phrases < 0 for change in changes)),
    }
    expected["Repeats"]["pairs that repeat an earlier one"] = "2"
    assert shown == expected
    assert f"<p>{len(usable)} of {len(rows)} rows can be used.</p>" in page


def test_a_job_writes_the_audit_of_its_pairs(pairs, encoded, tmp_path: Path) -> None:
    """Catches: a row that the job set aside and its audit counts; an audit that ends a job."""
    write_pairs(pairs, tmp_path / "pairs.parquet")
    data = DataConfig(path=str(tmp_path / "pairs.parquet"), max_unusable=0.5)
    reasons = [(pairs[1].id, "too_long: 900 tokens"), (pairs[2].id, "special_token: </s>")]
    kept = [row for row in encoded if row.id not in dict(reasons)]
    write_part(part_table([*kept, *reasons], SCHEMA), tmp_path / "reference", 0)
    collect_unusable(tmp_path / "reference", data)
    audit_job(data, tmp_path / "reference")
    figures = json.loads((tmp_path / "reference" / "audit.json").read_text())
    assert (figures["rows"], figures["usable"]) == (len(pairs), len(pairs) - 2)
    assert figures["unusable"] == {"too_long": 1, "special_token": 1}
    page = (tmp_path / "reference" / "audit.html").read_text()
    assert "too_long: 900 tokens" in page and page.count("<article>") == len(pairs) - 2


def test_a_picture_that_a_job_allows_is_shown(pairs) -> None:
    """Catches: a page, and with it a job, that ends on a picture above the usual limit."""
    buffer = BytesIO()
    Image.new("L", (8000, 7000)).save(buffer, "PNG")  # 56 megapixels; --data.max-pixels allows 178
    large = replace(pairs[0], image=buffer.getvalue())
    assert "data:image/jpeg" in audit_page(replace(audit_pairs([]), sample=(large,)), "x")


@pytest.mark.parametrize("content", [None, "{\n", "[1]\n", '{"question": "?"}\n'])
def test_an_evaluation_set_that_names_no_image_is_refused(
    content, pairs, tmp_path: Path, monkeypatch, capsys
) -> None:
    """Catches: a traceback, or overlap with an evaluation set that was never read."""
    bench = tmp_path / "bench.jsonl"
    if content is not None:
        bench.write_text(content)
    write_pairs(pairs[:2], tmp_path / "pairs.parquet")
    arguments = ["audit", str(tmp_path / "pairs.parquet"), "--evaluation", str(bench)]
    monkeypatch.setattr(sys, "argv", ["rlhfv-ray", *arguments])
    assert command.main() == 2
    printed = capsys.readouterr()
    assert "bench.jsonl" in re.sub(r"[\s│]", "", printed.out + printed.err)


def test_repeats_are_said_on_the_terminal(pairs, tmp_path: Path, monkeypatch, capsys) -> None:
    """Catches: data that the audit passes without a word, and that training refuses."""
    write_pairs([pairs[0], replace(pairs[1], id=pairs[0].id), pairs[0]], tmp_path / "p.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rlhfv-ray", "audit", "p.parquet"])
    assert command.main() == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 pairs repeat an earlier one" in printed
    assert f"1 ids are of several rows ({pairs[0].id}): training refuses them." in printed


def test_a_models_tokens_are_counted_in_place_of_words(
    pairs, processor, tmp_path: Path, monkeypatch
) -> None:
    """Catches: shares of words under the name of tokens; a rule's masks counted for the other."""
    rows = rows_to_audit(pairs)
    figures, _ = audited(rows, tmp_path, monkeypatch, "--model", str(BIASED))
    encoded = [encode_pair(pair, processor, min_match=3, max_length=2048) for pair in rows[:-1]]
    tokens = {row.id: (row.chosen_ids, row.rejected_ids) for row in encoded}
    expected = expected_figures(rows[:-1], lambda pair: tokens[pair.id])
    assert {name: figures[name] for name in expected} == expected
    assert figures["unit"] == "tokens"
    for rule, counts in figures["rules"].items():
        for side, name in enumerate(("chosen_share", "rejected_share")):
            flags = [flag for row in encoded for flag in row.changed[rule][side]]
            assert counts[name] == pytest.approx(sum(flags) / len(flags))
        empty = [row for row in encoded if not any(map(any, row.changed[rule]))]
        assert counts["without_segment"] == len(empty)


def test_marked_words_are_those_that_differ(pairs) -> None:
    """Catches: marks on the wrong side; an answer that lost a blank; text that becomes markup."""
    chosen, rejected = marked_answers("a red  star on top", "a blue star")
    assert [run.text for run in chosen if run.is_changed] == ["red  ", "on top"]
    assert [run.text for run in rejected if run.is_changed] == ["blue "]
    assert "".join(run.text for run in chosen) == "a red  star on top"
    audit = replace(audit_pairs([]), sample=(replace(pairs[0], question="<script>x</script>"),))
    page = audit_page(audit, "<b>")
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "<b>" not in page.split("<h2>")[0]
