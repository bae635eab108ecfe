"""AMBER on a hand-made data folder; every figure is counted beside it.

The words are chosen so that tagger and vectors change nothing.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spacy

from eval.benchmarks.amber import (
    AMBER,
    Item,
    describe,
    printed_rates,
    question_ratios,
    reads_no,
)
from eval.benchmarks.contract import JudgedAnswer, Scores, Span, compare
from eval.config import AMBERConfig
from eval.words.nouns import nearness
from rlhfv_ray.errors import DataError
from rlhfv_ray.records import Answer

RELATED = {
    "grass": ["ground"],
    "ground": ["floor"],
    "dog": [],
    "piano": [],
    "bridge": [],
    "ship": ["boat"],
    "can": [],
    "television": ["TV"],
}
SAFE = "light\nbridge"  # without a last line end, as in the release
NOTES: list[dict[str, Any]] = [
    {
        "id": 1,
        "type": "generative",
        "truth": ["dog", "grass", "ship"],
        "hallu": ["piano", "television"],
    },
    {"id": 2, "type": "generative", "truth": ["piano"], "hallu": ["dog"]},
    {"id": 3, "type": "discriminative-hallucination", "truth": "no"},
    {"id": 4, "type": "discriminative-attribute-state", "truth": "yes"},
    {"id": 5, "type": "discriminative-attribute-number", "truth": "no"},
    {"id": 6, "type": "discriminative-attribute-action", "truth": "no"},
    {"id": 7, "type": "discriminative-relation", "truth": "yes"},
    {"id": 8, "type": "relation", "truth": "no"},  # so in the release
    {"id": 9, "type": "generative", "truth": [], "hallu": []},  # annotated, not asked
]
FIRST = "A dog stands on the ground. Two dogs can be seen near a piano and a bridge."
SAID = {
    "1": FIRST,  # mentions dog, ground, dog, piano, bridge; piano is not there
    "2": "The picture shows a piano.",
    "3": "Yes, there is.",  # wrong
    "4": "yes",  # right
    "5": "No",  # right
    "6": "It is not certain.",  # neither word: wrong
    "7": "No, they do not touch.",  # wrong
    "8": "There is no contact.",  # right
}


def write(folder: Path, **files: Any) -> Path:
    """A data folder with images, some of its files replaced."""
    queries = [
        {
            "id": note["id"],
            "image": f"AMBER_{1 + note['id'] % 2}.jpg",
            "query": f"Question {note['id']}?",
        }
        for note in NOTES[:8]
    ]
    given = {
        "query_all": queries,
        "annotations": NOTES,
        "relation": RELATED,
        "safe_words": SAFE,
    } | files
    (folder / "query").mkdir(exist_ok=True)
    names = {"query_all": "query/query_all.json", "safe_words": "safe_words.txt"}
    for name, content in given.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / names.get(name, f"{name}.json")).write_text(text)
    (folder / "images").mkdir(exist_ok=True)
    for number in (1, 2):
        (folder / "images" / f"AMBER_{number}.jpg").write_bytes(b"image %d" % number)
    return folder


def amber(folder: Path, part: Any = "all") -> AMBER:
    return AMBER(
        AMBERConfig(str(folder), str(folder / "images"), part), decoding={"temperature": 0.0}
    )


def score(benchmark: AMBER, **changed: str) -> Scores:
    texts = SAID | changed
    answers = [
        Answer(prompt.id, prompt.question, texts[prompt.id])
        for prompt in reversed(benchmark.prompts)
    ]
    return benchmark.score(answers, {})


def item(truth: tuple[str, ...], hallu: tuple[str, ...] = ()) -> Item:
    return Item("1", "a.jpg", "?", "generative", truth, hallu)


def test_descriptions_by_hand(tmp_path: Path) -> None:
    """Catches: safe words left out of the mentions, related words that hallucinate, a wrong cog."""
    scores = score(amber(write(tmp_path), "generative"))
    assert [metric.name for metric in scores.metrics] == ["hal", "chair", "cover", "cog", "words"]
    # Answer 1 has 5 mentions; piano is false. Of dog, grass and ship it names dog and, by "ground",
    # grass. Of piano and television it names the piano.
    assert scores.answers[0].ratios == {
        "hal": (1, 1),
        "chair": (1, 5),
        "cover": (2, 3),
        "cog": (1, 2),
        "words": (17, 1),
    }
    assert scores.answers[1].ratios == {
        "hal": (0, 1),
        "chair": (0, 1),
        "cover": (1, 1),
        "cog": (0, 1),
        "words": (5, 1),
    }
    rates = {
        "hal": 1 / 2,
        "chair": 1 / 6,
        "cover": 3 / 4,
        "cog": 1 / 3,
        "words": 11,
        "n": 2,
        "missing": 0,
    }
    assert scores.rates() == pytest.approx(rates)
    start = FIRST.index("piano")
    assert scores.answers[0].spans == (Span(start, start + 5, "object"),)
    assert scores.extras == {} and scores.groups == ("generative",)


def test_a_word_stands_for_the_first_object_it_goes_with() -> None:
    """Catches: "ground" that covers the ground too, a ship annotated and covered twice."""
    assert describe(["ground"], item(("ground", "grass")), RELATED).covered == 1
    # Both words are the grass.
    assert describe(["ground", "grass"], item(("ground", "grass")), RELATED).covered == 1
    # The floor is the ground.
    assert describe(["ground", "floor"], item(("ground", "grass")), RELATED).covered == 2
    assert describe(["ship", "boat", "ship"], item(("ship", "ship")), RELATED) == (3, (), 1, 0)


def test_true_objects_are_not_expected_ones() -> None:
    """Catches: an object of both lists counted in cog, a safe word in cover or cog."""
    assert describe(["dog"], item(("dog",), ("dog",)), RELATED) == (1, (), 1, 0)
    assert describe(["bridge"], item(("bridge",), ()), RELATED, safe={"bridge"}) == (1, (), 0, 0)
    assert describe(["bridge"], item((), ("bridge",)), RELATED, safe={"bridge"}) == (1, (), 0, 0)
    assert describe(["bridge"], item((), ("bridge",)), RELATED) == (1, (0,), 0, 1)
    assert describe([], item((), ()), RELATED) == (0, (), 0, 0)


def test_near_words_by_real_vectors() -> None:
    """Catches: near words of what is there counted as hallucinated; another threshold than 0.8."""
    nlp = spacy.blank("en")
    nlp.vocab.reset_vectors(width=2)
    # Cosines with cat: 0.82, 1, 0.78, 0.
    vectors = {"kitten": (0.82, 0.57), "cat": (1, 0), "tiger": (0.78, 0.63), "piano": (0, 1)}
    for word, vector in vectors.items():
        nlp.vocab.set_vector(word, np.array(vector, dtype="float32"))
    near = nearness(nlp.make_doc)
    assert [near(word, "cat") for word in vectors] == [True, True, False, False]
    assert near("unknown", "unknown")
    related = dict.fromkeys(vectors, ())
    assert describe(["kitten", "piano"], item(("cat",)), related, near=near) == (2, (1,), 1, 0)
    # What it equals goes before what it is near: both are covered.
    assert describe(["cat", "kitten"], item(("cat", "kitten")), related, near=near) == (2, (), 2, 0)
    # An expected word counts in cog even if it is near a true one; then it is no hallucination.
    assert describe(["kitten"], item(("cat",), ("kitten",)), related, near=near) == (1, (), 1, 1)
    # It stands for the object that it equals, and for an earlier one that it is near.
    assert describe(["kitten"], item((), ("cat", "kitten")), related, near=near) == (1, (0,), 0, 2)


def test_nouns_with_what_is_installed(tmp_path: Path) -> None:
    """Catches: the verb can named as an object, plurals missed, capitals or positions lost."""
    text = '"Dogs" can be seen: two dogs, a TV and the television.'
    nouns = amber(write(tmp_path)).reader.mentions(text)
    # "Dogs" has no lemma in the release either.
    assert [noun.lemma for noun in nouns] == ["dog", "TV", "television"]
    assert [text[noun.start : noun.stop] for noun in nouns] == ["dogs", "TV", "television"]


@pytest.mark.parametrize(
    ("answer", "no"),
    [
        ("No", True),
        ("no, it is not", True),
        ("YES!", False),
        ("**Yes**", False),
        ("Yes, with no doubt", False),
        ("I know nothing about eyes", None),
        ("", None),
    ],
)
def test_yes_and_no_are_read(answer: str, no: bool | None) -> None:
    """Catches: substrings read as words, the last word read, silence read as an answer."""
    assert reads_no(answer) is no


def test_questions_by_hand(tmp_path: Path) -> None:
    """Catches: yes as the positive class; answers without yes and no left out, or right."""
    scores = score(amber(write(tmp_path), "discriminative"))
    assert [metric.name for metric in scores.metrics] == ["accuracy", "precision", "recall", "f1"]
    # Right: 4, 5, 8. No is said to 5, 7, 8, rightly to 5 and 8; it is right for 3, 5, 6, 8.
    assert scores.sums() == {
        "accuracy": (3, 6),
        "precision": (2, 3),
        "recall": (2, 4),
        "f1": (2 * 2, 3 + 4),
    }
    assert scores.groups == ("existence", "state", "number", "action", "relation")
    assert scores.sums("relation") == {
        "accuracy": (1, 2),
        "precision": (1, 2),
        "recall": (1, 1),
        "f1": (2, 3),
    }
    assert scores.rates("state")["precision"] is None
    # State, number and action: 4 and 5 of three are right. Only 5 is answered no; no is right for
    # 5 and 6.
    attribute = {
        "accuracy": 2 / 3,
        "precision": 1.0,
        "recall": 1 / 2,
        "f1": 2 / 3,
        "n": 3,
        "missing": 0,
    }
    # Of the six answers only "No" to 5 is exactly Yes or No.
    exact = {
        "accuracy": 1 / 6,
        "precision": 1.0,
        "recall": 1 / 4,
        "f1": 2 / 5,
        "n": 6,
        "missing": 0,
    }
    assert scores.extras["attribute"] == pytest.approx(attribute)
    assert scores.extras["exact_reading"] == pytest.approx(exact)
    # What the code prints of them: 1 / 6.001, 1 / 1.001, 1 / 4.001; then 2 PR / (P + R + 0.0001) of
    # the rounded 99.9 and 25.0. Attributes have three counters: 1 / 3.003, 1 / 1.003, 1 / 2.003.
    printed = scores.extras["release_compatible"]
    overall = {"accuracy": 16.7, "precision": 99.9, "recall": 25.0, "f1": 40.0}
    assert {name: printed[name] for name in overall} == overall
    assert printed["attribute"] == {
        "accuracy": 33.3,
        "precision": 99.7,
        "recall": 49.9,
        "f1": 66.5,
    }
    assert printed["existence"]["f1"] == printed["relation"]["f1"] == 0
    assert scores.extras["neither_yes_nor_no"] == 1 and "amber_score" not in scores.extras


def test_both_parts_together(tmp_path: Path) -> None:
    """Catches: rates of descriptions diluted by questions, another scale, ids as numbers."""
    scores = score(amber(write(tmp_path)))
    names = ["hal", "chair", "cover", "cog", "words", "accuracy", "precision", "recall", "f1"]
    assert [metric.name for metric in scores.metrics] == names
    assert (
        scores.rates()["hal"] == 1 / 2
        and scores.rates()["words"] == 11
        and scores.rates()["accuracy"] == 1 / 2
    )
    assert scores.extras["amber_score"] == pytest.approx((100 - 100 / 6 + 100 * 4 / 7) / 2)
    assert [item.answer.id for item in scores.answers] == list(SAID)
    for name, interval in scores.intervals().items():
        rate = scores.rates()[name]
        assert interval is not None and rate is not None and interval.low <= rate <= interval.high


def test_descriptions_that_name_nothing_have_no_score(tmp_path: Path) -> None:
    """Catches: a model that says nothing given a CHAIR of 0, and with it a good AMBER score."""
    scores = score(amber(write(tmp_path)), **{"1": "", "2": "I cannot say."})
    assert scores.rates()["chair"] is None and scores.rates()["hal"] == 0
    assert "amber_score" not in scores.extras


def test_two_models_are_compared(tmp_path: Path) -> None:
    """Catches: scores that the paired test cannot read."""
    benchmark = amber(write(tmp_path), "generative")
    comparison = compare(score(benchmark), score(benchmark, **{"1": "A dog."}))
    assert comparison.metric.name == "hal" and comparison.change == pytest.approx(-1 / 2)


def test_prompts_are_the_queries_as_they_stand(tmp_path: Path) -> None:
    """Catches: images read too early or once a question; questions of the other part."""
    benchmark = amber(write(tmp_path))
    (tmp_path / "images" / "AMBER_1.jpg").write_bytes(b"later")
    assert [prompt.id for prompt in benchmark.prompts] == list(SAID)
    assert (benchmark.prompts[1].question, benchmark.prompts[1].image) == ("Question 2?", b"later")
    assert benchmark.prompts[0].image is benchmark.prompts[2].image
    assert [prompt.id for prompt in amber(tmp_path, "generative").prompts] == ["1", "2"]
    assert benchmark.requests([]) == [] and not benchmark.readable("Yes")
    (tmp_path / "images" / "AMBER_2.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 2 images are missing: AMBER_2\.jpg"):
        amber(tmp_path).prompts  # noqa: B018


def test_manifest_follows_what_scores_depend_on(tmp_path: Path) -> None:
    """Catches: scores compared over other annotations, images, parts or ways to read."""
    before = amber(write(tmp_path)).manifest()
    assert (
        before["n"] == 8
        and before["part"] == "all"
        and set(before["files"]) > {"relation.json", "safe_words.txt"}
    )
    assert before.keys() >= {"tagger", "vectors", "lemmatizer", "reading", "decoding"}

    def changed(part: str = "all", **files: Any) -> set[str]:
        after = amber(write(tmp_path, **files), part).manifest()
        return {name for name, value in after.items() if before[name] != value}

    assert changed() == set()
    assert changed("generative") == {"part", "prompts", "n"}
    assert changed(safe_words="light\n") == {"files"}
    assert changed(annotations=[*NOTES[:3], NOTES[3] | {"truth": "no"}, *NOTES[4:]]) == {
        "files",
        "prompts",
    }


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"annotations": json.dumps(NOTES)[:-9]}, r"annotations\.json.*no whole JSON"),
        ({"relation": json.dumps(RELATED)[:-9]}, r"relation\.json is no whole JSON"),
        ({"relation": ["dog"]}, r"relation\.json: expected a JSON object of lists"),
        ({"relation": {"dog": "cat"}}, r"relation\.json: expected a JSON object of lists"),
        (
            {"annotations": NOTES[1:5]},
            r"annotations\.json: no row for 4 of 8 questions, ids 1, 6, 7, 8",
        ),
        (
            {"annotations": [*NOTES, NOTES[0] | {"truth": []}]},
            r"annotations\.json: two rows have id 1",
        ),
        (
            {"annotations": [NOTES[0] | {"type": "poem"}, *NOTES[1:]]},
            r"annotations\.json, id 1: unknown type 'poem'",
        ),
        (
            {"annotations": [NOTES[0] | {"truth": ["yeti"]}, *NOTES[1:]]},
            r"id 1: truth \['yeti'\].*relation\.json",
        ),
        (
            {"annotations": [NOTES[0] | {"truth": "no"}, *NOTES[1:]]},
            r"id 1: truth 'no'.*lists of objects",
        ),
        (
            {"annotations": [*NOTES[:3], NOTES[3] | {"truth": "maybe"}, *NOTES[4:]]},
            r"id 4: truth 'maybe'.*yes or no",
        ),
        ({"query_all": [{"id": 1, "query": "?"}]}, r"query_all\.json.*row 1: no image"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    """Catches: a KeyError without a file, half a download that is scored, unknown types."""
    with pytest.raises(DataError, match=message):
        amber(write(tmp_path, **files)).prompts  # noqa: B018


def test_missing_files_are_named(tmp_path: Path) -> None:
    """Catches: AMBER searched in the current folder; a missing list of safe words read as empty."""
    for folder in ("", str(tmp_path / "nowhere")):
        with pytest.raises(DataError, match=r"amber\.data = .*no such folder"):
            AMBER(AMBERConfig(folder), decoding={}).prompts  # noqa: B018
    (write(tmp_path) / "safe_words.txt").unlink()
    with pytest.raises(DataError, match=r"safe_words\.txt cannot be read"):
        score(amber(tmp_path))
    queries = [{"id": 1, "image": "a", "query": "?"}]
    with pytest.raises(DataError, match=r"amber\.part = 'discriminative': no such questions"):
        _ = amber(write(tmp_path, query_all=queries), "discriminative").prompts


def test_a_repository_is_as_good_as_its_data_folder(tmp_path: Path) -> None:
    """Catches: a copy of AMBER's repository that is refused; advice that does not fit the file."""
    (tmp_path / "data").mkdir()
    write(tmp_path / "data")
    benchmark = AMBER(AMBERConfig(str(tmp_path)), decoding={})
    assert [item.id for item in benchmark.items] == [*"12345678"]
    assert "2 descriptions alone add --amber.part generative" in benchmark.answers_hint
    assert (
        "discriminative (6), existence (1), attribute (3), relation (2)" in benchmark.answers_hint
    )
    assert AMBER(AMBERConfig(str(tmp_path), part="generative"), decoding={}).answers_hint == ""


@pytest.mark.parametrize(
    ("part", "ids"), [("existence", "3"), ("attribute", "456"), ("relation", "78")]
)
def test_one_dimension_of_the_questions(tmp_path: Path, part: str, ids: str) -> None:
    """Catches: answers to one of AMBER's discriminative files that are refused."""
    scores = score(amber(write(tmp_path), part))
    assert [item.answer.id for item in scores.answers] == [*ids]
    assert scores.rates()["n"] == len(ids)


def test_f1_of_rounded_parts() -> None:
    """Catches: F1 of the exact parts, which the code's last digit is not.

    3 answers no, 2 of them right, of 8 that are no: P = 2 / 3.001 = 66.6, R = 2 / 8.001 = 25.0,
    2 PR / (P + R + 0.001) = 0.333 / 0.917 = 36.3, where 2 * 2 / (3 + 8) = 36.4.
    """
    says = [(True, True)] * 2 + [(True, False)] + [(False, True)] * 6
    exact = [
        JudgedAnswer(Answer("0", "?", ""), question_ratios(no, is_no=is_no)) for no, is_no in says
    ]
    assert printed_rates(exact, kinds=1, smoothing=0.001)["f1"] == 36.3
