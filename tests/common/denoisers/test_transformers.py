"""Diffusion transformers are called as diffusers' own pipelines call them."""

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from common.cost.macs import count_macs, probe_inputs
from common.denoisers.denoiser import Denoiser, architecture_of
from common.diffusion.sampling import predict, sample_latents
from common.errors import InputError
from common.models.loading import load_teacher
from tests.conftest import write_pixart

PROMPTS = ["a cat", "the longest of these captions", ""]


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_samples_are_those_of_diffusers_own_pipeline(tiny_dit, tiny_dit_folder, guidance_scale):
    pipeline = DiffusionPipeline.from_pretrained(tiny_dit_folder)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    theirs = pipeline(
        prompt=PROMPTS,
        latents=noise,
        num_inference_steps=4,
        guidance_scale=guidance_scale,
        max_sequence_length=12,
        output_type="latent",
        use_resolution_binning=False,
        clean_caption=False,
    ).images
    model = (tiny_dit.denoiser, tiny_dit.scheduler, (4, 8, 8), [0, 1, 2])
    captions = [prompt.lower().strip() for prompt in PROMPTS]  # which the pipeline does
    conditions = (tiny_dit.encode_captions(captions), tiny_dit.null_condition())
    ours = sample_latents(*model, *conditions, 4, guidance_scale, 3, draw=lambda seeds, shape: noise)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_padding_is_masked(tiny_dit):
    conditions = tiny_dit.encode_captions(["ab", "abcdefgh"])
    assert conditions["encoder_attention_mask"].sum(1).tolist() == [4, 10]
    latents, steps = torch.randn(2, 4, 8, 8), torch.tensor([500.0, 20.0])
    before = predict(tiny_dit.denoiser, latents, steps, conditions)
    hidden = conditions["encoder_hidden_states"].clone()
    hidden[0, 6:] = 7.0
    assert torch.allclose(predict(tiny_dit.denoiser, latents, steps, {**conditions, "encoder_hidden_states": hidden}), before)


def test_a_variance_that_is_learned_besides_is_left_out(tmp_path):
    """PixArt's own networks give 8 channels of 4, of which their pipeline takes the first half."""
    teacher = load_teacher(str(write_pixart(tmp_path / "dit", out_channels=8)))
    latents, conditions = torch.randn(2, 4, 8, 8), teacher.encode_captions(PROMPTS[:2])
    found = predict(teacher.denoiser, latents, torch.tensor(300), conditions)
    arguments = {"timestep": torch.tensor([300, 300]), "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
    whole = teacher.denoiser(latents, **conditions, **arguments).sample
    assert whole.shape[1] == 8 and torch.equal(found, whole[:, :4])


def test_the_architecture_of_a_network_is_that_of_its_class(tiny_dit, tiny_teacher):
    assert architecture_of(tiny_dit.denoiser).part == "transformer" and architecture_of(tiny_teacher.denoiser).part == "unet"
    assert architecture_of(torch.compile(tiny_dit.denoiser)) is architecture_of(tiny_dit.denoiser)
    with pytest.raises(NotImplementedError):
        Denoiser().predict(None, None, None, {})


def test_macs_count_blocks(tiny_dit):
    counted = count_macs(tiny_dit.denoiser, *probe_inputs(tiny_dit.denoiser)).without_attention_products
    tokens, text, width = 16, 77, 16  # patches of 2 x 2; as many tokens of text as CLIP has
    block = tokens * (4 + 2 + 8) * width**2 + text * 2 * width**2
    assert 4 * block < counted < 4 * block + 60_000  # besides: patches, captions, timesteps


@pytest.mark.parametrize("name", ["Flow", "UniPC"])
def test_other_schedulers_of_flows(tiny_dit, name):
    from diffusers import UniPCMultistepScheduler

    flow = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    unipc = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    scheduler = flow if name == "Flow" else unipc
    conditions = (tiny_dit.encode_captions(PROMPTS[:2]), tiny_dit.null_condition())
    latents = sample_latents(tiny_dit.denoiser, scheduler, (4, 8, 8), [0, 1], *conditions, 3, 2.0, 2)
    assert latents.isfinite().all()


def test_settings_that_no_job_honours_are_refused(tmp_path):
    with pytest.raises(InputError, match="use_additional_conditions=true, which is not honoured .*aspect ratios"):
        load_teacher(str(write_pixart(tmp_path / "large", use_additional_conditions=True)))
    with pytest.raises(InputError, match="text encoder is 16 wide, and the denoiser has caption_channels=24"):
        load_teacher(str(write_pixart(tmp_path / "wide", caption_channels=24)))
    folder = write_pixart(tmp_path / "noise")
    DDIMScheduler(prediction_type="v_prediction").save_pretrained(folder / "scheduler")
    assert load_teacher(str(folder)).scheduler.config.prediction_type == "v_prediction"
