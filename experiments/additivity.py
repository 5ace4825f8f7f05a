"""Measures whether single-layer losses add up, for every criterion of LAPTOP-Diff: a table, a picture and a JSON file.

    python -m experiments.additivity task=t2i

Losses are kept as they come: a killed run goes on where it was.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from common.errors import InputError
from common.runtime.progress import under_way
from experiments.reporting.additivity_page import correlations, draw, print_correlations
from experiments.shared.command_line import one_line_composition_errors, one_line_errors
from experiments.shared.job_id import chosen, job_identity

if TYPE_CHECKING:
    from experiments.shared.job import Job


def measure_additivity(job: "Job") -> dict[str, Any]:
    """The sums and joint losses of every criterion over the same random sets of layers, and their correlations."""
    from common.pruning.layers import list_layers
    from common.runtime.processes import refuse_others
    from common.runtime.progress import progress_bar
    from common.scoring.score_file import ScoreFile
    from experiments.job.planning import calibrate
    from laptop_diff.additivity import JOINT, joint_losses, random_subsets
    from laptop_diff.method import LaptopDiff

    refuse_others("experiments.additivity")
    cache, wanted, method = job.cache, job.settings.additivity, job.method
    if not isinstance(method, LaptopDiff):
        raise InputError(
            f"Additivity is a property of LAPTOP-Diff's losses: method=laptop_diff, not {job.settings.method['_target_']}."
        )
    teacher, calibration = job.teacher, calibrate(job)
    layers = list_layers(teacher.denoiser, method.granularity, method.width_changing, method.exclude)
    subsets = random_subsets(len(layers), wanted.sizes, wanted.per_size, wanted.seed)

    def joint(criterion: str) -> list[float]:
        key = replace(method, criterion=criterion).score_key(calibration, teacher.fingerprint())
        with progress_bar(f"sets of layers: {criterion}", len(subsets)) as bar:
            return joint_losses(
                teacher.denoiser,
                layers,
                subsets,
                calibration,
                ScoreFile.open(cache / "scores" / f"{key}-joint.json"),
                criterion=criterion,
                timesteps=method.timesteps,
                guidance_scale=method.guidance_scale,
                batch_size=method.batch_size,
                seed=method.seed,
                advance=bar.advance,
            )

    sizes = [len(subset) for subset in subsets]
    output_losses = joint("output")
    found: dict[str, Any] = {}
    for criterion in wanted.criteria:
        scores = replace(method, criterion=criterion).layer_scores(
            teacher.denoiser, layers, calibration, teacher.fingerprint(), cache / "scores"
        )
        sums = [sum(scores[layers[index].site] for index in subset) for subset in subsets]
        own = joint(criterion) if criterion in JOINT else None
        found[criterion] = {
            "single": scores,
            "sums": sums,
            "joint": own,
            "own": None if own is None else correlations(sums, own, sizes),
            "output": correlations(sums, output_losses, sizes),
        }
    return {"settings": job.described, "layers": len(layers), "sizes": sizes, "output_losses": output_losses, "criteria": found}


@hydra.main(version_base="1.3", config_path="../conf", config_name="additivity")
@one_line_errors
@under_way("additivity of losses")
def main(cfg: DictConfig) -> None:
    from common.runtime.content import content_name
    from common.runtime.files import write_json
    from experiments.shared.job import Job

    job = Job(cfg)
    name = content_name(job_identity(job.described, cfg.outputs, chosen(cfg, "method")))[:8]
    folder = Path(cfg.outputs) / cfg.task.name / "additivity" / name
    document = measure_additivity(job)
    write_json(folder / "additivity.json", document)
    draw(document, folder / "additivity.png")
    print_correlations(document)
    print(f"\nresult {folder / 'additivity.json'}\npicture {folder / 'additivity.png'}")


if __name__ == "__main__":
    with one_line_composition_errors():
        main()
