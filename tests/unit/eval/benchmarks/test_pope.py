"""POPE on hand-made question files, its official reading of answers, and the search for images."""

import json
from pathlib import Path

import pytest

from eval.benchmarks.contract import Scores, compare
from eval.benchmarks.pope import GROUPS, METRICS, POPE, reads_yes
from eval.config import POPEConfig
from eval.inputs.images import find_images, image_bytes
from rlhfv_ray.errors import DataError
from rlhfv_ray.records import Answer

FIRST, SECOND = "COCO_val2014_000000000042.jpg", "COCO_val2014_000000000007.jpg"
RANDOM = [
    (FIRST, "dog", "yes"),
    (FIRST, "cat", "no"),
    (SECOND, "bus", "yes"),
    (SECOND, "car", "no"),
]
POPULAR = [(FIRST, "dog", "yes"), (SECOND, "person", "no")]
SAID = {
    "random-1": "Yes, there is a dog.",  # a hit
    "random-2": "Yes.",  # a false alarm
    "random-3": "No, there is none.",  # a miss
    "random-4": "There is no car.",  # a right no
    "popular-1": "Maybe",  # neither word: yes by the rule, a hit
    "popular-2": "NO!",  # by the rule no `No`: a false alarm
}


def lines(questions: list[tuple[str, str, str]]) -> str:
    rows = [
        {
            "question_id": number,
            "image": image,
            "text": f"Is there a {thing} in the image?",
            "label": label,
        }
        for number, (image, thing, label) in enumerate(questions, 1)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "coco_pope_random.json").write_text(lines(RANDOM))
    (tmp_path / "coco_pope_popular.json").write_text(lines(POPULAR))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / FIRST).write_bytes(b"first")
    (tmp_path / "images" / "000000000007.jpg").write_bytes(b"second")  # as COCO 2017 names it
    return tmp_path


def pope(folder: Path, questions: str = "") -> POPE:
    return POPE(
        POPEConfig(str(folder / questions), str(folder / "images")), decoding={"temperature": 0.0}
    )


def score(benchmark: POPE, said: dict[str, str]) -> Scores:
    questions = {prompt.id: prompt.question for prompt in benchmark.prompts}
    return benchmark.score(
        [Answer(name, questions[name], text) for name, text in reversed(said.items())], {}
    )


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes", True),
        ("no", False),
        ("No, there is no dog in the image.", False),
        ("no.", False),
        ("There is not a dog", False),
        ("Yes. There is no cat.", True),  # the first sentence alone
        ("Yes, but not a big one", False),  # one `not` is enough
        ("NO", True),
        ("No!", True),
        ("There isn't a dog.", True),
        ("None of that", True),
        ("I can see nothing", True),
        ("No\nnew line", True),  # words are split at single spaces
        ("", True),
        (". no", True),
    ],
)
def test_answers_are_read_by_the_official_rule(answer: str, yes: bool) -> None:
    """Catches: substrings taken for words, other spellings of no, later sentences read."""
    assert reads_yes(answer) is yes


def test_metrics_by_hand(folder: Path) -> None:
    """Catches: no as the positive class, precision and recall exchanged, f1 as a mean of groups."""
    scores = score(pope(folder), SAID)
    assert scores.metrics[0].name == "accuracy"
    # 4 of 6 answers are yes; 3 objects are present; 2 hits (random-1, popular-1), and one right no
    # (random-4).
    assert scores.sums() == {
        "accuracy": (3, 6),
        "precision": (2, 4),
        "recall": (2, 3),
        "f1": (2 * 2, 4 + 3),
        "yes_rate": (4, 6),
        "words": (5 + 1 + 4 + 4 + 1 + 1, 6),
    }
    precision, recall = 2 / 4, 2 / 3
    assert scores.rates()["f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    # "Maybe" has neither word; "NO!" has one that the rule does not take.
    assert scores.extras == {"neither_yes_nor_no": 1, "yes_despite_no": 1}
    assert all(item.spans == () and item.missing == "" for item in scores.answers)
    for metric in METRICS:
        interval, rate = scores.intervals()[metric.name], scores.rates()[metric.name]
        assert interval is not None and rate is not None and interval.low <= rate <= interval.high


def test_groups_are_the_files(folder: Path) -> None:
    """Catches: one pooled figure instead of three; question 1 of two files merged."""
    scores = score(pope(folder), SAID)
    assert scores.groups == ("random", "popular")
    assert scores.rates("random")["accuracy"] == 2 / 4
    assert scores.rates("popular")["accuracy"] == 1 / 2
    assert scores.rates("popular")["yes_rate"] == 1


def test_rates_of_no_yes_at_all_are_missing(folder: Path) -> None:
    """Catches: a division by zero, or a precision of 0, for a model that always says no."""
    scores = score(pope(folder), dict.fromkeys(SAID, "No."))
    assert scores.rates()["precision"] is None and scores.rates()["recall"] == 0
    assert scores.rates()["f1"] == 0 and scores.rates()["accuracy"] == 3 / 6


def test_prompts_are_the_questions_as_they_stand(folder: Path) -> None:
    """Catches: an instruction appended, answers in another order, an image read repeatedly."""
    benchmark = pope(folder)
    assert [prompt.id for prompt in benchmark.prompts] == list(SAID)
    assert benchmark.prompts[0].question == "Is there a dog in the image?"
    assert [prompt.image for prompt in benchmark.prompts[1:3]] == [b"first", b"second"]
    assert benchmark.prompts[0].image is benchmark.prompts[4].image
    assert benchmark.requests([]) == [] and not benchmark.readable("Yes")
    with pytest.raises(DataError, match="6 prompts need one answer each"):
        benchmark.score([Answer("random-1", "?", "Yes")], {})


def test_one_file_or_all_of_a_folder(folder: Path) -> None:
    """Catches: a missing group asked as empty, a file's path taken for a folder."""
    assert [path.stem for path in pope(folder).files] == ["coco_pope_random", "coco_pope_popular"]
    (folder / "coco_pope_adversarial.json").write_text(lines(POPULAR))
    assert tuple(dict.fromkeys(question.group for question in pope(folder).questions)) == GROUPS
    (folder / "mine.json").write_text(lines(POPULAR))
    assert [prompt.id for prompt in pope(folder, "mine.json").prompts] == ["mine-1", "mine-2"]
    assert [prompt.id for prompt in pope(folder, "coco_pope_popular.json").prompts] == [
        "popular-1",
        "popular-2",
    ]


@pytest.mark.parametrize("questions", ["", "/nowhere", "images"])
def test_no_questions_are_an_error(folder: Path, questions: str) -> None:
    """Catches: question files looked for in the current folder, or none at all scored."""
    config = POPEConfig(str(folder / questions) if questions else "", str(folder / "images"))
    with pytest.raises(DataError, match=r"pope\.questions = .*coco_pope_random\.json"):
        POPE(config, decoding={}).prompts  # noqa: B018


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (lines(RANDOM)[:-40], "coco_pope_random.json.*line 4"),
        (lines([(FIRST, "dog", "maybe")]), "coco_pope_random.json, question_id 1: label 'maybe'"),
        (lines(RANDOM).replace('"image"', '"picture"'), "coco_pope_random.json.*no image"),
        (lines(RANDOM) + lines(RANDOM[:1]), "coco_pope_random.json.*two rows have question_id 1"),
        ("", "coco_pope_random.json.*no rows"),
    ],
)
def test_bad_files_are_named(folder: Path, text: str, said: str) -> None:
    """Catches: a download that was cut off scored as a smaller benchmark."""
    (folder / "coco_pope_random.json").write_text(text)
    with pytest.raises(DataError, match=said):
        pope(folder).prompts  # noqa: B018


def test_manifest_follows_what_scores_depend_on(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Catches: scores on other labels or images compared; scores refused for a moved folder."""
    before = pope(folder).manifest()
    assert before["benchmark"] == "pope" and before["n"] == 6
    moved = tmp_path_factory.mktemp("elsewhere") / "pope"
    folder.rename(moved)
    assert pope(moved).manifest() == before
    (moved / "images" / FIRST).write_bytes(b"another")
    assert [name for name, value in pope(moved).manifest().items() if before[name] != value] == [
        "prompts"
    ]
    (moved / "images" / FIRST).write_bytes(b"first")
    (moved / "coco_pope_popular.json").write_text(lines([POPULAR[0], (*POPULAR[1][:2], "yes")]))
    assert [name for name, value in pope(moved).manifest().items() if before[name] != value] == [
        "prompts",
        "files",
    ]


def test_two_models_are_compared_on_accuracy(folder: Path) -> None:
    """Catches: scores that the paired test cannot read."""
    base = score(pope(folder), SAID)
    better = score(pope(folder), SAID | {"random-2": "No.", "random-3": "Yes."})
    comparison = compare(base, better)
    assert comparison.metric.name == "accuracy"
    assert comparison.change == pytest.approx(2 / 6)
    assert comparison.p_value == pytest.approx(2 / 2**2)  # 2 answers differ, both the same way


def test_images_are_found_under_their_other_names(tmp_path: Path) -> None:
    """Catches: a copy of COCO or converted files reported as missing; the exact name ignored."""
    stored = [
        "COCO_val2014_000000000001.png",
        "000000000002.jpeg",
        "a.png",
        "b.jpg",
        "b.png",
        "seen/c.jpg",
        "other.jpg",
    ]
    (tmp_path / "seen").mkdir()
    for name in stored:
        (tmp_path / name).write_bytes(name.encode())
    names = ["1", "COCO_val2014_000000000002.jpg", "a.jpg", "b.png", "seen/c", "d"]
    images = image_bytes(tmp_path, [*names, "1"], aliases={"d": ["", "other.jpg"]})
    files = [*stored[:3], "b.png", "seen/c.jpg", "other.jpg"]
    assert images == {name: file.encode() for name, file in zip(names, files, strict=True)}


def test_missing_images_are_one_error(tmp_path: Path) -> None:
    """Catches: an error per image, an endless list, repeats counted as images."""
    (tmp_path / "0.jpg").write_bytes(b"0")
    (tmp_path / "8.jpg").mkdir()
    names = [f"{number}.jpg" for number in range(9)]
    with pytest.raises(
        DataError,
        match=r"8 of 9 images are missing: 1\.jpg, 2\.jpg, 3\.jpg, 4\.jpg, 5\.jpg, \.\.\.",
    ) as error:
        find_images(tmp_path, names * 2)
    assert str(tmp_path) in str(error.value) and "6.jpg" not in str(error.value)
    with pytest.raises(DataError, match=r"1 of 2 images are missing: 1\.jpg$"):
        find_images(tmp_path, names[:2])


@pytest.mark.parametrize("folder", ["", "/nowhere"])
def test_no_folder_of_images(folder: str) -> None:
    """Catches: images looked for in the current folder."""
    with pytest.raises(DataError, match="no such folder"):
        find_images(folder, ["a.jpg"])


@pytest.mark.parametrize("name", ["../secret.jpg", "in/../../secret", "/etc/passwd"])
def test_names_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    """Catches: a downloaded question file that has any file of the machine sent to a judge."""
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "images" / "in").mkdir(parents=True)
    with pytest.raises(DataError, match="leads out of the folder"):
        image_bytes(tmp_path / "images", [name])
    with pytest.raises(DataError, match="leads out of the folder"):
        image_bytes(tmp_path / "images", ["a"], aliases={"a": [name]})


@pytest.mark.parametrize("name", ["", "\0", "x" * 5000, "."])
def test_impossible_names_are_missing(tmp_path: Path, name: str) -> None:
    """Catches: an OSError or ValueError instead of the list of missing images."""
    with pytest.raises(DataError, match="1 of 1 images are missing"):
        find_images(tmp_path, [name])


@pytest.mark.parametrize(
    ("files", "groups"),
    [
        (
            ["gqa_pope_popular.json", "gqa_pope_random.json"],
            ["gqa_pope_random", "gqa_pope_popular"],
        ),
        (["output/coco/coco_pope_random.json", "output/coco/x_log.json"], ["random"]),
        (["aokvqa_pope_seem_adversarial.jsonl"], ["aokvqa_pope_seem_adversarial"]),
        (
            ["gqa_pope_random.json", "coco_pope_random.json", "coco_pope_adversarial.json"],
            ["random", "adversarial", "gqa_pope_random"],
        ),
    ],
)
def test_question_files_of_other_datasets(tmp_path: Path, files: list[str], groups: list[str]):
    """Catches: a repository's folder that is not found; the same number in two datasets taken for
    one question.
    """
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(lines(RANDOM))
    benchmark = POPE(POPEConfig(str(tmp_path)), decoding={})
    found = list(dict.fromkeys(question.group for question in benchmark.questions))
    assert found == groups
    assert len({question.id for question in benchmark.questions}) == len(benchmark.questions)


def test_answers_are_scored_without_pictures(folder: Path) -> None:
    """Catches: pictures demanded where only text is scored; such scores compared with others."""
    config = POPEConfig(str(folder))
    without = POPE(config, decoding={"temperature": 0.0})
    answers = [Answer(prompt.id, prompt.question, "yes") for prompt in without.prompts]
    assert not without.has_images and pope(folder).has_images
    blind, seen = without.score(answers, {}), pope(folder).score(answers, {})
    assert blind.rates() == seen.rates()
    assert blind.manifest["images"] == "not given" and "images" not in seen.manifest
    with pytest.raises(DataError, match="they differ in images, prompts"):
        compare(blind, seen)
