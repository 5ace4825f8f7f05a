"""Fast scores equal the plain loop's, and a killed scoring goes on where it was."""

import json

import pytest

from benchmarks.scoring import plain_scores
from common.score_file import ScoreFile
from ld_pruner import list_operators
from ld_pruner.initial_weights import initial_weights
from ld_pruner.scoring import LatentScorer

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
    fast = scorer(setting).score(operators, 0, "exact", ScoreFile(), free(operators), 4, 0)
    assert fast.keys() == plain.keys()
    for site, score in plain.items():
        assert fast[site] == pytest.approx(score, rel=1e-3), site


@pytest.mark.parametrize("k", [1, 5])
def test_screened_finds_the_same_lowest_with_less_work(setting, k):
    operators = setting[2]
    exact = scorer(setting).score(operators, 0, "exact", ScoreFile(), free(operators), 4, 0)
    file = ScoreFile()
    found = scorer(setting).score(operators, k, "screened", file, free(operators), 4, 0)
    assert sorted(found, key=found.get)[:k] == sorted(exact, key=exact.get)[:k]
    scored = sum(len(values) for values in file.parts.values())
    assert scored < 3 * len(operators), "every operator was scored under every condition"


def test_a_misleading_screen_costs_time_but_changes_nothing(setting):
    operators = setting[2]
    exact = scorer(setting).score(operators, 0, "exact", ScoreFile(), free(operators), 4, 0)
    backwards = ScoreFile(screen={site: -score for site, score in exact.items()})
    found = scorer(setting).score(operators, 5, "screened", backwards, free(operators), 4, 0)
    assert sorted(found, key=found.get)[:5] == sorted(exact, key=exact.get)[:5]


def test_killed_scoring_goes_on(setting, tmp_path):
    operators = setting[2]
    whole = scorer(setting).score(operators, 5, "screened", ScoreFile(), free(operators), 4, 0)

    class Killed(Exception):
        pass

    calls = []

    def die(count):
        calls.append(count)
        if len(calls) == 3:
            raise Killed

    path = tmp_path / "scores.json"
    with pytest.raises(Killed):
        scorer(setting).score(operators, 5, "screened", ScoreFile.open(path), free(operators), 4, 0, report=die)
    known = json.loads(path.read_text())
    assert len(known["parts"]) >= 3 and len(known["screen"]) == len(operators)
    second = scorer(setting)
    computed = []
    original = second.score_pairs
    second.score_pairs = lambda group, chosen: computed.extend(o.site for o in group) or original(group, chosen)
    resumed = second.score(operators, 5, "screened", ScoreFile.open(path), free(operators), 4, 0)
    complete = {site for site, values in known["parts"].items() if len(values) == 3}
    assert complete and not complete & set(computed)
    assert sorted(resumed, key=resumed.get)[:5] == sorted(whole, key=whole.get)[:5]
    for site in sorted(whole, key=whole.get)[:5]:
        assert resumed[site] == pytest.approx(whole[site], rel=1e-4)


def test_damaged_score_file_is_named(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text('{"parts": {')
    with pytest.raises(ValueError, match=r"scores\.json is damaged"):
        ScoreFile.open(path)
