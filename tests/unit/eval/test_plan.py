"""The models that an evaluation names."""

from pathlib import Path

from eval.config import EvalConfig
from eval.plan import Evaluation, candidates_of


def test_only_checkpoints_are_folders():
    """Catches: an address of a server that is read as one of a bucket, after all calls are paid."""
    addresses = ("http://host/v1?api-version=2", "http://host/model")
    servers = [f"api:{name}@{address}" for name, address in zip("ab", addresses, strict=True)]
    config = EvalConfig(model=("shapes", *servers))
    evaluation = Evaluation(candidates_of(config), (), config, Path("runs"), (), {}, {})
    assert evaluation.checkpoints == {"shapes": "shapes"}
    assert [*evaluation.paths.values()] == ["shapes", *servers]
