"""Lightning's logger of a training to the job's W&B run."""

from typing import Any

from lightning.pytorch.loggers import Logger

from experiments.sweeps.wandb_run import Tracker


class LossLogger(Logger):
    """Logs figures over the optimiser steps, which are entered under the name `step`."""

    def __init__(self, tracker: Tracker, step: str):
        super().__init__()
        self.tracker, self.step_name = tracker, step

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return self.tracker.run.id

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.tracker.attempt(lambda run: run.log({**metrics, self.step_name: step}))

    def log_hyperparams(self, *arguments: Any, **options: Any) -> None:
        """The run has the job's settings from its start."""
