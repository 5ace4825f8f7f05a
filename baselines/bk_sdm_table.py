"""BK-SDM's table of blocks (arXiv 2305.15798): students of Stable Diffusion's topology, in diffusers' own format.

base   drops the second ResNet + transformer pair of every down stage and the middle one of the three pairs of every up
       stage, so that a down stage keeps one pair and an up stage two (the first and the third).
small  base without the middle block.
tiny   small without the innermost stage: the last down stage, the downsampler before it, the first up stage and its
       upsampler.

Every kept weight is copied from the teacher; nothing is new. The same table is applied to unconditional U-Nets of that shape
(UNet2DModel), which the paper does not treat; there the innermost stage that tiny removes may have attention.
"""

from typing import Any, Literal, get_args

from torch import nn

from common.denoisers.module_kinds import is_kind
from common.errors import InputError
from common.pruning.plan import Edit, Plan, own_settings

Variant = Literal["base", "small", "tiny"]
VARIANTS = get_args(Variant)


def check_topology(unet: nn.Module, variant: str) -> None:
    """InputError saying what is missing when the table of `variant` does not fit `unet`."""
    if variant not in VARIANTS:
        raise InputError(f"method.variant={variant!r} is none of {', '.join(VARIANTS)}.")
    if not is_kind(unet, "UNet2DConditionModel", "UNet2DModel"):
        raise InputError(f"BK-SDM fits UNet2DConditionModel and UNet2DModel, not a {type(unet).__name__}.")
    config = own_settings(unet)
    pairs = config["layers_per_block"]
    blocks: Any = unet.down_blocks
    levels = len(blocks)
    other = [f"down_blocks.{i}" for i, block in enumerate(blocks) if len(block.resnets) != 2]
    if other:
        raise InputError(f"BK-SDM drops one of two layers per block; this U-Net has layers_per_block={pairs} at {other[0]}.")
    if levels < 2:
        raise InputError("BK-SDM needs at least two levels; this U-Net lacks level 'down_blocks.1'.")
    if variant != "base" and unet.mid_block is None:
        raise InputError(f"BK-SDM-{variant} removes the middle block; this U-Net has no level 'mid_block'.")
    plain = is_kind(unet, "UNet2DModel") or config["down_block_types"][-1] == "DownBlock2D"
    if variant == "tiny" and (levels < 4 or not plain):
        raise InputError(
            "BK-SDM-tiny removes an innermost stage without attention (DownBlock2D) below three others; this U-Net has "
            f"{', '.join(config['down_block_types'])}: such a level 'down_blocks.{max(3, levels - 1)}' is missing."
        )


def student_config(unet: nn.Module, variant: str) -> dict[str, Any]:
    """The entries of the teacher's configuration that change."""
    changes: dict[str, Any] = {"layers_per_block": 1}
    if variant != "base":
        changes["mid_block_type"] = None
    if variant == "tiny":
        config = own_settings(unet)
        for name in ("down_block_types", "block_out_channels"):
            changes[name] = list(config[name][:-1])
        changes["up_block_types"] = list(config["up_block_types"][1:])
        for name in ("attention_head_dim", "num_attention_heads", "only_cross_attention", "transformer_layers_per_block"):
            if isinstance(config.get(name), (list, tuple)):
                changes[name] = list(config[name][:-1])
    return changes


def teacher_paths(unet: Any, variant: str) -> dict[str, str]:
    """Where a student's module comes from: prefixes of student paths to prefixes of teacher paths, the longest counts."""
    skipped = 1 if variant == "tiny" else 0
    paths = {}
    for index, block in enumerate(unet.up_blocks[skipped:]):
        paths[f"up_blocks.{index}"] = f"up_blocks.{index + skipped}"
        for kind in ("resnets", "attentions"):
            if getattr(block, kind, None) is not None:
                paths[f"up_blocks.{index}.{kind}.1"] = f"up_blocks.{index + skipped}.{kind}.2"
    return paths


def removed_sites(unet: Any, variant: str) -> list[str]:
    """Paths in the teacher of all that the student lacks, outermost modules only."""
    sites = []
    levels = len(unet.down_blocks)
    for stage in ("down_blocks", "up_blocks"):
        for index, block in enumerate(getattr(unet, stage)):
            innermost = index == (levels - 1 if stage == "down_blocks" else 0)
            if variant == "tiny" and innermost:
                sites.append(f"{stage}.{index}")
                continue
            for kind in ("resnets", "attentions"):
                if getattr(block, kind, None) is not None:
                    sites.append(f"{stage}.{index}.{kind}.1")
    if variant == "tiny":
        sites.append(f"down_blocks.{levels - 2}.downsamplers.0")
    if variant != "base":
        sites.append("mid_block")
    return sites


def plan_for(unet: nn.Module, variant: str, teacher: str = "") -> Plan:
    """The plan whose student is BK-SDM-<variant> of `unet`; InputError when the variant's table does not fit it."""
    check_topology(unet, variant)
    return Plan(
        method="bk_sdm",
        edits=tuple(Edit(site, "drop") for site in removed_sites(unet, variant)),
        teacher=teacher,
        settings={"variant": variant},
        config_changes=student_config(unet, variant),
        sources=teacher_paths(unet, variant),
    )
