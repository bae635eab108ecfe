"""Recorded verdicts and their replay."""

import json
from pathlib import Path

import pytest

from eval.judge.records import OracleJudge, ReplayJudge, verdict_rows
from rlhfv_ray.endpoint.records import Reply, Request
from rlhfv_ray.errors import DataError, JudgeError


def test_replay_gives_what_was_recorded_for_the_same_text(tmp_path: Path) -> None:
    """Catches: an old verdict on a new answer, or on the same answer judged by another prompt."""
    requests = [Request("1", "a"), Request("2", "b")]
    verdicts = {
        "1": [Reply("ok", "Rating: 3", "m"), Reply("ok", "Rating: 5", "m")],
        "2": [Reply("refused")],
    }
    path = tmp_path / "verdicts.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in verdict_rows(requests, verdicts)))
    judge = ReplayJudge(path)
    assert [judge.votes(request) for request in requests] == [2, 1]
    assert [judge(Request("1", "a", vote=vote)) for vote in range(2)] == verdicts["1"]
    assert judge(requests[1]) == Reply("refused")
    for changed in (
        Request("1", "A"),
        Request("1", "a", system="s"),
        Request("1", "a", schema="{}"),
    ):
        with pytest.raises(JudgeError, match="no recorded verdict"):
            judge(changed)
        with pytest.raises(JudgeError, match="no recorded verdict"):
            judge.votes(changed)
    path.write_text('{"id": "1"}')
    with pytest.raises(DataError, match=r"is no verdicts\.jsonl"):
        ReplayJudge(path)


def test_rows_keep_their_format() -> None:
    """Catches: a renamed field, after which verdicts of earlier evaluations cannot be replayed."""
    rows = verdict_rows([Request("1", "a")], {"1": [Reply("ok", "Rating: 3", "m", "f", 2, 10)]})
    verdict = {
        "status": "ok",
        "text": "Rating: 3",
        "model": "m",
        "fingerprint": "f",
        "tokens_in": 2,
        "tokens_out": 10,
    }
    assert rows == [{"id": "1", "asked": "23c731cae37af9a5", "verdicts": [verdict]}]


def test_an_oracle_gives_one_verdict() -> None:
    judge = OracleJudge(lambda request: f"truth about {request.text}")
    assert judge.votes(Request("1", "a")) == 1
    assert judge(Request("1", "a")) == Reply("ok", "truth about a", "oracle")


def test_replies_of_the_release_are_matched_by_place(tmp_path: Path) -> None:
    """Catches: reviews that were paid for and cannot be used; replies given to other answers."""
    mmhal = [
        {"id": "x", "model": "gpt-4", "choices": [{"message": {"content": f"Rating: {number}"}}]}
        for number in (4, 1)
    ]
    llava = [{"question_id": place, "content": f"8 {place}", "tuple": [8, 1]} for place in (1, 2)]
    requests = [Request("model/a", "first"), Request("model/b", "second")]
    for rows, texts in ((mmhal, ["Rating: 4", "Rating: 1"]), (llava, ["8 1", "8 2"])):
        path = tmp_path / "reviews"
        for text in (json.dumps(rows), "\n".join(map(json.dumps, rows))):
            path.write_text(text)
            judge = ReplayJudge(path)
            judge.match(requests)
            assert [judge(request).text for request in requests] == texts
            with pytest.raises(DataError, match="has 2 replies, and there are 1 answers"):
                ReplayJudge(path).match(requests[:1])
    for content in (None, ["Rating: 4"]):
        path.write_text(json.dumps([{"choices": [{"message": {"content": content}}]}]))
        with pytest.raises(DataError, match="no file of a judge's replies"):
            ReplayJudge(path)


def test_object_halbench_s_file_is_replayed_by_image(tmp_path: Path) -> None:
    """Catches: extractions that were paid for and cannot be used; short answers that shift them."""
    path = tmp_path / "hall_answers_-1.json"
    sentences = [
        {"image_id": image, "caption": "x", "mscoco_generated_words": [], "words": [word]}
        for image, word in ((42, "dog"), (7, "cat"), (60623, "car"))
    ]
    record = {"sentences": sentences, "overall_metrics": {"all_gpt_used_tokens": {"total": 9}}}
    path.write_text(json.dumps(record, indent=4))
    judge = ReplayJudge(path)
    requests = [Request("model/60623", "a"), Request("model/42", "b")]  # 7's answer is short
    judge.match(requests)
    assert [judge(request).text for request in requests] == ['["car"]', '["dog"]']
    with pytest.raises(JudgeError, match="no recorded verdict on this answer 'model/5'"):
        judge(Request("model/5", "c"))
    record["overall_metrics"]["all_gpt_used_tokens"] = {}
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match="without a judge"):
        ReplayJudge(path)
