"""Every method on a diffusion transformer: whole jobs of a few steps, their students in diffusers, what is refused."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline, PixArtTransformer2DModel

from tests.commands import run
from tests.small_jobs import job

pytestmark = pytest.mark.slow

FEW = ["evaluation.images=4", "evaluation.batch_size=4", "evaluation.latency_rounds=1", "distill.steps=2"]
FEW += ["+distill.trainer.log_every_n_steps=1"]
RATIO = "method.ratio=0.3"
METHODS = {
    "laptop_diff": [RATIO],
    "ld_pruner": ["method.k=2", "method.kinds=[attention,feed_forward,transformer_block]"],
    "l1_diff": ["method.sparsity=0.5"],
    "block_influence": [RATIO, "method.arrangement=contiguous"],
    "magnitude": [RATIO, "method.granularity=half_block"],
    "random_layers": [RATIO],
    "dense": [],
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("transformers")  # one folder: samples of the teacher and features are shared


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_on_a_transformer(outputs, tiny_dit_folder, method):
    recipe = "block_local" if method == "random_layers" else "bk_sdm"
    done = run(*job("t2i", tiny_dit_folder, outputs, *FEW, *METHODS[method], f"distill={recipe}", method=method))
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = outputs.glob(f"t2i/{method}/*/result.json")
    row = json.loads(path.read_text())
    models = row["models"]
    if method != "dense":
        assert models["distilled"]["nonzero_parameters"] < models["teacher"]["nonzero_parameters"]
        assert row["plan"] and (path.parent / "plan.png").is_file()
    assert models["distilled"]["latent_mse"] != models["pruned"]["latent_mse"]
    log = next((path.parent / "distill" / "log").rglob("*.csv")).read_text().splitlines()[0]
    assert ("loss/local" if recipe == "block_local" else "feature/transformer_blocks.") in log
    index = json.loads((path.parent / "student" / "model_index.json").read_text())
    own = method in ("block_influence", "laptop_diff", "ld_pruner", "magnitude", "random_layers")
    assert index["transformer"][0] == ("pruned_denoiser" if own else "diffusers")
    pipeline = DiffusionPipeline.from_pretrained(path.parent / "student", trust_remote_code=True)
    options = {"max_sequence_length": 12, "output_type": "latent", "use_resolution_binning": False, "clean_caption": False}
    if method == "laptop_diff":
        out = outputs / "export"
        done = run("-m", "experiments.export", str(path.parent), "--out", str(out), "--to", "stock")
        assert done.returncode == 0, done.stderr[-3000:]
        card, found = (out / "README.md").read_text(), json.loads((out / "export.json").read_text())
        assert found["student"]["pipeline"] == "PixArtSigmaPipeline" and found["stock"]["max_relative"] < 1e-5
        assert 'pipe(prompt="a red apple", max_sequence_length=12, use_resolution_binning=False).images[0]' in card
        assert 'PixArtTransformer2DModel.from_pretrained("stock")' in card and "transformer/pruned_denoiser.py" in card
        numbers = json.loads((out / "stock" / "blocks.json").read_text())
        stock = PixArtTransformer2DModel.from_pretrained(out / "stock")
        assert stock.config.num_layers == len(numbers) == found["stock"]["blocks"] < 4
        gone = {edit["site"] for edit in row["plan"]}
        assert set(numbers.values()) == {f"transformer_blocks.{index}" for index in range(4)} - gone
        done = run("-m", "experiments.export", str(path.parent), "--out", str(outputs / "onnx"), "--to", "onnx")
        assert done.returncode == 2 and "--to onnx: of U-Nets alone" in done.stderr and not (outputs / "onnx").exists()
    if method == "magnitude":
        done = run("-m", "experiments.export", str(path.parent), "--out", str(outputs / "halves"), "--to", "stock")
        assert done.returncode == 2 and "no stock class is left" in done.stderr and not (outputs / "halves").exists()
    latents = pipeline(prompt=["a cat"], latents=torch.zeros(1, 4, 8, 8), num_inference_steps=2, **options).images
    assert latents.isfinite().all()


@pytest.mark.parametrize(
    ("scheduler", "told"),
    [
        ("DDIM", "a DDIMScheduler does not sample what the teacher has learned"),
        ("UniPCMultistep, use_flow_sigmas: false", "contradict each other"),
    ],
)
def test_a_flow_is_not_sampled_as_diffusion(tmp_path, tiny_dit_folder, scheduler, told):
    own = ["method.ratio=0.3", f"evaluation.scheduler={{name: {scheduler}}}"]
    done = run(*job("t2i", tiny_dit_folder, tmp_path, *FEW, *own, method="magnitude"))
    errors = [line for line in done.stderr.splitlines() if not line.startswith("stage:")]
    assert done.returncode == 2 and len(errors) == 1 and told in errors[0], done.stderr


@pytest.mark.parametrize(
    ("method", "told"),
    [("bk_sdm", "BK-SDM fits UNet2DConditionModel"), ("diff_pruning", "has one width for all of its blocks")],
)
def test_methods_of_u_nets_say_so(tmp_path, tiny_dit_folder, method, told):
    own = ["method.variant=small"] if method == "bk_sdm" else []
    done = run(*job("t2i", tiny_dit_folder, tmp_path, *FEW, *own, method=method))
    errors = [line for line in done.stderr.splitlines() if not line.startswith("stage:")]
    assert done.returncode == 2 and len(errors) == 1 and told in errors[0]
    assert not list(tmp_path.glob("t2i/*/*/*"))
