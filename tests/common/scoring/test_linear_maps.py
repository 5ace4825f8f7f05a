"""Linear maps in the place of removed blocks: least squares by hand, on every family; saved, loaded, counted, in jobs."""

import json
from dataclasses import replace

import diffusers
import pytest
import torch

from common.cost.macs import count_parameters
from common.diffusion.sampling import predict
from common.errors import InputError
from common.pruning.layers import list_layers
from common.pruning.plan import Plan, apply_plan
from common.pruning.plan_table import parameters_that_go
from common.scoring.calibration import build_calibration
from common.scoring.linear_maps import RIDGE, empty_linear_maps, fit_linear_maps, list_intervals
from tests.commands import run
from tests.common.denoisers.test_families import NETWORKS, inputs, network  # noqa: F401
from tests.small_jobs import job, the_row


def without(network, *numbers, granularity="transformer"):  # noqa: F811
    layers = list_layers(network, granularity)
    return Plan("some", tuple(layers[number].edit for number in numbers))


@pytest.fixture
def calibration(network, inputs):  # noqa: F811
    """Whose training rows are two, of a flow."""
    (latents, _), conditions = inputs
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    none = {name: value[:1] for name, value in conditions.items()}
    sizes = {"num_conditions": 1, "samples": 1, "steps": 1, "guidance_scale": 1.0, "seed": 0}
    return build_calibration(none, none, latents.shape[1:], scheduler, **sizes, data=lambda: (latents, conditions))


def seen_in(network, calibration, sites):  # noqa: F811
    """What goes into the first site's block, and comes out of the last one's, as positional and named arguments."""
    from common.scoring.noisy_batches import noisy_batches

    found = {}
    first, last = network.get_submodule(sites[0]), network.get_submodule(sites[-1])
    handles = [
        first.register_forward_pre_hook(lambda _m, args, named: found.update(given=(args, named)), with_kwargs=True),
        last.register_forward_hook(lambda _m, _args, output: found.update(made=output)),
    ]
    (batch,) = noisy_batches(calibration, "even", 32, False, 0)
    predict(network, batch.latents, batch.timesteps, batch.conditions)
    for handle in handles:
        handle.remove()
    return found


def test_they_are_the_least_squares_of_what_the_blocks_did(network, calibration):  # noqa: F811
    blocks = list_layers(network)
    pair = next(n for n in range(len(blocks) - 1) if blocks[n].site.rpartition(".")[0] == blocks[n + 1].site.rpartition(".")[0])
    plan = without(network, pair, pair + 1)
    sites = [edit.site for edit in plan.edits]
    fitted = fit_linear_maps(network, plan, calibration)
    assert [edit.operation for edit in fitted.edits] == ["linear", plan.edits[1].operation]
    assert [edit.site for edit in fitted.edits] == sites
    seen = seen_in(network, calibration, sites)
    student = apply_plan(network, fitted)
    args, named = seen["given"]
    ours, theirs = student.get_submodule(sites[0])(*args, **named), seen["made"]
    streams = fitted.edits[0].sizes["returns"]
    passed = apply_plan(network, plan).get_submodule(sites[0])(*args, **named)
    ours, theirs, passed = (each if isinstance(each, tuple) else (each,) for each in (ours, theirs, passed))
    for stream, mapped, wanted, kept in zip(streams, ours, theirs, passed, strict=True):
        if wanted is None:
            continue
        rows = kept.flatten(0, -2).double()
        rows = torch.cat([rows, torch.ones(len(rows), 1)], 1)
        change = (wanted - kept).flatten(0, -2).double()
        ridge = torch.diag(RIDGE**0.5 * rows.norm(dim=0))  # as rows of its own, whose outputs are zero
        padded = torch.cat([change, change.new_zeros(len(ridge), change.shape[1])])
        expected = torch.linalg.lstsq(torch.cat([rows, ridge]), padded, driver="gelsd").solution
        torch.testing.assert_close((mapped - kept).flatten(0, -2).double(), rows @ expected, rtol=1e-3, atol=1e-4)
        assert (mapped - wanted).square().sum() < 0.5 * change.square().sum(), stream  # nearer than what passes


def test_a_student_with_them_is_saved_and_loaded(network, inputs, calibration, tmp_path):  # noqa: F811
    plan = fit_linear_maps(network, without(network, len(list_layers(network)) - 1), calibration)
    student = apply_plan(network, plan)
    found = predict(student, *inputs[0], inputs[1])
    student.save_pretrained(tmp_path / "student")
    again = diffusers.AutoModel.from_pretrained(str(tmp_path / "student"), trust_remote_code=True)
    assert torch.equal(predict(again.eval(), *inputs[0], inputs[1]), found)
    plan.save(tmp_path)
    assert torch.equal(predict(apply_plan(network, Plan.load(tmp_path)), *inputs[0], inputs[1]), found)
    gone = count_parameters(network) - count_parameters(student)
    assert sum(parameters_that_go(plan, network)) == gone > 0
    later = apply_plan(student, without(student, 0))  # pruned further, with the maps as they are
    assert later.state_dict().keys() >= plan.tensors.keys()


def test_their_shapes_are_known_without_weights(network, calibration):  # noqa: F811
    plan = without(network, 0)
    fitted = fit_linear_maps(network, plan, calibration)
    with torch.device("meta"):
        twin = type(network).from_config(network.config)
    empty = empty_linear_maps(twin, plan)
    assert empty.edits == fitted.edits
    assert {name: value.shape for name, value in empty.tensors.items()} == {n: v.shape for n, v in fitted.tensors.items()}
    assert count_parameters(apply_plan(twin, empty)) == count_parameters(apply_plan(network, fitted))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_student_pruned_again_keeps_its_maps_apart(name):
    """What lies between two blocks that go is a map of an earlier plan, or an identity: only over the latter one map goes."""
    torch.manual_seed(0)
    deep = getattr(diffusers, name)(**NETWORKS[name] | {"num_layers": 4}).eval()
    first, between, last = (layer.edit for layer in list_layers(deep)[:3])
    middle, ends = Plan("some", (between,)), (first, last)
    mapped, skipped = apply_plan(deep, empty_linear_maps(deep, middle)), apply_plan(deep, middle)
    runs = [[(each.first, each.last) for each in list_intervals(student, ends)] for student in (mapped, skipped)]
    assert runs == [[(first.site, first.site), (last.site, last.site)], [(first.site, last.site)]]
    again = apply_plan(mapped, empty_linear_maps(mapped, Plan("some", ends)))
    for edit in (first, between, last):
        assert any(weight.startswith(f"{edit.site}.") for weight in again.state_dict()), edit.site


def test_after_the_last_block_only_the_image_is_mapped():
    torch.manual_seed(0)
    flux = diffusers.FluxTransformer2DModel(**NETWORKS["FluxTransformer2DModel"]).eval()
    (edit,) = empty_linear_maps(flux, without(flux, 3)).edits
    assert edit.sizes == {"returns": ["encoder_hidden_states", "hidden_states"], "maps": {"hidden_states": 32}}
    (edit,) = empty_linear_maps(flux, without(flux, 2)).edits
    assert set(edit.sizes["maps"]) == {"encoder_hidden_states", "hidden_states"}


def test_a_plan_with_weights_of_its_own_is_refused(tiny_dit):
    plan = without(tiny_dit.denoiser, 0)
    with pytest.raises(InputError, match="brings weights or masks of its own"):
        fit_linear_maps(tiny_dit.denoiser, replace(plan, tensors={"a.weight": torch.zeros(1)}), None)


def test_what_cannot_become_a_map_is_told(tiny_dit, tiny_teacher):
    with pytest.raises(InputError, match="UNet2DConditionModel is no diffusion transformer"):
        list_intervals(tiny_teacher.denoiser, without(tiny_teacher.denoiser, 0).edits)
    with pytest.raises(InputError, match="removes no whole block"):
        list_intervals(tiny_dit.denoiser, without(tiny_dit.denoiser, 0, granularity="half_block").edits)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["method.budget={parameters: 1000}", "method.ratio=null"], "adds parameters, which method.budget does not know of"),
        (["distill.local_weight=1"], "take one of the two"),
        (["init=scratch"], "init=scratch keeps nothing"),
        (["method=published", "method.path=nowhere"], "a published student is measured as it is"),
        (["method.granularity=half_block"], "the plan removes no whole block"),
        (["replacement=affine"], "replacement='affine' is none of identity, linear"),
    ],
)
def test_bad_settings_are_told_before_any_work(tiny_dit_folder, tmp_path, words, told):
    size = [] if "method=published" in words else ["method.ratio=0.4"]
    given = [*size, "replacement=linear", "distill=bk_sdm", "distill.steps=2", *words]
    done = run(*job("t2i", tiny_dit_folder, tmp_path, *given, method="magnitude"))
    *before, last = done.stderr.splitlines()
    assert done.returncode == 2 and told in last and before in ([], ["stage: loading"]), done.stderr


@pytest.mark.slow
def test_a_job(tiny_dit_folder, tmp_path):
    """The student is nearer to the teacher than without the maps, before training, and draws in diffusers."""
    few = ["method.ratio=0.5", "evaluation.images=16", "evaluation.steps=4", "distill.steps=0", "calibration.data_rows=16"]
    errors = {}
    for replacement in ("identity", "linear"):
        outputs = tmp_path / replacement
        done = run(*job("t2i", tiny_dit_folder, outputs, *few, f"replacement={replacement}", method="magnitude"))
        assert done.returncode == 0, done.stderr[-3000:]
        folder, row = the_row(outputs)
        errors[replacement] = row["models"]["pruned"]["latent_mse"]
    assert "linear" in json.dumps(row["plan"]) and errors["linear"] < errors["identity"]
    student = diffusers.DiffusionPipeline.from_pretrained(folder / "student", trust_remote_code=True)
    options = {"num_inference_steps": 2, "use_resolution_binning": False, "max_sequence_length": 12}
    image = student("a", output_type="pt", **options).images
    assert image.isfinite().all()
