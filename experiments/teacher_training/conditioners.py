"""What a teacher's denoiser is conditioned on while both are trained: captions, or nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.denoisers.denoiser import Conditions
from common.diffusion.text_encoding import Reading, encode_text
from experiments.shared.settings import TeacherTraining, TrainedTextEncoder
from experiments.teacher_training.text_encoder import build_text_encoder, train_tokenizer


class Unconditional:
    """Nothing: no columns, no networks, no parts in the pipeline."""

    def columns(self) -> dict[str, torch.Tensor]:
        """Columns of the training rows beside the latents."""
        return {}

    def options(self) -> dict[str, Any]:
        """Further arguments of common.training.distillation.DenoiserTraining."""
        return {}

    def networks(self) -> Sequence[nn.Module]:
        """What is trained, and averaged, together with the denoiser."""
        return ()

    def parts(self) -> dict[str, Any]:
        """Its parts of the diffusers pipeline."""
        return {}

    def rows(self, chosen: torch.Tensor) -> Conditions:
        """The denoiser's arguments for the training rows of these numbers."""
        return {}

    def examples(self, count: int) -> tuple[Conditions, Conditions]:
        """The denoiser's arguments for a sheet of `count` samples, and for the empty condition."""
        return {}, {}


class Captions(Unconditional):
    """A small CLIP text model and the tokenizer learnt from the captions."""

    def __init__(self, settings: TrainedTextEncoder, captions: list[str], start: Path | None, work: Path):
        from transformers import CLIPTextModel, CLIPTokenizer

        self.captions = captions
        if start is None:
            if not (work / "tokenizer" / "tokenizer.json").is_file():
                train_tokenizer(captions, settings.vocabulary_size, settings.max_length).save_pretrained(work / "tokenizer")
            self.tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
            self.text_encoder = build_text_encoder(self.tokenizer, settings.width, settings.layers, settings.heads)
        else:
            self.tokenizer = CLIPTokenizer.from_pretrained(start / "tokenizer")
            self.text_encoder = CLIPTextModel.from_pretrained(start / "text_encoder", torch_dtype=torch.float32)

    def tokenize(self, texts: list[str]) -> torch.Tensor:
        return self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids

    def columns(self) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokenize(self.captions)}

    def options(self) -> dict[str, Any]:
        return {"null_condition": {"input_ids": self.tokenize([""])}, "text_encoder": self.text_encoder}

    def networks(self) -> Sequence[nn.Module]:
        return (self.text_encoder,)

    def parts(self) -> dict[str, Any]:
        return {"text_encoder": self.text_encoder, "tokenizer": self.tokenizer}

    @torch.no_grad()
    def rows(self, chosen: torch.Tensor) -> Conditions:
        tokens = self.tokenize([self.captions[index] for index in chosen.tolist()])
        return {"encoder_hidden_states": self.text_encoder(tokens.to(self.text_encoder.device)).last_hidden_state}

    @torch.no_grad()
    def examples(self, count: int) -> tuple[Conditions, Conditions]:
        """Evenly spaced training captions; fewer than `count` where there are not as many."""
        chosen = self.captions[:: max(1, len(self.captions) // count)][:count]
        device = next(self.text_encoder.parameters()).device
        states = self.text_encoder(self.tokenize([*chosen, ""]).to(device)).last_hidden_state.cpu()
        return {"encoder_hidden_states": states[:-1]}, {"encoder_hidden_states": states[-1:]}


class GivenCaptions(Unconditional):
    """What the text encoder of a finished teacher makes of the captions; it is taken as it is."""

    def __init__(self, captions: list[str], folder: Path, reads: str):
        from transformers import CLIPTextModel, CLIPTokenizer

        self.captions, self.reads = captions, reads
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", torch_dtype=torch.float32).eval()

    @torch.no_grad()
    def encoded(self, captions: Sequence[str]) -> Conditions:
        return encode_text([(self.tokenizer, self.text_encoder)], captions, Reading(self.reads))

    def columns(self) -> dict[str, torch.Tensor]:
        return self.encoded(self.captions)

    def options(self) -> dict[str, Any]:
        return {"null_condition": self.encoded([""])}

    def parts(self) -> dict[str, Any]:
        return {"text_encoder": self.text_encoder, "tokenizer": self.tokenizer}

    def rows(self, chosen: torch.Tensor) -> Conditions:
        return self.encoded([self.captions[index] for index in chosen.tolist()])

    def examples(self, count: int) -> tuple[Conditions, Conditions]:
        """Evenly spaced training captions; fewer than `count` where there are not as many."""
        return self.encoded(self.captions[:: max(1, len(self.captions) // count)][:count]), self.encoded([""])


def conditioner(settings: TeacherTraining, data: Any, start: Path | None, work: Path, reads: str) -> Unconditional:
    """Captions where the configuration has a text encoder, or names whose is taken; else nothing.

    reads: how captions become conditions (common.diffusion.text_encoding).
    """
    if settings.text_encoder_of is not None:
        return GivenCaptions(data.captions, Path(settings.text_encoder_of), reads)
    return Unconditional() if settings.text_encoder is None else Captions(settings.text_encoder, data.captions, start, work)
