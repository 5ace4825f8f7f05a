"""Whether the parts of a pipeline fit each other, before anything is computed with them."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from common.denoisers.denoiser import architecture_of
from common.diffusion.autoencoders import image_channels, latent_channels
from common.diffusion.text_encoding import CHAT_STATES
from common.errors import InputError


def check_named_parts(folder: Path, named: Iterable[str]) -> None:
    """InputError naming the first part that jobs need and the pipeline's index does not name."""
    named = set(named)
    found = ", ".join(sorted(named)) or "no parts"
    if not named & {"unet", "transformer"}:
        raise InputError(f"{folder} has no denoiser ('unet' or 'transformer'): its model_index.json names {found}.")
    if not named & {"vae", "vqvae"} or "scheduler" not in named:
        raise InputError(f"{folder} needs an autoencoder ('vae' or 'vqvae') and a 'scheduler'; its index names {found}.")
    for number in ("", "_2", "_3"):
        if len({f"text_encoder{number}", f"tokenizer{number}"} & named) == 1:
            raise InputError(f"{folder}: text_encoder{number} and tokenizer{number} go together; its index names {found}.")
    if "text_encoder_2" in named and "text_encoder" not in named:
        raise InputError(f"{folder} has its second text encoder alone: it is Stable Diffusion XL's refiner; give the base.")


def check_parts_fit(folder: Path, denoiser: nn.Module, autoencoder: nn.Module, text_encoders: list[nn.Module]) -> None:
    """InputError with the two numbers when latents or text states of one part are not those that another takes."""
    latents = latent_channels(autoencoder.config)
    architecture = architecture_of(denoiser)
    if type(autoencoder).__name__ not in architecture.autoencoders:
        known = " or ".join(architecture.autoencoders)
        found = f"{type(autoencoder).__name__} beside a {type(denoiser).__name__}"
        raise InputError(f"{folder}: the autoencoder is of the class {found}, which goes with {known}.")
    packed = denoiser.config.in_channels // architecture.latent_shape(denoiser)[0]  # FLUX takes patches for channels
    variances = architecture.part == "transformer" and denoiser.config.out_channels == 2 * latents
    what = "U-Net" if architecture.part == "unet" else architecture.part
    places = f", {packed} places of which are a token" if packed > 1 else ""
    for side in ("in_channels", "out_channels"):
        channels = getattr(denoiser.config, side) or denoiser.config.in_channels
        if side == "out_channels" and packed > 1 and denoiser.config.patch_size > 1:  # Qwen-Image tells those of a latent
            channels *= denoiser.config.patch_size**2
        if channels != packed * latents and not (side == "out_channels" and variances):
            raise InputError(
                f"{folder}: the {what} has {side}={channels}, and the autoencoder's latents have {latents} channels{places}; "
                f"jobs take {what}s from latents to latents (neither inpainting's nor learned variances)."
            )
    patch, shape = math.isqrt(packed), architecture.latent_shape(denoiser)
    if shape[1] % patch or shape[2] % patch:
        raise InputError(
            f"{folder}: {architecture.part}/config.json sets sample_size={denoiser.config.sample_size}, and the denoiser takes "
            f"latents in patches of {patch} x {patch}: even numbers are needed."
        )
    images = {image_channels(autoencoder.config), autoencoder.config.get("out_channels", image_channels(autoencoder.config))}
    if images not in ({1}, {3}):
        raise InputError(
            f"{folder}: the autoencoder has {sorted(images)} channels of images; 3 (colour) or 1 (grey) are known."
        )
    if not text_encoders:
        if "cross_attention_dim" in denoiser.config or "joint_attention_dim" in denoiser.config:
            raise InputError(f"{folder}: the {type(denoiser).__name__} attends to text, and there is no text_encoder.")
        return
    if architecture.reads_text in TEXT_CHECKS:
        TEXT_CHECKS[architecture.reads_text](folder, denoiser.config, text_encoders)
        return
    widths = [encoder.config.hidden_size for encoder in text_encoders]
    takes = architecture.text_width
    taken = denoiser.config.get(takes)
    if sum(widths) != taken:
        given = " + ".join(map(str, widths))
        raise InputError(f"{folder}: the text encoder is {given} wide, and the denoiser has {takes}={taken}.")
    check_added_conditions(folder, denoiser.config, text_encoders)
    kinds = [architecture.text_encoders, ("CLIPTextModelWithProjection",)][: len(text_encoders)]
    for encoder, known in zip(text_encoders, kinds, strict=True):
        if type(encoder).__name__ not in known:
            found = ", ".join(type(encoder).__name__ for encoder in text_encoders)
            honoured = " and ".join(" or ".join(each) for each in kinds)
            raise InputError(f"{folder}: text encoders of the classes {found}; {honoured} are honoured.")


def check_joint_text(folder: Path, config: Any, text_encoders: list[nn.Module]) -> None:
    """InputError unless two CLIPs, and a T5 where there is a third encoder, have the widths that the denoiser takes."""
    found = [type(encoder).__name__ for encoder in text_encoders]
    wanted = ["CLIPTextModelWithProjection", "CLIPTextModelWithProjection", "T5EncoderModel"]
    if len(found) < 2 or found != wanted[: len(found)]:
        raise InputError(f"{folder}: text encoders of the classes {', '.join(found)}; {', '.join(wanted)} are honoured.")
    clips = [encoder.config for encoder in text_encoders[:2]]
    states = [each.config.hidden_size for each in text_encoders[2:]] or [config.joint_attention_dim]
    check_widths(folder, config, joint_attention_dim=states, pooled_projection_dim=[each.projection_dim for each in clips])
    taken = config.joint_attention_dim
    if sum(each.hidden_size for each in clips) > taken:
        raise InputError(f"{folder}: the two CLIPs together are wider than the denoiser's joint_attention_dim={taken}.")


def check_pooled_text(folder: Path, config: Any, text_encoders: list[nn.Module]) -> None:
    """InputError unless a CLIP and a T5 have the widths that the denoiser takes."""
    clip, t5 = (each.config.hidden_size for each in of_classes(folder, text_encoders, "CLIPTextModel", "T5EncoderModel"))
    check_widths(folder, config, joint_attention_dim=[t5], pooled_projection_dim=[clip])


def check_chat_text(folder: Path, config: Any, text_encoders: list[nn.Module]) -> None:
    """InputError unless a language model has the hidden states that are read, as wide as the denoiser takes them."""
    (encoder,) = of_classes(folder, text_encoders, "Qwen3ForCausalLM")
    layers = encoder.config.num_hidden_layers
    if layers < max(CHAT_STATES):
        told = ", ".join(map(str, CHAT_STATES))
        raise InputError(f"{folder}: the text encoder has {layers} layers; the states after {told} are read.")
    check_widths(folder, config, joint_attention_dim=[encoder.config.hidden_size] * len(CHAT_STATES))


def check_described_text(folder: Path, config: Any, text_encoders: list[nn.Module]) -> None:
    """InputError unless a language model is as wide as the denoiser takes text."""
    (encoder,) = of_classes(folder, text_encoders, "Qwen2_5_VLForConditionalGeneration")
    check_widths(folder, config, joint_attention_dim=[encoder.config.get_text_config().hidden_size])


def of_classes(folder: Path, text_encoders: list[nn.Module], *wanted: str) -> list[Any]:
    """The text encoders; InputError where they are not of these classes."""
    found = [type(encoder).__name__ for encoder in text_encoders]
    if found != list(wanted):
        raise InputError(f"{folder}: text encoders of the classes {', '.join(found)}; {', '.join(wanted)} are honoured.")
    return text_encoders


def check_widths(folder: Path, config: Any, **given: list[int]) -> None:
    """InputError where the widths of text, together, are not what the denoiser's configuration has by that name."""
    for name, widths in given.items():
        if sum(widths) != config[name]:
            told = " + ".join(map(str, widths))
            raise InputError(f"{folder}: the text encoders give {told}, and the denoiser has {name}={config[name]}.")


TEXT_CHECKS: dict[str, Callable[[Path, Any, list[nn.Module]], None]] = {
    "joint": check_joint_text,
    "pooled": check_pooled_text,
    "chat": check_chat_text,
    "described": check_described_text,
}
"""By how text is read (common.diffusion.text_encoding), where that is not by the widths of hidden states alone."""


def check_added_conditions(folder: Path, config: Any, text_encoders: list[nn.Module]) -> None:
    """InputError unless the U-Net takes pooled text and sizes exactly where there is a second text encoder, of its width."""
    kind = config.get("addition_embed_type")
    if kind != ("text_time" if len(text_encoders) == 2 else None):
        raise InputError(f"{folder}: the U-Net has addition_embed_type={kind!r} with {len(text_encoders)} text encoder(s).")
    if kind is None:
        return
    pooled = text_encoders[1].config.projection_dim
    taken = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    if pooled != taken:
        raise InputError(
            f"{folder}: text_encoder_2 projects to {pooled}, and the U-Net takes {taken} "
            "(projection_class_embeddings_input_dim - 6 * addition_time_embed_dim)."
        )


def check_tokenizers(folder: Path, tokenizers: Sequence[Any], text_encoders: list[nn.Module]) -> None:
    """InputError where a tokenizer makes more tokens, or other ones, than its text encoder takes, or two differ in length."""
    lengths = []
    for tokenizer, encoder in zip(tokenizers, text_encoders, strict=False):
        config: Any = encoder.config.get_text_config()
        length, places = tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)
        largest = max(tokenizer.get_vocab().values())
        if places is not None and length > places:
            raise InputError(f"{folder}: the tokenizer has model_max_length={length}, the text encoder {places} places.")
        lengths += [] if places is None else [length]  # T5 has none, and a length of its own
        if largest >= config.vocab_size:
            raise InputError(f"{folder}: the tokenizer has a token {largest}, the text encoder vocab_size={config.vocab_size}.")
    if len(set(lengths)) > 1:
        told = " and ".join(map(str, lengths))
        raise InputError(f"{folder}: the two tokenizers have model_max_length={told}; equal ones are needed.")
