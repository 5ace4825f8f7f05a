"""Builds a W&B workspace and a report about the runs of a project: quality over k, ratio and sparsity, and over steps.

python -m experiments.dashboard --entity me --project bonsai     (pip install -e ".[dashboard]", and wandb login)
"""

import argparse
from typing import Any

from common.errors import InputError
from experiments.reporting.metric_table import find_metric
from experiments.shared.command_line import one_line_errors
from experiments.sweeps.wandb_run import STEP, in_short

# a panel without values stays empty
METRICS = ("fid", "clip_score", "pickscore", "fad_vggish", "fd_effnet", "fad_musicnn", "caption_retrieval")
KNOBS = ("k", "ratio", "sparsity")
COSTS = ("parameters", "macs", "latency_ratio")


def sections() -> dict[str, list[Any]]:
    """Panels by the title of their section: the student's metrics over each knob of a method and each cost, a point a run;
    losses and distances over optimiser steps; and metrics over sampling steps, of teacher and student.
    """
    from wandb_workspaces.reports import v2 as wr

    over = {f"method.{knob}": wr.Config(f"method.{knob}") for knob in KNOBS}
    over |= {cost: wr.SummaryMetric(f"student/{cost}") for cost in COSTS}
    terms = ("loss", "loss/task", "loss/output", "loss/feature")
    found: dict[str, list[Any]] = {}
    training = [
        wr.LinePlot(title="losses", x=STEP, y=list(terms), log_y=True),
        wr.LinePlot(title="shares of the loss", x=STEP, y=[term.replace("loss/", "share/") for term in terms[1:]]),
    ]
    sampling = []
    for metric in METRICS:
        title, value = find_metric(metric).title, wr.SummaryMetric(f"student/{metric}")
        found[f"{title} over k, ratio, sparsity and cost"] = [
            wr.ScatterPlot(title=f"{title} over {name}", x=x, y=value) for name, x in over.items()
        ]
        training.append(wr.LinePlot(title=f"{title} during training", x=STEP, y=[f"distance/{metric}"]))
        both = [f"sampling/{who}/{metric}" for who in ("teacher", "student")]
        sampling.append(wr.LinePlot(title=f"{title} over sampling steps", x="sampling/steps", y=both))
    return found | {"training": training, "sampling": sampling}


def workspace(entity: str, project: str) -> Any:
    """A saved view of the project, with a section for each thing to compare."""
    from wandb_workspaces import workspaces as ws

    parts = [ws.Section(name=title, panels=panels, is_open=True) for title, panels in sections().items()]
    return ws.Workspace(entity=entity, project=project, name="Bonsai", sections=parts)


def comparison(entity: str, project: str) -> Any:
    """A report with the same panels, the runs grouped by method."""
    from wandb_workspaces.reports import v2 as wr

    blocks: list[Any] = [wr.TableOfContents()]
    for title, panels in sections().items():
        runs = wr.Runset(entity=entity, project=project, name="by method", groupby=["JobType"])
        blocks += [wr.H1(title), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(entity=entity, project=project, title="Pruned and distilled students", blocks=blocks, width="fluid")


@one_line_errors
def dashboard(arguments: argparse.Namespace) -> None:
    """Saves workspace and report on the server; InputError without the package or a login."""
    import wandb

    try:
        import wandb_workspaces  # noqa: F401
    except ImportError as error:
        raise InputError('The dashboard needs wandb-workspaces: pip install -c constraints.txt -e ".[dashboard]"') from error
    try:
        known = wandb.login(prompt=False)
    except Exception as error:  # of a key, the environment, the connection
        raise InputError(f"W&B lets nobody in ({in_short(error)}): run `wandb login`, or set WANDB_API_KEY.") from error
    if not known:
        raise InputError("The dashboard lives on a W&B server: run `wandb login`, or set WANDB_API_KEY.")
    for made in (workspace(arguments.entity, arguments.project), comparison(arguments.entity, arguments.project)):
        print(made.save().url)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entity", required=True)
    parser.add_argument("--project", default="bonsai")
    dashboard(parser.parse_args())


if __name__ == "__main__":
    main()
