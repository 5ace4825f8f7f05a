"""The distance to real images while a student is distilled."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch

from common.models.latent_diffusion import LatentDiffusion
from common.pruning.pruning_callback import PruningCallback
from common.runtime.collectives import barrier, on_first
from common.runtime.files import write_json
from common.runtime.strict_json import read_json
from common.training.fit import ExponentialAverage
from experiments.evaluation.paper_metrics import measure_metrics
from experiments.evaluation.real_features import Reference
from experiments.evaluation.samples import sampled_batches
from experiments.shared.job import Job


class DistanceCurve(L.Callback):
    """Every evaluation.every optimiser steps: samples of the job's protocol from the student, distances and metrics.

    Written to <folder>/step=<steps>.json. What is measured is what training would end with: the average where weights are
    averaged, and `callbacks` (the method's own) have the last word. Training goes on as if nothing had been: sampling draws
    from generators of its own, and the weights are put back.
    """

    def __init__(
        self,
        job: Job,
        student: LatentDiffusion,
        reference: Reference,
        folder: Path,
        callbacks: Sequence[PruningCallback],
        average: ExponentialAverage | None,
    ):
        self.job, self.student, self.reference, self.folder = job, student, reference, folder
        self.callbacks, self.average = callbacks, average
        self.measured = -1

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        step = trainer.global_step
        due = step > 0 and step % self.job.settings.evaluation.every == 0 and step != self.measured
        if due and step < trainer.max_steps:  # the last one is the finished student, which the job measures
            self.measured = step
            distances = self.measure()
            on_first(lambda: write_json(self.folder / f"step={step:08d}.json", {"step": step, **distances}))
            for logger in trainer.loggers[1:]:  # besides the CSV file of every ten steps
                logger.log_metrics({f"distance/{name}": value for name, value in distances.items()}, step)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Distances of the student as it is now."""
        network = self.student.denoiser
        scratch = self.folder / "samples"
        on_first(lambda: shutil.rmtree(scratch, ignore_errors=True))
        training = network.training
        network.eval()
        weights = [parameter.detach().clone() for parameter in network.parameters()]
        if self.average is not None:
            self.average.copy_to_network()
        for callback in self.callbacks:
            callback.finish(network)
        try:
            captions, extractor = self.job.prompts.captions, self.reference.extractor
            batches = sampled_batches(self.job, self.student, captions, extractor, "on the way", scratch)
            distances = self.reference.distances(torch.cat([samples["features"] for _, samples in batches]))
            figures = on_first(lambda: self.paper_metrics(scratch))
            return {**distances, **figures}
        finally:
            for parameter, weight in zip(network.parameters(), weights, strict=True):
                parameter.data.copy_(weight)
            network.train(training)
            barrier()  # all have read
            on_first(lambda: shutil.rmtree(scratch, ignore_errors=True))

    def paper_metrics(self, samples: Path) -> dict[str, float]:
        """What can be had of the settings' metrics over `samples`."""
        figures, _ = measure_metrics(self.job, list(self.job.settings.metrics), {"student": samples})
        return figures["student"]


def read_curve(folder: Path) -> list[dict[str, float]]:
    """What a DistanceCurve wrote, by step."""
    remedy = "delete it, and the curve is without it"
    return [read_json(path, remedy, ("step",)) for path in sorted(folder.glob("step=*.json"))]
