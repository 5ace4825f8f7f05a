"""What text encoders make of captions: those of Stable Diffusion, PixArt, Sana, FLUX and Qwen-Image.

Versions 1 and 2 have one encoder and condition on its last hidden state (of version 2, whose configuration leaves out the
last layer, that is OpenCLIP's penultimate one). XL (arXiv 2307.01952, section 2.1) has two: their penultimate hidden states
beside each other, the second one's pooled projection, and the sizes of section 2.2, which are constant here. Version 3
(arXiv 2403.03206, appendix B.3) has those two and a T5 whose states follow theirs, or zeros where it was left out. Sana
(2410.10629, section 3.1), FLUX.2-klein and Qwen-Image (2508.02324, section 2.1) read by a language model, whose captions
stand in an instruction, in a turn of a chat, or both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from common.denoisers.denoiser import Conditions
from common.errors import InputError, first_line

CAPTIONS = {1: 512, 2: 64, 3: 64}  # encoded at once, by the number of encoders: two give all their hidden states
TOKENS = 77  # as long as those captions are; of longer ones fewer go at once
READ_AT_ONCE = 16  # captions, by a language model of billions of weights
T5_TOKENS = 256  # of Stable Diffusion 3's T5, as diffusers' pipeline has it
CHAT_STATES = (9, 18, 27)  # hidden states of FLUX.2-klein's language model, beside each other
DESCRIBED = (  # what Qwen-Image's language model is asked, with its first 34 tokens left out of what it gives
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
DESCRIBED_TOKENS = 34
DESCRIBED_AT_MOST = 1024 + DESCRIBED_TOKENS  # read of a long caption; the beginning of that is kept


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


def check_reading(folder: str | Path, tokenizers: Sequence[Any], how: str) -> None:
    """InputError where a tokenizer cannot pad captions, or make a turn of a chat of them, as reading them so asks for."""
    for tokenizer in tokenizers:
        if tokenizer.pad_token is None:
            raise InputError(f"{folder}: the tokenizer has no pad_token, by which captions are made of one length.")
    if how == "chat":
        try:
            turn_of_chat(tokenizers[0], "a cat")
        except Exception as error:  # jinja's, of whatever the template does
            raise InputError(
                f"{folder}: the tokenizer makes no turn of a chat (chat_template.jinja, or chat_template in "
                f"tokenizer_config.json): {first_line(error)}"
            ) from error


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


Encoder = tuple[Any, nn.Module]
"""A tokenizer and its text encoder."""


@dataclass(frozen=True)
class Reading:
    """How captions become conditions.

    how: by which of READERS. width: of the states that the denoiser takes, which "joint" asks for. instruction: what stands
    before each caption but the empty one, for "instructed".
    """

    how: str = "states"
    width: int = 0
    instruction: str = ""


def encode_text(encoders: Sequence[Encoder], captions: Sequence[str], reading: Reading = Reading()) -> Conditions:
    """The conditions of the captions, a row each: `encoder_hidden_states` (captions, tokens, width), and what READERS add."""
    read, longest = READERS[reading.how], max(TOKENS, *(tokenizer.model_max_length for tokenizer, _ in encoders))
    of_language_model = read in (read_instructed, read_chat, read_described)
    size = READ_AT_ONCE if of_language_model else max(1, CAPTIONS[len(encoders)] * TOKENS // longest)
    chunks = [read(encoders, list(captions[start : start + size]), reading) for start in range(0, len(captions), size)]
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


def ids_of(encoder: Encoder, captions: Sequence[str]) -> Any:
    """`input_ids` and `attention_mask` of the captions on the text encoder's device."""
    return tokenized(encoder[0], captions).to(next(encoder[1].parameters()).device)


def read_states(encoders: Sequence[Encoder], captions: Sequence[str], reading: Reading) -> Conditions:
    """Of one encoder its last states, of two (XL) the penultimate ones of both and `text_embeds` (captions, pooled width)."""
    if len(encoders) == 1:
        return {"encoder_hidden_states": encoders[0][1](ids_of(encoders[0], captions).input_ids).last_hidden_state}
    states, pooled = penultimate_states(encoders, captions)
    return {"encoder_hidden_states": torch.cat(states, -1), "text_embeds": pooled[-1]}


def penultimate_states(encoders: Sequence[Encoder], captions: Sequence[str]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Of each CLIP its hidden states before the last layer, and its projection where it has one."""
    outputs = [each[1](ids_of(each, captions).input_ids, output_hidden_states=True) for each in encoders]
    projected = [output.text_embeds for output in outputs if "text_embeds" in output]
    return [output.hidden_states[-2] for output in outputs], projected


def read_masked(encoders: Sequence[Encoder], captions: Sequence[str], reading: Reading) -> Conditions:
    """Of one encoder, CLIP's or T5, that is told which tokens are padding, as the denoiser is by `encoder_attention_mask`."""
    plain = [caption.lower().strip() for caption in captions]  # as PixArt's pipelines do before anything else
    tokens = ids_of(encoders[0], plain)
    states = encoders[0][1](tokens.input_ids, attention_mask=tokens.attention_mask)[0]
    return {"encoder_hidden_states": states, "encoder_attention_mask": tokens.attention_mask.to(states)}


def read_joint(encoders: Sequence[Encoder], captions: Sequence[str], reading: Reading) -> Conditions:
    """Of two CLIPs the penultimate states, widened by zeros, before those of T5; `pooled_projections` of both CLIPs."""
    states, pooled = penultimate_states(encoders[:2], captions)
    clip = torch.cat(states, -1)
    clip = F.pad(clip, (0, reading.width - clip.shape[-1]))
    if len(encoders) > 2:
        t5 = encoders[2][1](ids_of(encoders[2], captions).input_ids)[0]
    else:
        t5 = clip.new_zeros(len(clip), T5_TOKENS, reading.width)
    return {"encoder_hidden_states": torch.cat([clip, t5], 1), "pooled_projections": torch.cat(pooled, -1)}


def read_pooled(encoders: Sequence[Encoder], captions: Sequence[str], reading: Reading) -> Conditions:
    """Of a CLIP its pooled state, `pooled_projections`, and of a T5 its states, of padding, too."""
    pooled = encoders[0][1](ids_of(encoders[0], captions).input_ids).pooler_output
    states = encoders[1][1](ids_of(encoders[1], captions).input_ids)[0]
    return {"encoder_hidden_states": states, "pooled_projections": pooled}


def read_instructed(encoders: Sequence[Encoder], captions: Sequence[str], reading: Reading) -> Conditions:
    """Of a language model the first state and the last ones, as many as its tokenizer is long, and which are padding.

    An instruction stands before each caption but the empty one, which is what no caption means; its states are left out,
    but for the first one's.
    """
    tokenizer, encoder = encoders[0]
    length, found = tokenizer.model_max_length, {}
    for instruction in dict.fromkeys((reading.instruction, "")):
        chosen = [row for row, caption in enumerate(captions) if (reading.instruction if caption else "") == instruction]
        if not chosen:
            continue
        texts = [instruction + captions[row].lower().strip() for row in chosen]
        beside = len(tokenizer(instruction, verbose=False).input_ids) - 2 if instruction else 0
        tokens = padded(tokenizer, texts, length + beside, padding_side="right").to(encoder.device)
        states = encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
        kept = [torch.cat([each[:, :1], each[:, 1 - length :]], 1) for each in (states, tokens.attention_mask)]
        found |= dict(zip(chosen, zip(*kept, strict=True), strict=True))
    states, mask = (torch.stack(each) for each in zip(*(found[row] for row in range(len(captions))), strict=True))
    return {"encoder_hidden_states": states, "encoder_attention_mask": mask.to(states)}


def read_chat(encoders: Sequence[Encoder], captions: Sequence[str], reading: Reading) -> Conditions:
    """Of a language model CHAT_STATES beside each other; each caption is what a user says, and padding is read, too."""
    tokenizer, encoder = encoders[0]
    tokens = padded(tokenizer, [turn_of_chat(tokenizer, caption) for caption in captions], tokenizer.model_max_length)
    states = states_of(encoder, tokens, output_hidden_states=True).hidden_states
    return {"encoder_hidden_states": torch.cat([states[number] for number in CHAT_STATES], -1)}


def turn_of_chat(tokenizer: Any, caption: str) -> str:
    """What a user says who says the caption, and the beginning of an answer that is not thought over."""
    asked = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    return tokenizer.apply_chat_template([{"role": "user", "content": caption}], **asked)


def read_described(encoders: Sequence[Encoder], captions: Sequence[str], reading: Reading) -> Conditions:
    """Of a language model the last states after DESCRIBED_TOKENS of DESCRIBED, 0 where `encoder_hidden_states_mask` is."""
    tokenizer, encoder = encoders[0]
    asked, length = [DESCRIBED.format(caption) for caption in captions], tokenizer.model_max_length + DESCRIBED_TOKENS
    cut = [ids[:length] for ids in tokenizer(asked, max_length=DESCRIBED_AT_MOST, truncation=True).input_ids]
    filled = {"padding": "max_length", "max_length": length, "padding_side": "right", "return_tensors": "pt"}
    tokens = tokenizer.pad({"input_ids": cut}, **filled)
    mask = tokens.attention_mask[:, DESCRIBED_TOKENS:]
    states = states_of(encoder, tokens).last_hidden_state[:, DESCRIBED_TOKENS:]
    return {"encoder_hidden_states": states * mask.to(states)[..., None], "encoder_hidden_states_mask": mask}


def padded(tokenizer: Any, texts: list[str], length: int, **options: Any) -> Any:
    """`input_ids` and `attention_mask` (texts, length), padded and cut to that length."""
    return tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt", **options)


def states_of(encoder: Any, tokens: Any, **options: Any) -> Any:
    """What a language model gives, of states (texts, tokens, width), without what it would say."""
    tokens = tokens.to(encoder.device)
    given = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
    return language_model(encoder)(**given, use_cache=False, **options)


def language_model(encoder: Any) -> Any:
    """The part of a text encoder that gives states, without the head by which it would write."""
    return encoder.get_decoder() if hasattr(encoder, "lm_head") else encoder


READERS: dict[str, Callable[[Sequence[Encoder], Sequence[str], Reading], Conditions]] = {
    "states": read_states,
    "masked": read_masked,
    "joint": read_joint,
    "pooled": read_pooled,
    "instructed": read_instructed,
    "chat": read_chat,
    "described": read_described,
}


def token_count(how: str, lengths: Sequence[int]) -> int:
    """How many states a caption has, of encoders that read so many tokens each."""
    if how == "joint":
        return lengths[0] + (lengths[2] if len(lengths) > 2 else T5_TOKENS)
    return lengths[1] if how == "pooled" else lengths[0]


def tokens_beside(reading: Reading) -> int:
    """About how many tokens are read beside those of a caption, at four letters each where no tokenizer is at hand."""
    return DESCRIBED_TOKENS if reading.how == "described" else len(reading.instruction) // 4


def size_conditions(height: int, width: int, rows: int) -> torch.Tensor:
    """`time_ids` (rows, 6): original size, upper left corner of the crop, target size; an image that was not cropped."""
    return torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32).expand(rows, -1)
