"""Claims against rows: what holds, what does not, what nobody can tell."""

import argparse
import json

import pytest

from common.errors import InputError
from experiments import claims
from experiments.claims import FAILS, HOLDS, OPEN, UNKNOWN, Evidence, check, check_claim, noise, summary, verdict
from experiments.rows import read_rows
from tests.experiments.test_collect import job
from tests.experiments.test_curves import extend


@pytest.fixture
def results(tmp_path):
    """Two experiments, and seeds that differ by about 1 % in distance."""
    for folder, method, ratio in (
        ("x/table/a", "good", 0.5),
        ("x/table/b", "bad", 0.5),
        ("seeds/0", "s", 0.5),
        ("seeds/1", "s", 0.5),
    ):
        job(tmp_path / folder, method, ratio)
    for folder, distance in (("x/table/a", 1600.0), ("x/table/b", 2000.0), ("seeds/0", 1600.0), ("seeds/1", 1616.0)):
        row = json.loads((tmp_path / folder / "result.json").read_text())
        row["models"]["distilled"]["fd_effnet"] = distance
        extend(tmp_path / folder, models=row["models"])
    return tmp_path


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
    assert summary([HOLDS, HOLDS]) == HOLDS and summary([HOLDS, FAILS]) == "holds in 1 of 2"


def test_noise_is_what_seeds_differ_by(results):
    assert noise(read_rows([results / "seeds"]), "distance") == pytest.approx(16 / 1616)
    assert noise(read_rows([results / "seeds"]), "nothing") == 0.0


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
    assert verdicts == [HOLDS, FAILS] and texts[0] == "distance 1600 against 1500" and texts[1].endswith("(does not hold)")
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
    assert "| 1 | good is better | p | distance 1600 against 2000 | **holds** | [x/table](x/table/README.md) |" in text
    assert "distance 1.0 %" in text and "1 of 1 claims measured" in capsys.readouterr().out


def test_without_seeds_nothing_is_told(tmp_path):
    with pytest.raises(SystemExit):
        check(argparse.Namespace(results=tmp_path))
    with pytest.raises(InputError):
        Evidence(tmp_path)
