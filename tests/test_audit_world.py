"""The audit of the shapes world finds what it looks for."""

from rlhfv_ray.shapes.captions import caption
from rlhfv_ray.shapes.scenes import Group, Scene
from tests.audit_world import classifiers, one_sided, structure, truth
from tests.conftest import careless_pairs

STAR, MOON = Group(1, "red", "star", "top left"), Group(2, "red", "moon", "top right")


def test_classifiers_tell_one_sided_corrections():
    """Catches: an audit that finds nothing in the biased world, where texts tell nearly all."""
    pairs = {seed: careless_pairs(120)[40 * seed : 40 * (seed + 1)] for seed in range(3)}
    shares = [float(share) for _, share in classifiers(pairs)]
    assert len(shares) == 3 and min(shares) > 70
    rows = dict(one_sided(pairs))
    more, fewer = map(int, rows["typical: chosen more, fewer"].split(", "))
    assert more == 0 and fewer > 60


def test_structure_by_hand():
    """Catches: a property that is read from another phrase; a repeat that is not counted."""
    found = structure(caption("beach", [STAR, MOON, STAR]))
    assert found["star"] == 2 and found["star red"] == 2 and found["beach: moon"] == 1
    assert found["shape: star star"] == 1 and found["shape: moon star"] == 2
    assert found["the same colour"] == 3 and found["3 phrases"] == 1


def test_truth_by_hand():
    """Catches: a chosen answer that counts as whole because it has no mistake."""
    (pair,) = careless_pairs(1)
    scene = Scene(0, "beach", (STAR, MOON))
    one, both = caption("beach", [STAR]), caption("beach", [STAR, MOON])
    wrong = caption("beach", [MOON, Group(1, "blue", "star", "top left")])
    pairs = [
        type(pair)(pair.id, b"", "?", chosen, rejected)
        for chosen, rejected in ((both, one), (one, wrong))
    ]
    assert truth(pairs, {pair.id: scene}) == (0.5, 0.0, 0.5)
