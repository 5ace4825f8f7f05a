"""A student of masks as people use it: its sparse file, and a picture of the sparsity of its layers."""

import copy
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from common.pictures import save_figure, short_path
from common.plans import Plan, has_masks
from common.teachers import Teacher


def masked_parts(student: Teacher, plans: Mapping[str, Plan]) -> dict[str, nn.Module]:
    """The networks of the student that a plan of masks made, by part ("denoiser", "autoencoder")."""
    return {part: getattr(student, part) for part, plan in plans.items() if has_masks(plan.edits)}


def export_sparse(networks: Mapping[str, nn.Module], folder: Path) -> dict[str, int]:
    """Writes <folder>/<part>.safetensors in fp16 (common.load_sparse reads it) and returns "<part>_bytes" of each file."""
    from common.sparse_file import save_sparse

    sizes = {}
    for part, network in networks.items():
        path = folder / f"{part}.safetensors"
        save_sparse(copy.deepcopy(network).cpu().half(), path)
        sizes[f"{part}_bytes"] = path.stat().st_size
    return sizes


def draw_sparsity(networks: Mapping[str, nn.Module], plans: Mapping[str, Plan], path: Path) -> None:
    """sparsity.png: the share of zeros of every masked weight, in the order of the network, as planned and as trained."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    widest = max(len(plans[part].edits) for part in networks)
    size = (max(8.0, 0.11 * widest), 3.6 * len(networks))
    figure, axes = pyplot.subplots(len(networks), 1, figsize=size, squeeze=False)
    for axis, (part, network) in zip(axes[:, 0], networks.items(), strict=True):
        plan = plans[part]
        weights = {edit.site: network.get_submodule(edit.site).weight for edit in plan.edits}
        zeros = {site: 1 - int(weight.count_nonzero()) / weight.numel() for site, weight in weights.items()}
        places = {site: place for place, site in enumerate(weights)}
        for dimensions, kind, color in ((4, "convolutions", "C0"), (2, "linear layers", "C1")):
            sites = [site for site in weights if weights[site].dim() == dimensions]
            if sites:
                axis.bar([places[site] for site in sites], [zeros[site] for site in sites], color=color, label=kind)
        axis.plot(places.values(), [1 - plan.scores[site] for site in places], "k_", markersize=5, label="as planned")
        whole = sum(zeros[site] * weight.numel() for site, weight in weights.items()) / sum(w.numel() for w in weights.values())
        axis.axhline(whole, color="0.4", linewidth=0.8, linestyle="--", label=f"all: {100 * whole:.1f} %")
        axis.set_xticks(list(places.values()), [short_path(site) for site in places], rotation=90, fontsize=4.5)
        axis.set(xlim=(-0.7, len(places) - 0.3), ylim=(0, 1.02), ylabel="share of zeros")
        axis.set_title(f"{part} ({type(network).__name__})", fontsize=10, loc="left")
        axis.legend(fontsize=7, ncols=4, loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
    figure.tight_layout()
    save_figure(figure, path)
