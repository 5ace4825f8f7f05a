"""Joint losses of sets of layers: equal to the single-layer losses for sets of one, by definition for larger ones."""

import pytest
import torch

from common.errors import InputError
from common.pruning.layers import list_layers
from common.pruning.plan import edited
from common.scoring.noisy_batches import noisy_batches
from common.scoring.score_file import ScoreFile
from experiments.reporting.additivity_page import correlations
from laptop_diff.additivity import joint_losses, random_subsets
from laptop_diff.criteria import layer_losses


@pytest.mark.parametrize("criterion", ["output", "task", "alignment"])
def test_a_set_of_one_costs_what_the_layer_costs(tiny_teacher, data_calibration, criterion, tmp_path):
    unet = tiny_teacher.denoiser
    layers = list_layers(unet)[:5]
    single = layer_losses(unet, layers, data_calibration, ScoreFile(), criterion=criterion, batch_size=3)
    file = ScoreFile(tmp_path / "joint.json")
    subsets = [(index,) for index in range(5)]
    joint = joint_losses(unet, layers, subsets, data_calibration, file, criterion=criterion, batch_size=3)
    assert joint == pytest.approx(list(single.values()), rel=1e-3, abs=1e-7)
    again = joint_losses(unet, layers, subsets, data_calibration, ScoreFile.open(file.path), criterion=criterion, batch_size=3)
    assert again == joint


@torch.no_grad()
def test_a_joint_loss_by_its_definition(tiny_teacher, data_calibration):
    unet = tiny_teacher.denoiser
    layers = list_layers(unet)
    (batch,) = noisy_batches(data_calibration, "even", 100, False, 0)
    intact = unet(batch.latents, batch.timesteps, **batch.conditions).sample
    with edited(unet, [layers[1].edit, layers[7].edit], {}):
        changed = unet(batch.latents, batch.timesteps, **batch.conditions).sample
    (loss,) = joint_losses(unet, layers, [(1, 7)], data_calibration, ScoreFile(), criterion="output", batch_size=100)
    assert loss == pytest.approx((changed - intact).square().mean().item(), rel=1e-5)


def test_subsets_are_seeded_draws_of_the_wanted_sizes():
    subsets = random_subsets(38, [2, 5], 20, seed=0)
    assert [len(subset) for subset in subsets] == [2] * 20 + [5] * 20
    assert subsets == random_subsets(38, [2, 5], 20, seed=0) != random_subsets(38, [2, 5], 20, seed=1)
    assert len(set(subsets)) > 35 and all(list(subset) == sorted(set(subset)) for subset in subsets)
    with pytest.raises(InputError, match="39 layers cannot be drawn of 38"):
        random_subsets(38, [39], 1, seed=0)


def test_correlations_of_known_numbers():
    found = correlations([1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0, 8.0], [1, 1, 2, 2])
    assert found == pytest.approx({"pearson": 1, "spearman": 1, "within": 1, "slope": 2})
    # the order of the sizes is right, that within a size is reversed
    assert correlations([2.0, 1.0, 4.0, 3.0], [1.0, 2.0, 3.0, 4.0], [1, 1, 2, 2])["within"] == pytest.approx(-1)


def test_a_criterion_without_joint_loss_is_told(tiny_teacher, data_calibration):
    with pytest.raises(InputError, match="no joint loss of criterion 'magnitude'; there is one of output, task, alignment"):
        joint_losses(tiny_teacher.denoiser, [], [], data_calibration, ScoreFile(), criterion="magnitude")
