"""From scores to a plan: k, nesting, iteration, costs."""

from dataclasses import replace

import pytest
import torch

from common.cost.macs import count_parameters
from common.errors import InputError
from common.pruning.plan import apply_plan
from ld_pruner.algorithm import lowest_operators, operator_scores
from ld_pruner.costs import operator_costs
from ld_pruner.initial_weights import initial_weights
from ld_pruner.method import LDPruner
from ld_pruner.operators import list_operators
from ld_pruner.scoring import LatentScorer

METHOD = LDPruner(
    k=4,
    ratio=None,
    kinds=("resnet", "transformer", "transformer_block", "attention", "downsampler", "upsampler"),
    exclude=(),
    residual="identity",
    nested="count",
    initial_weights="slice",
    formula="sum",
    squared=False,
    correction=0,
    scoring="screened",
    weight_rows=4,
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


def test_the_plan_is_that_of_algorithm_1(tiny_teacher, tiny_calibration):
    unet = tiny_teacher.denoiser
    operators = list_operators(unet, METHOD.kinds, residual="identity")
    tensors = initial_weights(unet, operators, "slice", None, seed=0)
    scores = operator_scores(unet, tiny_calibration, operators, tensors)
    chosen = lowest_operators(scores, METHOD.k)
    assert sorted(edit.site for edit in make(tiny_teacher, tiny_calibration).edits) == sorted(chosen)


def test_scores_are_shared_by_a_sweep_over_k(tiny_teacher, tiny_calibration, tmp_path):
    few = make(tiny_teacher, tiny_calibration, tmp_path, k=2)
    (file,) = tmp_path.glob("*.json")
    more = make(tiny_teacher, tiny_calibration, tmp_path, k=6)
    assert [*tmp_path.glob("*.json")] == [file]
    assert {edit.site for edit in few.edits} < {edit.site for edit in more.edits}
    alone = make(tiny_teacher, tiny_calibration, tmp_path / "alone", k=6)
    assert (more.edits, more.scores) == (alone.edits, alone.scores)  # to the last bit
    for number, changes in enumerate([{"formula": "std_only"}, {"rows": 8}, {"kinds": ("resnet",)}], 2):
        make(tiny_teacher, tiny_calibration, tmp_path, **changes)
        assert len([*tmp_path.glob("*.json")]) == number


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
    plan = make(tiny_teacher, tiny_calibration, kinds=("resnet",), k=8, initial_weights=choice)
    student = apply_plan(tiny_teacher.denoiser, plan)
    with torch.no_grad():
        output = student(torch.zeros(1, 4, 8, 8), torch.tensor([5]), encoder_hidden_states=torch.zeros(1, 12, 16)).sample
    assert output.isfinite().all()
    assert sum(p.numel() for p in student.parameters()) < sum(p.numel() for p in tiny_teacher.denoiser.parameters())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"k": 1000}, r"k=1000: this U-Net has \d+ removable operators"),
        ({"k": -1}, "k=-1: a whole number of at least 0, or null, is needed"),
        ({"ratio": 0.5}, r"^method\.k=4, method\.ratio=0\.5, method\.budget=null: exactly one of them is needed"),
        ({"k": None}, r"^method\.k=null, method\.ratio=null, method\.budget=null: exactly one of them is needed"),
        ({"k": None, "ratio": 0}, r"method\.ratio=0: a number above 0 and below 1, or null, is needed"),
        ({"k": None, "ratio": 1.0}, r"method\.ratio=1\.0: a number above 0 and below 1"),
        ({"k": None, "ratio": "half"}, r"method\.ratio='half': a number above 0 and below 1"),
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


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A folder of scores that the tests below share: the exact ones are computed once."""
    return tmp_path_factory.mktemp("scores")


def removed(teacher, plan):
    return 1 - count_parameters(apply_plan(teacher.denoiser, plan)) / count_parameters(teacher.denoiser)


ITERATIVE = {"selection": "iterative", "scoring": "screened", "kinds": ("resnet",), "every": 4}


@pytest.mark.parametrize(
    ("ratio", "changes"),
    [
        (0.2, {}),
        (0.6, {}),
        (0.2, {"nested": "skip"}),
        (0.6, {"nested": "skip"}),
        (0.6, {"score_per": "parameters"}),
        (0.25, ITERATIVE),
    ],
    ids=str,
)
def test_the_smallest_k_that_removes_the_ratio(tiny_teacher, tiny_calibration, scored, ratio, changes):
    changes = {"scoring": "exact", **changes}
    plan = make(tiny_teacher, tiny_calibration, scored, k=None, ratio=ratio, **changes)
    k = plan.settings["k_reached"]
    assert plan.settings["ratio_reached"] >= ratio
    assert removed(tiny_teacher, plan) == pytest.approx(plan.settings["ratio_reached"], abs=1e-12)
    by_k = make(tiny_teacher, tiny_calibration, scored, k=k, **changes)
    assert by_k.edits == plan.edits
    assert (by_k.settings["k_reached"], by_k.settings["ratio_reached"]) == (k, plan.settings["ratio_reached"])
    assert removed(tiny_teacher, make(tiny_teacher, tiny_calibration, scored, k=k - 1, **changes)) < ratio


def test_k_grows_to_the_exact_lowest_and_no_score_is_computed_twice(tiny_teacher, tiny_calibration, scored, monkeypatch):
    exact = make(tiny_teacher, tiny_calibration, scored, scoring="exact", k=None, ratio=0.3)
    computed, asked = [], []
    score_pairs, score = LatentScorer.score_pairs, LatentScorer.score

    def counted_pairs(self, operators, chosen):
        conditions = range(*chosen.indices(self.calibration.shape[0]))
        computed.extend((operator.site, condition) for operator in operators for condition in conditions)
        return score_pairs(self, operators, chosen)

    def counted(self, operators, lowest, *rest):
        asked.append(lowest)
        return score(self, operators, lowest, *rest)

    monkeypatch.setattr(LatentScorer, "score_pairs", counted_pairs)
    monkeypatch.setattr(LatentScorer, "score", counted)
    found = make(tiny_teacher, tiny_calibration, k=None, ratio=0.3)
    assert {edit.site for edit in found.edits} == {edit.site for edit in exact.edits}
    assert len(asked) > 1 and asked == sorted(set(asked)), "k did not grow"
    assert len(computed) == len(set(computed))
    assert len(computed) < 3 * len(exact.scores), "every operator was scored under every condition"


def test_k_and_ratios_share_the_score_file(tiny_teacher, tiny_calibration, scored, monkeypatch):
    make(tiny_teacher, tiny_calibration, scored, scoring="exact")
    files = {*scored.glob("*.json")}
    monkeypatch.setattr(LatentScorer, "score_pairs", lambda *_: pytest.fail("computed again"))
    for ratio in (0.1, 0.4):
        make(tiny_teacher, tiny_calibration, scored, scoring="exact", k=None, ratio=ratio)
    assert {*scored.glob("*.json")} == files


@pytest.mark.parametrize("nested", ["count", "skip"])
def test_the_largest_ratio_is_told_and_can_be_had(tiny_teacher, tiny_calibration, scored, nested):
    options = {"scoring": "exact", "nested": nested, "k": None}
    with pytest.raises(InputError, match=r"^method\.ratio=0\.999: all operators together save 0\.\d+ of the param") as caught:
        make(tiny_teacher, tiny_calibration, scored, ratio=0.999, **options)
    largest = float(str(caught.value).split("save ")[1].split()[0])
    plan = make(tiny_teacher, tiny_calibration, scored, ratio=largest, **options)
    assert largest <= plan.settings["ratio_reached"] < largest + 1e-4
    with pytest.raises(InputError, match="all operators together"):
        make(tiny_teacher, tiny_calibration, scored, ratio=largest + 1e-4, **options)
