"""CHAIR against the original Object HalBench scorer (tests/golden/chair.json) and against counting by hand."""

import json
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eval.chair import ObjectVocabulary, chair_scores, count_words, ground_truth, score_answer
from eval.words.lemmas import LemmatizerName, choose_lemmatizer
from rlhfv_ray.errors import ConfigError, DataError

GOLDEN = Path(__file__).parents[2] / "golden" / "chair.json"
GOLDEN_NAMES = {
    "response_rate": "CHAIRs_refine",
    "response_rate_all": "CHAIRs",
    "mention_rate": "CHAIRi",
    "object_recall": "obj_rec",
    "words": "avg_word_len",
}


@dataclass
class Tagged:
    lemma_: str
    tag_: str


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text())


@pytest.fixture(scope="module")
def builtin() -> ObjectVocabulary:
    return ObjectVocabulary.load(lemmatizer="builtin")


@pytest.fixture(scope="module")
def wordnet() -> ObjectVocabulary:
    if choose_lemmatizer() != "wordnet":
        pytest.skip(
            "WordNet is not installed: sh tests/fetch_wordnet.sh FOLDER; export NLTK_DATA=FOLDER"
        )
    return ObjectVocabulary.load(lemmatizer="wordnet")


@pytest.fixture(scope="module", params=["builtin", "wordnet"])
def vocabulary(request: pytest.FixtureRequest) -> ObjectVocabulary:
    return request.getfixturevalue(request.param)


def golden_truth(golden: dict[str, Any]) -> list[set[str]]:
    return [set(golden["ground_truth"][str(answer["image_id"])]) for answer in golden["answers"]]


def check_mode(golden: dict[str, Any], mode: str, mentions: list[list[tuple[str, str]]]) -> None:
    truth = golden_truth(golden)
    for answer, objects, sentence in zip(mentions, truth, golden[mode]["sentences"], strict=True):
        score = score_answer(answer, objects)
        assert [list(mention) for mention in answer] == sentence["generated"]
        assert [word for word, _ in score.hallucinated] == sentence["hallucinated"]
        assert int(bool(score.hallucinated)) == sentence["metrics"]["CHAIRs"]
        assert len(score.hallucinated) / (score.mentions or 1) == sentence["metrics"]["CHAIRi"]
    scores = chair_scores(
        mentions, truth, [count_words(answer["answer"]) for answer in golden["answers"]]
    )
    assert scores.n == golden[mode]["overall"]["sentence_num"]
    for ours, theirs in GOLDEN_NAMES.items():
        assert getattr(scores, ours) == golden[mode]["overall"][theirs], ours


def test_ground_truth_is_the_release_s(
    golden: dict[str, Any], vocabulary: ObjectVocabulary
) -> None:
    """Bug: captions ignored, or read by other rules than answers ("benchs", "tabbys", "suit cases")."""
    instances = [(row["image_id"], row["category"]) for row in golden["instances"]]
    captions = [(row["image_id"], row["caption"]) for row in golden["captions"]]
    expected = {int(image): set(objects) for image, objects in golden["ground_truth"].items()}
    assert ground_truth(instances, captions, vocabulary) == expected


def test_extracted_mode_is_the_release_s(
    golden: dict[str, Any], vocabulary: ObjectVocabulary
) -> None:
    """Bug: `match` refines names a second time ("wine glasses", "baby elephant"), or counts a repeated name twice."""
    check_mode(
        golden, "extracted", [vocabulary.match(answer["objects"]) for answer in golden["answers"]]
    )


def test_rule_mode_is_the_release_s(golden: dict[str, Any], vocabulary: ObjectVocabulary) -> None:
    """Bug: words WordNet lacks get a singular ("hairdryers", "televisons"); "peoples", "bow ties" or "bus" go wrong."""
    check_mode(
        golden, "rule", [vocabulary.mentions(answer["answer"]) for answer in golden["answers"]]
    )


def test_builtin_lemmas_are_wordnet_s_on_the_vocabulary(
    builtin: ObjectVocabulary, wordnet: ObjectVocabulary
) -> None:
    """Bug: a score depends on whether WordNet happens to be installed ("men" and "vases" are its oddities)."""
    words = {
        word
        for term in (*builtin.objects, *builtin.phrases)
        for word in term.split()
        if word != "iPhone"
    }
    forms = {word + ending for word in words for ending in ("", "s", "es")}
    forms |= {word[:-1] + "ies" for word in words if word.endswith("y")}
    forms |= {
        word.removesuffix("fe").removesuffix("f") + "ves"
        for word in words
        if word.endswith(("f", "fe"))
    }
    forms |= {
        "men",
        "women",
        "policemen",
        "children",
        "geese",
        "mice",
        "oxen",
        "busses",
        "flamingoes",
        "glasses",
    }
    nonsense = {"hots", "potteds", "skiss", "skises", "sportss", "sportses"}
    different = {form for form in forms - nonsense if builtin.lemma(form) != wordnet.lemma(form)}
    assert {
        form for form in different if {builtin.lemma(form), wordnet.lemma(form)} & words
    } == set()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            "A baby elephant and an adult giraffe.",
            ["elephant", "giraffe"],
        ),  # not baby + elephant: no person there
        ("Passenger trains, a passenger jet.", ["train", "jet"]),
        ("A train track leads past the home plate.", []),
        ("A hot dog stand.", ["hot dog"]),
        ("It is hot, dogs rest.", ["dog"]),
        ("The seat of the toilet is up.", ["toilet"]),
        ("A seat near the window.", ["seat"]),
        (
            "Two men, three women and a tie-dye shirt.",
            ["woman"],
        ),  # WordNet's reading of "men", see eval/words/lemmas.py
        ("**Wine glasses** and a cat/dog bed", ["wine glass", "cat", "dog", "bed"]),
        ("A motor bike.A tennis racket", ["motor bike", "tennis racket"]),
        ("", []),
    ],
)
def test_words_of_an_answer(vocabulary: ObjectVocabulary, answer: str, words: list[str]) -> None:
    """Bug: a two-word term is read as its parts, or across punctuation."""
    assert [word for word, _ in vocabulary.mentions(answer)] == words


def test_locate_gives_the_characters_to_colour(builtin: ObjectVocabulary) -> None:
    """Bug: positions shift after a two-word term, as the release's do, or where lower case is longer."""
    answer = "İki: two Hot  Dogs near\nWINE GLASSES and a pup."
    assert [answer[mention.start : mention.stop] for mention in builtin.locate(answer)] == [
        "Hot  Dogs",
        "WINE GLASSES",
        "pup",
    ]


def test_refine_without_a_tagger(vocabulary: ObjectVocabulary) -> None:
    """Bug: plural or adorned names from a judge match nothing; repeats are counted."""
    names = [
        "Wine glasses",
        "baby elephants",
        "hot dog stand",
        "dogs",
        "dog",
        "toilet seat",
        "traffic lights",
        "iPhone",
    ]
    refined = ["wine glass", "elephant", "hot dog", "dog", "toilet", "traffic light", "iPhone"]
    assert vocabulary.refine(names) == refined
    assert [word for word, _ in vocabulary.match(refined)] == refined


def test_refine_with_a_tagger_takes_runs_of_nouns(builtin: ObjectVocabulary) -> None:
    """Bug: an attribute hides the noun, two runs become one, or the tagger does not see "a NAME"."""
    tags = {"a": "DT", "wooden": "JJ", "table": "NN", "on": "IN", "city": "NN", "bus": "NN"}
    seen: list[str] = []

    def read(text: str) -> list[Tagged]:
        seen.append(text)
        return [Tagged(word, tags[word]) for word in text.split()]

    assert builtin.refine(["wooden table on city bus"], read=read) == ["table", "city bus"]
    assert seen == ["a wooden table on city bus"]


def test_scores_by_hand() -> None:
    """Bug: repeats count as recall, unnamed answers enter the paper's rate, or mentions are made unique.

    Answer 1 names dog, dog, cat with dog and car there; 2 names a car with car there; 3 and 4 name nothing, with bus
    and with nothing there. One of 2 naming answers (of 4) is wrong, 1 of 4 mentions, 2 of 2 + 1 + 1 objects are found.
    """
    mentions = [[("dog", "dog"), ("pup", "dog"), ("cat", "cat")], [("van", "car")], [], []]
    scores = chair_scores(mentions, [{"dog", "car"}, {"car"}, {"bus"}, set()], [10, 5, 1, 2])
    assert scores == (1 / 2, 1 / 4, 1 / 4, 2 / 4, 18 / 4, 4)


def test_nothing_counted_is_none_not_zero() -> None:
    """Bug: an empty or mute model scores a perfect 0.0."""
    assert chair_scores([], [], []) == (None, None, None, None, None, 0)
    assert chair_scores([[]], [set()], [3]) == (None, 0.0, None, None, 3.0, 1)


def test_count_words_as_the_release() -> None:
    """Bug: average length is not comparable with the release's; by hand: a-newline-b, nothing, c."""
    assert count_words(" a\nb  c\n") == 3


def test_lengths_must_agree() -> None:
    """Bug: zip drops the answers beyond the shortest list."""
    with pytest.raises(DataError, match="2 mentions, 1 truth, 2 words"):
        chair_scores([[], []], [set()], [1, 1])


def test_unknown_category_is_named(builtin: ObjectVocabulary) -> None:
    """Bug: an unknown category is dropped, and every answer that names it counts as hallucinating."""
    with pytest.raises(DataError, match="image 7: category 'unicorn'"):
        ground_truth([(7, "unicorn")], [], builtin)


@pytest.mark.parametrize("lemmatizer", ["builtin", None])
def test_another_world(lemmatizer: LemmatizerName | None, tmp_path: Path) -> None:
    """Bug: plurals, two-word terms or the truth of a vocabulary other than COCO's do not work."""
    path = tmp_path / "shapes.txt"
    path.write_text("circle, disc\nstar\n\ncross, plus sign\nhexagon\n")
    shapes = ObjectVocabulary.load(path, lemmatizer=lemmatizer)
    assert shapes.lemmatizer == (lemmatizer or choose_lemmatizer())
    assert shapes.mentions("Discs, plus signs, two crosses and a blue star.") == [
        ("disc", "circle"),
        ("plus sign", "cross"),
        ("cross", "cross"),
        ("star", "star"),
    ]
    assert ground_truth([(1, "circle")], [(1, "A star."), (2, "Hexagons.")], shapes) == {
        1: {"circle", "star"},
        2: {"hexagon"},
    }


@pytest.mark.parametrize("text", ["", "cup, mug\nglass, mug\n", "cup,, mug\n"])
def test_bad_vocabulary_files(text: str, tmp_path: Path) -> None:
    """Bug: a word of two objects silently belongs to the last."""
    path = tmp_path / "words.txt"
    path.write_text(text)
    with pytest.raises(DataError, match="object vocabulary"):
        ObjectVocabulary.load(path)
    with pytest.raises(DataError, match="cannot read the object vocabulary"):
        ObjectVocabulary.load(tmp_path / "absent.txt")


def test_vocabulary_travels_between_processes(builtin: ObjectVocabulary) -> None:
    """Bug: a vocabulary that holds functions or open readers cannot be sent to an actor."""
    assert pickle.loads(pickle.dumps(builtin)).mentions("Two buses") == [("bus", "bus")]


def test_without_wordnet_the_builtin_lemmatizer_is_chosen_and_named() -> None:
    """Bug: a machine without WordNet crashes, or scores with another lemmatiser than the one the report names."""
    script = (
        "import nltk; nltk.data.path[:] = []\n"
        "from eval.chair import ObjectVocabulary\n"
        "print(ObjectVocabulary.load().lemmatizer)\n"
        "ObjectVocabulary.load(lemmatizer='wordnet')\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "builtin"
    assert "ConfigError: lemmatizer 'wordnet'" in done.stderr


def test_unknown_lemmatizer() -> None:
    """Bug: a misspelt lemmatiser falls through to another one."""
    with pytest.raises(ConfigError, match="'spacy'"):
        choose_lemmatizer("spacy")  # pyright: ignore[reportArgumentType]
