"""One picture of a denoiser with what a plan removes.

Of a U-Net levels are rows, layers boxes, skip connections lines; of a diffusion transformer its blocks follow each other.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from common.cost.macs import count_parameters
from common.denoisers.denoiser import Block, architecture_of
from common.pruning.plan import Edit, Plan
from common.pruning.plan_table import removed_parameters
from experiments.reporting.figures import picture_label, plotting, save_figure

KINDS = {"resnets": "ResNet", "attentions": "attention", "downsamplers": "down", "upsamplers": "up"}
COLORS = {"ResNet": "#cfe0f3", "attention": "#fbe3c4", "down": "#dcecd3", "up": "#dcecd3", "block": "#cfe0f3"}
LEGEND = {"ResNet": "ResNet", "attention": "attention", "down": "sampler", "block": "block"}
IN_A_ROW = 10  # blocks of a transformer
GAP = 1.5  # boxes between the two arms


@dataclass(frozen=True)
class Box:
    """A block of the denoiser at its place: `column` counts from the left, `row` is the level."""

    site: str
    kind: str
    column: float
    row: int
    parameters: int


def stage_sites(stage: str, block: nn.Module) -> list[tuple[str, str]]:
    """(path, kind) of the blocks of a stage in the order of computation."""
    lists = {name: list(getattr(block, name, None) or ()) for name in KINDS}
    sites = []
    for index in range(max(len(lists["resnets"]), len(lists["attentions"]))):
        for name in ("resnets", "attentions"):
            if index < len(lists[name]) and lists[name][index] is not None:
                sites.append((f"{stage}.{name}.{index}", KINDS[name]))
    for name in ("downsamplers", "upsamplers"):
        sites += [(f"{stage}.{name}.{index}", KINDS[name]) for index in range(len(lists[name]))]
    return sites


def lay_out(denoiser: nn.Module) -> tuple[list[Box], list[str]]:
    """All blocks at their places, and what the rows are called."""
    blocks = dict(architecture_of(denoiser).blocks(denoiser))
    return in_rows(blocks) if blocks else (in_levels(denoiser), level_names(denoiser))


def in_rows(blocks: Mapping[str, Block]) -> tuple[list[Box], list[str]]:
    """The blocks of a transformer, list by list, IN_A_ROW in each row."""
    boxes: list[Box] = []
    names: list[str] = []
    for _, group in itertools.groupby(blocks, key=lambda site: site.rpartition(".")[0]):
        sites = list(group)
        for start in range(0, len(sites), IN_A_ROW):
            row = sites[start : start + IN_A_ROW]
            boxes += [Box(site, "block", at, len(names), count_parameters(blocks[site].module)) for at, site in enumerate(row)]
            names.append(row[0].replace("transformer_blocks", "").strip("_.").replace("_.", " "))
    return boxes, names


def level_names(unet: nn.Module) -> list[str]:
    """The levels of a U-Net, and its middle."""
    return [*(f"level {row}" for row in range(len(unet.down_blocks))), "middle"]


def in_levels(unet: nn.Module) -> list[Box]:
    """The blocks of a U-Net: the way down on the left, the way up on the right, the middle below both."""
    levels = len(unet.down_blocks)
    down = [stage_sites(f"down_blocks.{i}", block) for i, block in enumerate(unet.down_blocks)]
    up = [stage_sites(f"up_blocks.{i}", block) for i, block in enumerate(unet.up_blocks)]
    middle = [] if unet.mid_block is None else stage_sites("mid_block", unet.mid_block)
    right = max(map(len, down)) + GAP
    centre = right - GAP / 2 - len(middle) / 2
    rows = [(0.0, level, sites) for level, sites in enumerate(down)]
    rows += [(centre, levels, middle)]
    rows += [(right, levels - 1 - index, sites) for index, sites in enumerate(up)]
    return [
        Box(site, kind, start + place, row, count_parameters(unet.get_submodule(site)))
        for start, row, sites in rows
        for place, (site, kind) in enumerate(sites)
    ]


def skip_connections(boxes: Sequence[Box]) -> list[tuple[Box, Box]]:
    """(source on the way down, ResNet block on the way up that takes its output in), the first convolution left out."""
    outputs: list[Box | None] = [None]
    for box, following in zip(boxes, [*boxes[1:], None], strict=True):
        if box.site.startswith("down_blocks"):
            same = following is not None and following.site.rsplit(".", 2)[0] == box.site.rsplit(".", 2)[0]
            if not (box.kind == "ResNet" and same and following.kind == "attention"):
                outputs.append(box)
    takers = [box for box in boxes if box.site.startswith("up_blocks") and box.kind == "ResNet"]
    pairs = zip(reversed(outputs), takers, strict=False)
    return [(source, taker) for source, taker in pairs if source is not None]


def removed_inside(box: Box, edits: Sequence[Edit], unet: nn.Module) -> tuple[Edit | None, list[Edit], float]:
    """The edit that covers the box, or the edits inside it with the share of its parameters that they are."""
    whole = [edit for edit in edits if edit.operation not in ("mask", "resize")]  # there the module stays, and what is in it
    for edit in whole:
        if box.site == edit.site or box.site.startswith(f"{edit.site}."):
            return edit, [], removed_parameters(replace(edit, site=box.site), unet) / max(1, box.parameters)
    inside = [edit for edit in edits if f"{edit.site}.".startswith(f"{box.site}.")]
    outermost = [e for e in inside if not any(e.site.startswith(f"{other.site}.") for other in whole)]
    gone = sum(removed_parameters(edit, unet) for edit in outermost)
    return None, inside, gone / max(1, box.parameters)


def short_count(parameters: float) -> str:
    if parameters < 1e5:
        return f"{parameters / 1e3:.0f}k"
    return f"{parameters / 1e6:.2f}M" if parameters < 1e8 else f"{parameters / 1e6:.0f}M"


def short_score(score: float) -> str:
    """Two digits, without an exponent where it can be read so."""
    return f"{score:.0f}" if 10 <= abs(score) < 1e4 else f"{score:.2g}"


def score_range(scores: list[float]) -> str:
    """The least and the largest of some scores, or the one there is."""
    ends = dict.fromkeys(short_score(score) for score in (min(scores), max(scores)))
    return "…".join(ends)


def draw_plan(denoiser: nn.Module, plan: Plan, path: Path) -> None:
    """The picture of `plan` on the unpruned denoiser: removed blocks hatched, with size and score; also on the meta device."""
    from matplotlib.patches import FancyArrowPatch, Patch, Rectangle

    boxes, names = lay_out(denoiser)
    columns, rows = max(box.column for box in boxes) + 1, max(box.row for box in boxes) + 1
    figure, axis = plotting().subplots(figsize=(0.86 * columns + 0.6, 1.35 * rows + 1.0))
    for source, taker in skip_connections(boxes):
        ends = [(box.column + 0.5, -1.5 * box.row + 0.96) for box in (source, taker)]
        style = {"arrowstyle": "-", "connectionstyle": "arc3,rad=-0.08", "color": "0.75", "linewidth": 0.8, "zorder": 0}
        axis.add_patch(FancyArrowPatch(*ends, **style))
    for box in boxes:
        left, bottom = box.column + 0.04, -1.5 * box.row
        whole, inside, share = removed_inside(box, plan.edits, denoiser)
        axis.add_patch(Rectangle((left, bottom), 0.92, 0.96, facecolor=COLORS[box.kind], edgecolor="0.4", linewidth=0.7))
        if share:
            hatched = {"facecolor": "white", "edgecolor": "#b03030", "hatch": "////", "linewidth": 0.7}
            axis.add_patch(Rectangle((left, bottom), 0.92, 0.96 * share, **hatched))
        lines = [box.kind, short_count(box.parameters)]
        score = plan.scores.get(box.site)
        if score is not None:
            lines.append(short_score(score))
        if whole is not None and whole.operation in ("shortcut", "linear"):
            lines.append(f"({whole.operation})")
        if inside:
            scores = [edit.score for edit in inside if edit.score is not None]
            lines.append(f"{len(inside)} inside" + (f"\n{score_range(scores)}" if scores else ""))
        background = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85} if share else None
        axis.text(left + 0.46, bottom + 0.48, "\n".join(lines), ha="center", va="center", fontsize=6.5, bbox=background)
    for row in range(rows):
        axis.text(-0.15, -1.5 * row + 0.48, names[row], ha="right", va="center", fontsize=8)
    axis.set(xlim=(-1.1, columns + 0.1), ylim=(-1.5 * rows + 1.2, 1.75))
    axis.set_axis_off()
    removed = sum(box.parameters * removed_inside(box, plan.edits, denoiser)[2] for box in boxes)
    counts = f"{short_count(removed)} of {short_count(count_parameters(denoiser))} parameters"
    figure.suptitle(
        f"{picture_label(plan.method)}: {len(plan.edits)} edits; they touch {counts}", fontsize=10, x=0.02, ha="left"
    )
    drawn = [kind for kind in LEGEND if any(box.kind == kind for box in boxes)]
    handles = [Patch(facecolor=COLORS[kind], edgecolor="0.4", label=LEGEND[kind]) for kind in drawn]
    handles.append(Patch(facecolor="white", edgecolor="#b03030", hatch="////", label="removed, or the share of it"))
    figure.legend(handles=handles, fontsize=7, ncols=4, loc="lower left", frameon=False, bbox_to_anchor=(0.01, 0.0))
    figure.text(
        0.99,
        0.02,
        "in a box: kind, parameters, score; lowest and highest score of what is removed inside",
        fontsize=7,
        ha="right",
    )
    figure.tight_layout(rect=(0, 0.04, 1, 0.99))
    save_figure(figure, path)
