"""Which of the weight files beside each other in a model's folder are read: one format and one variant, never two.

safetensors come before pickles (.bin), and the plain file before variants such as fp16 or non_ema, which count only where
nothing else is there.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

BASES = ("diffusion_pytorch_model", "model", "pytorch_model")  # diffusers', transformers' safetensors, transformers' pickles
FORMATS = ("safetensors", "bin")
SHARD = re.compile(r"-\d{5}-of-\d{5}")


class Weights(NamedTuple):
    """A format and a variant; "" is the plain one."""

    format: str
    variant: str

    def options(self) -> dict[str, object]:
        """The arguments of diffusers' and transformers' from_pretrained that read these files and no others."""
        return {"use_safetensors": self.format == "safetensors", "variant": self.variant or None}


def weight_format(file_name: str) -> Weights | None:
    """What a file holds by its name, shards and their index (.index.json) included; None for anything but weights.

    model.safetensors, diffusion_pytorch_model.fp16.bin, model.fp16-00001-of-00002.safetensors,
    model.safetensors.index.fp16.json, ...
    """
    base, *words = SHARD.sub("", file_name).split(".")
    kinds = [word for word in words if word in FORMATS]
    if base not in BASES or len(kinds) != 1:
        return None
    return Weights(kinds[0], ".".join(word for word in words if word not in (*FORMATS, "index", "json")))


def best_weights(file_names: Iterable[str]) -> Weights | None:
    """The weights to read among the files of one folder; None where there are none."""
    known = {kind for name in file_names if (kind := weight_format(name))}
    return min(known, key=lambda kind: (kind.variant != "", FORMATS.index(kind.format), kind.variant), default=None)
