"""Claims against rows: what holds, what does not, what nobody can tell."""

import argparse
import json
import statistics

import pytest

from common.errors import InputError
from common.metrics.jackknife import Estimate
from experiments import claims
from experiments.claims import FAILS, HOLDS, OPEN, SAME, UNKNOWN, Evidence, check, check_claim, summary, verdict
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

    def half_width(self, each, metric, model="student"):
        return self.share * each.estimate.value if each.trained else 0.0


def told(check, values, metric="distance", share=0.0):
    return verdict(check, [Measured(Estimate(value)) for value in values], metric, Seeds(share), "student")[0]


def test_the_order_of_two_values_and_the_noise():
    order = {"order": [{}, {}]}
    assert told(order, [1000, 1100], share=0.01) == HOLDS
    assert told(order, [1000, 1005], share=0.01) == OPEN
    assert told(order, [1100, 1000], share=0.01) == FAILS
    assert told(order, [0.5, 0.3], "caption_retrieval", 0.01) == HOLDS
    assert told(order, [0.0, 0.0], "latent_mse") == OPEN
    between = {"value": {}, "from": 0.9, "to": 1.1}
    assert told(between, [1.0], "time") == HOLDS and told(between, [2.0], "time") == FAILS
    assert told(between, [2.0, 2.0], "time") == HOLDS
    assert told(between, [1.12], share=0.05) == OPEN  # its interval holds a bound
    assert told(between, [1.0, 0.0]) == FAILS
    below = {"value": {}, "from": float("-inf"), "to": 1, "margin": 0.02}
    assert [told(below, [a, 0.9], "within") for a in (-0.1, 0.85, 0.89, 0.95)] == [HOLDS, HOLDS, OPEN, FAILS]
    equal = Measured(Estimate(1.0, (1.0, 1.0)))
    assert verdict(order, [equal, equal], "distance", Seeds(0.3), "student") == (SAME, 0.0)
    better, three = Measured(Estimate(0.1, (0.1, 0.1))), {"order": [{}, {}, {}]}
    assert verdict(three, [equal, equal, better], "distance", Seeds(0.0), "student")[0] == FAILS
    assert summary([HOLDS, HOLDS]) == HOLDS and summary([HOLDS, FAILS]) == "1 holds, 1 does not hold"
    assert summary([HOLDS, UNKNOWN]) == "1 holds, 1 not measured"


def test_samples_of_equal_seeds_decide_in_pairs():
    """Two figures whose own intervals overlap widely, and differ by the same in every group of samples."""
    groups = [float(number % 7) for number in range(20)]
    one, other = (Measured(Estimate(3.0 + by, tuple(value + by for value in groups))) for by in (0.0, 0.01))
    assert one.estimate.half_width > 1
    order = {"order": [{}, {}]}
    assert verdict(order, [one, other], "latent_mse", Seeds(0.0), "student")[0] == HOLDS
    assert verdict(order, [one, other], "latent_mse", Seeds(0.02), "student")[0] == OPEN
    decided, seen = verdict({"value": {}, "from": 0.0, "to": 3.5}, [one], "latent_mse", Seeds(0.0), "student")
    assert decided == OPEN and seen == pytest.approx(one.estimate.half_width / 3)


def test_noise_is_what_seeds_differ_by(results):
    seeds = SeedNoise(read_rows([results]))
    share, degrees = seeds.of("distance")
    assert degrees == 2 and share == pytest.approx(statistics.stdev([1600, 1616, 1608]) / 1608)
    assert seeds.of("distance", "pruned") == (0.0, 2) and seeds.of("nothing") == (0.0, 0)
    three = Measured(Estimate(2000.0), seeds=3)
    assert seeds.half_width(three, "distance") == pytest.approx(4.302653 * share * 2000 / 3**0.5, rel=1e-6)
    assert seeds.half_width(Measured(Estimate(2000.0), trained=False), "distance") == 0.0


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
        OPEN: {"metric": "distance", "order": [{"method": "good"}, {"method": "good"}]},
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
    assert verdicts == [HOLDS, FAILS] and texts[0] == "distance, good: **1600**; teacher **1500** (2.1 % would be seen)"
    assert texts[1] == "distance, bad: **2000**; teacher **1500** (does not hold; 2.1 % would be seen)"
    nothing = {
        "order": [{"method": "good"}, {"method": "bad"}]
    }  # by how far they are from the teacher, which these do not hold
    assert check_claim({**claim, "checks": [nothing]}, evidence)[1] == [UNKNOWN]
    number = {"value": {"path": "a.b"}, "from": 0.9, "to": 1}
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
        "| 1 | good is better | p | distance: good **1600**; bad **2000** (2.7 % would be seen) | **holds** | "
        "[x/table](x/table/README.md) |" in text
    )
    assert (
        "distance 0.5 %" in text
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
    (chosen, own), (drawn, other) = noise.of("fd_effnet"), noise.of("fd_effnet", by_chance=True)
    assert own == other == 4 and chosen == pytest.approx(0.0055, abs=1e-3) and drawn == pytest.approx(0.228, abs=1e-3)
    few = [row for row in rows if row["settings"]["seed"] < 2]
    assert SeedNoise(few).of("fd_effnet", by_chance=True) == SeedNoise(few).of("fd_effnet")
    assert SeedNoise(few, noise).of("fd_effnet", by_chance=True) == (drawn, other)
