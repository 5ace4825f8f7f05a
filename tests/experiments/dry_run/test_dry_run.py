"""The plan of a job's cost: against counts made elsewhere, by hand, and on the command line."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from common.cost.macs import count_parameters
from common.diffusion.text_encoding import tokens_beside
from experiments.dry_run.dry_run import gpu_hours
from experiments.dry_run.job_cost import JobCost, optimizer_bytes
from experiments.dry_run.job_stages import distilling, encoding, job_stages
from experiments.shared.gpus import GPUS
from experiments.shared.settings import typed_settings
from tests.commands import run
from tests.test_conf import compose_config

pytestmark = pytest.mark.slow

GOLDEN = json.loads((Path(__file__).parents[2] / "golden_counts.json").read_text())
TEACHER, STUDENT = GOLDEN["sd-v1.4/v1.5 UNet @64"], GOLDEN["bk-sdm-base UNet @64"]
TEXT_ENCODER, DECODER = 123_060_480, 49_490_199  # BK-SDM, issue 53: of 1032.07M with the U-Net


def job(*overrides):
    return JobCost(typed_settings(compose_config("config", "scale=paper", *overrides)))


@pytest.fixture(scope="module")
def bk_sdm():
    return job("teacher=sd15", "method=bk_sdm")


def test_sizes_are_the_counts_of_the_published_models(bk_sdm):
    for who, golden in (("teacher", TEACHER), ("student", STUDENT)):
        assert (bk_sdm.macs[who].total, bk_sdm.macs[who].without_attention_products) == (
            golden["macs_total"],
            golden["macs_module"],
        )
    operations = bk_sdm.image_operations
    assert operations["decode"] / 2e9 == pytest.approx(1240.1, rel=0.02)  # thop's, without attention products
    assert operations["read"] / 2e9 == pytest.approx(6.5, rel=0.03)


def test_memory_that_is_always_there_is_exact(bk_sdm):
    teacher, student = TEACHER["params"], STUDENT["params"]
    found = bk_sdm.distillation()
    assert found.pop("autoencoder and text encoder") == 4 * (83_653_863 + TEXT_ENCODER)
    assert found == {
        "student: weights": 4 * student,
        "student: gradients": 4 * student,
        "student: optimiser": 8 * student,
        "student: average of the weights": 4 * student,
        "teacher's denoiser": 4 * teacher,
        "pruned denoiser, kept to be measured": 4 * student,
    }


def test_optimisers_keep_what_they_keep():
    assert optimizer_bytes(lambda parameters: torch.optim.AdamW(parameters)) == 8
    assert optimizer_bytes(lambda parameters: torch.optim.SGD(parameters, lr=0.1)) == 0
    assert optimizer_bytes(lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9)) == 4


def test_operations_of_distillation_are_steps_times_passes(bk_sdm):
    stage = distilling(bk_sdm)
    each = TEACHER["macs_total"] + 4 * STUDENT["macs_total"]  # forward; forward, back (twice), and again for checkpointing
    assert stage.operations == 2 * each * 50_000 * 256
    assert stage.half
    assert stage.memory / 2**30 < 53  # which BK-SDM's took with images encoded on the way, on PyTorch 2.0


def test_blocks_that_are_trained_alone():
    """The teacher forward, and of the student the blocks beside removed ones: their parameters, operations and memory."""
    found = job("teacher=pixart_sigma", "method=laptop_diff", "method.ratio=0.3", "distill=block_local", "distill.batch_size=4")
    sizes = [(site, count_parameters(found.student.get_submodule(site))) for site in found.trained_blocks]
    assert 3 <= len(sizes) <= 9  # of 28, nine are removed
    held = found.distillation()
    assert held["student: optimiser"] == 2 * held["student: gradients"] == 8 * sum(size for _, size in sizes)
    assert found.macs["teacher"].total < found.step_macs() < found.macs["teacher"].total + 4 * found.macs["student"].total / 2
    saved, all_at_once = found.activations(4, True, True), found.activations(4, True, False)
    assert saved < all_at_once / 2


def test_stable_diffusion_3():
    """The tokens of its three text encoders, and the operations of its blocks over them and the image."""
    found = JobCost(typed_settings(compose_config("config", "scale=one_gpu", "teacher=sd3_medium", "method=laptop_diff")))
    assert found.token_lengths == [77, 77, 256] and found.tokens == 333
    assert found.inputs(2)[1]["encoder_hidden_states"].shape == (2, 333, 4096)
    macs = found.macs["teacher"]
    assert macs.total > macs.without_attention_products > 3.0e12  # 24 blocks over 4096 tokens of the image and 333 of text


def test_flux_that_is_told_its_guidance_is_called_once_a_step():
    words = ("scale=one_gpu", "teacher=flux1_dev", "method=laptop_diff", "budget.guidance_scale=3.5")
    found = JobCost(typed_settings(compose_config("config", *words)))
    assert found.token_lengths == [77, 512] and found.tokens == 512 and found.guided == 1
    inputs, conditions = found.inputs(2)
    assert inputs[0].shape == (2, 16, 128, 128) and conditions["guidance"].shape == (2,)
    assert found.passes(found.teacher.scheduler, 4) == 4
    assert {conditions[name].shape for name in ("encoder_hidden_states", "pooled_projections")} == {(2, 512, 4096), (2, 768)}


@pytest.mark.parametrize(
    ("name", "tokens", "guided", "read"),  # operations of reading a caption by the sizes of the language models, in millions
    [("sana_1600m", 300, 2, 2026), ("flux2_klein_4b", 512, 1, 3633), ("qwen_image", 512, 2, 6525)],
)
def test_captions_that_a_language_model_reads(name, tokens, guided, read):
    words = ("scale=one_gpu", f"teacher={name}", "method=laptop_diff", f"budget.guidance_scale={1 if guided == 1 else 4}")
    found = JobCost(typed_settings(compose_config("config", *words)))
    assert found.tokens == tokens and found.guided == guided
    assert found.inputs(2)[1]["encoder_hidden_states"].shape[:2] == (2, tokens)
    beside = tokens_beside(found.teacher.reading)
    assert (beside > 250) == (name == "sana_1600m")  # its instruction
    assert found.image_operations["read"] / 2e6 / (tokens + beside) == pytest.approx(read, rel=0.05)  # and attention


def test_a_distilled_teacher_is_not_guided(tmp_path):
    done = dry("scale=one_gpu", "teacher=flux2_klein_4b", outputs=tmp_path / "outputs")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "error: calibration.guidance_scale=7.5: the teacher is distilled to few steps" in done.stderr
    assert "budget.guidance_scale=1 is needed" in done.stderr


def test_utilisation_is_that_of_bk_sdm_s_300_hours(bk_sdm):
    """Its script encodes images and captions in every step, which jobs here do once."""
    on_the_way = bk_sdm.image_operations["encode"] + bk_sdm.image_operations["read"]
    stage = distilling(bk_sdm)
    given = compose_config("config").utilisation
    for batch, published, error in ((256, 300, 0.05), (64, 60, 0.3)):
        operations = stage.operations * batch / 256 + 50_000 * batch * on_the_way
        rate = 1e12 * GPUS["A100-80GB"].half * given.half
        assert operations / rate / 3600 == pytest.approx(published, rel=error)


def test_hours_of_single_precision_are_those_of_a_published_sampling_time():
    """50 steps of SD-v1 under guidance, float32, on a TITAN RTX (16.3 TFLOPS): 9.5 s (diffusers' documentation)."""
    seconds = 2 * 50 * 2 * TEACHER["macs_total"] / (16.3e12 * compose_config("config").utilisation.single)
    assert seconds == pytest.approx(9.5, rel=0.1)


def test_stages_of_a_job_on_the_meta_device():
    found = {stage.name: stage for stage in job_stages(job("task=uig", "method=l1_diff"))}
    macs = GOLDEN["ldm-celebahq-256 UNet @64"]["macs_total"]
    assert found["scoring"].operations == 2 * macs * 256 * 3  # forward and back
    assert found["distilling"].operations == 2 * macs * 46_900 * 32 * 3  # no teacher, no checkpointing
    assert found["sampling"].operations == 2 * macs * 30_000 * 25 * 3  # three models, nothing to guide by
    rates = compose_config("config").utilisation
    expected = found["distilling"].operations / (312e12 * rates.half) / 3600
    assert gpu_hours(found["distilling"], GPUS["A100-80GB"], rates) == pytest.approx(expected)


def test_what_is_published_of_a_data_set_is_what_is_encoded():
    """The larger of two data sets is encoded as often; PNDM takes one pass more than steps."""
    stages = [
        encoding(job("scale=paper", "teacher=sd15", "method=bk_sdm", f"task/data=laion_{name}")) for name in ("212k", "2m")
    ]
    assert stages[1].operations / stages[0].operations == pytest.approx(2_256_472 / 212_776)
    found = job("scale=paper", "method=bk_sdm")
    assert found.passes(found.teacher.scheduler, 25) == 26


def dry(*arguments, outputs):
    return run("run.py", *arguments, f"outputs={outputs}", "dry_run=true")


@pytest.mark.exhaustive
def test_a_dry_run_needs_no_weights_and_leaves_nothing(tiny_teacher_folder, tmp_path):
    folder = tmp_path / "teacher"
    shutil.copytree(tiny_teacher_folder, folder, ignore=shutil.ignore_patterns("*.safetensors", "tokenizer*"))
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer_config.json").write_text("{}")
    before = sorted(path.name for path in Path.cwd().iterdir())
    done = dry("task=t2i", f"teacher.path={folder}", "method=laptop_diff", outputs=tmp_path / "outputs")
    assert done.returncode == 0, done.stderr
    assert "student, about" in done.stdout and "distilling  300 steps of 32 x 1" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert not (tmp_path / "outputs").exists()
    assert sorted(path.name for path in Path.cwd().iterdir()) == before


def test_dry_runs_of_a_sweep_are_summed(tmp_path):
    done = dry("-m", "task=uag", "method.k=2,4", outputs=tmp_path / "outputs")
    assert done.returncode == 0, done.stderr
    assert "2 jobs: " in done.stdout
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("distill=block_local", "error: distill.local_weight: UNet2DModel is no diffusion transformer"),
        ("scale=paper task=t2i teacher=sd3_medium", "error: evaluation.scheduler: a PNDMScheduler does not"),
        ("scale=paper task=t2i teacher=sana_1600m", "error: evaluation.scheduler: a PNDMScheduler does not"),
        ("gpu=A101", f"error: gpu='A101' is none of {', '.join(GPUS)}."),
        ("utilisation.half=2", "error: utilisation.half=2: a number above 0 and up to 1 is needed."),
        ("teacher.path=nobody/nothing", "error: The architecture of 'nobody/nothing' is not known without its folder"),
        ("distill.trainer.precision=8", "error: distill.trainer.precision=8 is none of 32-true, 16-mixed, bf16-mixed."),
    ],
)
def test_bad_input_is_told_in_one_line(tmp_path, argument, told):
    done = dry("task=uag", *argument.split(), outputs=tmp_path / "outputs")
    assert done.returncode == 2
    assert done.stderr.startswith(told) and done.stderr.count("\n") == 1


def test_what_does_not_fit_is_told_with_what_would(capsys):
    from experiments.dry_run.dry_run import dry_run

    settings = ["scale=paper", "task=uig", "method=dense", "distill=bk_sdm", "gpu=RTX3090"]
    dry_run(typed_settings(compose_config("config", *settings, "distill.batch_size=128", "distill.accumulate=1")))
    told = capsys.readouterr().out
    assert "does not fit into RTX3090 (24 GiB)\nlower, checkpoint or halve: distill.batch_size=128" in told
    dry_run(typed_settings(compose_config("config", *settings, "distill.batch_size=64", "distill.accumulate=2")))
    assert "fits into RTX3090 (24 GiB), with gradient checkpointing" in capsys.readouterr().out
    dry_run(typed_settings(compose_config("config", *settings, "distill.batch_size=1", "teacher=sdxl", "task=t2i")))
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "does not fit into RTX3090 (24 GiB) at no batch size: " in told and "distill.trainer.strategy=fsdp gives each" in told
    )


def write_to_nobody():
    """Makes standard output a pipe whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    sys.stdout = os.fdopen(1, "w", closefd=False)


def test_nobody_has_to_read_it_to_the_end():
    """python run.py ... dry_run=true | head: no traceback where the reader is gone."""
    done = run("run.py", "task=uig", "method=bk_sdm", "dry_run=true", before=write_to_nobody)
    assert (done.returncode, done.stderr) == (1, "")
