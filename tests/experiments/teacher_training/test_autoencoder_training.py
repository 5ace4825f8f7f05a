"""Both kinds of autoencoder: normalising the latents changes no reconstruction; a VQ codebook stays alive."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from diffusers.configuration_utils import FrozenDict

from common.diffusion.latents import encode_images
from common.errors import InputError
from common.metrics.similarity import peak_signal_to_noise, reconstruct_images
from common.training.batches import TensorRows
from common.training.fit import fit
from common.training.kl_autoencoder import KLTraining
from common.training.vq_autoencoder import VQTraining, divergence_from_normal
from experiments.shared.settings import typed_settings
from experiments.teacher_training.autoencoder_training import take_equal_weights, train_autoencoder

SIZES = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [4, 8],
    "norm_num_groups": 2,
    "latent_channels": 3,
}


def no_schedule(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


def training(kind):
    from diffusers import AutoencoderKL, VQModel

    torch.manual_seed(0)
    shared = (partial(torch.optim.AdamW, lr=1e-2), no_schedule)
    if kind == "kl":
        return KLTraining(AutoencoderKL(**SIZES), *shared, seed=0, kl_weight=1e-4)
    network = VQModel(**SIZES, num_vq_embeddings=64)
    return VQTraining(network, *shared, seed=0, codebook_weight=0.25, spread_weight=0.01, revive_every=4)


@pytest.fixture
def images():
    return torch.randint(0, 256, (24, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def trained(kind, images, folder, steps=8):
    module = training(kind)
    fit(
        module,
        TensorRows(images=images),
        steps=steps,
        batch_size=4,
        seed=0,
        folder=folder,
        description=kind,
        checkpoint_every=4,
        trainer={"accelerator": "cpu", "devices": 1},
    )
    return module


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_normalised_latents_decode_to_the_same_images(kind, images, tmp_path):
    module = trained(kind, images, tmp_path)
    autoencoder = module.autoencoder.eval()
    latents, before = encode_images(autoencoder, images), reconstruct_images(autoencoder, images)
    decibels = peak_signal_to_noise(autoencoder, images)
    module.normalize_latents(latents)
    after = encode_images(autoencoder, images)
    assert after.mean((0, 2, 3)).abs().max() < 1e-4
    assert after.std() == pytest.approx(1, abs=1e-2)
    centred = latents - latents.mean((0, 2, 3))[:, None, None]
    deviation = latents.std((0, 2, 3))[:, None, None] if kind == "kl" else centred.std()
    torch.testing.assert_close(after, centred / deviation, atol=1e-3, rtol=0)
    assert autoencoder.config.scaling_factor == 1
    torch.testing.assert_close(reconstruct_images(autoencoder, images), before, atol=2e-3, rtol=0)
    assert peak_signal_to_noise(autoencoder, images) == pytest.approx(decibels, abs=0.01)


def test_psnr_is_of_pixels_in_0_to_255(images):
    class Darker(torch.nn.Module):
        """An autoencoder that loses one grey level of 255 everywhere."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.config = FrozenDict(in_channels=3)

        def encode(self, pixels):
            return type("Encoded", (), {"latents": pixels - 2 / 255})

        def decode(self, latents):
            return type("Decoded", (), {"sample": latents})

    expected = 20 * torch.log10(torch.tensor(255.0)).item()
    assert peak_signal_to_noise(Darker(), images.clamp(min=1)) == pytest.approx(expected, abs=0.01)


def test_the_codebook_starts_on_the_data(images):
    module = training("vq")
    latents = module.autoencoder.encode(images.float() / 127.5 - 1).latents.detach()
    module.revive(latents)
    vectors, codebook = latents.permute(0, 2, 3, 1).flatten(0, 2), module.autoencoder.quantize.embedding.weight
    assert torch.cdist(codebook, vectors, compute_mode="donot_use_mm_for_euclid_dist").min(1).values.max() == 0


def test_only_unused_entries_are_moved(images):
    module = training("vq")
    module.unused_steps[:] = 3
    module.unused_steps[5] = 4
    before = module.autoencoder.quantize.embedding.weight.detach().clone()
    module.revive(torch.randn(2, 3, 4, 4))
    moved = (module.autoencoder.quantize.embedding.weight != before).any(1)
    assert moved.nonzero().flatten().tolist() == [5]


def test_resumed_vq_training_ends_with_the_same_weights_and_counts(images, tmp_path):
    whole = trained("vq", images, tmp_path / "whole", steps=12)
    trained("vq", images, tmp_path / "halves", steps=6)
    halves = trained("vq", images, tmp_path / "halves", steps=12)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, halves.state_dict()[name]), name


def test_divergence_is_zero_for_the_standard_normal_and_large_for_a_line():
    normal = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert divergence_from_normal(normal).abs() < 1e-3
    line = normal[:, :1].expand(-1, 3, -1, -1)
    assert divergence_from_normal(line) > 5
    assert divergence_from_normal(2 * normal) == pytest.approx(0.5 * (12 - 3 - 6 * 0.6931), abs=0.02)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_the_spread_stays_finite_in_half_precision(kind):
    latents = torch.randn(32, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2  # 131,072 places: a sum beyond fp16
    with torch.autocast("cpu", dtype=kind):
        found = divergence_from_normal(latents.to(kind))
    assert found.dtype == torch.float32 and found.item() == pytest.approx(divergence_from_normal(latents).item(), rel=2e-2)


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_a_loss_that_is_no_number_stops_the_training(kind, images, tmp_path):
    module = training(kind)
    with torch.no_grad():
        module.autoencoder.decoder.conv_out.bias[0] = torch.nan
    with pytest.raises(InputError, match="The l1 loss is nan at step 0"):
        fit(
            module,
            TensorRows(images=images),
            steps=2,
            batch_size=4,
            seed=0,
            folder=tmp_path,
            description=kind,
            trainer={"accelerator": "cpu", "devices": 1},
        )


def test_first_weights_of_equal_names_and_shapes_are_taken(tmp_path):
    from diffusers import AutoencoderKL, VQModel

    given = VQModel(**SIZES, num_vq_embeddings=64)
    given.save_pretrained(tmp_path)
    network = AutoencoderKL(**SIZES | {"latent_channels": 4})
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    share = take_equal_weights(network, tmp_path)
    theirs = given.state_dict()
    for name, weight in network.state_dict().items():
        taken = name in theirs and theirs[name].shape == weight.shape
        assert torch.equal(weight, theirs[name] if taken else before[name]), name
    assert not torch.equal(network.encoder.conv_in.weight, before["encoder.conv_in.weight"])
    assert 0.5 < share < 1 and torch.equal(network.quant_conv.weight, before["quant_conv.weight"])
    with pytest.raises(InputError, match="initial=.*nothing.* there is no"):
        take_equal_weights(network, tmp_path / "nothing")


def test_a_finished_autoencoder_is_taken_as_it_is(tmp_path):
    from diffusers import VQModel
    from omegaconf import OmegaConf

    given = VQModel(**SIZES, num_vq_embeddings=64)
    given.half().save_pretrained(tmp_path / "given" / "vqvae")
    part = {"autoencoder": {"part": "vqvae", "network": {"_target_": "diffusers.VQModel"}}}
    given_by = {"autoencoder": str(tmp_path / "given"), "teacher_training": part}
    settings = typed_settings(OmegaConf.create(given_by))
    taken = train_autoencoder(settings, torch.zeros(2, 3, 64, 64, dtype=torch.uint8), tmp_path / "work")
    for name, weight in taken.state_dict().items():
        assert weight.dtype == torch.float32 and torch.equal(weight, given.state_dict()[name].float()), name
    with pytest.raises(InputError, match="autoencoder=.*other.* holds no autoencoder"):
        train_autoencoder(replace(settings, autoencoder=str(tmp_path / "other")), torch.zeros(2, 3, 64, 64), tmp_path)
