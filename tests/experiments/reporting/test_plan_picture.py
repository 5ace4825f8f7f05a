"""The picture of a plan: every block in its place, skips where the U-Net has them, removed shares by definition."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from PIL import Image

from baselines.bk_sdm_table import plan_for
from common.pruning.layers import list_layers
from common.pruning.plan import Edit, Plan
from experiments.reporting.plan_picture import draw_plan, lay_out, removed_inside, score_range, skip_connections, stage_sites

GOLDEN = json.loads((Path(__file__).resolve().parents[2] / "golden_counts.json").read_text())


def test_every_layer_has_a_box_and_every_skip_a_line(tiny_teacher):
    unet = tiny_teacher.denoiser
    boxes = lay_out(unet)[0]
    sites = [box.site for box in boxes]
    assert {layer.site for layer in list_layers(unet)} <= set(sites) and len(sites) == len(set(sites))
    assert len({(box.column, box.row) for box in boxes}) == len(boxes)
    pairs = {taker.site: source.site for source, taker in skip_connections(boxes)}
    assert len(pairs) == 11  # twelve skips, one of them from the first convolution
    assert pairs["up_blocks.0.resnets.0"] == "down_blocks.3.resnets.1"
    assert pairs["up_blocks.0.resnets.2"] == "down_blocks.2.downsamplers.0"
    assert pairs["up_blocks.3.resnets.1"] == "down_blocks.0.attentions.0"


@torch.no_grad()
def test_boxes_stand_in_the_order_of_computation(tiny_teacher):
    unet = tiny_teacher.denoiser
    ran = []
    for box in lay_out(unet)[0]:
        unet.get_submodule(box.site).register_forward_hook(lambda *_, site=box.site: ran.append(site))
    unet(torch.randn(1, 4, 8, 8), 1, torch.randn(1, 12, 16))
    down, middle, up = ([s for s in ran if s.startswith(stage)] for stage in ("down", "mid", "up"))
    assert ran == [*down, *middle, *up] and len(ran) == len(lay_out(unet)[0])
    for stage in ("down_blocks.1", "mid_block", "up_blocks.2"):
        sites = [site for site, _ in stage_sites(stage, unet.get_submodule(stage))]
        assert sites == [site for site in ran if site.startswith(f"{stage}.")]


def test_scores_are_short():
    assert score_range([61.2, 58.9]) == "59…61" and score_range([61.2, 61.3]) == "61" and score_range([0.01234]) == "0.012"
    assert score_range([132.0, 12345.0]) == "132…1.2e+04"


def test_shares_removed(tiny_teacher):
    unet = tiny_teacher.denoiser
    box = next(box for box in lay_out(unet)[0] if box.site == "down_blocks.1.attentions.0")
    assert removed_inside(box, [Edit("down_blocks.1", "drop")], unet)[2] == 1
    block = f"{box.site}.transformer_blocks.0"
    edits = [Edit(block, "identity"), Edit(f"{block}.attn1", "zero"), Edit("mid_block", "drop")]
    whole, inside, share = removed_inside(box, edits, unet)
    parameters = sum(p.numel() for p in unet.get_submodule(block).parameters())
    assert whole is None and len(inside) == 2 and share == pytest.approx(parameters / box.parameters)


def test_pictures_of_other_topologies(tmp_path):
    with torch.device("meta"):
        sd = UNet2DConditionModel(**GOLDEN["sd-v1.4/v1.5 UNet @64"]["config"])
        unconditional = UNet2DModel(
            sample_size=16,
            block_out_channels=(32, 64),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
        )
    for name, unet, plan in (
        ("sd", sd, plan_for(sd, "base")),
        ("uncond", unconditional, Plan("test", (Edit("down_blocks.1.attentions.0", "identity", score=0.1),))),
    ):
        draw_plan(unet, plan, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.width > 500 and len(set(image.convert("RGB").resize((64, 64)).getdata())) > 20
