"""The exported folder loads without this project, its files compute what the student does, its card tells the row."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy
import onnxruntime
import openvino
import pytest
import torch
import yaml
from PIL import Image

from baselines.bk_sdm_table import plan_for
from common.diffusion.sampling import denoise
from common.models.loading import load_denoiser, load_teacher
from common.models.saving import save_student
from common.pruning.plan import apply_plan
from experiments import export as command
from experiments.exporting.card_texts import limits
from tests.small_students import as_teacher, expected, numbers, plan_of, small_unet, untraced  # noqa: F401

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small_folder(tiny_teacher_folder, tmp_path_factory):
    """The tiny teacher with text, its denoiser of two levels."""
    folder = tmp_path_factory.mktemp("teachers") / "small"
    teacher = load_teacher(str(tiny_teacher_folder))
    save_student(teacher, teacher.with_parts(denoiser=small_unet()), folder)
    return folder


def make_job(folder, teacher_folder, kind="ld_pruner"):
    """A finished job as run.py leaves it, with made-up figures."""
    teacher = load_teacher(str(teacher_folder))
    plan = plan_of(kind, teacher.denoiser)
    student = apply_plan(teacher.denoiser, plan)
    save_student(teacher, teacher.with_parts(denoiser=student), folder / "student")
    counts = {"checkpoint_bytes_fp16": 5000, "macs": 7001, "reference_images": 20, "images": 16}
    figures = {
        who: {"fd_effnet": 100.123456789 + place, "latent_mse": 0.5 * place, "parameters": 1000 - 300 * (place > 0), **counts}
        | {"latency": {"ratio": 1 - place / 10}}
        for place, who in enumerate(("teacher", "pruned", "distilled"))
    }
    row = {
        "settings": {
            "task": {"name": "t2i", "data": {"_target_": "common.data.emoji.load_emoji", "folder": "data/emoji"}},
            "method": {"_target_": "x", "k": 5, "ratio": None},
            "teacher": {"path": "owner/teacher", "revision": None},
            "distill": {"steps": 20, "batch_size": 4, "optimizer": {"lr": 0.001}, "coefficients": {"t2i": 1}},
            "init": "preserved",
            "seed": 3,
        },
        "command": f"python run.py method={kind} outputs={folder} task=t2i",
        "choices": {"method": kind, "distill": "a_recipe"},
        "models": {"real": {"fd_effnet": 9.5, "reference_images": 20}, **figures},
        "plan": [edit.to_dict() for edit in plan.edits],
        "protocol": {"extractor": "effnet: x", "images": 16, "steps": 2, "guidance_scale": 2.0, "latency_batch": 4, "seed": 3}
        | {"seeds": "one per sample", "split": "train"},
        "environment": {"revision": {"commit": "abc123", "dirty": True}, "device": "cpu: a", "packages": {"torch": "1"}},
    }
    (folder / "result.json").write_text(json.dumps(row))
    for name in ("samples.png", "plan.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    return row


def call(job, *more):
    """The command in this process; its exit code."""
    before, sys.argv = sys.argv, ["export", str(job), *more]
    try:
        command.main()
        return 0
    except SystemExit as end:
        return end.code
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def described(small_folder, tmp_path_factory):
    """A job, its row, and its export with a card and no other format."""
    job = tmp_path_factory.mktemp("outputs") / "t2i" / "ld_pruner" / "0"
    row = make_job(job, small_folder)
    assert call(job, "--license", "mit") == 0
    return job, row, job / "export"


@pytest.fixture(scope="module")
def exported(small_folder, tmp_path_factory):
    """A job, its row, and its export to ONNX."""
    job = tmp_path_factory.mktemp("outputs") / "t2i" / "ld_pruner" / "0"
    row = make_job(job, small_folder)
    assert call(job, "--to", "onnx", "--rounds", "2") == 0
    return job, row, job / "export"


@pytest.fixture(scope="module")
def exported_to_both(exported, tmp_path_factory):
    """The same job and row, and an export to both formats."""
    job, row, _ = exported
    folder = tmp_path_factory.mktemp("both") / "export"
    assert call(job, "--out", str(folder), "--to", "onnx", "--to", "openvino", "--rounds", "2") == 0
    return job, row, folder


@pytest.mark.exhaustive
def test_the_folder_draws_the_same_without_this_project(exported_to_both, tmp_path):
    job, _, folder = exported_to_both
    script = f"""
import sys, torch
for name in ("common", "experiments", "ld_pruner", "torchvision"):  # PyPI's cannot be imported beside a PyTorch for CPUs
    sys.modules[name] = None
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({str(folder)!r}, trust_remote_code=True)
noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
torch.save(pipe("a red apple", latents=noise, num_inference_steps=3, guidance_scale=2.0, output_type="latent",
                height=32, width=32).images, {str(tmp_path / "out.pt")!r})
"""
    shutil.copytree(job / "student", tmp_path / "student")
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    ours = load_teacher(str(tmp_path / "student"))
    assert type(ours.denoiser).__name__ == "PrunedUNet2DConditionModel"
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    conditions, empty = ours.encode_captions(["a red apple"]), ours.null_condition()
    latents = denoise(ours.denoiser, ours.scheduler, noise, conditions, empty, 3, 2.0)
    assert torch.allclose(torch.load(tmp_path / "out.pt"), latents, atol=1e-5)


@pytest.mark.exhaustive
def test_the_files_are_those_of_the_student(exported_to_both):
    job, _, folder = exported_to_both
    student, session = load_denoiser(job / "student"), onnxruntime.InferenceSession(folder / "onnx/unet/model.onnx")
    inputs = numbers(student, 2, 4, 4, tokens=12)
    assert numpy.allclose(session.run(None, inputs)[0], expected(student, inputs), atol=1e-5)
    compiled = openvino.Core().compile_model(folder / "openvino/unet/openvino_model.xml", "CPU")
    assert numpy.allclose(compiled(inputs)[0], expected(student, inputs), atol=0.05)
    document = json.loads((folder / "export.json").read_text())
    assert document["job"] == "t2i/ld_pruner/0" and document["student"]["pipeline"] == "StableDiffusionPipeline"
    assert document["student"]["latents"]["max_relative"] < 1e-4
    assert list(document["parts"]) == ["unet", "vae_decoder", "text_encoder"]
    for part, formats in document["parts"].items():
        assert set(formats) == {"pytorch", "onnx", "openvino"} and formats["pytorch"]["latency"]["ratio"] == 1
        for name in ("onnx", "openvino"):
            found = formats[name]
            assert (folder / found["file"]).is_file() and found["max_relative"] < 1e-4 and found["latency"]["ratio"] > 0
            sizes = [path.stat().st_size for path in (folder / name / part).iterdir()]
            assert found["bytes"] == sum(sizes)
    assert '"encoder_hidden_states": encoder_hidden_states' in (folder / "README.md").read_text()
    assert document["sampling"]["onnx"]["max_relative"] < 1e-4 and document["sampling"]["openvino"]["max_relative"] < 1e-4


def test_the_card_tells_the_row(described):
    job, row, folder = described
    _, front, body = (folder / "README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["license"] == "mit" and front["library_name"] == "diffusers" and front["pipeline_tag"] == "text-to-image"
    assert front["base_model"] == "owner/teacher" and {"pruning", "distillation", "ld-pruner"} <= set(front["tags"])
    metrics = {each["type"]: each["value"] for each in front["model-index"][0]["results"][0]["metrics"]}
    distilled = row["models"]["distilled"]
    assert metrics == {name: distilled[name] for name in ("fd_effnet", "latent_mse", "parameters", "macs")}
    assert "![samples from equal seeds, by model](samples.png)" in body and "![plan](plan.png)" in body
    assert (folder / "samples.png").is_file() and (folder / "plan.png").is_file()
    assert "| distilled | 700 | 700 | 7,001 | 0.01 MB | 0.80x |" in body and "| real |  | 9.5 |" in body
    for edit in row["plan"]:
        assert f"| `{edit['site']}` | {edit['operation']}" in body
    assert "- 1 x `avg_pool`" in body and "lr: 0.001" in body and "coefficients" not in body
    assert "python run.py method=ld_pruner task=t2i\n" in body and str(job) not in body
    assert "revision abc123, with changes" in body and "70.0 % of the teacher's" in body
    assert 'DiffusionPipeline.from_pretrained(".", trust_remote_code=True)' in body
    saved = json.loads((folder / "result.json").read_text())
    assert saved["models"] == row["models"] and str(job) not in json.dumps(saved)


def test_a_card_tells_nothing_of_this_machine(tiny_teacher_folder, tmp_path):
    """Neither where a teacher's folder is, nor that it is one of the small ones that ship, which any absolute path was."""
    job = tmp_path / "job"
    row = make_job(job, tiny_teacher_folder)
    row["settings"]["teacher"] = {"path": str(tiny_teacher_folder), "lora": f"{tmp_path}/style.safetensors"}
    row["settings"]["task"]["data"] |= {"prompts": f"{tmp_path}/my prompts.txt", "more": [f"{tmp_path}/a.txt"]}
    places = f"'task.data.prompts={tmp_path}/my prompts.txt' 'more=[{tmp_path}/a,~/b/c]'"
    row["command"] = f"python run.py teacher.path={tiny_teacher_folder} {places} method.k=3"
    assert "trained from scratch" not in limits(row)
    row["settings"]["teacher"]["path"], there = "emoji_t2i", row["settings"]["teacher"]["path"]
    assert "trained from scratch" in limits(row)
    row["settings"]["teacher"]["path"] = there
    (tmp_path / "export").mkdir()
    command.copy_beside(job, row, tmp_path / "export")
    told = (tmp_path / "export" / "result.json").read_text()
    assert str(tmp_path.parent) not in told and str(tiny_teacher_folder.parent) not in told
    names = "'task.data.prompts=my prompts.txt' 'more=[a,c]'"
    assert f"teacher.path={tiny_teacher_folder.name} {names} method.k=3" in json.loads(told)["command"]


@pytest.mark.exhaustive
def test_stock_students_parts_and_licences_of_other_teachers(tiny_uag_teacher_folder, tmp_path, capsys):
    """BK-SDM's student is of a stock class; this pipeline's own class needs what is not here, so its parts are loaded."""
    job = tmp_path / "job"
    teacher = load_teacher(str(tiny_uag_teacher_folder))
    student = apply_plan(teacher.denoiser, plan_for(teacher.denoiser, "base"))
    row = make_job(job, save_small(tmp_path / "other"), "l1_diff")
    shutil.rmtree(job / "student")
    save_student(teacher, teacher.with_parts(denoiser=student), job / "student")
    row["settings"]["teacher"]["path"] = "music_uag"
    row["settings"]["task"]["name"] = "uag"
    row["models"].pop("distilled")
    row["protocol"]["guidance_scale"] = None
    (job / "result.json").write_text(json.dumps(row))
    assert call(job) == 0
    front, body = (job / "export" / "README.md").read_text().split("---\n", 2)[1:]
    front = yaml.safe_load(front)
    assert front["license"] == "other" and front["license_link"] == "LICENSES.md" and "base_model" not in front
    assert "FluidR3_GM" in (job / "export" / "LICENSES.md").read_text() and "pipeline_tag" not in front
    assert "stock `UNet2DModel`" in body and "trust_remote_code" not in body.split("```")[1]
    assert "None: these are the weights that pruning left." in body and not (job / "export" / "onnx").exists()
    assert "without training afterwards" in body and "owner" not in body
    assert all(len(line) <= 80 for line in capsys.readouterr().out.splitlines() if str(tmp_path) not in line)


def save_small(folder):
    """A pipeline folder of the smallest networks, for its denoiser's plan alone."""
    from diffusers import AutoencoderKL, DDIMScheduler, LDMPipeline

    autoencoder = AutoencoderKL(block_out_channels=[4], norm_num_groups=2, sample_size=4, latent_channels=3)
    LDMPipeline(vqvae=autoencoder, unet=small_unet("uig"), scheduler=DDIMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture
def known(exported, monkeypatch):
    """What the fixture above has found out and written is not found out once more."""
    from experiments.exporting import exported_formats

    folder = exported[2]
    student = json.loads((folder / "export.json").read_text())["student"]
    monkeypatch.setattr(exported_formats, "loads_alone", lambda *_: student)
    written = shutil.copytree(folder / "onnx", folder.parents[3] / "written", dirs_exist_ok=True)

    def write(part, path, _dtype):
        path.parent.mkdir(parents=True)
        shutil.copyfile(written / part.name / "model.onnx", path)

    monkeypatch.setattr(exported_formats, "write_onnx", write)


def test_nothing_is_left_where_outputs_differ(exported, known, tmp_path, capsys):
    job, _, folder = exported
    before = (folder / "export.json").read_bytes()
    assert call(job, "--to", "onnx", "--tolerance", "1e-12") == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: unet in onnx differs from PyTorch by") and "--tolerance" in told
    assert (folder / "export.json").read_bytes() == before and not list(job.glob(".export*"))
    assert call(job, "--out", str(tmp_path / "new"), "--to", "onnx", "--tolerance", "1e-12") == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--to", "tflite"], "invalid choice: 'tflite'"),
        (["--out", "{job}"], "is there already and no export"),
        (["--batch", "0"], "--batch 0 --rounds 10: at least 1 and 0 are needed"),
        (["--tolerance", "-1"], "--tolerance -1.0: a number above 0 is needed"),
        (["--license", "My Own!"], "is no identifier of the hub"),
        (["--push", "a b/c"], "--push a b/c"),
        (["--push", "nobody"], "owner/name"),
        (["--push", "owner/name"], "--push needs a token of the hub"),
    ],
)
def test_bad_arguments_are_told_in_a_line(exported, arguments, told, capsys, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert call(exported[0], *(value.format(job=exported[0]) for value in arguments)) == 2
    assert told in capsys.readouterr().err.strip().splitlines()[-1]


def test_bad_folders_are_told_in_a_line(tmp_path, capsys):
    assert call(tmp_path / "nowhere") == 2 and "is no folder" in capsys.readouterr().err
    assert call(tmp_path) == 2 and "lacks result.json" in capsys.readouterr().err
    (tmp_path / "result.json").write_text("{")
    assert call(tmp_path) == 2 and "lacks student/model_index.json" in capsys.readouterr().err
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "model_index.json").write_text("{}")
    assert call(tmp_path) == 2 and "result.json is damaged" in capsys.readouterr().err


def test_a_missing_extra_is_named(exported, capsys, monkeypatch):
    from common.export import onnx_openvino as other_runtimes

    found = other_runtimes.find_spec
    monkeypatch.setattr(other_runtimes, "find_spec", lambda name: None if name == "openvino" else found(name))
    assert call(exported[0], "--to", "openvino") == 2
    assert 'needs openvino: pip install -c constraints.txt -e ".[export]"' in capsys.readouterr().err


class PretendApi:
    """What is asked of the hub, written down."""

    calls: list
    fails = None

    def create_repo(self, *args, **kwargs):
        self.calls.append(("create_repo", args, kwargs))

    def upload_folder(self, **kwargs):
        if self.fails:
            raise ConnectionError(self.fails)
        files = sorted(path.name for path in Path(kwargs["folder_path"]).iterdir())
        self.calls.append(("upload_folder", files, kwargs))
        return SimpleNamespace(commit_url="https://a.hub/commit/1")


def test_push_sends_the_folder(exported, known, tmp_path, capsys, monkeypatch):
    import huggingface_hub

    PretendApi.calls = []
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    monkeypatch.setattr(huggingface_hub, "HfApi", PretendApi)
    out = tmp_path / "out"
    assert call(exported[0], "--out", str(out), "--push", "owner/name", "--private") == 0
    (created, name, options), (uploaded, files, sent) = PretendApi.calls
    assert (created, name, options) == ("create_repo", ("owner/name",), {"private": True, "exist_ok": True})
    assert uploaded == "upload_folder" and sent["repo_id"] == "owner/name" and sent["folder_path"] == out
    assert {"README.md", "model_index.json", "unet", "export.json", "samples.png"} <= set(files)
    assert sent["commit_message"] == "Student of t2i/ld_pruner/0" and "pushed https://a.hub/commit/1" in capsys.readouterr().out
    assert 'from_pretrained("owner/name", trust_remote_code=True)' in (out / "README.md").read_text()
    monkeypatch.setattr(PretendApi, "fails", "503 Service Unavailable\nand more")
    assert call(exported[0], "--out", str(out), "--push", "owner/name") == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told == f"error: --push owner/name failed (503 Service Unavailable); the exported folder is whole: {out}"


def test_one_file(tiny_teacher_folder, tmp_path, capsys):
    """Of a student that is still of the stock class; of another the command tells what can load it, and writes nothing."""
    job = tmp_path / "jobs" / "t2i" / "l1_diff" / "0"
    make_job(job, tiny_teacher_folder, "l1_diff")  # zeros in the weights of a stock U-Net
    assert call(job, "--to", "single_file", "--dtype", "fp16") == 0
    told = capsys.readouterr().out
    assert "in the layout of Stable Diffusion's own code" in " ".join(told.split())
    folder = job / "export"
    found = json.loads((folder / "export.json").read_text())["single_file"]
    assert found["bytes"] == (folder / found["file"]).stat().st_size and found["max_relative"] == 0.0  # kept in half
    assert "from_single_file(" in (folder / "README.md").read_text()
    other = tmp_path / "jobs" / "t2i" / "ld_pruner" / "1"
    make_job(other, tiny_teacher_folder, "ld_pruner")
    assert call(other, "--to", "single_file")
    assert "no other program expresses the plan of this student" in capsys.readouterr().err and not (other / "export").exists()
