"""Pruned weights stay exactly zero, whatever the optimiser does; penalty, gradual pruning, regrowth and resumption."""

import copy
import csv
from functools import partial

import lightning as L
import pytest
import torch

from common.errors import InputError
from common.pruning.masks import apply_masks
from common.training.batches import TensorRows
from common.training.distillation import DenoiserTraining
from common.training.fit import ExponentialAverage, fit, latest_checkpoint
from common.training.schedules import scheduler
from l1_diff import reference_masks
from l1_diff.algorithm import importances
from l1_diff.masks import prunable_weights, sparsity_masks
from l1_diff.regrowth import Regrowth, exchange, regrow
from l1_diff.schedule import Ramp
from l1_diff.sparse_training import SparseTraining

pytestmark = pytest.mark.slow

NO_REGROWTH = Regrowth(probability=0.0, by="chance", every=1, reprune=False, seed=0)
PLAIN = {
    "score": partial(importances, alpha=1.0, beta=0.0, balance=False),
    "uses_gradient": False,
    "gradient_decay": 0.5,
    "scope": "layer",
    "penalty": 0.0,
    "penalty_step": "proximal",
    "ramp": None,
    "regrowth": NO_REGROWTH,
}
EVERYTHING = PLAIN | {
    "score": partial(importances, alpha=1.0, beta=1.0, balance=True),
    "uses_gradient": True,
    "penalty": 1e-3,
    "ramp": Ramp(0.3, 0.6, 0.7, 2),
    "regrowth": Regrowth(probability=0.05, by="chance", every=2, reprune=True, seed=3),
}


def rows():
    generator = torch.Generator().manual_seed(2)
    return TensorRows(
        latents=torch.randn(7, 4, 8, 8, generator=generator),
        encoder_hidden_states=torch.randn(7, 12, 16, generator=generator),
    )


class Killed(Exception):
    pass


class Watch(L.Callback):
    """Looks at the student after every step, and may kill the run."""

    def __init__(self, look=lambda step: None, stop_after=None):
        self.look, self.stop_after, self.step = look, stop_after, 0

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step > self.step:
            self.step = trainer.global_step
            self.look(self.step)
        if trainer.global_step == self.stop_after:
            raise Killed


def start(teacher, amount=0.3):
    student = copy.deepcopy(teacher.denoiser).train().requires_grad_(True)
    scores = {site: weight.detach().abs() for site, weight in prunable_weights(student).items()}
    masks = sparsity_masks(scores, amount, "layer")
    return apply_masks(student, masks), masks


def train(teacher, folder, settings, *, steps=6, optimizer=None, look=None, stop_after=None, accumulate=2, **trainer):
    """(student, the callback, the average) after `steps`; look(student, callback, step) sees every step."""
    student, masks = start(teacher)
    sparse, average = SparseTraining(student, masks, **settings), ExponentialAverage(student, 0.9)
    module = DenoiserTraining(
        student,
        teacher.scheduler,
        optimizer or (lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1)),
        scheduler("cosine", steps, 2),
        seed=5,
    )
    watch = Watch((lambda step: look(student, sparse, step)) if look else lambda step: None, stop_after)
    fit(
        module,
        rows(),
        steps=steps,
        batch_size=2,
        accumulate=accumulate,
        seed=1,
        folder=folder,
        description="test",
        checkpoint_every=2,
        trainer={"accelerator": "cpu", "devices": 1, "gradient_clip_val": 1.0} | trainer,
        callbacks=[sparse, average, watch],
    )
    return student, sparse, average


def pruned_are_zero(student, callback, step):
    for site, mask in callback.masks.items():
        pruned = student.get_submodule(site).weight.detach()[~mask]
        assert not pruned.view(torch.int32).any(), f"{site} at step {step}"  # +0.0 to the bit


@pytest.mark.parametrize(
    ("optimizer", "precision"),
    [(torch.optim.Adam, "32-true"), (torch.optim.AdamW, "bf16-mixed"), (torch.optim.SGD, "32-true")],
)
def test_pruned_weights_stay_exactly_zero(tiny_teacher, tmp_path, optimizer, precision):
    extra = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}

    def make(parameters):
        return optimizer(parameters, lr=1e-2, weight_decay=0.1, **extra)

    student, callback, average = train(
        tiny_teacher, tmp_path, PLAIN, steps=4, optimizer=make, look=pruned_are_zero, precision=precision
    )
    first_student, first_masks = start(tiny_teacher)
    assert all(torch.equal(callback.masks[site], mask) for site, mask in first_masks.items())
    kept = first_masks["mid_block.resnets.0.conv1"]
    ours, before = (network.mid_block.resnets[0].conv1.weight[kept] for network in (student, first_student))
    assert (ours != before).float().mean() > 0.99  # the others are trained
    average.copy_to_network()
    pruned_are_zero(student, callback, "average")


def test_gradients_of_pruned_weights_do_not_count_in_the_clipped_norm(tiny_teacher, tmp_path):
    seen = []

    class Look(SparseTraining):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            super().on_before_optimizer_step(trainer, module, optimizer)
            seen.extend(weight.grad[~self.masks[site]].abs().max().item() for site, weight in self.weights.items())

    student, masks = start(tiny_teacher)
    module = DenoiserTraining(student, tiny_teacher.scheduler, torch.optim.Adam, scheduler("constant", 1, 0), seed=5)
    options = {"steps": 1, "batch_size": 2, "seed": 1, "folder": tmp_path, "description": "test"}
    fit(module, rows(), **options, trainer={"accelerator": "cpu"}, callbacks=[Look(student, masks, **PLAIN)])
    assert len(seen) == len(masks) and max(seen) == 0


@pytest.mark.parametrize(("by", "stop_after"), [("chance", 3), ("gradient", 5)])
def test_resumed_run_equals_an_uninterrupted_one(tiny_teacher, tmp_path, by, stop_after):
    settings = EVERYTHING | {"regrowth": Regrowth(probability=0.05, by=by, every=2, reprune=True, seed=3)}
    whole, whole_callback, whole_average = train(tiny_teacher, tmp_path / "whole", settings, look=pruned_are_zero)
    with pytest.raises(Killed):
        train(tiny_teacher, tmp_path / "cut", settings, stop_after=stop_after)
    assert 0 < latest_checkpoint(tmp_path / "cut")[1] < 6
    resumed, callback, average = train(tiny_teacher, tmp_path / "cut", settings, look=pruned_are_zero)
    pairs = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert all(torch.equal(callback.masks[site], mask) for site, mask in whole_callback.masks.items())
    assert callback.regrown == whole_callback.regrown > 0
    for one in (average, whole_average):
        one.copy_to_network()
    for network, its in ((whole, whole_callback), (resumed, callback)):
        its.finish(network)
        pruned_are_zero(network, its, "finished")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_finish_prunes_what_an_average_remembers(tiny_teacher, tmp_path):
    student, callback, average = train(tiny_teacher, tmp_path, PLAIN | {"ramp": Ramp(0.3, 0.6, 1.0, 2)}, steps=4)
    average.copy_to_network()
    with pytest.raises(AssertionError):
        pruned_are_zero(student, callback, "average")
    callback.finish(student)
    pruned_are_zero(student, callback, "finished")


def test_sparsity_rises_by_the_cubic_curve_to_exact_counts(tiny_teacher, tmp_path):
    found = {}

    def look(student, callback, step):
        found[step] = {site: 1 - mask.float().mean().item() for site, mask in callback.masks.items()}
        pruned_are_zero(student, callback, step)

    before = start(tiny_teacher)[1]
    ramp = Ramp(0.3, 0.6, 0.75, 2)
    _, callback, _ = train(tiny_teacher, tmp_path, PLAIN | {"ramp": ramp}, steps=8, accumulate=1, look=look)
    site = "mid_block.resnets.0.conv1"
    expected = [0.3, 0.6 - 0.3 * (4 / 6) ** 3, 0.6 - 0.3 * (4 / 6) ** 3, 0.6 - 0.3 * (2 / 6) ** 3, 0.6 - 0.3 * (2 / 6) ** 3]
    assert [found[step][site] for step in range(1, 9)] == pytest.approx([*expected, 0.6, 0.6, 0.6], abs=1e-3)
    assert all(int((~mask).sum()) == round(0.6 * mask.numel()) for mask in callback.masks.values())
    assert all(not (mask & ~before[site]).any() for site, mask in callback.masks.items())  # what is gone stays gone


def test_the_curve():
    ramp = Ramp(0.0, 0.8, 0.5, 3)
    assert [step for step in range(1, 21) if ramp.due(step, 20, step - 1)] == [3, 6, 9, 10]
    assert [step for step in range(2, 21) if ramp.due(step, 20, step - 2)] == [3, 4, 6, 7, 9, 10, 11]  # the one before skipped
    regrowth = Regrowth(probability=0.1, by="chance", every=5, reprune=True, seed=0)
    assert [step for step in range(1, 21) if regrowth.due(step, 20, step - 1)] == [5, 10, 15]
    assert [step for step in range(2, 21) if regrowth.due(step, 20, step - 2)] == [5, 6, 10, 11, 15, 16]
    assert ramp.target(5, 20) == pytest.approx(0.8 - 0.8 / 8) and ramp.target(10, 20) == ramp.target(15, 20) == 0.8


@pytest.mark.parametrize("penalty_step", ["proximal", "subgradient"])
def test_the_penalty_shrinks_the_norm(tiny_teacher, tmp_path, penalty_step):
    norms = []
    for penalty in (0.0, 1.0, 10.0):
        settings = PLAIN | {"penalty": penalty, "penalty_step": penalty_step}
        _, callback, _ = train(tiny_teacher, tmp_path / str(penalty), settings, steps=3, accumulate=1, look=pruned_are_zero)
        norms.append(sum(weight.abs().sum().item() for weight in callback.weights.values()))
    assert norms[0] > norms[1] > norms[2]


def test_the_proximal_step_is_a_soft_threshold(tiny_teacher, tmp_path):
    """With a learning rate but no gradient step of its own: w <- sign(w) max(|w| - lr lambda, 0)."""

    class Still(torch.optim.SGD):
        def step(self, closure=None):
            return closure()

    student, _ = start(tiny_teacher)
    before = student.mid_block.resnets[0].conv1.weight.detach().clone()
    after, *_ = train(
        tiny_teacher,
        tmp_path,
        PLAIN | {"penalty": 4.0},
        steps=1,
        optimizer=lambda parameters: Still(parameters, lr=0.02),  # the warm-up's first factor is 1/2: 0.01
        accumulate=1,
    )
    expected = before.sign() * (before.abs() - 0.04).clamp_min(0)
    assert torch.allclose(after.mid_block.resnets[0].conv1.weight, expected, atol=1e-8)
    assert (expected == 0).sum() > (before == 0).sum()
    assert torch.equal(after.conv_in.bias, tiny_teacher.denoiser.conv_in.bias)


def test_regrown_weights_start_at_zero_without_momentum(tiny_teacher, tmp_path):
    seen = []

    class Look(SparseTraining):
        def after_step(self, trainer, optimizer):
            before = self.masks
            super().after_step(trainer, optimizer)
            for site, weight in self.weights.items():
                grown = self.masks[site] & ~before[site]
                assert not weight.detach()[grown].any()
                assert not optimizer.state[weight]["exp_avg"][grown].any()
                assert not optimizer.state[weight]["exp_avg_sq"][grown].any()
                seen.append(int(grown.sum()))

    student, masks = start(tiny_teacher)
    settings = PLAIN | {"regrowth": Regrowth(probability=0.1, by="chance", every=2, reprune=False, seed=3)}
    callback = Look(student, masks, **settings)
    optimizer = lambda parameters: torch.optim.Adam(parameters, lr=1e-3)  # noqa: E731
    module = DenoiserTraining(student, tiny_teacher.scheduler, optimizer, scheduler("constant", 10, 0), seed=5)
    options = {"steps": 10, "batch_size": 2, "seed": 1, "folder": tmp_path, "description": "test"}
    fit(module, rows(), **options, trainer={"accelerator": "cpu"}, callbacks=[callback])
    assert sum(seen) == callback.regrown > 0
    pruned = [sum(int((~mask).sum()) for mask in found.values()) for found in (masks, callback.masks)]
    assert pruned[0] - pruned[1] == callback.regrown
    assert pruned[1] / pruned[0] == pytest.approx(0.9**4, abs=0.02)  # after steps 2, 4, 6 and 8
    (path,) = tmp_path.glob("log/*/metrics.csv")
    (row,) = csv.DictReader(path.open())
    total = sum(mask.numel() for mask in masks.values())
    assert float(row["regrown"]) == callback.regrown
    assert float(row["sparsity_reached"]) == pytest.approx(pruned[1] / total, abs=1e-6)


def flags(*values):
    return torch.tensor(values, dtype=torch.bool)


def test_regrowth_is_by_seed_step_and_site():
    masks = {"a": torch.zeros(1000, dtype=torch.bool), "b": torch.zeros(1000, dtype=torch.bool)}
    masks["a"][:500] = True
    growth = Regrowth(probability=0.2, by="chance", every=1, reprune=False, seed=1)
    grown = regrow(masks, growth, 4, {})
    assert not (grown["a"] & masks["a"]).any() and 60 < int(grown["a"].sum()) < 140 and 150 < int(grown["b"].sum()) < 250
    again, later = regrow(masks, growth, 4, {}), regrow(masks, growth, 5, {})
    assert torch.equal(grown["b"], again["b"]) and not torch.equal(grown["b"], later["b"])
    assert not torch.equal(grown["b"][500:], grown["a"][500:])
    by_gradient = Regrowth(probability=0.5, by="gradient", every=1, reprune=False, seed=1)
    found = regrow({"a": flags(1, 0, 0, 0, 0)}, by_gradient, 1, {"a": torch.tensor([9.0, -3.0, 1.0, 2.0, 0.0])})
    assert found["a"].tolist() == [False, True, False, True, False]


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_repruning_keeps_the_count_and_takes_the_least_important(scope):
    masks = {"a": flags(1, 1, 1, 0, 0), "b": flags(1, 1, 1, 1, 0)}
    grown = {"a": flags(0, 0, 0, 1, 1), "b": flags(0, 0, 0, 0, 0)}
    scores = {"a": torch.tensor([5.0, 4.0, 3.0, 0.0, 0.0]), "b": torch.tensor([1.0, 2.0, 9.0, 9.0, 0.0])}
    found = exchange(scores, masks, grown, scope)
    if scope == "layer":
        assert found["a"].tolist() == [True, False, False, True, True] and torch.equal(found["b"], masks["b"])
    else:
        assert found["a"].tolist() == [True] * 5 and found["b"].tolist() == [False, False, True, True, False]


def test_bad_masks_and_checkpoints(tiny_teacher):
    student, masks = start(tiny_teacher)
    with pytest.raises(InputError, match="'nowhere', which this UNet2DConditionModel does not have"):
        SparseTraining(student, {"nowhere": flags(1)}, **PLAIN)
    with pytest.raises(InputError, match=r"mask of 'conv_in' is torch.bool \(1,\)"):
        SparseTraining(student, {"conv_in": flags(1)}, **PLAIN)
    conv = SparseTraining(student, reference_masks(student, 0.5), **PLAIN)
    with pytest.raises(InputError, match="of other layers"):
        SparseTraining(student, masks, **PLAIN).load_state_dict(conv.state_dict())
