"""Claims against rows: what holds, what does not, what nobody can tell."""

import argparse
import json

import pytest

from common.errors import InputError
from experiments import claims
from experiments.claims import FAILS, HOLDS, OPEN, UNKNOWN, Evidence, check, check_claim, noise, summary, verdict
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
        rows = (tmp_path / "results" / name).parent / "rows.jsonl"
        rows.parent.mkdir(parents=True, exist_ok=True)
        with rows.open("a") as file:
            file.write(json.dumps(row) + "\n")
    return tmp_path / "results"


def test_the_order_of_two_values_and_the_noise():
    order = {"order": [{}, {}]}
    assert verdict(order, [1000, 1100], "distance", 0.01) == HOLDS
    assert verdict(order, [1000, 1005], "distance", 0.01) == OPEN
    assert verdict(order, [1100, 1000], "distance", 0.01) == FAILS
    assert verdict(order, [0.5, 0.3], "caption_retrieval", 0.01) == HOLDS
    assert verdict(order, [0.0, 0.0], "latent_mse", 0.0) == OPEN
    between = {"value": {}, "from": 0.9, "to": 1.1}
    assert verdict(between, [1.0], "time", 0) == HOLDS and verdict(between, [2.0], "time", 0) == FAILS
    assert verdict(between, [2.0, 2.0], "time", 0) == HOLDS
    assert verdict(between, [1.12], "distance", 0.05) == OPEN  # as near to a bound as seeds are to each other
    assert verdict(between, [1.0, 0.0], "distance", 0.0) == FAILS
    below = {"value": {}, "from": float("-inf"), "to": 1, "margin": 0.02}
    assert [verdict(below, [a, 0.9], "within", 0.02) for a in (-0.1, 0.85, 0.89, 0.95)] == [HOLDS, HOLDS, OPEN, FAILS]
    assert summary([HOLDS, HOLDS]) == HOLDS and summary([HOLDS, FAILS]) == "1 holds, 1 does not hold"
    assert summary([HOLDS, UNKNOWN]) == "1 holds, 1 not measured"


def test_noise_is_what_seeds_differ_by(results):
    seeds = read_rows([results / "t2i" / "seeds"])
    assert noise(seeds, "distance") == pytest.approx(16 / 1616)
    assert noise(seeds, "distance", "pruned") == noise(seeds, "nothing") == 0.0


def test_a_claim_is_checked_against_its_rows(results):
    (results / "x" / "some.json").write_text(json.dumps({"a": {"b": 0.95}}))
    claim = {"claim": "good is better", "published": "p", "experiments": ["x/table"], "file": "x/some.json"}
    evidence = Evidence(results)
    checks = {
        HOLDS: {"order": [{"method": "good"}, {"method": "bad"}]},
        FAILS: {"order": [{"method": "bad"}, {"method": "good"}]},
        OPEN: {"order": [{"method": "good"}, {"method": "good"}]},
        UNKNOWN: {"order": [{"method": "good"}, {"method": "absent"}]},
    }
    for expected, one in checks.items():
        assert check_claim({**claim, "checks": [one]}, evidence)[1] == [expected]
    several = {
        "each": [{"method": "good"}, {"method": "bad"}],
        "value": {},
        "against": {"model": "teacher"},
        "from": 1,
        "to": 1.1,
    }
    texts, verdicts = check_claim({**claim, "checks": [several]}, evidence)
    assert verdicts == [HOLDS, FAILS] and texts[0] == "distance, good: **1600**; teacher **1500**"
    assert texts[1] == "distance, bad: **2000**; teacher **1500** (does not hold)"
    number = {"value": {"path": "a.b"}, "from": 0.9, "to": 1}
    assert check_claim({**claim, "checks": [number]}, evidence)[1] == [HOLDS]


def test_the_page(results, capsys, monkeypatch):
    told = [
        {
            "claim": "good is better",
            "published": "p",
            "experiments": ["x/table"],
            "checks": [{"order": [{"method": "good"}, {"method": "bad"}]}],
        }
    ]
    monkeypatch.setattr(claims, "read_claims", lambda: told)
    check(argparse.Namespace(results=results))
    text = (results / "claims.md").read_text()
    assert (
        "| 1 | good is better | p | distance: good **1600**; bad **2000** | **holds** | [x/table](x/table/README.md) |" in text
    )
    assert "distance 1.0 %" in text and "1 of 1 claims measured" in capsys.readouterr().out
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
        "checks": [{"order": [{"method": "good"}, {"method": "bad"}]}],
    }
    with pytest.raises(InputError, match="differ in teacher, data or protocol: 'good is better'"):
        check_claim(claim, Evidence(results))


def test_without_seeds_nothing_is_told(tmp_path, results, capsys):
    with pytest.raises(SystemExit):
        check(argparse.Namespace(results=tmp_path))
    path = results / "t2i" / "seeds" / "rows.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:2]))
    with pytest.raises(SystemExit):
        check(argparse.Namespace(results=results))
    assert capsys.readouterr().err.count("must hold 3 rows of experiment=seeds") == 2
