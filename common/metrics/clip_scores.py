"""How well images fit their captions, by CLIP: CLIP score, PickScore, HPSv2. Networks are transformers' CLIPModel."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common.diffusion.text_encoding import check_vocabulary
from common.errors import InputError, first_line
from common.metrics.jackknife import Figures
from common.models.hub import is_repository, settings_files, snapshot, wanted_model_files
from common.settings import AtLeastOne

ELSEWHERE = "download it elsewhere and give the folder"


class ClipScore:
    """Mean cosine of the embeddings of image and caption; scaled: times the network's own logit scale (PickScore).

    name: under which it is given. model, processor: a folder or a hub name of the network, and of tokenizer and image
    preprocessing; revision: of the model on the hub, and of the processor where that is the same repository. size is the
    processor's (224): images are resized by Pillow, bicubic, as where these scores were published. batch_size: of images.
    """

    needs_real = False

    def __init__(self, name: str, model: str, revision: str | None, processor: str, scaled: bool, batch_size: AtLeastOne):
        self.name, self.model, self.revision, self.processor = name, model, revision, processor
        self.scaled, self.batch_size = scaled, batch_size

    def load(self, device: torch.device) -> None:
        """Network and preprocessing; InputError where they are neither on the disk nor to be had."""
        from transformers import CLIPImageProcessorPil, CLIPTokenizer

        revision = self.revision if self.processor == self.model else None
        folder = folder_of(self.processor, revision, settings_files, "preprocessor_config.json")
        self.tokenizer = pretrained(CLIPTokenizer, folder)
        check_vocabulary(self.tokenizer, folder)
        self.preprocessing = pretrained(CLIPImageProcessorPil, folder)
        self.network, self.device = self.load_network().to(device).eval().requires_grad_(False), device

    def load_network(self) -> torch.nn.Module:
        """A CLIPModel in float32, on the CPU."""
        from transformers import CLIPModel

        return whole_network(CLIPModel, self.model, self.revision)

    def rows(self, images: torch.Tensor, captions: list[str] | None) -> torch.Tensor:
        """Scores (count, 1) of uint8 images (count, 3, height, width) and as many captions."""
        if captions is None:
            raise InputError(f"{self.name} is of images with captions, which this data set does not have.")
        starts = range(0, len(images), self.batch_size)
        return torch.cat([self.scores(images[i : i + self.batch_size], captions[i : i + self.batch_size]) for i in starts])

    @torch.no_grad()
    def scores(self, images: torch.Tensor, captions: list[str]) -> torch.Tensor:
        """Of one batch."""
        pixels = self.preprocessing(list(images.permute(0, 2, 3, 1).numpy()), return_tensors="pt").pixel_values
        tokens = self.tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        seen = self.network.get_image_features(pixel_values=pixels.to(self.device))
        read = self.network.get_text_features(**tokens.to(self.device))
        seen, read = (torch.nn.functional.normalize(embedding(output), dim=1) for output in (seen, read))
        scale = self.network.logit_scale.exp() if self.scaled else 1.0
        return (scale * (seen * read).sum(1, keepdim=True)).float().cpu()

    def figures(self, rows: torch.Tensor, real: torch.Tensor | None, seed: int) -> Figures:
        return lambda kept: {self.name: rows[kept].double().mean().item()}


class HumanPreferenceScore(ClipScore):
    """HPSv2 (Wu et al. 2023): the cosine by a CLIP ViT-H-14 whose published file is in open_clip's format.

    model: that file, or its hub name "owner/name/file"; processor: the same architecture as transformers has it.
    """

    def load_network(self) -> torch.nn.Module:
        from transformers import CLIPConfig, CLIPModel

        path = self.checkpoint()
        config = pretrained(CLIPConfig, folder_of(self.processor, None, settings_files, "config.json"))
        try:
            weights = torch.load(path, map_location="cpu", weights_only=True)
            network = CLIPModel(config)
            network.load_state_dict(from_open_clip(weights.get("state_dict", weights)))
        except Exception as error:  # pickle, zip and torch each raise their own kind for a damaged or another file
            raise InputError(f"{path} cannot be loaded as open_clip's weights: {first_line(error)}") from error
        return network.float()

    def checkpoint(self) -> Path:
        """The file on the disk."""
        if Path(self.model).is_file():
            return Path(self.model)
        owner, _, rest = self.model.partition("/")
        name, _, file = rest.partition("/")
        if not file or Path(self.model).is_absolute() or owner in (".", "..", "~"):
            raise InputError(f"{self.model} is missing: give the file HPS_v2_compressed.pt, or owner/name/file of a hub.")
        return snapshot(f"{owner}/{name}", self.revision, lambda names: [file], file, f"the file {file}") / file


def folder_of(path: str, revision: str | None, wanted: Callable[[list[str]], list[str]], marker: str) -> str:
    """`path` itself, or the folder of what a hub's repository "owner/name" holds (common.models.hub.snapshot)."""
    if Path(path).is_dir():
        return path
    if not is_repository(path):
        raise InputError(f"{path} is missing: give a folder, or owner/name of a hub.")
    return str(snapshot(path, revision, wanted, marker, "the folder"))


def pretrained(kind: Any, path: str, **options: Any) -> Any:
    """kind.from_pretrained(path); InputError where that folder does not hold it."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    try:
        return kind.from_pretrained(path, local_files_only=True, **options)
    except Exception as error:  # transformers, safetensors, pickle and the hub's client each raise their own kinds
        told = f"{path} has no {kind.__name__} ({first_line(error)})"
        raise InputError(f"{told}; {ELSEWHERE}.") from error


def whole_network(kind: Any, model: str, revision: str | None) -> Any:
    """A network of class `kind` in float32 from a folder or a hub; InputError where it lacks weights."""
    folder = folder_of(model, revision, wanted_model_files, "config.json")
    network, report = pretrained(kind, folder, dtype=torch.float32, output_loading_info=True)
    if report["missing_keys"]:
        raise InputError(f"{model} lacks weights of {kind.__name__}, {min(report['missing_keys'])} among them.")
    return network


def embedding(output: Any) -> torch.Tensor:
    """The projected embedding (count, width): transformers 5 wraps it in an output object, older ones give it bare."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def from_open_clip(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict of CLIPModel from one of open_clip: other names, queries, keys and values apart, projections transposed."""
    towers = {"visual.": "vision_model.", "": "text_model."}
    plain = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "logit_scale": "logit_scale",
    }
    norms = {"visual.ln_pre": "vision_model.pre_layrnorm", "visual.ln_post": "vision_model.post_layernorm"}
    norms |= {"ln_final": "text_model.final_layer_norm"}
    parts = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    parts |= {"attn.out_proj": "self_attn.out_proj"}
    found = {}
    for name, value in weights.items():
        module, _, kind = name.rpartition(".")
        if name in plain:
            found[plain[name]] = value
        elif name in ("visual.proj", "text_projection"):
            found["visual_projection.weight" if name == "visual.proj" else "text_projection.weight"] = value.T.contiguous()
        elif module in norms:
            found[f"{norms[module]}.{kind}"] = value
        elif "transformer.resblocks." in name:
            tower, _, rest = name.partition("transformer.resblocks.")
            number, _, part = rest.partition(".")
            layer = f"{towers[tower]}encoder.layers.{number}."
            if part.startswith("attn.in_proj_"):
                kind = part.removeprefix("attn.in_proj_")
                for letter, third in zip("qkv", value.chunk(3), strict=True):
                    found[f"{layer}self_attn.{letter}_proj.{kind}"] = third
            else:
                found[f"{layer}{parts[part.rpartition('.')[0]]}.{kind}"] = value
        elif name != "attn_mask":  # a constant
            raise InputError(f"{name} is not a weight of open_clip's CLIP with vision transformer.")
    return found
