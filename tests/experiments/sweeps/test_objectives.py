"""What an optimising sweeper may ask for."""

import pytest

from common.errors import InputError
from experiments.shared.settings import typed_settings
from experiments.sweeps.objectives import check_objectives, objectives
from tests.test_conf import compose_config

PAPERS = (
    "fid",
    "inception_score",
    "clip_score",
    "pickscore",
    "hpsv2",
    "fad_vggish",
    "kid_clean_spread",
    "inception_score_spread",
)


def asked(*names, metrics=("fid", "fid_clean", "inception_score", "clip_score", "pickscore", "hpsv2", "fad_vggish")):
    return typed_settings(compose_config("config", f"objectives=[{','.join(names)}]", f"metrics=[{','.join(metrics)}]"))


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_metrics_can_be_asked_for(name):
    """They are columns of a row wherever `metrics` names them; where it does not, that is told before the job."""
    check_objectives(asked(name, "distance"))
    figures = {"fd_effnet": 12.0, name: 3.5}
    row = {"models": {"teacher": figures, "pruned": figures}}
    assert objectives([name, "distance"], row) == (3.5, 12.0) and objectives([name], row) == 3.5
    del figures[name]
    with pytest.raises(InputError, match="name some of fd_effnet, distance"):
        objectives([name], row)
    with pytest.raises(InputError, match=f"{name.removesuffix('_spread')} is measured where metrics="):
        check_objectives(asked(name, metrics=()))


@pytest.mark.parametrize("name", ["fids", "clip", "spread", "fid_"])
def test_what_no_row_has_is_told_before_the_job(name):
    with pytest.raises(InputError, match=f"{name} is no figure of a student"):
        check_objectives(asked("fid", name))
