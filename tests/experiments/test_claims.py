"""Claims against rows: what holds, what does not, what nobody can tell."""

import argparse
import json
import statistics

import pytest

from common.errors import InputError
from common.metrics.jackknife import Estimate
from experiments import claims
from experiments.claims import EQUAL, FAILS, HOLDS, OPEN, UNKNOWN, Evidence, check, check_claim, summary, verdict
from experiments.reporting.comparison import Measured, SeedNoise
from experiments.reporting.lookup import find, find_all
from experiments.reporting.rows import read_rows
from tests.experiments.test_collect import job

DISTANCES = {"x/table/a": 1600.0, "x/table/b": 2000.0, "t2i/seeds/0": 1600.0, "t2i/seeds/1": 1616.0, "t2i/seeds/2": 1608.0}


@pytest.fixture
def results(tmp_path):
    """Published rows of two experiments: one of a good and a bad method, and seeds that differ by about 1 % in distance."""
    for name, distance in DISTANCES.items():
        method = {"x/table/a": "good", "x/table/b": "bad"}.get(name, "s")
        row = job(tmp_path / "jobs" / name, method)
        row["models"]["distilled"]["fd_effnet"] = distance
        row["settings"]["method"]["name"] = method
        row["settings"]["seed"] = int(name[-1]) if name[-1].isdigit() else 0
        rows = (tmp_path / "results" / name).parent / "rows.jsonl"
        rows.parent.mkdir(parents=True, exist_ok=True)
        with rows.open("a") as file:
            file.write(json.dumps(row) + "\n")
    return tmp_path / "results"


class Seeds:
    """A SeedNoise by which 95 % of a figure lie within `share` of it."""

    def __init__(self, share):
        self.share = share

    def half_width(self, each, metric):
        return self.share * each.estimate.value if each.model else 0.0


def told(check, values, metric="distance", share=0.0):
    return verdict(check, [Measured(Estimate(value), model="distilled") for value in values], metric, Seeds(share))[0]


def test_the_order_of_two_values_and_the_noise():
    order = {"order": [{}, {}]}
    assert told(order, [1000, 1100], share=0.01) == HOLDS
    assert told(order, [1000, 1005], share=0.05) == OPEN
    assert told(order, [1000, 1005], share=0.01) == EQUAL  # within a twentieth at any rate
    assert told(order, [0.5, 0.48], "caption_retrieval", 0.03) == EQUAL  # five points
    assert told(order, [0.03, 0.02], "caption_retrieval", 0.5) == EQUAL
    assert told(order, [0.67, 0.665], "within", 0.01) == EQUAL and told(order, [0.67, 0.5], "within", 0.01) == HOLDS
    assert told(order, [20.0, 20.01], "pickscore", 0.01) == OPEN  # of which nobody has said what is nothing
    assert told({"order": [{}, {}, {}]}, [1000, 1005, 1500], share=0.01) == EQUAL
    assert told(order, [1100, 1000], share=0.01) == FAILS
    assert told(order, [0.5, 0.3], "caption_retrieval", 0.01) == HOLDS
    assert told(order, [0.0, 0.0], "pickscore") == OPEN
    between = {"value": {}, "from": 0.9, "to": 1.1}
    assert told(between, [1.0], "time") == HOLDS and told(between, [2.0], "time") == FAILS
    assert told(between, [2.0, 2.0], "time") == HOLDS
    assert told(between, [1.12], share=0.05) == OPEN  # its interval holds a bound
    assert told(between, [1.0, 0.0]) == FAILS
    below = {"value": {}, "from": float("-inf"), "to": 1, "margin": 0.02}
    assert [told(below, [a, 0.9], "within") for a in (-0.1, 0.85, 0.89, 0.95)] == [HOLDS, HOLDS, OPEN, FAILS]
    equal = Measured(Estimate(1.0, (1.0, 1.0)))
    assert verdict(order, [equal, equal], "distance", Seeds(0.3)) == (EQUAL, 0.0)
    better, three = Measured(Estimate(0.1, (0.1, 0.1))), {"order": [{}, {}, {}]}
    assert verdict(three, [equal, equal, better], "distance", Seeds(0.0))[0] == FAILS
    assert summary([HOLDS, HOLDS]) == HOLDS and summary([HOLDS, FAILS]) == "1 holds, 1 does not hold"
    assert summary([HOLDS, UNKNOWN]) == "1 holds, 1 not measured"


def test_samples_of_equal_seeds_decide_in_pairs():
    """Two figures whose own intervals overlap widely, and differ by the same in every group of samples."""
    groups = [float(number % 7) for number in range(20)]
    one, other = (Measured(Estimate(3.0 + by, tuple(value + by for value in groups)), 1, "distilled") for by in (0.0, 0.01))
    assert one.estimate.half_width > 1
    order = {"order": [{}, {}]}
    assert verdict(order, [one, other], "latent_mse", Seeds(0.0))[0] == HOLDS
    assert verdict(order, [one, other], "latent_mse", Seeds(0.1))[0] == OPEN
    decided, seen = verdict({"value": {}, "from": 0.0, "to": 3.5}, [one], "latent_mse", Seeds(0.0))
    assert decided == OPEN and seen == pytest.approx(one.estimate.half_width / 3)


def test_noise_is_what_seeds_differ_by(results):
    seeds = SeedNoise(read_rows([results]))
    deviation, degrees = seeds.of("distance")
    assert degrees == 2 and deviation == pytest.approx(statistics.stdev([1600, 1616, 1608]))
    assert seeds.of("distance", "pruned") == (0.0, 2) and seeds.of("nothing") == (0.0, 0)
    for figure in (20.0, 2000.0):  # as much, whatever the figure
        three = Measured(Estimate(figure), seeds=3, model="distilled")
        assert seeds.half_width(three, "distance") == pytest.approx(4.302653 * deviation / 3**0.5, rel=1e-6)
    assert seeds.half_width(Measured(Estimate(2000.0)), "distance") == 0.0


def test_rows_that_differ_in_their_seed_are_averaged(results):
    rows = read_rows([results / "t2i" / "seeds"])
    assert find(rows, {"method": "s"})["distance"] == pytest.approx(1608)
    assert [each["distance"] for each in find_all(rows, {"method": "s"})] == [1600.0, 1616.0, 1608.0]
    with pytest.raises(InputError, match="means 4 rows"):
        find_all([*rows, rows[0]], {"method": "s"})


def test_a_claim_is_checked_against_its_rows(results):
    (results / "x" / "some.json").write_text(json.dumps({"a": {"b": 0.95}}))
    claim = {"claim": "good is better", "published": "p", "experiments": ["x/table"], "file": "x/some.json"}
    evidence = Evidence(results)
    checks = {
        HOLDS: {"metric": "distance", "order": [{"method": "good"}, {"method": "bad"}]},
        FAILS: {"metric": "distance", "order": [{"method": "bad"}, {"method": "good"}]},
        EQUAL: {"metric": "distance", "order": [{"method": "good"}, {"method": "good"}]},
        UNKNOWN: {"metric": "distance", "order": [{"method": "good"}, {"method": "absent"}]},
    }
    for expected, one in checks.items():
        assert check_claim({**claim, "checks": [one]}, evidence)[1] == [expected]
    several = {
        "each": [{"method": "good"}, {"method": "bad"}],
        "metric": "distance",
        "value": {},
        "against": {"model": "teacher"},
        "from": 1,
        "to": 1.1,
    }
    texts, verdicts = check_claim({**claim, "checks": [several]}, evidence)
    assert verdicts == [HOLDS, FAILS] and texts[0] == "distance, good: **1600**; teacher **1500** (2.2 % would be seen)"
    assert texts[1] == "distance, bad: **2000**; teacher **1500** (does not hold; 1.7 % would be seen)"
    nothing = {
        "order": [{"method": "good"}, {"method": "bad"}]
    }  # by how far they are from the teacher, which these do not hold
    assert check_claim({**claim, "checks": [nothing]}, evidence)[1] == [UNKNOWN]
    number = {"value": {"path": "a"}, "metric": "b", "from": 0.9, "to": 1}
    assert check_claim({**claim, "checks": [number]}, evidence)[1] == [HOLDS]


def test_the_page(results, capsys, monkeypatch):
    claimed = [
        {
            "claim": "good is better",
            "published": "p",
            "experiments": ["x/table"],
            "checks": [{"metric": "distance", "order": [{"method": "good"}, {"method": "bad"}]}],
        }
    ]
    monkeypatch.setattr(claims, "read_claims", lambda: claimed)
    check(argparse.Namespace(results=results))
    text = (results / "claims.md").read_text()
    assert (
        "| 1 | good is better | p | distance: good **1600**; bad **2000** (2.4 % would be seen) | **holds** | "
        "[x/table](x/table/README.md) |" in text
    )
    assert (
        "- t2i, 1 jobs with several seeds: distance 8" in text
        and "1 of 1 comparisons are decided" in text
        and "1 of 1 claims measured" in capsys.readouterr().out
    )
    assert "faults.md" not in text
    (results / "faults.md").touch()
    check(argparse.Namespace(results=results))
    assert all("[faults.md](faults.md)" in (results / name).read_text() for name in ("claims.md", "README.md"))


def test_rows_of_other_protocols_are_not_compared(results):
    path = results / "x" / "table" / "rows.jsonl"
    first, second = map(json.loads, path.read_text().splitlines())
    second["protocol"]["images"] += 1
    path.write_text(json.dumps(first) + "\n" + json.dumps(second) + "\n")
    claim = {
        "claim": "good is better",
        "experiments": ["x/table"],
        "checks": [{"metric": "distance", "order": [{"method": "good"}, {"method": "bad"}]}],
    }
    with pytest.raises(InputError, match="differ in teacher, data or protocol: 'good is better'"):
        check_claim(claim, Evidence(results))


def test_without_seeds_nothing_is_told(results, capsys):
    path = results / "t2i" / "seeds" / "rows.jsonl"
    path.write_text(path.read_text().splitlines()[0])
    with pytest.raises(SystemExit):
        check(argparse.Namespace(results=results))
    assert capsys.readouterr().err.count("publish experiment=seeds") == 1


def test_methods_that_draw_their_layers_tell_of_each_other_alone(tmp_path):
    """With each seed they remove other layers: by 20 % here, where a method that chooses varies by 1 %."""
    values = {"good": ("x.Chosen", 100.0, 101.0), "drawn": ("baselines.random_layers.RandomLayers", 80.0, 120.0)}
    for name, (target, low, high) in values.items():
        for seed in range(5):
            row = job(tmp_path / name / str(seed), name)
            row["settings"]["method"]["_target_"] = target
            row["settings"]["seed"] = seed
            row["models"]["distilled"]["fd_effnet"] = low + (high - low) * (seed % 2)
            (tmp_path / name / str(seed) / "result.json").write_text(json.dumps(row))
    rows = read_rows([tmp_path])
    noise = SeedNoise(rows)
    (chosen, own), (drawn, other) = noise.of("fd_effnet"), noise.of("fd_effnet", varies_as="drawn by chance")
    assert own == other == 4 and chosen == pytest.approx(0.548, abs=1e-3) and drawn == pytest.approx(21.9, abs=0.1)
    few = [row for row in rows if row["settings"]["seed"] < 2]
    assert SeedNoise(few).of("fd_effnet", varies_as="drawn by chance") == SeedNoise(few).of("fd_effnet")
    assert SeedNoise(few, noise).of("fd_effnet", varies_as="drawn by chance") == (drawn, other)


def test_before_training_each_method_varies_by_what_it_draws(tmp_path):
    for name, changed in (("laptop_diff", 0.0), ("diff_pruning", 500.0)):
        for seed in range(3):
            row = job(tmp_path / name / str(seed), name)
            row["settings"]["seed"] = seed
            row["settings"]["method"]["_target_"] = name
            row["models"]["pruned"]["fd_effnet"] += changed * seed
            (tmp_path / name / str(seed) / "result.json").write_text(json.dumps(row))
    noise = SeedNoise(read_rows([tmp_path]))
    assert noise.of("fd_effnet", "pruned", "chosen by laptop_diff") == (0.0, 2)
    assert noise.of("fd_effnet", "pruned", "chosen by diff_pruning") == (500.0, 2)
    assert noise.of("fd_effnet", "pruned", "chosen by another") == (pytest.approx(500 / 2**0.5), 4)


def test_rows_run_with_several_seeds_tell_of_themselves(results):
    """Else those of their task do; a task without any has no verdict."""
    path = results / "x" / "table" / "rows.jsonl"
    good, bad = map(json.loads, path.read_text().splitlines())
    claim = {
        "claim": "good is better",
        "published": "p",
        "experiments": ["x/table"],
        "checks": [{"metric": "distance", "order": [{"method": "good"}, {"method": "bad"}]}],
    }
    of_task = Evidence(results).noise([good, bad]).of("distance")
    assert of_task == (pytest.approx(8.0), 2)
    rows = []
    for row in (good, bad):
        for seed in range(3):
            row["settings"]["seed"] = seed
            row["models"]["distilled"]["fd_effnet"] += 100
            rows.append(json.dumps(row))
    path.write_text("\n".join(rows))
    evidence = Evidence(results)
    assert evidence.noise(evidence.rows(claim)).of("distance") == (pytest.approx(100.0), 4)
    for name in ("x/table", "t2i/seeds"):
        path = results / name / "rows.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row["settings"]["task"]["name"] = {"x/table": "uag"}.get(name, "t2i")
        rows = rows[::3] if name == "x/table" else rows  # one seed
        path.write_text("\n".join(map(json.dumps, rows)))
    assert check_claim(claim, Evidence(results))[1] == [UNKNOWN]
