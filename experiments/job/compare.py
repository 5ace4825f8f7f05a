"""Models side by side, in Python: what the measuring stage of a job does, of any student."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common.models.latent_diffusion import LatentDiffusion
from experiments.evaluation.evaluate import evaluate
from experiments.evaluation.models import Models
from experiments.evaluation.real_features import Reference
from experiments.job.preparation import check_parts
from experiments.shared.job import Job


def compare(job: Job, pruned: LatentDiffusion, distilled: LatentDiffusion | None = None) -> dict[str, dict[str, Any]]:
    """Figures of "teacher", "pruned" and "distilled", and of "real" images, by samples from equal seeds; each with the ends of
    its 95 % interval (`<name>_low`, `<name>_high`).

    InputError where the job's settings, data and teacher do not fit each other. What is drawn, of how many images, is
    evaluation.* of the job's settings. The teacher's samples are kept for other jobs of the same outputs, those of the students
    are not.
    """
    check_parts(job)
    models = Models(job.teacher, pruned, distilled).by_name()
    with TemporaryDirectory() as samples:
        return evaluate(job, models, Reference(job, job.settings.evaluation.split), Path(samples))[0]
