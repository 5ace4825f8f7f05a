from transformers import CLIPTokenizer

from experiments.teacher_training.text_encoder import build_text_encoder, train_tokenizer


def test_words_of_the_captions_are_single_tokens(tmp_path):
    tokenizer = train_tokenizer(["a red apple, noto style", "a green apple, openmoji style"], 700, 12)
    assert tokenizer.tokenize("a green apple") == ["a</w>", "green</w>", "apple</w>"]
    pieces = tokenizer.tokenize("zebra é")
    assert len(pieces) > 2 and tokenizer.unk_token not in pieces
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    padded = again(["a red apple", ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert padded.shape == (2, 12)
    assert again("a red zebra").input_ids == tokenizer("a red zebra").input_ids
    states = build_text_encoder(again, width=8, layers=1, heads=2)(padded).last_hidden_state
    assert states.shape == (2, 12, 8)
