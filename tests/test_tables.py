"""Every line of a paper's table, and every claim, means a job that its experiment runs."""

from functools import cache
from itertools import product

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from experiments.claims import cases, read_claims, with_shared
from experiments.reporting.lookup import matching
from experiments.reporting.rows import CHOICES, without_seeds
from experiments.shared.job_id import job_settings, register_job_folder
from tests.test_conf import CONF

SWEPT = sorted(str(path.relative_to(CONF / "experiment").with_suffix("")) for path in (CONF / "experiment").rglob("*.yaml"))
SWEPT.remove("pareto")  # an optimiser decides what it runs


def composed(*overrides):
    register_job_folder()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides), return_hydra_config=True)


@cache
def sweep(experiment):
    """The jobs of an experiment as rows without figures, and the table of its configuration."""
    cfg = composed(f"experiment={experiment}")
    params = OmegaConf.to_container(cfg.hydra.sweeper.params, resolve=True)
    parsed = OverridesParser.create().parse_overrides([f"{name}={values}" for name, values in params.items()])
    choices = [list(override.sweep_string_iterator()) for override in parsed]
    rows = []
    for values in product(*choices):
        words = [f"{name}={value}" for name, value in zip(params, values, strict=True)]
        job = composed(f"experiment={experiment}", *words)
        chosen = {name: job.hydra.runtime.choices.get(name) for name in CHOICES}
        rows.append({"settings": job_settings(job), "choices": chosen})
    return rows, OmegaConf.to_container(cfg, resolve=False)["table"]


@pytest.mark.parametrize("experiment", [name for name in SWEPT if name not in ("curves", "recipes")])  # of 36 jobs, no table
@pytest.mark.exhaustive
def test_each_line_of_a_table_means_one_job(experiment):
    rows, table = sweep(experiment)
    assert len(rows) > 1
    settings = [str(row["settings"]) for row in rows]
    assert len(set(settings)) == len(rows), "two jobs of the sweep are the same"
    for line in (table or {}).get("lines", []):
        assert len(line.get("published", table["columns"])) == len(table["columns"]), line
        found = matching(rows, line["ours"])
        assert one_but_for_seeds(found) or (line["ours"].get("model") == "teacher" and found), line


def one_but_for_seeds(rows):
    """Whether the rows are one job, or one with several seeds."""
    return len({str(without_seeds(row["settings"])) for row in rows}) == 1


@pytest.mark.parametrize("claim", read_claims(), ids=lambda claim: claim["claim"])
@pytest.mark.exhaustive
def test_each_claim_means_one_job_in_every_comparison(claim):
    folders = [name.partition("/") for name in claim.get("experiments", [])]  # <task>/<experiment>
    rows = [row for _, _, experiment in folders for row in sweep(experiment)[0]]
    assert all(row["settings"]["task"]["name"] == task for task, _, experiment in folders for row in sweep(experiment)[0])
    for check in claim["checks"]:
        assert ("order" in check) != ("value" in check)
        for _, shared, given in cases(check):
            for selector in (with_shared(shared, each) for each in given):
                if "path" in selector:
                    assert claim["file"].endswith(".json")
                else:
                    found = matching(rows, selector)
                    assert one_but_for_seeds(found) or (selector.get("model") == "teacher" and found), selector


@pytest.mark.parametrize("experiment", SWEPT)
def test_each_experiment_is_there_at_paper_scale(experiment):
    cfg = composed(f"experiment={experiment}", "scale=paper")
    settings = job_settings(cfg)
    assert settings["evaluation"]["images"] == 30000
    assert settings["distill"]["steps"] in (0, 12000, 50000, 50 * 938)
    assert "/" in settings["teacher"]["path"], "a shipped teacher"
