"""From settings to a plan of masks, and what a bad setting is told."""

import copy
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel, VQModel

from common.errors import InputError
from common.models.loading import load_denoiser
from common.models.saving import save_student
from common.pruning.plan import Edit, Plan, apply_plan, edited
from l1_diff import reference_masks, sparsity
from l1_diff.algorithm import importances
from l1_diff.gradients import average_gradients, denoising_losses
from l1_diff.masks import prunable_weights
from l1_diff.method import L1Diff
from l1_diff.semi_structured import is_two_of_four, to_semi_structured

METHOD = L1Diff(
    variant="published",
    sparsity=0.5,
    threshold=None,
    scope="global",
    pattern=None,
    modules=("conv", "linear"),
    parts=("denoiser",),
    exclude=(),
    autoencoder_exclude=(),
    alpha=1.0,
    beta=1.0,
    balance=True,
    gradient_average="mean",
    penalty=1e-3,
    penalty_step="proximal",
    schedule="oneshot",
    initial_sparsity=0.0,
    ramp=0.5,
    remask_every=2,
    gradient_decay=0.9,
    regrowth=0.01,
    regrow_by="chance",
    regrow_every=2,
    reprune=True,
    batch_size=4,
    timesteps="even",
    seed=0,
)


def plan(teacher, calibration, **settings):
    return replace(METHOD, **settings).plan(teacher.denoiser, calibration, "fingerprint", None)


def masks_of(found):
    return {name.removesuffix(".mask"): mask for name, mask in found.tensors.items()}


def test_the_plan_prunes_the_least_important(tiny_teacher, data_calibration):
    unet = tiny_teacher.denoiser
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    found = plan(tiny_teacher, data_calibration)
    weights = prunable_weights(unet)
    gradients = average_gradients(weights, denoising_losses(unet, data_calibration, "even", 4, 0))
    scores = importances(weights, gradients, 1.0, 1.0, balance=True)
    masks = masks_of(found)
    kept, pruned = (torch.cat([scores[s][masks[s] == flag] for s in scores]) for flag in (True, False))
    assert pruned.numel() == round(0.5 * (kept.numel() + pruned.numel())) and pruned.max() <= kept.min()
    assert found.teacher == "fingerprint" and found.settings["sparsity_reached"] == pytest.approx(0.5, abs=1e-5)
    assert all(edit.score == pytest.approx(masks[edit.site].float().mean().item(), abs=1e-6) for edit in found.edits)
    assert all(edit.sizes["pruned"] == int((~masks[edit.site]).sum()) for edit in found.edits)
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    assert all(not parameter.requires_grad for parameter in unet.parameters())


def test_the_gradient_counts(tiny_teacher, data_calibration):
    with_gradient, magnitude = (plan(tiny_teacher, data_calibration, beta=beta) for beta in (1.0, 0.0))
    assert any(not torch.equal(mask, magnitude.tensors[name]) for name, mask in with_gradient.tensors.items())
    without_data = replace(data_calibration, data=None)
    assert torch.equal(plan(tiny_teacher, without_data, beta=0.0).tensors["conv_in.mask"], magnitude.tensors["conv_in.mask"])


def test_the_student_is_a_stock_model_and_comes_back_whole(tiny_teacher, data_calibration, tmp_path):
    found = plan(tiny_teacher, data_calibration, sparsity=0.6, scope="layer")
    found.save(tmp_path / "plan")
    loaded = Plan.load(tmp_path / "plan")
    assert loaded.edits == found.edits and all(torch.equal(loaded.tensors[name], mask) for name, mask in found.tensors.items())
    student = apply_plan(tiny_teacher.denoiser, loaded)
    assert type(student) is UNet2DConditionModel
    assert sparsity(student).nominal == pytest.approx(0.6, abs=0.01)
    for site, mask in masks_of(found).items():
        ours, teachers = (network.get_submodule(site).weight for network in (student, tiny_teacher.denoiser))
        assert not ours[~mask].any() and torch.equal(ours[mask], teachers[mask])
        assert ours.data_ptr() != teachers.data_ptr()
    student.save_pretrained(tmp_path / "once")
    again = UNet2DConditionModel.from_pretrained(tmp_path / "once")
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), again.parameters(), strict=True))
    save_student(tiny_teacher, tiny_teacher.with_parts(denoiser=student), tmp_path / "student")
    exported = load_denoiser(tmp_path / "student")
    assert type(exported) is UNet2DConditionModel and sparsity(exported).zeros >= sparsity(student).zeros


def test_edited_zeroes_inside_and_restores_to_the_bit(tiny_teacher, data_calibration):
    unet = tiny_teacher.denoiser
    found = plan(tiny_teacher, data_calibration, beta=0.0)
    before = copy.deepcopy(unet.state_dict())
    addresses = [parameter.data_ptr() for parameter in unet.parameters()]
    student = apply_plan(unet, found)
    with pytest.raises(RuntimeError), edited(unet, list(found.edits), found.tensors) as inside:
        assert all(torch.equal(a, b) for a, b in zip(inside.parameters(), student.parameters(), strict=True))
        raise RuntimeError
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    assert addresses == [parameter.data_ptr() for parameter in unet.parameters()]


def test_plans_that_cannot_be_applied(tiny_teacher, data_calibration):
    unet = tiny_teacher.denoiser
    found = plan(tiny_teacher, data_calibration, beta=0.0)
    mixed = replace(found, edits=(*found.edits, Edit("mid_block.attentions.0", "identity")))
    with pytest.raises(InputError, match="mixes masks with 'identity' at 'mid_block.attentions.0'"):
        apply_plan(unet, mixed)
    with pytest.raises(InputError, match="no mask for 'conv_in'; load it with Plan.load"):
        apply_plan(unet, Plan.from_json(found.to_json()))
    wrong = replace(found, tensors=found.tensors | {"conv_in.mask": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(InputError, match=r"mask of 'conv_in' is torch.bool \(3,\)"):
        apply_plan(unet, wrong)
    with pytest.raises(InputError, match="'conv_act', a SiLU without a weight"):
        apply_plan(unet, Plan("test", (Edit("conv_act", "mask"),), tensors={"conv_act.mask": torch.ones(3) > 0}))


def test_reference_does_what_the_authors_code_does(tiny_teacher, data_calibration):
    found = plan(tiny_teacher, replace(data_calibration, data=None), variant="reference", sparsity=0.3)
    expected = reference_masks(tiny_teacher.denoiser, 0.3)
    assert masks_of(found).keys() == expected.keys()
    assert all(torch.equal(mask, expected[site]) for site, mask in masks_of(found).items())
    assert (found.settings["penalty"], found.settings["regrowth"], found.settings["beta"]) == (0, 0, 0)
    method = replace(METHOD, variant="reference", sparsity=0.3, schedule="gradual", penalty=1.0, regrowth=0.5)
    (callback,) = method.training_callbacks(apply_plan(tiny_teacher.denoiser, found), found)
    assert callback.penalty == 0 and callback.ramp is None and callback.regrowth.probability == 0
    assert not callback.keeps_gradients


def test_threshold_and_pattern(tiny_teacher, data_calibration):
    found = plan(tiny_teacher, data_calibration, sparsity=None, threshold=0.05, beta=0.0, balance=False)
    for site, mask in masks_of(found).items():
        assert torch.equal(mask, tiny_teacher.denoiser.get_submodule(site).weight.abs() >= 0.05)
    found = plan(tiny_teacher, data_calibration, sparsity=None, pattern="2:4", regrowth=0.0)
    student = apply_plan(tiny_teacher.denoiser, found)
    assert sparsity(student).nominal == 0.5
    assert all(is_two_of_four(weight.detach().flatten(1)) for weight in prunable_weights(student).values())
    assert not is_two_of_four(tiny_teacher.denoiser.time_embedding.linear_1.weight)


def test_gradual_pruning_begins_where_it_is_told(tiny_teacher, data_calibration):
    method = replace(METHOD, schedule="gradual", initial_sparsity=0.2, sparsity=0.7)
    found = method.plan(tiny_teacher.denoiser, data_calibration, "", None)
    assert found.settings["sparsity_reached"] == pytest.approx(0.2, abs=1e-4)
    (callback,) = method.training_callbacks(apply_plan(tiny_teacher.denoiser, found), found)
    assert (callback.ramp.initial, callback.ramp.final) == (0.2, 0.7) and callback.keeps_gradients


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_masks_of_an_autoencoder(tiny_teacher, kind):
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    autoencoder = tiny_teacher.autoencoder
    if kind == "vq":
        autoencoder = VQModel(**blocks, block_out_channels=(4, 4), norm_num_groups=2, num_vq_embeddings=16).eval()
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    found = METHOD.autoencoder_plan(autoencoder, images, "")
    student = apply_plan(autoencoder, found)
    assert type(student) is type(autoencoder) and sparsity(student).nominal == pytest.approx(0.5, abs=1e-3)
    sites = [edit.site for edit in found.edits]
    assert any(site.startswith("encoder.") for site in sites) and any(site.startswith("decoder.") for site in sites)
    magnitude = replace(METHOD, beta=0.0).autoencoder_plan(autoencoder, images, "")
    assert any(not torch.equal(mask, magnitude.tensors[name]) for name, mask in found.tensors.items())
    reference = replace(METHOD, variant="reference", sparsity=0.3).autoencoder_plan(autoencoder, images, "")
    assert masks_of(reference).keys() == reference_masks(autoencoder, 0.3).keys()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"variant": "paper"}, "none of published, reference"),
        ({"scope": "block"}, "none of global, layer"),
        ({"schedule": "slow"}, "none of oneshot, gradual"),
        ({"penalty_step": "l1"}, "none of proximal, subgradient"),
        ({"regrow_by": "luck"}, "none of chance, gradient"),
        ({"gradient_average": "max"}, "none of mean, mean_absolute"),
        ({"timesteps": "late"}, "none of even, uniform"),
        ({"sparsity": 1.0}, "sparsity=1.0: a number of at least 0 and below 1"),
        ({"sparsity": -0.1}, "sparsity=-0.1: a number of at least 0 and below 1"),
        ({"sparsity": None}, "said by nothing; give one of sparsity, threshold, pattern"),
        ({"threshold": 0.1}, "said by method.sparsity=0.5 and method.threshold=0.1"),
        ({"sparsity": None, "threshold": -1.0}, "threshold=-1.0"),
        ({"sparsity": None, "threshold": 1e9}, "every weight is below it"),
        ({"sparsity": None, "pattern": "4:2", "regrowth": 0.0}, "N:M"),
        ({"sparsity": None, "pattern": "2:4"}, "regrowth=0.01 would break method.pattern"),
        ({"sparsity": None, "pattern": "3:7", "regrowth": 0.0}, "inputs of conv_in, .* no multiple of 7"),
        ({"alpha": 0.0, "beta": 0.0}, "alpha=0.0, method.beta=0.0"),
        ({"alpha": -1.0}, "alpha=-1.0"),
        ({"penalty": -1e-3}, "penalty=-0.001: a number of at least 0"),
        ({"regrowth": 1.5}, "regrowth=1.5: a number of at least 0 and up to 1"),
        ({"regrow_every": 0}, "regrow_every=0: a whole number of at least 1"),
        ({"remask_every": 0}, "remask_every=0: a whole number of at least 1"),
        ({"batch_size": 0}, "batch_size=0: a whole number of at least 1"),
        ({"gradient_decay": 1.0}, "gradient_decay=1.0"),
        ({"schedule": "gradual", "initial_sparsity": 0.6}, "initial_sparsity not above it"),
        ({"schedule": "gradual", "initial_sparsity": -1}, "initial_sparsity=-1: a number of at least 0"),
        ({"schedule": "gradual", "sparsity": None, "threshold": 0.1}, "gradual needs method.sparsity"),
        ({"schedule": "gradual", "ramp": 0.0}, "ramp=0.0"),
        ({"modules": ("norm",)}, r"modules=\('norm',\): a list \(each one of conv, linear\)"),
        ({"exclude": ("nowhere",)}, "'nowhere' matches no weight"),
    ],
)
def test_bad_settings(tiny_teacher, data_calibration, settings, expected):
    with pytest.raises(InputError, match=expected) as told:
        plan(tiny_teacher, data_calibration, **settings)
    assert "\n" not in str(told.value)


def test_two_of_four_multiplication_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="needs a CUDA GPU of compute capability 8.0"):
        to_semi_structured(torch.nn.Linear(64, 64))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_two_of_four_multiplication_gives_the_same(tiny_teacher):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(128, 128), torch.nn.Linear(128, 128)).half().cuda()
    with torch.no_grad():
        model[0].weight.reshape(-1, 4)[:, :2] = 0
    rows = torch.randn(64, 128, device="cuda", dtype=torch.half)
    with torch.no_grad():
        before = model(rows)
        assert to_semi_structured(model) == ["0"]
        assert torch.allclose(model(rows), before, atol=2e-3)
