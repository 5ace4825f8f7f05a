"""Fast scores equal the plain loop's, whatever else ran, and a killed scoring goes on where it was."""

import json
from zlib import crc32

import pytest
import torch

from common.models.loading import load_teacher
from common.scoring.score_file import ScoreFile
from ld_pruner import list_operators
from ld_pruner.algorithm import operator_scores
from ld_pruner.initial_weights import initial_weights
from ld_pruner.scoring import LatentScorer, Passes

SMALL = ("resnet", "transformer", "downsampler", "upsampler")


@pytest.fixture(scope="module")
def setting(tiny_teacher_folder):
    from common.scoring.calibration import build_calibration

    teacher = load_teacher(str(tiny_teacher_folder))
    captions = ["a red apple, noto style", "a teddy bear, fluent style", "a flag of france, openmoji style"]
    conditions, empty = teacher.encode_captions(captions), teacher.null_condition()
    sizes = {"num_conditions": 3, "samples": 2, "steps": 2, "guidance_scale": 2.0, "seed": 0}
    calibration = build_calibration(conditions, empty, teacher.latent_shape, teacher.scheduler, **sizes)
    operators = list_operators(teacher.denoiser, SMALL)
    return teacher.denoiser, calibration, operators, initial_weights(teacher.denoiser, operators, "slice", None, seed=0)


def scorer(setting):
    unet, calibration, _, tensors = setting
    return LatentScorer(unet, calibration, tensors, rows=8)


def free(operators):
    return {operator.site: 1.0 for operator in operators}


def lowest(scores, k=5):
    return sorted(scores, key=scores.get)[:k]


@pytest.fixture(scope="module")
def exact(setting):
    """Scores under each condition, by the network."""
    file = ScoreFile()
    scorer(setting).score(setting[2], 0, "exact", file, free(setting[2]))
    return file.parts


class Table(LatentScorer):
    """Gives the known scores, changed in their last digits by whoever shares the pass, and keeps what it was asked for."""

    def __init__(self, setting, exact, change=lambda parts: parts):
        super().__init__(setting[0], setting[1], setting[3], rows=8)
        self.originals, self.exact, self.asked = torch.empty(0), {site: change(parts) for site, parts in exact.items()}, []

    def score_pairs(self, operators, chosen):
        sites = [operator.site for operator in operators]
        self.asked += [(site, condition) for site in sites for condition in range(chosen.start, chosen.stop)]
        shared = 1 + crc32(repr((sites, chosen)).encode()) / 2**52
        return torch.tensor([self.exact[site][chosen] for site in sites], dtype=torch.float64) * shared


def test_exact_equals_the_plain_loop(setting, exact):
    plain = operator_scores(*setting[:4])
    assert exact.keys() == plain.keys()
    for site, score in plain.items():
        assert sum(exact[site]) == pytest.approx(score, rel=1e-3), site


def test_screened_finds_the_same_scores_with_less_work(setting, exact):
    """To the last bit, though they were computed beside fewer others."""
    file, operators = ScoreFile(), setting[2]
    found = scorer(setting).score(operators, 5, "screened", file, free(operators))
    assert lowest(found) == lowest({site: sum(parts) for site, parts in exact.items()})
    assert all(parts == exact[site][: len(parts)] for site, parts in file.parts.items())
    assert sum(len(parts) for parts in file.parts.values()) < 3 * len(operators), "every operator under every condition"


@pytest.mark.parametrize("k", [1, 5, 12])
def test_a_misleading_first_condition_costs_time_but_changes_nothing(setting, exact, k):
    def backwards(parts):
        return [1 / parts[0], *parts[1:]]

    costs = free(setting[2])
    whole = Table(setting, exact, backwards).score(setting[2], 0, "exact", ScoreFile(), costs)
    found = Table(setting, exact, backwards).score(setting[2], k, "screened", ScoreFile(), costs)
    assert lowest(found, k) == lowest(whole, k) and found.items() <= whole.items()


@pytest.mark.parametrize("before", [[2], [12, 2], [0]], ids=["fewer", "more, then fewer", "all"])
def test_a_score_does_not_depend_on_what_else_ran(setting, exact, before):
    """To the last bit; and the same operators have one."""
    operators, file, costs = setting[2], ScoreFile(), free(setting[2])
    alone = Table(setting, exact).score(operators, 5, "screened", ScoreFile(), costs)
    for k in before:
        Table(setting, exact).score(operators, k, "screened" if k else "exact", file, costs)
    again = Table(setting, exact)
    assert again.score(operators, 5, "screened", file, costs) == alone
    assert len(again.asked) < 3 * len(operators) and (before == [2] or not again.asked)


def test_a_score_does_not_depend_on_the_number_of_processes(setting, exact, monkeypatch):
    operators, files = setting[2], [ScoreFile(), ScoreFile()]
    alone = Table(setting, exact).score(operators, 5, "screened", files[0], free(operators))
    monkeypatch.setattr("ld_pruner.scoring.process_count", lambda: 3)  # their passes are computed here one after the other
    assert Table(setting, exact).score(operators, 5, "screened", files[1], free(operators)) == alone
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


def test_killed_scoring_goes_on(setting, exact, tmp_path):
    operators, costs = setting[2], free(setting[2])
    whole = Table(setting, exact).score(operators, 5, "screened", ScoreFile(), costs)

    class Killed(Exception):
        pass

    calls = []

    def die(count):
        calls.append(count)
        if len(calls) == 3:
            raise Killed

    path = tmp_path / "scores.json"
    with pytest.raises(Killed):
        Table(setting, exact).score(operators, 5, "screened", ScoreFile.open(path), costs, report=die)
    known = json.loads(path.read_text())["parts"]
    assert len(known) >= 3
    second = Table(setting, exact)
    assert second.score(operators, 5, "screened", ScoreFile.open(path), costs) == whole
    assert not {(site, condition) for site, parts in known.items() for condition in range(len(parts))} & set(second.asked)


def test_damaged_score_file_is_named(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text('{"parts": {')
    with pytest.raises(ValueError, match=r"scores\.json is damaged"):
        ScoreFile.open(path)
