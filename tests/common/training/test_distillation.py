"""The losses, the resumption of a killed run, and what a checkpoint holds."""

import copy

import lightning as L
import pytest
import torch

from common.errors import InputError
from common.models.loading import load_teacher
from common.pruning.plan import Edit, Plan, apply_plan
from common.training.batches import TensorRows
from common.training.distillation import DenoiserTraining
from common.training.fit import ExponentialAverage, fit, latest_checkpoint
from common.training.schedules import learning_rate_factor, scheduler
from experiments.training.distill_student import feature_pairs

pytestmark = pytest.mark.slow

TRAINER = {"accelerator": "cpu", "devices": 1, "gradient_clip_val": 1.0}


def rows():
    generator = torch.Generator().manual_seed(2)
    return TensorRows(
        latents=torch.randn(7, 4, 8, 8, generator=generator),
        encoder_hidden_states=torch.randn(7, 12, 16, generator=generator),
    )


def build(teacher, steps=6, attention="down_blocks.0.attentions.0", **weights):
    plan = Plan("test", (Edit(attention, "identity"), Edit("mid_block.attentions.0", "identity")))
    student = apply_plan(teacher.denoiser, plan).train().requires_grad_(True)
    weights = {"output_weight": 0.7, "feature_weight": 0.7} | weights
    return DenoiserTraining(
        student,
        teacher.scheduler,
        lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
        scheduler("cosine", steps, 2),
        seed=5,
        condition_dropout=0.3,
        null_condition=teacher.null_condition(),
        feature_pairs=feature_pairs(["down_blocks.*", "up_blocks.*"], student, teacher.denoiser),
        teacher=teacher.denoiser,
        **weights,
    )


class Killed(Exception):
    pass


def train(teacher, folder, steps=6, stop_after=None, callbacks=()):
    module = build(teacher, steps)
    average = ExponentialAverage(module.student, 0.9)

    class Kill(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == stop_after:
                raise Killed

    fit(
        module,
        rows(),
        steps=steps,
        batch_size=2,
        accumulate=2,
        seed=1,
        folder=folder,
        description="test",
        checkpoint_every=2,
        trainer=TRAINER,
        callbacks=[average, Kill(), *callbacks],
    )
    module.remove_hooks()
    return module, average


@pytest.mark.parametrize("stop_after", [3, 4, 5])
@pytest.mark.exhaustive
def test_resumed_run_ends_with_the_same_weights(tiny_teacher, tmp_path, stop_after):
    whole, whole_average = train(tiny_teacher, tmp_path / "whole")
    with pytest.raises(Killed):
        train(tiny_teacher, tmp_path / "cut", stop_after=stop_after)
    assert 0 < latest_checkpoint(tmp_path / "cut")[1] < 6
    resumed, resumed_average = train(tiny_teacher, tmp_path / "cut")
    pairs = zip(whole.student.state_dict().items(), resumed.student.state_dict().items(), strict=True)
    assert all(torch.equal(a, b) for (_, a), (_, b) in pairs)
    shadows = zip(whole_average.ema.shadow_params, resumed_average.ema.shadow_params, strict=True)
    assert all(torch.equal(a, b) for a, b in shadows)
    assert not torch.equal(whole.student.conv_in.weight, tiny_teacher.denoiser.conv_in.weight)


def test_checkpoint_holds_the_student_alone(tiny_teacher, tmp_path):
    module, _ = train(tiny_teacher, tmp_path, steps=2)
    assert all(name.startswith("student.") for name in module.state_dict())
    saved = torch.load(latest_checkpoint(tmp_path)[0], weights_only=False)
    assert saved["state_dict"].keys() == module.state_dict().keys()
    assert all(not parameter.requires_grad for parameter in tiny_teacher.denoiser.parameters())


def test_terms_are_what_their_formulas_say(four_level_teacher_folder):
    module = build(load_teacher(str(four_level_teacher_folder)), attention="down_blocks.0.attentions.1")
    logged = {}
    module.log = lambda name, value, **_: logged.__setitem__(name, float(value))
    module.log_dict = lambda values, **_: logged.update({name: float(value) for name, value in values.items()})
    batch = rows().__getitems__([(0, 0), (1, 1), (2, 2)])
    loss = module.training_step(batch, 0)
    expected = logged["loss/task"] + 0.7 * logged["loss/output"] + 0.7 * logged["loss/feature"]
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    per_pair = [value for name, value in logged.items() if name.startswith("feature/")]
    assert len(per_pair) == 8 and sum(per_pair) == pytest.approx(logged["loss/feature"], rel=1e-5)
    assert logged["feature/down_blocks.0"] > 0  # an attention of it is gone
    assert logged["loss/task"] == pytest.approx(0.95579, abs=2e-4)  # pinned: noise, timesteps and target


def test_rows_under_another_condition_have_no_task_loss(tiny_teacher):
    module = build(tiny_teacher)
    logged = {}
    module.log = lambda name, value, **_: logged.__setitem__(name, float(value))
    module.log_dict = lambda values, **_: logged.update({name: float(value) for name, value in values.items()})

    def losses(own, count=3):
        batch = rows().__getitems__([(row, row) for row in range(count)]) | ({} if own is None else {"own_condition": own})
        module.training_step(batch, 0)
        return logged["loss/task"], logged["loss/output"]

    alone, _ = losses(None, 2)
    every, output = losses(None)
    assert losses(torch.tensor([True, True, False])) == (pytest.approx(alone, rel=1e-5), pytest.approx(output, rel=1e-5))
    assert losses(torch.tensor([True] * 3))[0] == pytest.approx(every, rel=1e-5)
    assert losses(torch.tensor([False] * 3))[0] == 0.0


def test_an_unpruned_student_has_no_distillation_loss(tiny_teacher):
    module = build(tiny_teacher)
    module.remove_hooks()
    same = DenoiserTraining(
        copy.deepcopy(tiny_teacher.denoiser),
        tiny_teacher.scheduler,
        None,
        None,
        seed=5,
        output_weight=1.0,
        feature_weight=1.0,
        feature_pairs=[("mid_block", "mid_block")],
        teacher=tiny_teacher.denoiser,
    )
    logged = {}
    same.log = lambda *_, **__: None
    same.log_dict = lambda values, **_: logged.update(values)
    same.training_step(rows().__getitems__([(0, 0), (1, 1)]), 0)
    assert logged["loss/output"] == 0 and logged["loss/feature"] == 0 and logged["loss/task"] > 0


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tiny_teacher, tmp_path):
    import lightning as L

    class Break(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            if trainer.global_step == 3:
                with torch.no_grad():
                    module.student.conv_out.bias.fill_(float("nan"))

    arguments = {"steps": 6, "batch_size": 2, "seed": 1, "folder": tmp_path, "description": "test", "checkpoint_every": 2}
    with pytest.raises(ValueError, match="The task loss is nan at step 3; the last checkpoint stays"):
        fit(build(tiny_teacher), rows(), **arguments, trainer=TRAINER, callbacks=[Break()])
    assert latest_checkpoint(tmp_path)[1] == 2


def test_what_is_logged_is_written(tiny_teacher, tmp_path):
    import csv

    train(tiny_teacher, tmp_path, steps=10)
    (path,) = tmp_path.glob("log/*/metrics.csv")
    (row,) = list(csv.DictReader(path.open()))
    assert {"loss", "loss/task", "loss/output", "loss/feature", "feature/up_blocks.1"} <= row.keys()
    assert float(row["loss/task"]) > 0


def test_feature_pairs(tiny_teacher):
    teacher = tiny_teacher.denoiser
    student = apply_plan(teacher, Plan("test", (Edit("up_blocks.1.attentions.0", "identity"),)))
    assert feature_pairs(["down_blocks.*"], student, teacher) == [(f"down_blocks.{i}",) * 2 for i in range(2)]
    moved = feature_pairs(["up_blocks.1.attentions.0=up_blocks.1.attentions.0"], student, teacher)
    assert moved == [("up_blocks.1", "up_blocks.1")]
    inside = feature_pairs(["up_blocks.1.attentions.0.proj_out", "up_blocks.1"], student, teacher)
    assert inside == [("up_blocks.1", "up_blocks.1")]
    with pytest.raises(ValueError, match="'blocks' matches no module"):
        feature_pairs(["blocks"], student, teacher)
    renamed = feature_pairs(["up_blocks.0=up_blocks.1"], student, teacher)
    assert renamed == [("up_blocks.0", "up_blocks.1")]
    with pytest.raises(ValueError, match="'nowhere' matches no module"):
        feature_pairs(["up_blocks.0=nowhere"], student, teacher)


def test_training_noise_does_not_depend_on_the_sampler(tiny_teacher):
    from diffusers import EulerDiscreteScheduler, PNDMScheduler

    from common.diffusion.noise_schedule import noise_process

    config = tiny_teacher.scheduler.config
    found = []
    for sampler in (tiny_teacher.scheduler, EulerDiscreteScheduler.from_config(config), PNDMScheduler.from_config(config)):
        forward = noise_process(sampler)
        latents, noise, timesteps = torch.ones(2, 4, 8, 8), torch.zeros(2, 4, 8, 8), torch.tensor([10, 900])
        found.append(torch.cat([forward.add_noise(latents, noise, timesteps).flatten(), forward.signal]))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_distillation_without_a_teacher_is_refused(tiny_teacher):
    with pytest.raises(ValueError, match="need a teacher"):
        DenoiserTraining(tiny_teacher.denoiser, tiny_teacher.scheduler, None, None, seed=0, output_weight=1.0)


def test_schedules():
    constant, cosine, trapezoid = (learning_rate_factor(name, 100, 10) for name in ("constant", "cosine", "trapezoid"))
    assert [constant(0), constant(9), constant(99)] == pytest.approx([0.1, 1, 1])
    assert [cosine(10), cosine(55), cosine(100)] == pytest.approx([1, 0.5, 0])
    assert [trapezoid(50), trapezoid(80), trapezoid(90), trapezoid(100)] == pytest.approx([1, 1, 0.5, 0])
    with pytest.raises(ValueError, match="constant, cosine, trapezoid"):
        learning_rate_factor("linear", 1, 1)


@pytest.mark.exhaustive
def test_compiled_networks_train_alike(tiny_teacher):
    """By dynamo alone (backend=eager): what is traced, hooks on features among it, and not the minutes of a compiler."""
    batch = rows().__getitems__([(0, 0), (1, 1)])
    traced, gradients, logged = [], [], []

    def backend(graph, _inputs):
        traced.append(graph)
        return graph

    for options in (None, {"backend": backend}):
        module = build(tiny_teacher, compile_options=options)
        losses = {}
        module.log, module.log_dict = (lambda *_, **__: None), losses.update
        module.training_step(batch, 0).backward()
        module.remove_hooks()
        assert not any("_orig_mod" in name for name in module.state_dict())
        gradients.append([parameter.grad.clone() for parameter in module.student.parameters()])
        logged.append({name: value.item() for name, value in losses.items()})
    assert len(traced) >= 2  # student and teacher
    assert logged[1] == pytest.approx(logged[0], rel=1e-5)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_gradient_checkpointing_changes_no_gradient(tiny_teacher):
    batch = rows().__getitems__([(0, 0), (1, 1)])
    gradients = []
    for checkpointing in (False, True):
        module = build(tiny_teacher)
        module.log = module.log_dict = lambda *_, **__: None
        if checkpointing:
            module.student.enable_gradient_checkpointing()
        module.training_step(batch, 0).backward()
        module.remove_hooks()
        gradients.append([parameter.grad.clone() for parameter in module.student.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("last", [4, 5])
def test_weights_that_break_at_a_checkpoint_or_at_the_end_are_not_saved(tiny_teacher, tmp_path, last):
    class Break(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == last:
                trainer.lightning_module.student.conv_in.weight.data[0] = float("nan")

    with pytest.raises(InputError, match=rf"weights of student.conv_in.weight are not finite after step {last}"):
        train(tiny_teacher, tmp_path, steps=5, callbacks=[Break()])
    (kept,) = tmp_path.glob("step=*.ckpt")
    assert kept.stem == f"step={2 if last == 4 else 4}"
    state = torch.load(kept, weights_only=False)["state_dict"]
    assert all(torch.isfinite(value).all() for value in state.values())
