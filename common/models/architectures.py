"""The full-size models of the papers without their weights: configurations, networks on the meta device, random folders.

common/models/architectures.json names each model's parts as its hub repository does: [library, class, configuration].
"""

import json
import string
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.errors import InputError
from common.models.honoured_settings import CONFIG_FILES, check_pipeline_settings, config_file, named_parts
from common.models.hub import NETWORKS, PARTS, denoiser_part
from common.models.latent_diffusion import LatentDiffusion
from common.models.loading import put_together, read_index
from common.models.parts import class_of
from common.models.pipeline_defaults import settle_sample_size
from common.runtime.files import SHIPPED, whole_folder
from common.runtime.strict_json import read_json

Part = tuple[str, str, dict[str, Any]]
END_OF_TEXT = 49407  # the last of CLIP's 49,408 tokens


@cache
def descriptions() -> dict[str, Any]:
    """`architectures` by name, and by `hub` repository the name of its architecture."""
    return json.loads(Path(__file__).with_suffix(".json").read_text())


def architecture(name_or_repository: str) -> dict[str, Any]:
    """`pipeline` and `parts` of a known architecture ("sdxl"), or of a hub repository ("segmind/small-sd")."""
    known = descriptions()
    name = known["hub"].get(name_or_repository, name_or_repository)
    if name not in known["architectures"]:
        raise InputError(
            f"The architecture of {name_or_repository!r} is not known without its folder; give teacher.path=<folder>, or one "
            f"of {', '.join(known['architectures'])}, {', '.join(known['hub'])}."
        )
    found = known["architectures"][name]
    if "like" not in found:
        return found
    base = architecture(found["like"])
    return {**base, **found, "parts": {**base["parts"], **found["parts"]}}


def local_folder(name_or_path: str) -> Path | None:
    """The pipeline folder of a shipped teacher or of a path, where there is one."""
    return next((f for f in (SHIPPED / name_or_path, Path(name_or_path)) if (f / "model_index.json").is_file()), None)


def pipeline_of(name_or_path: str) -> dict[str, Any]:
    """What the index of the pipeline says besides its parts: its class, and settings of its own."""
    folder = local_folder(name_or_path)
    return architecture(name_or_path)["pipeline"] if folder is None else read_index(folder)


def parts_of(name_or_path: str) -> dict[str, Part]:
    """Library, class and configuration of each part of a teacher: of a local pipeline folder, else as described here."""
    folder = local_folder(name_or_path)
    if folder is None:
        return {name: tuple(part) for name, part in architecture(name_or_path)["parts"].items()}
    parts: dict[str, Part] = {}
    index = read_index(folder)
    check_pipeline_settings(folder, index)
    for name, named in named_parts(index).items():
        if name not in PARTS:  # a safety checker, say, which a download leaves out
            continue
        path = config_file(folder, name)
        if not path.is_file():
            raise InputError(f"{folder} lacks {name}/{path.name}, and model_index.json names its part {name!r}.")
        parts[name] = (*named, read_json(path))
    return parts


def build(part: Part) -> Any:
    """The part from its configuration: a network with random weights (on the device of the context), or a scheduler."""
    library, class_name, settings = part
    kind = class_of(library, class_name)
    if library == "transformers":
        return kind(kind.config_class(**settings))
    return kind.from_config(settings)


def meta_teacher(name_or_path: str) -> LatentDiffusion:
    """The pipeline on the meta device, without weights or tokenizers: of a shipped teacher, a folder, an architecture or a
    known hub repository. InputError for what is none of these.
    """
    parts = parts_of(name_or_path)
    with torch.device("meta"):
        networks = {name: build(part).eval().requires_grad_(False) for name, part in parts.items() if name in NETWORKS}
    pipeline = pipeline_of(name_or_path)
    settle_sample_size(Path(name_or_path), pipeline, networks[denoiser_part(networks)])
    built = networks | {"scheduler": build(parts["scheduler"])}
    return put_together(Path(name_or_path).name, Path(name_or_path), pipeline, built)


def write_random_folder(
    name_or_repository: str,
    folder: Path,
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
    binary: bool = False,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Writes a pipeline folder at full size with random weights, laid out as the hub repository is; whole or not at all.

    binary: weights in PyTorch's .bin files instead of safetensors. changes: by part, settings that differ from those of the
    repository. Tokenizers know single characters alone.
    """
    described = architecture(name_or_repository)
    index = {**described["pipeline"], **{name: [library, kind] for name, (library, kind, _) in described["parts"].items()}}
    with whole_folder(folder) as scratch:
        for position, (name, part) in enumerate(described["parts"].items()):
            torch.manual_seed(seed + position)
            part = (*part[:2], {**part[2], **(changes or {}).get(name, {})})
            if name.startswith("tokenizer"):
                writers = {"T5": write_t5_tokenizer, "Gemma": write_gemma_tokenizer, "Qwen2": write_qwen_tokenizer}
                kind = next((kind for kind in writers if part[1].startswith(kind)), None)
                writers.get(kind, write_tokenizer)(scratch / name, part[2])
            elif name == "mel":
                (scratch / name).mkdir()
                (scratch / name / CONFIG_FILES[name]).write_text(
                    json.dumps({"_class_name": part[1], **part[2]}, indent=1), encoding="utf-8"
                )
            else:
                save_part(build(part), scratch / name, dtype, binary)
        (scratch / "model_index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def save_part(part: Any, folder: Path, dtype: torch.dtype, binary: bool) -> None:
    """part.save_pretrained(folder), a network's weights as `dtype`; binary: its safetensors rewritten as one .bin file."""
    from safetensors.torch import load_file

    if not isinstance(part, nn.Module):
        part.save_pretrained(folder)
        return
    nn.Module.to(part, dtype).save_pretrained(folder, max_shard_size="100GB")  # diffusers' own `to` warns about every part
    if binary:
        (weights,) = folder.glob("*.safetensors")
        target = "pytorch_model.bin" if weights.name.startswith("model") else "diffusion_pytorch_model.bin"
        torch.save(load_file(weights), folder / target)
        weights.unlink()


def write_t5_tokenizer(folder: Path, settings: dict[str, Any]) -> None:
    """A T5 tokenizer of letters and digits."""
    from transformers import T5Tokenizer

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = [("\u2581", -2.0), *((letter, -3.0) for letter in string.ascii_lowercase + string.digits)]
    T5Tokenizer(vocab=[*special, *pieces], extra_ids=0, **settings).save_pretrained(folder)


def write_gemma_tokenizer(folder: Path, settings: dict[str, Any]) -> None:
    """Gemma's tokenizer without merges: printable characters of ASCII, and bytes for all others."""
    from transformers import GemmaTokenizer

    bytewise = [f"<0x{number:02X}>" for number in range(256)]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *bytewise, *string.printable.replace(" ", "\u2581")]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    GemmaTokenizer(vocab=vocabulary, merges=[], **settings).save_pretrained(folder)


def write_qwen_tokenizer(folder: Path, settings: dict[str, Any]) -> None:
    """Qwen's byte-level tokenizer without merges, and turns of a chat as it has them."""
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Tokenizer

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: number for number, token in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), *special])}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], extra_special_tokens=special[1:], **settings)
    tokenizer.chat_template = (
        "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(folder)


def write_tokenizer(folder: Path, settings: dict[str, Any]) -> None:
    """CLIP's byte-level tokenizer without merges, in its files of old: vocab.json, merges.txt, tokenizer_config.json."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    vocabulary |= {"<|startoftext|>": END_OF_TEXT - 1, "<|endoftext|>": END_OF_TEXT}
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special |= {"pad_token": "<|endoftext|>"}
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1), encoding="utf-8")
    config = {"tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "errors": "replace", **special, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
