"""What a person sees of one job: the closing table, the sample sheet and the picture of the scores."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.pruning.plan import Plan
from experiments.reporting.figures import logarithmic, picture_caption, picture_label, plotting, save_figure, short_path
from experiments.reporting.metric_table import find_metric, metric_text, short_title
from experiments.reporting.rows import distance_name, metric_names, real_images, student

COSTS = (  # of title, how to read it from a model's figures, format
    ("params", lambda m: m["parameters"] / 1e6, "{:.2f}M"),
    ("not zero", lambda m: m["nonzero_parameters"] / 1e6, "{:.2f}M"),
    ("file", lambda m: m["checkpoint_bytes_fp16"] / 1e6, "{:.2f}MB"),
    ("MACs", lambda m: m["macs"] / 1e6, "{:.0f}M"),
    ("time", lambda m: m["latency"]["ratio"], "{:.2f}x"),
)
LEFT_OUT = ("ssim",)  # of the terminal, which has 80 columns


def cost_cell(figures: dict[str, Any], read: Any, form: str) -> str:
    """What a model costs as text; empty where it was not measured, as of real images."""
    try:
        return form.format(read(figures))
    except KeyError:
        return ""


def print_table(row: dict[str, Any]) -> None:
    """Teacher, pruned and distilled side by side, within 80 columns."""
    from common.runtime.console import PlainConsole

    console = PlainConsole(width=80)
    console.print()
    models = row["models"]
    measured = {who: figures for who, figures in models.items() if who != "real"}
    names = [name for name in metric_names([row]) if name not in LEFT_OUT]
    published = [name for name in names if find_metric(name).published]
    console.print(metrics_side_by_side(models, [name for name in names if name not in published]))
    console.print()
    costs = {title: [cost_cell(figures, read, form) for figures in measured.values()] for title, read, form in COSTS}
    console.print(side_by_side(measured, costs))
    if published:
        console.print()
        console.print(metrics_side_by_side(measured, published))
        console.print("\n" + metrics_note(row), style="dim")
    for name, reason in row.get("metrics_missing", {}).items():
        console.print(f"no {name}: {reason}")
    for name, reason in row.get("deployment_missing", {}).items():
        console.print(f"no {name}: {reason}")
    protocol = row["protocol"]
    reached = reached_note(row)
    guidance = f", guidance {protocol['guidance_scale']}" if protocol["guidance_scale"] else ""
    if steps_note(row):
        console.print("\n" + steps_note(row))
    if any("sparse_file" in figures for figures in row["models"].values()):
        console.print(sparse_note(row))
    console.print(
        f"\nKD (x1000) and FD: kernel and Fréchet distance of {protocol['images']} samples to "
        f"{models['real']['reference_images']} {real_images(row)} over {protocol['extractor'].split(':')[0]} features; "
        f"'real': as many {real_images(row)} against the same. to t.: against the teacher's samples from equal seeds, "
        "features as a share of what unrelated ones differ by. ±: 95 % interval of samples. "
        "file: the denoiser's, in half precision. "
        f"time: one forward pass of {protocol['latency_batch']}, against the teacher in the same run. "
        f"{protocol['steps']} steps{guidance}. {len(row['plan'])} edits{reached}; "
        + ", ".join(f"{name} {value:.0f} s" for name, value in row["seconds"].items()),
        style="dim",
    )


def side_by_side(models: Iterable[str], columns: dict[str, list[str]]) -> Any:
    """A table of one line a model, with those columns that any of them has."""
    from common.runtime.console import text_table

    shown = {title: column for title, column in columns.items() if any(column)}
    return text_table(["", *shown], zip(models, *shown.values(), strict=True))


def metrics_side_by_side(models: dict[str, dict[str, Any]], names: Sequence[str]) -> Any:
    """A table of the models' metrics, each with its interval."""
    titles = {name: find_metric(name).title if find_metric(name).published else short_title(name) for name in names}
    columns = {title: [metric_text(figures, name) for figures in models.values()] for name, title in titles.items()}
    return side_by_side(models, columns)


def metrics_note(row: dict[str, Any]) -> str:
    """How the papers' metrics were measured: the files that they saw images as, seeds and scheduler."""
    protocol = row["protocol"]
    metrics = protocol["metrics"].values()
    saved = next((settings["saved_images"] for settings in metrics if settings["saved_images"]), None)
    files = "images as they were drawn"
    if saved is not None:
        files = f"images through JPEG files of quality {saved['quality']}"
        files += f", resized to {saved['size']} ({saved['filter']})" if saved["size"] else ""
    scheduler = (protocol.get("scheduler") or {}).get("name", "the teacher's")
    return f"Of {protocol['images']} samples, {files}; {protocol['seeds']}; scheduler: {scheduler}. KID x1000."


def reached_note(row: dict[str, Any]) -> str:
    """What the plan and training reached, such as ", k reached 31, ratio reached 0.5021"; counts without decimals."""
    shown = {name: value if isinstance(value, int) else f"{value:.4f}" for name, value in row.get("reached", {}).items()}
    return "".join(f", {name.replace('_', ' ')} {value}" for name, value in shown.items())


def steps_note(row: dict[str, Any]) -> str:
    """The Fréchet distances over numbers of sampling steps and during training, where they were measured; else ""."""
    name = distance_name(row)
    lines = []
    if row.get("by_steps"):
        by_steps = {int(steps): models for steps, models in row["by_steps"].items()} | {row["protocol"]["steps"]: row["models"]}
        for who in [model for model in row["models"] if model != "real"]:
            found = ", ".join(f"{steps}: {by_steps[steps][who][name]:.1f}" for steps in sorted(by_steps))
            lines.append(f"FD over sampling steps, {who}: {found}")
    if row.get("curve"):
        found = ", ".join(f"{point['step']}: {point[name]:.1f}" for point in row["curve"])
        lines.append(f"FD during training, after steps {found}")
    return "\n".join(lines)


def sparse_note(row: dict[str, Any]) -> str:
    """The student's files and sparsity, and that dense kernels gain nothing from zeros."""
    last = row["models"][student(row)]
    files = last.get("sparse_file", {})
    lines = []
    for part, figures in (("denoiser", last), ("autoencoder", last.get("autoencoder", {}))):
        if f"{part}_bytes" in files:
            sparse, dense = files[f"{part}_bytes"] / 1e6, figures["checkpoint_bytes_fp16"] / 1e6
            nominal, actual = (100 * figures["sparsity"][name] for name in ("nominal", "actual"))
            shares = f"zeros {nominal:.1f} % nominal, {actual:.1f} % of all weights"
            lines.append(f"{part}: sparse file {sparse:.2f} MB of {dense:.2f} MB, {shares}")
    if "autoencoder" in last:
        measured = {who: figures["autoencoder"]["psnr"] for who, figures in row["models"].items() if "autoencoder" in figures}
        found = [f"{who} {decibels:.2f}" for who, decibels in measured.items()]
        lines.append(f"reconstructions of held-out images, PSNR in dB: {', '.join(found)}")
    return "\n".join([*lines, "Zeros in dense kernels save no time; the time column is what was measured."])


def draw_samples(path: Path, rows: dict[str, torch.Tensor], captions: list[str], count: int = 8) -> None:
    """A sheet of samples: the same captions and seeds in every row; rows hold uint8 images (at least count, 1 or 3, h, w)."""
    count = min(count, len(captions))
    figure, axes = plotting().subplots(len(rows), count, figsize=(1.5 * count, 1.65 * len(rows)), squeeze=False)
    for line, (who, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=False):
            axis.imshow(image.expand(3, -1, -1).permute(1, 2, 0).numpy())
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set_visible(False)
        line[0].set_ylabel(picture_caption(who, 18), fontsize=11 if len(who) < 15 else 8)
    for axis, caption in zip(axes[0], captions, strict=False):
        axis.set_title(picture_caption(caption, 19), fontsize=8)
    figure.tight_layout(pad=0.4)
    save_figure(figure, path)


def draw_scores(unet: nn.Module, plan: Plan, path: Path) -> None:
    """scores.png: one bar per scored site in the order of the network, coloured by type, edited ones marked by a dot.

    Sites without a complete score (scoring showed them to be above the k lowest) are not drawn, nor what scores are made
    of (the streams of a block).
    """
    pyplot = plotting()
    stages = ("down_blocks", "mid_block", "up_blocks", "conv_out")  # the order of computation, not of registration
    ranks = {stage: rank for rank, stage in enumerate(stages)}
    order = {name: position for position, (name, _) in enumerate(unet.named_modules())}
    sites = sorted(
        (name for name in plan.scores if name in order), key=lambda site: (ranks.get(site.split(".")[0], -1), order[site])
    )
    if not sites:
        return
    kinds = [type(unet.get_submodule(site)).__name__ for site in sites]
    palette = {kind: f"C{position}" for position, kind in enumerate(sorted(set(kinds)))}
    edited = {edit.site for edit in plan.edits}
    figure, axis = pyplot.subplots(figsize=(max(8.0, 0.17 * len(sites)), 5.2))
    places = range(len(sites))
    axis.bar(places, [plan.scores[site] for site in sites], color=[palette[kind] for kind in kinds])
    chosen = [place for place, site in enumerate(sites) if site in edited]
    axis.plot(chosen, [plan.scores[sites[place]] for place in chosen], "k.", label="edited")
    if all(plan.scores[site] > 0 for site in sites):  # the change of a task loss may be negative
        logarithmic(axis, "y")
    axis.set_xticks(list(places), [short_path(site) for site in sites], rotation=90, fontsize=6)
    axis.set_xlim(-0.7, len(sites) - 0.3)
    axis.set_ylabel("score (low: cheap to remove)")
    axis.set_title(f"{picture_label(plan.method)}: {len(sites)} scored sites, {len(edited)} edited", fontsize=10, loc="left")
    patches = [pyplot.Rectangle((0, 0), 1, 1, color=color) for color in palette.values()]
    marks = pyplot.Line2D([], [], color="k", marker=".", linestyle="")
    axis.legend(
        [*patches, marks], [*palette, "edited"], fontsize=7, ncols=8, loc="lower right", bbox_to_anchor=(1, 1), frameon=False
    )
    figure.tight_layout()
    save_figure(figure, path)
