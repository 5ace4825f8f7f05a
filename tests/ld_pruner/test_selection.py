"""How many operators go: k of them, or a share of the parameters, counted on the student itself."""

import random

import pytest

from common.cost.macs import count_parameters
from common.pruning.plan import Plan, apply_plan
from ld_pruner.initial_weights import initial_weights
from ld_pruner.operators import list_operators
from ld_pruner.selection import Removal, choose, inside

SAVED = {"a": 60, "a.b": 20, "a.b.c": 5, "a.b.e": 10, "d": 15, "f": 0}
RANKED = ["a.b.c", "a.b", "d", "a.b.e", "f", "a"]


def test_choose_counts_nested_operators_or_skips_them():
    ranked = ["a.b.c", "a.b", "d", "a.b.e", "f"]
    assert choose(ranked, 3, "count") == ["a.b.c", "a.b", "d"]
    # a.b swallows a.b.c, and a.b.e is inside a.b
    assert choose(ranked, 3, "skip") == ["a.b.c", "a.b", "d", "f"]
    assert choose(ranked, 0, "count") == []


def test_a_site_is_inside_another_by_whole_names():
    assert inside("resnets.1.conv1", {"resnets.1"}) and inside("a.b.c", {"a"})
    assert not inside("resnets.10.conv1", {"resnets.1"}) and not inside("a.b", {"a.b", "a.b.c"})


def test_what_is_inside_another_site_is_removed_once():
    removal = Removal(SAVED, 100)
    assert removal.share(["a.b.c", "d"]) == 0.2
    assert removal.share(["a.b.c", "a.b", "d"]) == 0.35
    assert removal.share(RANKED) == 0.75
    assert removal.share([]) == 0


@pytest.mark.parametrize(
    ("ratio", "nested", "k"),
    [
        (0.05, "count", 1),
        (0.06, "count", 2),
        (0.35, "count", 3),
        (0.36, "count", 6),
        (0.35, "skip", 2),  # a.b.c goes with a.b: a.b and d are the two
        (0.36, "skip", 4),  # a.b, d and f are three; a swallows the first
    ],
)
def test_the_smallest_k_that_removes_the_share(ratio, nested, k):
    removal = Removal(SAVED, 100)
    assert removal.smallest_k(ratio, RANKED, len(RANKED), nested) == k
    assert removal.smallest_k(ratio, RANKED, k - 1, nested) is None
    assert removal.lower_bound(ratio) <= k


def test_sites_that_are_gone_already_count():
    removal = Removal(SAVED, 100)
    assert removal.smallest_k(0.35, ["a.b.c", "a.b"], 2, "count") is None
    assert removal.smallest_k(0.35, ["a.b.c", "a.b"], 2, "count", before=["d"]) == 2


def test_no_fewer_operators_than_the_largest_can_do():
    removal = Removal({"a": 50, "b": 30, "c": 10}, 100)
    assert [removal.lower_bound(ratio) for ratio in (0.5, 0.51, 0.8, 0.81)] == [1, 2, 2, 3]


@pytest.mark.parametrize("residual", ["zero", "identity"])
def test_the_share_is_what_the_student_lacks(tiny_teacher, residual):
    unet = tiny_teacher.denoiser
    operators = list_operators(unet, residual=residual)
    removal = Removal.of(unet, operators)
    draw = random.Random(0)
    for count in (1, 10, 60, len(operators)):
        chosen = draw.sample(operators, count)
        edits = sorted((operator.edit for operator in chosen), key=lambda edit: edit.site.count("."))
        tensors = initial_weights(unet, chosen, "slice", None, seed=0)
        student = apply_plan(unet, Plan("test", tuple(edits), tensors=tensors))
        lost = count_parameters(unet) - count_parameters(student)
        assert removal.share([edit.site for edit in edits]) == lost / count_parameters(unet)
