"""A student of masks as people use it: its sparse file, and a picture of the sparsity of its layers."""

import copy
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from common.export.sparse_file import save_sparse
from common.models.latent_diffusion import LatentDiffusion
from common.pruning.plan import Plan, has_masks
from experiments.reporting.figures import plotting, save_figure, short_path
from l1_diff import sparsity


def masked_parts(student: LatentDiffusion, plans: Mapping[str, Plan]) -> dict[str, nn.Module]:
    """The networks of the student that a plan of masks made, by part ("denoiser", "autoencoder")."""
    return {part: getattr(student, part) for part, plan in plans.items() if has_masks(plan.edits)}


def export_sparse(networks: Mapping[str, nn.Module], folder: Path) -> dict[str, int]:
    """Writes <folder>/<part>.safetensors in fp16 (common.load_sparse reads it) and returns "<part>_bytes" of each file."""
    sizes = {}
    for part, network in networks.items():
        path = folder / f"{part}.safetensors"
        save_sparse(copy.deepcopy(network).cpu().half(), path)
        sizes[f"{part}_bytes"] = path.stat().st_size
    return sizes


def draw_sparsity(networks: Mapping[str, nn.Module], plans: Mapping[str, Plan], path: Path) -> None:
    """sparsity.png: the share of zeros of every masked weight, in the order of the network, as planned and as trained."""
    widest = max(len(plans[part].edits) for part in networks)
    size = (max(8.0, 0.11 * widest), 3.6 * len(networks))
    figure, axes = plotting().subplots(len(networks), 1, figsize=size, squeeze=False)
    for axis, (part, network) in zip(axes[:, 0], networks.items(), strict=True):
        plan = plans[part]
        sites = {edit.site for edit in plan.edits}
        layers = [layer for layer in sparsity(network).layers if layer.site in sites]
        places = {layer.site: place for place, layer in enumerate(layers)}
        for kind, color, label in ((nn.Conv2d, "C0", "convolutions"), (nn.Linear, "C1", "linear layers")):
            found = [layer for layer in layers if isinstance(network.get_submodule(layer.site), kind)]
            if found:
                axis.bar([places[layer.site] for layer in found], [layer.sparsity for layer in found], color=color, label=label)
        axis.plot(places.values(), [1 - plan.scores[site] for site in places], "k_", markersize=5, label="as planned")
        whole = sum(layer.zeros for layer in layers) / sum(layer.weights for layer in layers)
        axis.axhline(whole, color="0.4", linewidth=0.8, linestyle="--", label=f"all: {100 * whole:.1f} %")
        axis.set_xticks(list(places.values()), [short_path(site) for site in places], rotation=90, fontsize=4.5)
        axis.set(xlim=(-0.7, len(places) - 0.3), ylim=(0, 1.02), ylabel="share of zeros")
        axis.set_title(f"{part} ({type(network).__name__})", fontsize=10, loc="left")
        axis.legend(fontsize=7, ncols=4, loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
    figure.tight_layout()
    save_figure(figure, path)
