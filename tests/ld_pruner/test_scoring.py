"""Fast scores equal the plain loop's, and a killed scoring goes on where it was."""

import json

import pytest

from benchmarks.scoring import plain_scores
from common.score_file import ScoreFile
from ld_pruner import list_operators
from ld_pruner.initial_weights import initial_weights
from ld_pruner.scoring import LatentScorer, Passes

SMALL = ("resnet", "transformer", "downsampler", "upsampler")


@pytest.fixture
def setting(tiny_teacher, tiny_calibration):
    unet = tiny_teacher.denoiser
    operators = list_operators(unet, SMALL)
    return unet, tiny_calibration, operators, initial_weights(unet, operators, "slice", None, seed=0)


def scorer(setting):
    unet, calibration, _, tensors = setting
    return LatentScorer(unet, calibration, tensors, rows=8)


def free(operators):
    return {operator.site: 1.0 for operator in operators}


def test_exact_equals_the_plain_loop(setting):
    operators = setting[2]
    plain = plain_scores(*setting[:2], operators, setting[3])
    fast = scorer(setting).score(operators, 0, "exact", ScoreFile(), free(operators))
    assert fast.keys() == plain.keys()
    for site, score in plain.items():
        assert fast[site] == pytest.approx(score, rel=1e-3), site


@pytest.mark.parametrize("k", [1, 5])
def test_screened_finds_the_same_lowest_with_less_work(setting, k):
    operators = setting[2]
    exact = scorer(setting).score(operators, 0, "exact", ScoreFile(), free(operators))
    file = ScoreFile()
    found = scorer(setting).score(operators, k, "screened", file, free(operators))
    assert sorted(found, key=found.get)[:k] == sorted(exact, key=exact.get)[:k]
    scored = sum(len(values) for values in file.parts.values())
    assert scored < 3 * len(operators), "every operator was scored under every condition"


def test_a_misleading_first_condition_costs_time_but_changes_nothing(setting):
    operators, misled = setting[2], scorer(setting)
    original = misled.score_pairs

    def backwards(group, chosen):
        """The worst operators seem the best under the first condition."""
        found = original(group, chosen)
        if chosen.start == 0:
            found[:, 0] = 1 / found[:, 0]
        return found

    misled.score_pairs = backwards
    exact = misled.score(operators, 0, "exact", ScoreFile(), free(operators))
    found = misled.score(operators, 5, "screened", ScoreFile(), free(operators))
    assert sorted(found, key=found.get)[:5] == sorted(exact, key=exact.get)[:5]


@pytest.mark.parametrize("before", [[2], [9, 2], [0]], ids=["fewer", "more, then fewer", "exact"])
def test_a_score_does_not_depend_on_what_else_ran(setting, before):
    """To the last bit; and the same operators have one."""
    operators, file = setting[2], ScoreFile()
    alone = scorer(setting).score(operators, 5, "screened", ScoreFile(), free(operators))
    for k in before:
        scorer(setting).score(operators, k, "screened" if k else "exact", file, free(operators))
    assert scorer(setting).score(operators, 5, "screened", file, free(operators)) == alone
    exact = scorer(setting).score(operators, 0, "exact", ScoreFile(), free(operators))
    assert alone.items() < exact.items()


def test_a_score_does_not_depend_on_the_number_of_processes(setting, monkeypatch):
    operators, files = setting[2], [ScoreFile(), ScoreFile()]
    alone = scorer(setting).score(operators, 5, "screened", files[0], free(operators))
    monkeypatch.setattr("ld_pruner.scoring.process_count", lambda: 3)  # their passes are computed here one after the other
    assert scorer(setting).score(operators, 5, "screened", files[1], free(operators)) == alone
    assert files[0].parts == files[1].parts


@pytest.mark.parametrize(("conditions", "pairs"), [(1, 4), (3, 4), (8, 32), (50, 4), (7, 1), (9, 10)])
def test_passes_are_small_enough_and_complete_every_score(conditions, pairs):
    sites = [f"site {number}" for number in range(21)]
    passes, done = Passes(sites, conditions, pairs), dict.fromkeys(sites, 0)
    while coming := passes.following(sites, done, 3):
        for group, start, stop in coming:
            assert len(group) * (stop - start) <= pairs and all(done[site] == start for site in group)
            done |= dict.fromkeys(group, stop)
        if len(passes.parts) == 1 and all(done.values()):
            passes.rank({site: -number for number, site in enumerate(sites)})
    assert set(done.values()) == {conditions}


def test_killed_scoring_goes_on(setting, tmp_path):
    operators = setting[2]
    whole = scorer(setting).score(operators, 5, "screened", ScoreFile(), free(operators))

    class Killed(Exception):
        pass

    calls = []

    def die(count):
        calls.append(count)
        if len(calls) == 3:
            raise Killed

    path = tmp_path / "scores.json"
    with pytest.raises(Killed):
        scorer(setting).score(operators, 5, "screened", ScoreFile.open(path), free(operators), report=die)
    known = json.loads(path.read_text())
    assert len(known["parts"]) >= 3
    second = scorer(setting)
    computed = []
    original = second.score_pairs
    second.score_pairs = lambda group, chosen: computed.extend((o.site, chosen.start) for o in group) or original(group, chosen)
    resumed = second.score(operators, 5, "screened", ScoreFile.open(path), free(operators))
    assert not {(site, condition) for site, values in known["parts"].items() for condition in range(len(values))} & set(
        computed
    )
    assert resumed == whole


def test_damaged_score_file_is_named(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text('{"parts": {')
    with pytest.raises(ValueError, match=r"scores\.json is damaged"):
        ScoreFile.open(path)
