"""CLIP score, PickScore and HPSv2 over a small random CLIP, against CLIPModel's own logits and open_clip's layout."""

import shutil

import pytest
import torch
from PIL import Image
from torch import nn

from common.errors import InputError
from common.metrics.clip_scores import ClipScore, HumanPreferenceScore
from tests.random_weights import write_clip

CAPTIONS = ["a red apple", "seven grey cats on a very long wall " * 9, "sea"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def images():
    """Not square, and of another size than the network sees."""
    small = torch.rand(3, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    return (255 * nn.functional.interpolate(small, (60, 80), mode="bilinear")).to(torch.uint8)


def metric(folder, scaled, kind=ClipScore, model=None):
    made = kind("score", model or folder, None, folder, scaled, batch_size=2)
    made.load(CPU)
    return made


@torch.no_grad()
def logits(folder, images):
    """logits_per_image of each image and its caption, by CLIPProcessor and CLIPModel.forward: the scale times the cosine."""
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

    processor = CLIPProcessor(CLIPImageProcessorPil.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder))
    network = CLIPModel.from_pretrained(folder).eval()
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    inputs = processor(text=CAPTIONS, images=pictures, padding=True, truncation=True, max_length=77, return_tensors="pt")
    return network(**inputs).logits_per_image.diagonal(), network.logit_scale.exp()


def test_clip_score_and_pickscore_are_the_model_s_own_logits(folder, images):
    expected, scale = logits(folder, images)
    scores = metric(folder, scaled=True)
    assert torch.allclose(scores.rows(images, CAPTIONS)[:, 0], expected, rtol=1e-4)
    assert expected.std() > 0.1  # they tell
    cosines = metric(folder, scaled=False)
    rows = cosines.rows(images, CAPTIONS)
    assert torch.allclose(rows[:, 0], expected / scale, rtol=1e-4)
    assert cosines.figures(rows, None, 0)(torch.arange(len(rows)))["score"] == pytest.approx(
        (expected / scale).mean().item(), rel=1e-4
    )


def test_preprocessing_written_out(folder, images):
    """The shorter side to 32 by Pillow's bicubic filter, the middle, and CLIP's mean and deviation of each channel."""
    import numpy as np

    made = metric(folder, scaled=False)
    found = made.preprocessing([images[0].permute(1, 2, 0).numpy()], return_tensors="pt").pixel_values[0]
    picture = Image.fromarray(images[0].permute(1, 2, 0).numpy()).resize((42, 32), Image.Resampling.BICUBIC)
    middle = np.asarray(picture, np.float32)[:, 5:37] / 255
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    expected = torch.from_numpy((middle - mean) / deviation).permute(2, 0, 1).float()
    assert torch.allclose(found, expected, atol=1e-5)


class OpenClip(nn.Module):
    """open_clip's CLIP with its names, by PyTorch's own attention."""

    class Block(nn.Module):
        def __init__(self, width, inner, heads):
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
            self.mlp = nn.Sequential()
            self.mlp.add_module("c_fc", nn.Linear(width, inner))
            self.mlp.add_module("gelu", nn.GELU())
            self.mlp.add_module("c_proj", nn.Linear(inner, width))

        def forward(self, x, mask=None):
            y = self.ln_1(x)
            x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
            return x + self.mlp(self.ln_2(x))

    class Tower(nn.Module):
        def __init__(self):
            super().__init__()
            self.resblocks = nn.ModuleList([OpenClip.Block(32, 48, 4) for _ in range(2)])

    class Visual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 32, 8, stride=8, bias=False)
            self.class_embedding = nn.Parameter(torch.randn(32))
            self.positional_embedding = nn.Parameter(torch.randn(17, 32))
            self.ln_pre, self.ln_post = nn.LayerNorm(32), nn.LayerNorm(32)
            self.transformer = OpenClip.Tower()
            self.proj = nn.Parameter(torch.randn(32, 24))

    def __init__(self, words):
        super().__init__()
        self.visual, self.transformer = OpenClip.Visual(), OpenClip.Tower()
        self.token_embedding = nn.Embedding(words, 32)
        self.positional_embedding = nn.Parameter(torch.randn(77, 32))
        self.ln_final = nn.LayerNorm(32)
        self.text_projection = nn.Parameter(torch.randn(32, 24))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("attn_mask", torch.full((77, 77), -torch.inf).triu(1))
        for norm in (module for module in self.modules() if isinstance(module, nn.LayerNorm)):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def image(self, pixels):
        x = self.visual.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.visual.class_embedding.expand(len(x), 1, -1), x], 1) + self.visual.positional_embedding
        x = self.visual.ln_pre(x)
        for block in self.visual.transformer.resblocks:
            x = block(x)
        return self.visual.ln_post(x[:, 0]) @ self.visual.proj

    def text(self, tokens, end):
        x = self.token_embedding(tokens) + self.positional_embedding
        for block in self.transformer.resblocks:
            x = block(x, self.attn_mask)
        places = (tokens == end).int().argmax(1)
        return self.ln_final(x)[torch.arange(len(x)), places] @ self.text_projection


@torch.no_grad()
def test_hpsv2_s_file_is_in_open_clip_s_layout(folder, images, tmp_path):
    torch.manual_seed(1)
    made = metric(folder, scaled=False)
    network = OpenClip(len(made.tokenizer)).eval()
    path = tmp_path / "HPS_v2_compressed.pt"
    torch.save({"state_dict": network.state_dict()}, path)
    pixels = made.preprocessing(list(images.permute(0, 2, 3, 1).numpy()), return_tensors="pt").pixel_values
    tokens = made.tokenizer(CAPTIONS, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    expected = nn.functional.cosine_similarity(network.image(pixels), network.text(tokens, made.tokenizer.eos_token_id))
    rows = metric(folder, False, HumanPreferenceScore, str(path)).rows(images, CAPTIONS)
    assert torch.allclose(rows[:, 0], expected, atol=1e-5) and expected.std() > 0.01


def test_what_is_missing_is_told_in_one_line(folder, images, tmp_path):
    (tmp_path / "empty").mkdir()
    absent = {"owner/absent": "cannot be read", str(tmp_path / "absent"): "is missing", str(tmp_path / "empty"): "has no "}
    for path, expected in absent.items():
        with pytest.raises(InputError, match=expected) as told:
            ClipScore("score", path, None, path, False, 2).load(CPU)
        assert "\n" not in str(told.value)
    for model in ("xswu/HPSv2/absent.pt", str(tmp_path / "absent.pt")):
        with pytest.raises(InputError, match="absent.pt"):
            metric(folder, False, HumanPreferenceScore, model)
    cut = shutil.copytree(folder, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(InputError, match="has no CLIPModel"):
        metric(folder, False, model=str(cut))
    mute = shutil.copytree(
        folder, tmp_path / "mute", ignore=shutil.ignore_patterns("tokenizer.json", "vocab.json", "merges.txt")
    )
    with pytest.raises(InputError, match="has no vocabulary: vocab.json and merges.txt, or tokenizer.json, are missing"):
        metric(str(mute), False)
    (tmp_path / "damaged.pt").write_bytes(b"cut off")
    with pytest.raises(InputError, match="cannot be loaded"):
        metric(folder, False, HumanPreferenceScore, str(tmp_path / "damaged.pt"))
    with pytest.raises(InputError, match="images with captions"):
        metric(folder, False).rows(images, None)
