"""Jobs of L1-Diff on U-Net and VQ-VAE: what they leave, and the same after kill -9 in the middle of sparse training."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.commands import run
from tests.small_jobs import job, start_and_kill, the_row, without_clock

pytestmark = pytest.mark.exhaustive

OWN = [
    "method.parts=[denoiser,autoencoder]",
    "method.regrow_every=2",
    "method.regrowth=0.05",
    "distill.steps=8",
    "distill.autoencoder.steps=8",
    "distill.autoencoder.batch_size=4",
    "evaluation.every=4",
    "evaluation.more_steps=[1,3]",
]


@pytest.fixture(scope="module")
def finished(two_level_uig_teacher_folder, tmp_path_factory):
    outputs = tmp_path_factory.mktemp("sparse")
    done = run(*job("uig", two_level_uig_teacher_folder, outputs, *OWN, method="l1_diff"))
    assert done.returncode == 0, done.stderr[-3000:]
    return *the_row(outputs, "uig/l1_diff"), done


def test_both_parts_are_pruned_trained_and_measured(finished):
    folder, row, done = finished
    teacher, pruned, distilled = (row["models"][who] for who in ("teacher", "pruned", "distilled"))
    for figures in (distilled, distilled["autoencoder"]):
        assert 0.4999 < figures["sparsity"]["nominal"] < 0.56  # masks, and a few that the penalty brought to zero
        assert 0.4 < figures["sparsity"]["actual"] < figures["sparsity"]["nominal"]
    assert teacher["autoencoder"]["sparsity"]["zeros"] == 0 == teacher["sparsity"]["zeros"]
    assert distilled["autoencoder"]["psnr"] != pruned["autoencoder"]["psnr"] != teacher["autoencoder"]["psnr"]
    assert "denoiser: sparse file" in done.stdout and "autoencoder: sparse file" in done.stdout and "PSNR" in done.stdout
    for part in ("denoiser", "autoencoder"):
        assert (
            row["training"][part]["sparsity_reached"] == pytest.approx(0.5, abs=1e-3) and row["training"][part]["regrown"] > 0
        )
    with Image.open(folder / "sparsity.png") as picture:
        assert picture.width > 400


def test_the_student_has_its_own_autoencoder(finished, two_level_uig_teacher_folder):
    from common.models.loading import load_teacher

    folder, row, _ = finished
    student, teacher = load_teacher(str(folder / "student")), load_teacher(str(two_level_uig_teacher_folder))
    ours, theirs = student.autoencoder.state_dict(), teacher.autoencoder.state_dict()
    assert not torch.equal(ours["quantize.embedding.weight"], theirs["quantize.embedding.weight"])  # trained
    zeros = sum(int((weight == 0).sum()) for name, weight in ours.items() if "weight" in name)
    assert zeros == row["models"]["distilled"]["autoencoder"]["sparsity"]["zeros"]
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert student.decode_latents(student.encode_images(images)).shape == images.shape


def test_the_sparse_files_hold_the_student_bit_for_bit(finished):
    from common import load_sparse
    from common.models.loading import load_teacher

    folder, row, _ = finished
    student, empty = load_teacher(str(folder / "student")), load_teacher(str(folder / "student"))
    for part in ("denoiser", "autoencoder"):
        target = getattr(empty, part).half()
        for parameter in target.parameters():
            parameter.data.fill_(7)
        load_sparse(folder / "sparse" / f"{part}.safetensors", target)
        for name, tensor in getattr(student, part).half().state_dict().items():
            assert torch.equal(tensor, target.state_dict()[name]), name
        file = folder / "sparse" / f"{part}.safetensors"
        assert row["models"]["distilled"]["sparse_file"][f"{part}_bytes"] == file.stat().st_size
        tensors = sum(tensor.nbytes for tensor in load_file(file).values())  # without the header, large for tiny networks
        assert tensors < 0.75 * sum(tensor.nbytes for tensor in target.state_dict().values())


def test_distances_over_steps_and_during_training(finished):
    _, row, done = finished
    assert "FD over sampling steps, distilled: 1: " in done.stdout and "FD during training, after steps 4: " in done.stdout
    assert set(row["by_steps"]) == {"1", "3"}
    found = [models["distilled"]["fd_effnet"] for models in (row["by_steps"]["1"], row["by_steps"]["3"], row["models"])]
    assert len(set(found)) == 3
    (point,) = row["curve"]  # at step 4; the last one is the finished student's
    assert point["step"] == 4 and point["fd_effnet"] != found[-1]


def test_looking_on_the_way_does_not_change_the_student(finished, two_level_uig_teacher_folder, tmp_path):
    folder, _, _ = finished
    done = run(*job("uig", two_level_uig_teacher_folder, tmp_path, *OWN, "evaluation.every=0", method="l1_diff"))
    assert done.returncode == 0, done.stderr[-3000:]
    other, row = the_row(tmp_path, "uig/l1_diff")
    assert row["curve"] == []
    same_students(other, folder)


def same_students(ours, theirs):
    for part in ("unet", "vqvae"):
        (path,) = (ours / "student" / part).glob("*.safetensors")
        found, expected = load_file(path), load_file(theirs / "student" / part / path.name)
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            assert torch.equal(tensor, expected[name]), (part, name)


def test_killed_in_sparse_training_masks_and_weights_are_the_same(finished, two_level_uig_teacher_folder, tmp_path):
    folder, row, _ = finished
    arguments = job("uig", two_level_uig_teacher_folder, tmp_path, *OWN, method="l1_diff")
    for checkpoint in ("distill/autoencoder/step=4.ckpt", "distill/step=6.ckpt"):
        assert start_and_kill(arguments, lambda end=checkpoint: any(tmp_path.glob(f"uig/l1_diff/*/{end}"))), "it ended too soon"
        assert not list(tmp_path.glob("uig/l1_diff/*/student/model_index.json"))
    done = run(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    resumed, again = the_row(tmp_path, "uig/l1_diff")
    same_students(resumed, folder)
    assert without_clock(again["models"]) == without_clock(row["models"]) and again["curve"] == row["curve"]
    assert json.loads((resumed / "plan" / "plan.json").read_text()) == json.loads((folder / "plan" / "plan.json").read_text())


def test_bad_settings_of_the_autoencoder(two_level_uig_teacher_folder, tmp_path):
    for override, expected in {
        "method.parts=[decoder]": "method.parts=['decoder']: a list (each one of denoiser, autoencoder)",
        "distill.autoencoder.steps=-1": "distill.autoencoder.steps=-1: a whole number of at least 0",
        "method.autoencoder_exclude=[nowhere]": "method.autoencoder_exclude: 'nowhere' matches no weight of VQModel",
        "evaluation.more_steps=[0]": "evaluation.more_steps=[0]: a list (each a whole number of at least 1)",
        "+distill.trainer.devices=2": "distill.trainer.devices=2: a job trains with the processes that were started for it",
    }.items():
        done = run(*job("uig", two_level_uig_teacher_folder, tmp_path, *OWN, override, method="l1_diff"))
        assert done.returncode == 2 and expected in done.stderr and "Traceback" not in done.stderr


def test_gradual_pruning_needs_steps(two_level_uig_teacher_folder, tmp_path):
    for override, name in (("distill.steps=0", "distill.steps"), ("distill.autoencoder.steps=0", "distill.autoencoder.steps")):
        more = [*OWN, "method.schedule=gradual", override]
        done = run(*job("uig", two_level_uig_teacher_folder, tmp_path, *more, method="l1_diff"))
        assert done.returncode == 2 and f"{name}=0: method.schedule=gradual prunes during training" in done.stderr
