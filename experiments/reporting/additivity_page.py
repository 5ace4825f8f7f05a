"""Whether losses of single layers add up: correlations, how to read them, and their picture."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.metrics.jackknife import estimate
from experiments.shared.row import HIGH, LOW, Figures, with_intervals

if TYPE_CHECKING:
    import torch

NAMES = {"spearman": "rank", "slope": "slope"}
COLUMNS = ("summed by", "own: linear", "rank", "one size", "slope", "output: linear", "rank", "one size")


def correlations(sums: list[float], joint: list[float], sizes: list[int]) -> Figures:
    """Pearson's and Spearman's coefficient, Spearman's within the sets of one size (the mean over sizes), and the slope of
    the best line through the origin; each with the interval that other sets would move it by (common.metrics.jackknife).
    """
    import numpy as np
    from scipy.stats import pearsonr, spearmanr

    all_x, all_y, all_sizes = np.asarray(sums), np.asarray(joint), np.asarray(sizes)

    def figures(kept: "torch.Tensor") -> dict[str, float]:
        x, y, counts = (values[kept.numpy()] for values in (all_x, all_y, all_sizes))
        slope = float(x @ y / (x @ x)) if x.any() else float("nan")
        within = float(np.mean([spearmanr(x[counts == size], y[counts == size])[0] for size in np.unique(counts)]))
        return {"pearson": float(pearsonr(x, y)[0]), "spearman": float(spearmanr(x, y)[0]), "within": within, "slope": slope}

    return with_intervals(estimate(figures, len(sums)))


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
        "Pearson's and Spearman's coefficient; one size: rank among sets of one size; slope: joint loss per summed loss. "
        f"95 % intervals over sets: {intervals(document)}."
    )


def intervals(document: dict[str, Any]) -> str:
    """Of each criterion's figures against its own joint loss, or the output loss where it has none."""
    told = []
    for criterion, figures in document["criteria"].items():
        found = figures["own"] or figures["output"]
        names = [name for name in ("spearman", "slope") if name + LOW in found]
        ranges = [f"{NAMES[name]} {found[name + LOW]:.2f} to {found[name + HIGH]:.2f}" for name in names]
        told += [f"{criterion} {', '.join(ranges)}"] if ranges else []
    return "; ".join(told)


def print_correlations(document: dict[str, Any]) -> None:
    """One line a criterion, within 80 columns."""
    from common.runtime.console import PlainConsole, text_table

    console = PlainConsole(width=80)
    console.print()
    console.print(text_table(COLUMNS, lines_of_correlations(document)))
    console.print(f"\n{explanation(document)}", style="dim")


def draw(document: dict[str, Any], path: Path) -> None:
    """Summed against joint losses: under the same criterion above, against the joint output loss below."""
    from experiments.reporting.figures import plotting, save_figure

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
    save_figure(figure, path, colours=64)
