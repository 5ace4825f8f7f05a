"""What each layer does equals one plain forward pass without it; a silenced layer is dead, and the report says so."""

import shutil

import pytest
import torch

from common.diffusion.sampling import predict
from common.models.loading import load_teacher
from common.pruning.layers import list_layers
from common.pruning.plan import edited
from experiments.evaluation.layer_effects import layers_of, level, report, share_below, summary, what_layers_do


def test_a_layers_figure_is_the_relative_change_of_the_output(tiny_teacher):
    from common.diffusion.noise_schedule import noise_process

    teacher = tiny_teacher
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    conditions = teacher.encode_captions(["a red apple"])
    losses = what_layers_do(teacher.denoiser, teacher.scheduler, latents, conditions)
    layers = list_layers(teacher.denoiser)
    assert list(losses) == [layer.site for layer in layers] and len(layers) == 12
    assert teacher.scheduler.config.prediction_type == noise_process(teacher.scheduler).prediction_type
    batch = noisy_batch(teacher, latents, conditions)
    with torch.no_grad():
        intact = predict(teacher.denoiser, *batch, conditions)
        for layer in layers[::7]:
            with edited(teacher.denoiser, [layer.edit], {}) as without:
                changed = predict(without, *batch, conditions)
            expected = (changed - intact).square().mean() / intact.square().mean()
            torch.testing.assert_close(losses[layer.site], expected.item(), rtol=1e-3, atol=1e-9)


class Elsewhere(torch.Tensor):
    """A tensor that, as one on another device, can only be moved."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        with torch._C.DisableTorchFunctionSubclass():
            if function is torch.Tensor.to:
                return arguments[0].as_subclass(torch.Tensor).to(*arguments[1:])
        raise RuntimeError(f"{function.__name__}: all tensors are expected on the same device")


def test_latents_and_conditions_may_lie_on_another_device(tiny_teacher):
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    conditions = tiny_teacher.encode_captions(["a red apple"])
    away = {name: value.as_subclass(Elsewhere) for name, value in conditions.items()}
    with pytest.raises(RuntimeError, match="same device"):
        away["encoder_hidden_states"] + 1
    here = what_layers_do(tiny_teacher.denoiser, tiny_teacher.scheduler, latents, conditions)
    assert what_layers_do(tiny_teacher.denoiser, tiny_teacher.scheduler, latents.as_subclass(Elsewhere), away) == here


def noisy_batch(teacher, latents, conditions):
    """One row halfway through the schedule, with the noise of common.scoring.noisy_batches."""
    from common.diffusion.noise_schedule import noise_process
    from common.runtime.seeding import mix_seed, seeded_normal

    timesteps = torch.tensor([teacher.scheduler.config.num_train_timesteps // 2])
    noise = seeded_normal([mix_seed(0, 2, 0)], latents.shape[1:])
    return noise_process(teacher.scheduler).add_noise(latents, noise, timesteps), timesteps


def test_silenced_layers_are_dead_and_counted(tiny_uig_teacher_folder):
    teacher = load_teacher(str(tiny_uig_teacher_folder))
    silent = teacher.denoiser.mid_block.resnets[0]
    for parameter in silent.conv2.parameters():
        parameter.data.zero_()
    images = torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8)
    losses = layers_of(teacher, type("Data", (), {"images": images, "__len__": lambda self: 6})(), rows=4)
    layers = list_layers(teacher.denoiser)
    (layer,) = [layer for layer in layers if layer.site == "mid_block.resnets.0"]
    assert min(losses, key=losses.get) == layer.site and losses[layer.site] < 1e-10
    total = sum(parameter.numel() for parameter in teacher.denoiser.parameters())
    below = {site: loss if site == layer.site else 1.0 for site, loss in losses.items()}
    assert share_below(layers, below, 1e-4, total) == layer.parameters / total
    assert {level(site) for site in losses} >= {"down_blocks.0", "mid_block", "up_blocks.3"}
    assert "1 of 38 layers" in report(teacher.denoiser, below)
    assert f"{layer.parameters / total:.0%} below 1e-04" in summary(teacher.denoiser, below)


def test_a_job_on_a_teacher_with_dead_layers_tells_it_once(tiny_teacher_folder, tiny_teacher, tmp_path, capsys):
    """With the command that shows which; not on one whose layers live, nor where the settings do not ask."""
    from experiments.evaluation import layer_effects
    from experiments.shared.job import Job
    from tests.test_conf import compose_config

    def look(folder, rows=4, outputs="out"):
        layer_effects.TOLD.clear()
        settings = [f"teacher.path={folder}", "task.data.limit=8", f"layer_check.rows={rows}", f"outputs={tmp_path / outputs}"]
        for _ in range(2):
            layer_effects.tell_dead_layers(Job(compose_config("config", *settings)))
        return capsys.readouterr().err.splitlines()

    assert look(tiny_teacher_folder) == []
    dead = tmp_path / "dead"
    shutil.copytree(tiny_teacher_folder, dead)
    denoiser = load_teacher(str(tiny_teacher_folder)).denoiser
    with torch.no_grad():
        for layer in list_layers(denoiser)[2:6]:
            module = denoiser.get_submodule(layer.site)
            last = module.conv2 if hasattr(module, "conv2") else module.proj_out
            last.weight.mul_(1e-4), last.bias.mul_(1e-4)
    denoiser.save_pretrained(dead / "unet")
    (line,) = look(dead)
    assert "% of the teacher's parameters do nothing" in line
    assert line.endswith(f"python -m experiments.layer_report task=t2i teacher.path={dead}")
    assert look(dead, rows=0, outputs="other") == [] and not (tmp_path / "other").exists()
