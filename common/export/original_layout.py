"""A pipeline as one file, with the names of Stable Diffusion's own code: what programs besides diffusers read.

The inverse of what diffusers' `from_single_file` does, for Stable Diffusion 1, 2 and XL and for students that are still of the
stock class with as many layers in each block: BK-SDM's, those with zeros, and dense ones.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.errors import InputError
from common.models.latent_diffusion import LatentDiffusion
from common.runtime.files import whole_file

Weights = dict[str, torch.Tensor]
UNET, AUTOENCODER = "model.diffusion_model", "first_stage_model"
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
AUTOENCODER_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP_ENDS = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def split_name(name: str) -> tuple[str, str]:
    """A weight's module and its own name: "conv_in.weight" is of ("conv_in", "weight")."""
    module, _, own = name.rpartition(".")
    return module, own


def unet_names(weights: Mapping[str, Any], layers: int) -> dict[str, str]:
    """The original name of each weight of a U-Net with `layers` layers in each block."""
    found = {}
    attentive = {name.split(".")[1] for name in weights if re.match(r"up_blocks\.\d+\.attentions\.", name)}
    for name in weights:
        module, own = split_name(name)
        parts = name.split(".")
        if module in UNET_ENDS:
            found[name] = f"{UNET_ENDS[module]}.{own}"
        elif parts[0] == "mid_block":
            place = 2 * int(parts[2]) + (parts[1] == "attentions")
            found[name] = f"middle_block.{place}.{inside_of_unet(parts[1], '.'.join(parts[3:]))}"
        else:
            block, kind, index = int(parts[1]), parts[2], int(parts[3])
            down = parts[0] == "down_blocks"
            first = block * (layers + 1) + down
            if kind in ("downsamplers", "upsamplers"):
                slot = f"input_blocks.{first + layers}.0.op" if down else f"output_blocks.{first + layers}"
                if not down:
                    slot += f".{2 if parts[1] in attentive else 1}.conv"
                found[name] = f"{slot}.{own}"
            else:
                blocks = "input_blocks" if down else "output_blocks"
                inside = inside_of_unet(kind, ".".join(parts[4:]))
                found[name] = f"{blocks}.{first + index}.{int(kind == 'attentions')}.{inside}"
    return found


def inside_of_unet(kind: str, name: str) -> str:
    """A weight inside a ResNet block or a transformer, whose names are those of diffusers."""
    module, own = split_name(name)
    return f"{UNET_RESNET[module]}.{own}" if kind == "resnets" else name


def autoencoder_names(weights: Mapping[str, Any], blocks: int) -> dict[str, str]:
    """The original name of each weight of an autoencoder with `blocks` levels."""
    found = {}
    for name in weights:
        changed = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
        changed = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", changed)
        changed = re.sub(r"up_blocks\.(\d+)\.resnets", lambda at: f"up.{blocks - 1 - int(at[1])}.block", changed)
        changed = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda at: f"up.{blocks - 1 - int(at[1])}.upsample", changed)
        changed = re.sub(r"mid_block\.resnets\.(\d)", lambda at: f"mid.block_{int(at[1]) + 1}", changed)
        if "mid_block.attentions.0." in changed:
            head, _, inner = changed.partition("mid_block.attentions.0.")
            module, own = split_name(inner)
            changed = f"{head}mid.attn_1.{AUTOENCODER_ATTENTION[module]}.{own}"
        changed = changed.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        found[name] = changed
    return found


def autoencoder_weights(autoencoder: nn.Module) -> Weights:
    """Under original names; the linear layers of its attention are 1x1 convolutions there."""
    weights = autoencoder.state_dict()
    names = autoencoder_names(weights, len(autoencoder.config.block_out_channels))
    linear = re.compile(r"mid\.attn_1\.(q|k|v|proj_out)\.weight$")
    return {names[name]: value[:, :, None, None] if linear.search(names[name]) else value for name, value in weights.items()}


def open_clip_weights(encoder: nn.Module) -> Weights:
    """A text encoder of OpenCLIP's under its own names: queries, keys and values of a layer are one matrix there."""
    weights = {name.removeprefix("text_model."): value for name, value in encoder.state_dict().items()}
    weights = {name: value for name, value in weights.items() if not name.endswith("position_ids")}
    found: Weights = {}
    for name, value in weights.items():
        if name in OPEN_CLIP_ENDS:
            found[OPEN_CLIP_ENDS[name]] = value.T if name.startswith("text_projection") else value
            continue
        layer, _, inside = name.removeprefix("encoder.layers.").partition(".")
        module, own = split_name(inside)
        if module in OPEN_CLIP_LAYER:
            found[f"transformer.resblocks.{layer}.{OPEN_CLIP_LAYER[module]}.{own}"] = value
        elif module == "self_attn.q_proj":
            three = [weights[f"encoder.layers.{layer}.self_attn.{each}_proj.{own}"] for each in "qkv"]
            found[f"transformer.resblocks.{layer}.attn.in_proj_{own}"] = torch.cat(three)
    return found


def text_encoder_weights(teacher: LatentDiffusion) -> Iterator[tuple[str, Weights]]:
    """The prefix and the weights of each text encoder: one of Stable Diffusion 1 or 2, two of XL."""
    several = len(teacher.text_encoders) > 1
    for number, encoder in enumerate(teacher.text_encoders):
        place = f"conditioner.embedders.{number}" if several else "cond_stage_model"
        if encoder.config.hidden_act == "quick_gelu":  # OpenAI's CLIP; OpenCLIP has gelu
            weights = {name.removeprefix("text_model."): value for name, value in encoder.state_dict().items()}
            yield f"{place}.transformer.text_model", {k: v for k, v in weights.items() if not k.endswith("position_ids")}
        else:
            yield f"{place}.model", open_clip_weights(encoder)


def check_expressible(teacher: LatentDiffusion) -> None:
    """InputError for a student, or a pipeline, that this layout cannot hold, saying what can load it."""
    kind, config = type(teacher.denoiser).__name__, teacher.denoiser.config
    if not teacher.text_encoders:
        raise InputError("--to single_file: that layout is of Stable Diffusion 1, 2 and XL, and this pipeline takes no text.")
    if kind != "UNet2DConditionModel":
        raise InputError(
            f"--to single_file: no other program expresses the plan of this student ({kind}); diffusers loads its folder with "
            "trust_remote_code=True. Students of method=bk_sdm, l1_diff and dense can be written."
        )
    if not isinstance(config.layers_per_block, int) or config.class_embed_type is not None:
        raise InputError(
            f"--to single_file: layers_per_block={config.layers_per_block}, class_embed_type={config.class_embed_type} of the "
            "U-Net have no names in that layout."
        )


def original_weights(teacher: LatentDiffusion, dtype: torch.dtype) -> Weights:
    """All weights of a pipeline under the names of Stable Diffusion's own code, on the CPU.

    InputError for one that this layout cannot hold.
    """
    check_expressible(teacher)
    unet = teacher.denoiser.state_dict()
    names = unet_names(unet, teacher.denoiser.config.layers_per_block)
    groups = [(UNET, {names[name]: value for name, value in unet.items()})]
    groups += [(AUTOENCODER, autoencoder_weights(teacher.autoencoder)), *text_encoder_weights(teacher)]
    found = {f"{prefix}.{name}": value for prefix, weights in groups for name, value in weights.items()}
    return {name: value.detach().to("cpu", dtype).contiguous() for name, value in found.items()}


def write_single_file(teacher: LatentDiffusion, path: Path, dtype: torch.dtype) -> None:
    """Writes original_weights as a safetensors file, whole or not at all."""
    from safetensors.torch import save

    with whole_file(path) as handle:
        handle.write(save(original_weights(teacher, dtype), {"format": "pt"}))
