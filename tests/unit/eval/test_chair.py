"""CHAIR against the original Object HalBench scorer (tests/golden/chair.json), and by hand."""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import pytest

from eval.chair import ObjectVocabulary, chair_scores, count_words, ground_truth
from eval.words.lemmas import LemmatizerName, choose_lemmatizer
from rlhfv_ray.errors import DataError
from tests.golden.check import KINDS, Comparison, compare_chair

GOLDEN = Path(__file__).parents[2] / "golden" / "chair.json"


@dataclass
class Tagged:
    lemma_: str
    tag_: str


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


def test_figures_are_the_release_s(vocabulary: ObjectVocabulary) -> None:
    """Catches: captions ignored or read by other rules than answers ("benchs", "suit cases").

    Also names refined twice by `match`, repeated names counted twice, and words that WordNet lacks
    with a singular ("hairdryers", "televisons").
    """
    comparison = Comparison(KINDS["chair"].tolerance)
    compare_chair(json.loads(GOLDEN.read_text()), vocabulary, comparison)
    assert comparison.failures == []
    assert comparison.count > 1000


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        # A baby elephant is no baby, so no person is named.
        ("A baby elephant and an adult giraffe.", ["elephant", "giraffe"]),
        ("Passenger trains, a passenger jet.", ["train", "jet"]),
        ("A train track leads past the home plate.", []),
        ("A hot dog stand.", ["hot dog"]),
        ("It is hot, dogs rest.", ["dog"]),
        ("The seat of the toilet is up.", ["toilet"]),
        ("A seat near the window.", ["seat"]),
        # WordNet's reading of "men", see eval/words/lemmas.py
        ("Two men, three women and a tie-dye shirt.", ["woman"]),
        # NLTK's tokens: "cat/dog", "bike.a" and "bird's-eye" are words of their own.
        ("**Wine glasses** and a cat/dog bed", ["wine glass", "bed"]),
        ("A motor bike.A tennis racket", ["tennis racket"]),
        ("A bird's-eye view of a dog's bed", ["dog", "bed"]),
        ('A "dog." Cups/mugs (and a "cat").', ["dog", "cat"]),
        ("", []),
    ],
)
def test_words_of_an_answer(vocabulary: ObjectVocabulary, answer: str, words: list[str]) -> None:
    """Catches: a two-word term read word by word, or across punctuation."""
    assert [word for word, _ in vocabulary.mentions(answer)] == words


def test_locate_gives_the_characters_to_colour(builtin: ObjectVocabulary) -> None:
    """Catches: positions that shift after a two-word term (as in the release) or in lower case."""
    answer = "İki: two Hot  Dogs near\nWINE GLASSES and a pup."
    assert [answer[mention.start : mention.stop] for mention in builtin.locate(answer)] == [
        "Hot  Dogs",
        "WINE GLASSES",
        "pup",
    ]


def test_refine_without_a_tagger(vocabulary: ObjectVocabulary) -> None:
    """Catches: plural or adorned names from a judge match nothing; repeats are counted."""
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
    """Catches: an attribute that hides the noun, two runs joined, a tagger without "a NAME"."""
    tags = {"a": "DT", "wooden": "JJ", "table": "NN", "on": "IN", "city": "NN", "bus": "NN"}
    texts: list[str] = []

    def read(text: str) -> list[Tagged]:
        texts.append(text)
        return [Tagged(word, tags[word]) for word in text.split()]

    assert builtin.refine(["wooden table on city bus"], read=read) == ["table", "city bus"]
    assert texts == ["a wooden table on city bus"]


def test_scores_by_hand() -> None:
    """Catches: repeats that count as recall, mute answers in the paper's rate, unique mentions.

    Answer 1 names dog, dog and cat; its image has a dog and a car. Answer 2 names a car, which is
    there. Answers 3 and 4 name nothing; one image has a bus, the other nothing. So one of 2 naming
    answers (of 4) is wrong, 1 of 4 mentions is false, and 2 of 2 + 1 + 1 objects are named.
    """
    mentions = [[("dog", "dog"), ("pup", "dog"), ("cat", "cat")], [("van", "car")], [], []]
    scores = chair_scores(mentions, [{"dog", "car"}, {"car"}, {"bus"}, set()], [10, 5, 1, 2])
    assert scores == (1 / 2, 1 / 4, 1 / 4, 2 / 4, 18 / 4, 4)


def test_nothing_counted_is_none_not_zero() -> None:
    """Catches: an empty or mute model scores a perfect 0.0."""
    assert chair_scores([], [], []) == (None, None, None, None, None, 0)
    assert chair_scores([[]], [set()], [3]) == (None, 0.0, None, None, 3.0, 1)


def test_count_words_as_the_release() -> None:
    """Catches: another length than the release's. By hand: a-newline-b, nothing, c."""
    assert count_words(" a\nb  c\n") == 3


def test_lengths_must_agree() -> None:
    """Catches: zip drops the answers beyond the shortest list."""
    with pytest.raises(DataError, match="2 mentions, 1 truth, 2 words"):
        chair_scores([[], []], [set()], [1, 1])


def test_unknown_category_is_named(builtin: ObjectVocabulary) -> None:
    """Catches: an unknown category dropped, so that every answer that names it hallucinates."""
    with pytest.raises(DataError, match="image 7: category 'unicorn'"):
        ground_truth([(7, "unicorn")], [], builtin)


@pytest.mark.parametrize("lemmatizer", ["builtin", None])
def test_another_world(lemmatizer: LemmatizerName | None, tmp_path: Path) -> None:
    """Catches: plurals, two-word terms or a truth that only work with COCO's vocabulary."""
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
    """Catches: a word of two objects silently belongs to the last."""
    path = tmp_path / "words.txt"
    path.write_text(text)
    with pytest.raises(DataError, match="object vocabulary"):
        ObjectVocabulary.load(path)
    with pytest.raises(DataError, match="cannot read the object vocabulary"):
        ObjectVocabulary.load(tmp_path / "absent.txt")


def test_vocabulary_travels_between_processes(builtin: ObjectVocabulary) -> None:
    """Catches: a vocabulary that holds functions or open readers cannot be sent to an actor."""
    assert pickle.loads(pickle.dumps(builtin)).mentions("Two buses") == [("bus", "bus")]
