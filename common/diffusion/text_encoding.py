"""What the text encoders of Stable Diffusion 1, 2, XL and PixArt make of captions.

Versions 1 and 2 have one encoder and condition on its last hidden state (of version 2, whose configuration leaves out the
last layer, that is OpenCLIP's penultimate one). XL (arXiv 2307.01952, section 2.1) has two: their penultimate hidden states
beside each other, the second one's pooled projection, and the sizes of section 2.2, which are constant here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.denoisers.denoiser import Conditions
from common.errors import InputError

CAPTIONS = {1: 512, 2: 64}  # encoded at once, by the number of encoders: two give all their hidden states
TOKENS = 77  # as long as those captions are; of longer ones fewer go at once


def check_vocabulary(tokenizer: Any, folder: str | Path) -> None:
    """InputError where a tokenizer tells no words apart: transformers makes such a one, in silence, where files are missing.

    And where its length holds no word between the first token and the last.
    """
    length = tokenizer.model_max_length
    if not isinstance(length, int) or length < 3:
        raise InputError(f"{folder}: model_max_length={length!r}; a whole number of at least 3 is needed.")
    one, other = tokenizer(["a", "b"], add_special_tokens=False).input_ids
    if one == other:
        raise InputError(f"{folder} has no vocabulary: vocab.json and merges.txt, or tokenizer.json, are missing.")


def tokenized(tokenizer: Any, captions: Sequence[str]) -> Any:
    """`input_ids` and `attention_mask` (captions, tokens), padded and cut to the tokenizer's length; textual inversions as
    diffusers' pipelines have them."""
    length, texts = tokenizer.model_max_length, with_all_vectors(tokenizer, captions)
    return tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")


def with_all_vectors(tokenizer: Any, captions: Sequence[str]) -> list[str]:
    """The captions, a concept of several vectors ("<cat-toy>") as the tokens of all of them ("<cat-toy> <cat-toy>_1 ...")."""
    added = tokenizer.get_added_vocab()
    if not any(f"{token}_1" in added for token in added):
        return list(captions)
    from diffusers.loaders import TextualInversionLoaderMixin

    return TextualInversionLoaderMixin().maybe_convert_prompt(list(captions), tokenizer)


def encode_text(encoders: Sequence[tuple[Any, nn.Module]], captions: Sequence[str], masked: bool = False) -> Conditions:
    """`encoder_hidden_states` (captions, tokens, width) and, of two encoders, `text_embeds` (captions, pooled width).

    encoders: tokenizer and text encoder, one pair or two; the second of two has a projection. masked: one encoder (CLIP's or
    T5) that is told which tokens are padding, and `encoder_attention_mask` (captions, tokens) that tells the denoiser (PixArt).
    """
    states, pooled, masks = [], [], []
    size = max(1, CAPTIONS[len(encoders)] * TOKENS // max(TOKENS, *(tokenizer.model_max_length for tokenizer, _ in encoders)))
    for start in range(0, len(captions), size):
        chunk = list(captions[start : start + size])
        if masked:
            chunk = [caption.lower().strip() for caption in chunk]  # as PixArt's pipelines do before anything else
        tokens = [tokenized(tokenizer, chunk).to(next(encoder.parameters()).device) for tokenizer, encoder in encoders]
        inputs = [each.input_ids for each in tokens]
        if masked:
            states.append(encoders[0][1](inputs[0], attention_mask=tokens[0].attention_mask)[0])
            masks.append(tokens[0].attention_mask.to(states[0]))
            continue
        if len(encoders) == 1:
            states.append(encoders[0][1](inputs[0]).last_hidden_state)
            continue
        outputs = [encoder(ids, output_hidden_states=True) for (_, encoder), ids in zip(encoders, inputs, strict=True)]
        states.append(torch.cat([output.hidden_states[-2] for output in outputs], -1))
        pooled.append(outputs[-1].text_embeds)
    columns = {"encoder_hidden_states": states, "text_embeds": pooled, "encoder_attention_mask": masks}
    return {name: torch.cat(values) for name, values in columns.items() if values}


def size_conditions(height: int, width: int, rows: int) -> torch.Tensor:
    """`time_ids` (rows, 6): original size, upper left corner of the crop, target size; an image that was not cropped."""
    return torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32).expand(rows, -1)
