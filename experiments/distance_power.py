"""Which distance tells a damaged denoiser from an intact one: how small a change each sees, of how many images.

    python -m experiments.distance_power task=uig evaluation.images=512
    python -m experiments.distance_power task=t2i teacher.path=/folder/of/a/teacher

The teacher is sampled intact and with a share of each of its weights, at random, set to zero, from equal seeds, and intact from
other seeds. Of each distance to the real images a table gives the change against the intact network with half of its 95 %
interval: a change larger than that is seen. Samples are kept: a killed run goes on where it was.
"""

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from common.runtime.progress import under_way
from experiments.shared.command_line import one_line_composition_errors, one_line_errors
from experiments.shared.job_id import register_job_folder

if TYPE_CHECKING:
    import torch

    from common.metrics.jackknife import Figures
    from experiments.shared.job import Job

register_job_folder()


def damaged(denoiser: Any, share: float, seed: int) -> Any:
    """A copy with that share of each weight of two or more dimensions set to zero."""
    import torch

    from common.runtime.seeding import generator_for

    copied, generator = copy.deepcopy(denoiser), generator_for(seed, 6)
    with torch.no_grad():
        for parameter in copied.parameters():
            if parameter.dim() > 1:
                kept = torch.rand(parameter.shape, generator=generator) >= share
                parameter.mul_(kept.to(parameter))
    return copied


def distances_of(real: "torch.Tensor", features: "torch.Tensor") -> "Figures":
    """Each distance of those of the features whose numbers are given."""
    from common.metrics.distances import cubic_kernel, frechet_of, gaussian_kernel, kernel_distance_of, sliced_wasserstein_of

    there = real.double()
    found = {
        "cubic kernel x1000": kernel_distance_of(real, features, cubic_kernel),
        "Gaussian kernel x1000": kernel_distance_of(real, features, gaussian_kernel),
        "Fréchet": frechet_of(there.mean(0), there.T.cov(), features),
        "sliced Wasserstein": sliced_wasserstein_of(real, features),
    }
    return lambda kept: {name: distance(kept) * (1000 if "x1000" in name else 1) for name, distance in found.items()}


def sampled_features(job: "Job", denoiser: Any, what: str) -> "torch.Tensor":
    """Of the samples of the teacher with this denoiser."""
    import torch

    from experiments.evaluation.samples import sampled_batches, shared_samples

    model, extractor = job.teacher.with_parts(denoiser=denoiser), job.extractor()
    folder = shared_samples(job, model.fingerprint())
    batches = sampled_batches(job, model, job.prompts.captions, extractor, what, folder)
    return torch.cat([samples["features"] for _, samples in batches])


def compared(job: "Job") -> Iterator[tuple[str, dict[str, Any]]]:
    """What was changed, and the change of each distance: an Estimate, paired where the seeds are equal."""
    from common.metrics.jackknife import estimate
    from experiments.evaluation.real_features import Reference

    real = Reference(job, job.settings.evaluation.split).features
    intact = sampled_features(job, job.teacher.denoiser, "intact")
    before = estimate(distances_of(real, intact), len(intact))
    yield "intact", before
    wanted = job.settings.distance_power
    for share in wanted.damages:
        features = sampled_features(job, damaged(job.teacher.denoiser, share, job.settings.seed), f"{share:.0%} of the weights")
        after = estimate(distances_of(real, features), len(features))
        yield f"{share:.0%} of the weights", {name: after[name] - before[name] for name in before}
    other = job.with_evaluation(seed=wanted.other_seed)
    features = sampled_features(other, job.teacher.denoiser, "other seeds")
    after = estimate(distances_of(real, features), len(features))
    yield "other seeds", {name: each - before[name] for name, each in after.items()}


@hydra.main(version_base="1.3", config_path="../conf", config_name="distance_power")
@one_line_errors
@under_way("the power of distances")
def main(cfg: DictConfig) -> None:
    from common.runtime.console import PlainConsole, text_table
    from experiments.shared.job import Job

    job = Job(cfg)
    found = dict(compared(job))
    names = list(found["intact"])
    lines = [
        [what, *(f"{each[name].value:.4g} ±{each[name].half_width:.2g}" for name in names)] for what, each in found.items()
    ]
    console = PlainConsole(width=100)
    console.print(text_table(["", *names], lines))
    images = len(job.prompts.captions)
    console.print(f"\n{images} images of each; below the first line: the change against it, ± half of its 95 % interval.")


if __name__ == "__main__":
    with one_line_composition_errors():
        main()
