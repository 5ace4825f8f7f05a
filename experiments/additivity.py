"""Measures whether single-layer losses add up, for every criterion of LAPTOP-Diff: a table, a picture and a JSON file.

    python -m experiments.additivity task=t2i

Losses are kept as they come: a killed run goes on where it was.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from common.errors import InputError
from common.progress import under_way
from experiments.command_line import one_line_composition_errors, one_line_errors
from experiments.jobs import chosen, job_identity, job_settings

COLUMNS = ("summed by", "own: linear", "rank", "one size", "slope", "output: linear", "rank", "one size")


def correlations(sums: list[float], joint: list[float], sizes: list[int]) -> dict[str, float]:
    """Pearson's and Spearman's coefficient, Spearman's within the sets of one size (the mean over sizes), and the slope of
    the best line through the origin.
    """
    import numpy as np
    from scipy.stats import pearsonr, spearmanr

    x, y = np.asarray(sums), np.asarray(joint)
    slope = float(x @ y / (x @ x)) if x.any() else float("nan")
    same = [np.asarray(sizes) == size for size in sorted(set(sizes))]
    within = float(np.mean([spearmanr(x[chosen], y[chosen])[0] for chosen in same]))
    return {"pearson": float(pearsonr(x, y)[0]), "spearman": float(spearmanr(x, y)[0]), "within": within, "slope": slope}


def measure(cfg: DictConfig, settings: dict[str, Any]) -> dict[str, Any]:
    """The sums and joint losses of every criterion over the same random sets of layers, and their correlations."""
    from common.layers import list_layers
    from common.processes import pick_device, refuse_others
    from common.progress import progress_bar
    from common.score_file import ScoreFile
    from common.teachers import load_teacher
    from experiments.caches import cache_folder
    from experiments.planning import calibrate
    from laptop_diff.additivity import JOINT, joint_losses, random_subsets
    from laptop_diff.method import LaptopDiff

    refuse_others("experiments.additivity")
    cache = cache_folder(cfg)
    wanted = cfg.additivity
    method = hydra.utils.instantiate(cfg.method, _convert_="all")
    if not isinstance(method, LaptopDiff):
        raise InputError(f"Additivity is a property of LAPTOP-Diff's losses: method=laptop_diff, not {cfg.method._target_}.")
    for criterion in wanted.criteria:
        replace(method, criterion=criterion)  # an unknown one is told now
    if wanted.per_size < 2 or not wanted.sizes:
        raise InputError("additivity.per_size of at least 2, and some additivity.sizes, are needed for a correlation.")
    teacher = load_teacher(cfg.teacher.path, cfg.teacher.revision, cfg.teacher.config).to(pick_device(cfg.device))
    calibration = calibrate(cfg, teacher, cache).to(teacher.device)
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
    return {"settings": settings, "layers": len(layers), "sizes": sizes, "output_losses": output_losses, "criteria": found}


def lines_of_correlations(document: dict[str, Any]) -> list[list[str]]:
    """One line of text a criterion, as COLUMNS says."""
    lines = []
    for criterion, figures in document["criteria"].items():
        own, output = figures["own"], figures["output"]
        names = ("pearson", "spearman", "within")
        cells = [""] * 4 if own is None else [f"{own[name]:.2f}" for name in (*names, "slope")]
        lines.append([criterion, *cells, *[f"{output[name]:.2f}" for name in names]])
    return lines


def explanation(document: dict[str, Any]) -> str:
    """How to read the lines."""
    counts = ", ".join(str(size) for size in sorted(set(document["sizes"])))
    return (
        f"{len(document['sizes'])} random sets of {counts} of {document['layers']} layers: the sum of single-layer losses "
        "against the loss of removing the whole set, under the same criterion (own) and under the output loss. linear, rank: "
        "Pearson's and Spearman's coefficient; one size: rank among sets of one size; slope: joint loss per summed loss."
    )


def print_correlations(document: dict[str, Any]) -> None:
    """One line a criterion, within 80 columns."""
    from rich.table import Table

    from common.console import PlainConsole

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for place, title in enumerate(COLUMNS):
        table.add_column(title, justify="right" if place else "left", no_wrap=place > 0)
    for line in lines_of_correlations(document):
        table.add_row(*line)
    console = PlainConsole(width=80)
    console.print()
    console.print(table)
    console.print(f"\n{explanation(document)}", style="dim")


def draw(document: dict[str, Any], path: Path) -> None:
    """Summed against joint losses: under the same criterion above, against the joint output loss below."""
    from common.figures import plotting, save_figure

    criteria, sizes = document["criteria"], document["sizes"]
    figure, axes = plotting().subplots(2, len(criteria), figsize=(2.9 * len(criteria), 5.6), squeeze=False)
    for column, (criterion, figures) in enumerate(criteria.items()):
        for axis, joint, kind in (
            (axes[0, column], figures["joint"], "own"),
            (axes[1, column], document["output_losses"], "output"),
        ):
            if joint is None:
                axis.set_axis_off()
                axis.text(0.5, 0.5, f"{criterion}:\nno joint loss", ha="center", fontsize=9, transform=axis.transAxes)
                continue
            for place, size in enumerate(sorted(set(sizes))):
                points = [(x, y) for x, y, s in zip(figures["sums"], joint, sizes, strict=True) if s == size]
                axis.scatter(*zip(*points, strict=True), s=14, color=f"C{place}", label=f"{size} layers")
            if kind == "own":
                axis.axline((0, 0), slope=1, color="0.6", linewidth=0.8, zorder=0)
            name = criterion if kind == "own" else "output loss"
            axis.set_ylabel(f"joint {name}", fontsize=8)
            axis.set_xlabel(f"summed single {criterion}", fontsize=8)
            axis.set_title(
                "linear {pearson:.2f}, rank {spearman:.2f}, one size {within:.2f}".format(**figures[kind]), fontsize=8
            )
            axis.tick_params(labelsize=7)
    axes[1, 0].legend(fontsize=7, frameon=False)
    figure.tight_layout()
    save_figure(figure, path)


@hydra.main(version_base="1.3", config_path="../conf", config_name="additivity")
@one_line_errors
@under_way("additivity of losses")
def main(cfg: DictConfig) -> None:
    from common.content import content_name
    from common.files import write_json

    settings = job_settings(cfg)
    name = content_name(job_identity(cfg, chosen(cfg, "method")))[:8]
    folder = Path(cfg.outputs) / cfg.task.name / "additivity" / name
    document = measure(cfg, settings)
    write_json(folder / "additivity.json", document)
    draw(document, folder / "additivity.png")
    print_correlations(document)
    print(f"\nresult {folder / 'additivity.json'}\npicture {folder / 'additivity.png'}")


if __name__ == "__main__":
    with one_line_composition_errors():
        main()
