"""A student through torchao's quantisation and torch.compile: sizes, outputs, its place in the row."""

import json

import pytest
import torch

from common.cost.macs import checkpoint_bytes, probe_inputs
from common.diffusion.sampling import predict
from common.errors import InputError
from experiments.evaluation import deployment
from experiments.evaluation.deployment import deployed, quantised_share, stored_bytes
from tests.commands import run
from tests.small_jobs import job, the_row
from tests.small_students import small_unet


def output_of(unet):
    torch.manual_seed(0)
    (_, timestep), conditions = probe_inputs(unet)
    conditions = {name: torch.randn_like(value).expand(2, -1, -1) for name, value in conditions.items()}
    with torch.no_grad():
        return predict(unet, torch.randn(2, 4, 4, 4), timestep.expand(2), conditions)


@pytest.mark.parametrize(("kind", "tolerance"), [("int8", 0.02), ("float8", 0.1)])
def test_quantised_weights(kind, tolerance):
    unet = small_unet()
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    found = deployed(unet, kind)
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())  # it is a copy
    plain, quantised = output_of(unet), output_of(found)
    assert 0 < (quantised - plain).abs().max() < tolerance * plain.abs().max()
    linear = [each for each in unet.modules() if isinstance(each, torch.nn.Linear)]
    weights, rows = sum(each.weight.numel() for each in linear), sum(each.out_features for each in linear)
    assert quantised_share(found) == pytest.approx(weights / sum(each.numel() for each in unet.parameters()))
    scales = stored_bytes(found) - (checkpoint_bytes(unet) - weights)  # a byte instead of two, and what each row needs
    assert 2 * rows <= scales <= 4 * rows
    assert stored_bytes(unet) == checkpoint_bytes(unet)


@pytest.mark.exhaustive
def test_compiled_networks_compute_the_same():
    unet = small_unet()
    found = deployed(unet, "compile")
    torch.testing.assert_close(output_of(found), output_of(unet), rtol=1e-4, atol=1e-5)


def test_without_torchao(monkeypatch):
    monkeypatch.setattr(deployment, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"deployment=int8 needs torchao: pip install .*quantization"):
        deployed(small_unet(), "int8")


@pytest.mark.slow
def test_a_finished_job_gets_its_row(tiny_teacher_folder, tmp_path):
    command = job("t2i", tiny_teacher_folder, tmp_path, "distill=none", "method.ratio=0.2", method="magnitude")
    command = [word for word in command if not word.startswith("distill.")]
    first = run(*command)
    assert first.returncode == 0, first.stderr
    _, before = the_row(tmp_path)
    again = run(*command, "deployment=[int8]")
    assert again.returncode == 0 and "This job is done" in again.stdout, again.stderr
    folder, after = the_row(tmp_path)
    assert list(after["models"]) == [*before["models"], "int8"]
    pruned, int8 = after["models"]["pruned"], after["models"]["int8"]
    assert int8["parameters"] == pruned["parameters"] and int8["checkpoint_bytes_fp16"] < pruned["checkpoint_bytes_fp16"]
    assert int8["latent_mse"] != pruned["latent_mse"] and int8["latent_mse_low"] <= int8["latent_mse"]
    assert {name: before["models"][name] for name in before["models"]} == {n: after["models"][n] for n in before["models"]}
    assert (folder / "samples" / "int8").is_dir() and "int8" in again.stdout
    third = run(*command, "deployment=[int8]")
    assert json.loads((folder / "result.json").read_text()) == after and third.returncode == 0
