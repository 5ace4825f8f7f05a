"""A small CLIP text model and its tokenizer, made for a teacher that is trained together with them."""

import json

from tokenizers import pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


def train_tokenizer(captions: list[str], vocabulary_size: int, max_length: int) -> CLIPTokenizer:
    """CLIP's byte-pair encoding learnt from the captions: a word seen in them is one token, others fall into pieces.

    The library breaks ties between equally frequent pairs differently in every process, so the numbering of the tokens is
    not reproducible: keep the tokenizer with the model that was trained with it.
    """
    blank = CLIPTokenizer()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    backend = blank.backend_tokenizer
    backend.train_from_iterator(captions, trainer)
    learnt = backend.get_vocab()
    tokens = sorted(learnt, key=learnt.get)
    tokens += [f"{letter}</w>" for letter in alphabet if f"{letter}</w>" not in learnt]  # no caption need end in it
    vocabulary = {token: number for number, token in enumerate(tokens)}  # without the gaps that training may leave
    merges = [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)


def build_text_encoder(tokenizer: CLIPTokenizer, width: int, layers: int, heads: int) -> CLIPTextModel:
    """A CLIP text transformer (token states of `width`) sized for the tokenizer."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
