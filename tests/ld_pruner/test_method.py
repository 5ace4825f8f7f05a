"""From scores to a plan: k, nesting, iteration, costs."""

from dataclasses import replace

import pytest
import torch

from common.plans import apply_plan
from ld_pruner.costs import operator_costs
from ld_pruner.method import LDPruner, choose
from ld_pruner.operators import list_operators

METHOD = LDPruner(
    k=4,
    kinds=("resnet", "transformer", "transformer_block", "attention", "downsampler", "upsampler"),
    exclude=(),
    residual="identity",
    nested="count",
    initial_weights="slice",
    formula="sum",
    squared=False,
    correction=0,
    scoring="screened",
    screen_rows=4,
    rows=16,
    selection="oneshot",
    every=2,
    score_per="none",
    seed=0,
)


def make(teacher, calibration, tmp_path=None, **changes):
    return replace(METHOD, **changes).plan(teacher.denoiser, calibration, "tiny", tmp_path)


def test_the_k_lowest_of_the_exact_scores(tiny_teacher, tiny_calibration):
    exact = make(tiny_teacher, tiny_calibration, scoring="exact")
    assert len(exact.scores) == len(list_operators(tiny_teacher.denoiser, METHOD.kinds))
    lowest = set(sorted(exact.scores, key=exact.scores.get)[:4])
    assert {edit.site for edit in exact.edits} == lowest
    assert {edit.site for edit in make(tiny_teacher, tiny_calibration).edits} == lowest
    assert all(edit.score == exact.scores[edit.site] for edit in exact.edits)


def test_scores_are_shared_by_a_sweep_over_k(tiny_teacher, tiny_calibration, tmp_path):
    few = make(tiny_teacher, tiny_calibration, tmp_path, k=2)
    (file,) = tmp_path.glob("*.json")
    more = make(tiny_teacher, tiny_calibration, tmp_path, k=6)
    assert [*tmp_path.glob("*.json")] == [file]
    assert {edit.site for edit in few.edits} < {edit.site for edit in more.edits}
    make(tiny_teacher, tiny_calibration, tmp_path, formula="std_only")
    assert len([*tmp_path.glob("*.json")]) == 2


def test_choose_counts_nested_operators_or_skips_them():
    ranked = ["a.b.c", "a.b", "d", "a.b.e", "f"]
    assert choose(ranked, 3, "count") == ["a.b.c", "a.b", "d"]
    # a.b swallows a.b.c, and a.b.e is inside a.b
    assert choose(ranked, 3, "skip") == ["a.b.c", "a.b", "d", "f"]
    assert choose(ranked, 0, "count") == []


def test_skip_edits_k_separate_places(tiny_teacher, tiny_calibration):
    plan = make(tiny_teacher, tiny_calibration, nested="skip", k=8)
    sites = {edit.site for edit in plan.edits}
    outermost = [site for site in sites if not any(site.startswith(f"{other}.") for other in sites)]
    assert len(outermost) == 8


def test_iterative_scores_the_network_that_is_left(tiny_teacher, tiny_calibration, tmp_path):
    once = make(tiny_teacher, tiny_calibration, scoring="exact")
    iterated = make(tiny_teacher, tiny_calibration, tmp_path, selection="iterative", scoring="exact")
    assert len(iterated.edits) == 4 and len([*tmp_path.glob("*.json")]) == 2
    first_two = sorted(once.scores, key=once.scores.get)[:2]
    assert set(first_two) <= {edit.site for edit in iterated.edits}
    later = [edit for edit in iterated.edits if edit.site not in first_two]
    assert all(edit.score != pytest.approx(once.scores[edit.site], rel=1e-6) for edit in later)


def test_costs_change_the_ranking(tiny_teacher, tiny_calibration):
    unet = tiny_teacher.denoiser
    operators = list_operators(unet, METHOD.kinds)
    plan = make(tiny_teacher, tiny_calibration, scoring="exact", score_per="parameters")
    costs = operator_costs(unet, operators, "parameters")
    expected = set(sorted(plan.scores, key=lambda site: plan.scores[site] / costs[site])[:4])
    assert {edit.site for edit in plan.edits} == expected
    macs, times = (operator_costs(unet, operators, unit) for unit in ("macs", "milliseconds"))
    assert macs["up_blocks.1.attentions.0"] > macs["up_blocks.1.attentions.0.transformer_blocks.0.attn1"] > 0
    assert all(value > 0 for value in times.values())
    with pytest.raises(ValueError, match="none, parameters, macs, milliseconds"):
        operator_costs(unet, operators, "watts")


@pytest.mark.parametrize("choice", ["random", "identity", "slice", "least_squares"])
def test_every_initialisation_gives_a_working_student(tiny_teacher, tiny_calibration, choice):
    plan = make(tiny_teacher, tiny_calibration, kinds=("resnet",), k=22, initial_weights=choice)
    student = apply_plan(tiny_teacher.denoiser, plan)
    with torch.no_grad():
        output = student(torch.zeros(1, 4, 8, 8), torch.tensor([5]), encoder_hidden_states=torch.zeros(1, 12, 16)).sample
    assert output.isfinite().all()
    assert sum(p.numel() for p in student.parameters()) < sum(p.numel() for p in tiny_teacher.denoiser.parameters())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"k": 1000}, r"k=1000: this U-Net has \d+ removable operators"),
        ({"k": -1}, "from 0 to"),
        ({"nested": "maybe"}, "count"),
        ({"selection": "greedy"}, "oneshot"),
        ({"scoring": "fast"}, "screened"),
        ({"initial_weights": "ones"}, "least_squares"),
    ],
)
def test_bad_settings_are_told_in_one_line(tiny_teacher, tiny_calibration, changes, expected):
    with pytest.raises(ValueError, match=expected) as caught:
        make(tiny_teacher, tiny_calibration, **changes)
    assert "\n" not in str(caught.value)
