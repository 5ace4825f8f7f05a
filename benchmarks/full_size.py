"""Every method on the papers' models at full size with random weights, by the stages of a job: time and peak memory of each.

python benchmarks/full_size.py sd1 ldm4_celebahq audio_diffusion       write their folders, run every method on each
python benchmarks/full_size.py sd1 --methods laptop_diff --distill     and one step of distillation, one of sampling
python benchmarks/full_size.py pixart_sigma --methods laptop_diff magnitude block_influence     at 256 pixels, T5 of one layer

Each method plans on one row in one step, and its student is pruned, saved and loaded again: enough to pass through everything,
nothing to judge a method by. Each runs in a process of its own.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

METHODS = {
    "bk_sdm": ["method.variant=base"],
    "laptop_diff": ["method.ratio=0.5", "method.batch_size=1", "method.copies=1"],
    "ld_pruner": ["method.k=6", "method.rows=1", "method.weight_rows=1", "method.kinds=[transformer,resnet]"],
    "magnitude": ["method.ratio=0.5"],
    "random_layers": ["method.ratio=0.5"],
    "block_influence": ["method.ratio=0.5", "method.batch_size=1"],
    "l1_diff": ["method.sparsity=0.5", "method.batch_size=1", "method.scope=layer"],
    "diff_pruning": ["method.ratio=0.3", "method.rows=1", "method.every=500"],
    "dense": [],
}
TASKS = {
    "sd1": "t2i",
    "sd21_base": "t2i",
    "pixart_sigma": "t2i",
    "sd3_medium": "t2i",
    "sana_1600m": "t2i",
    "ldm4_celebahq": "uig",
    "audio_diffusion": "uag",
}
CHANGES = {  # transformers for 256 pixels; one of T5's 24 layers, which take 19 GB in float32, and of Gemma's 26
    "pixart_sigma": {
        "transformer": {"sample_size": 32, "interpolation_scale": 0.5},
        "vae": {"sample_size": 256},
        "text_encoder": {"num_layers": 1},
    },
    "sd3_medium": {"transformer": {"sample_size": 32}, "vae": {"sample_size": 256}, "text_encoder_3": {"num_layers": 1}}
    | {"text_encoder_2": {"num_hidden_layers": 1}},
    "sana_1600m": {"transformer": {"sample_size": 8}, "text_encoder": {"num_hidden_layers": 1}},
}
SIZES = dict.fromkeys(CHANGES, 256)  # of images, where it is not 512
SMALL = [
    "calibration.num_conditions=1",
    "calibration.samples=1",
    "calibration.steps=1",
    "calibration.guidance_scale=1",
    "calibration.data_rows=1",
    "evaluation.batch_size=1",
    "training_rows.batch_size=1",
]
ONE_STEP = ["distill.steps=1", "distill.batch_size=1", "distill.accumulate=1", "distill.gradient_checkpointing=true"]


def write_images(folder: Path) -> list[str]:
    """4 tiles of the Blue Marble, 256 pixels wide; the settings that read them."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    with Image.open(ROOT / "data" / "earth" / "bmng.jpg") as world:
        for index in range(4):
            left, top = 1100 * index, 900
            world.crop((left, top, left + 256, top + 256)).save(folder / f"{index:02d}.png")
    return ["task/data=image_folder", f"task.data.folder={folder}", "task.data.size=256"]


def write_captioned_images(folder: Path, size: int = 512) -> list[str]:
    """4 emoji and their names in BK-SDM's layout, `size` pixels wide; the settings that read them."""
    from PIL import Image

    from common.data.emoji import load_emoji

    folder.mkdir(parents=True, exist_ok=True)
    data = load_emoji("data/emoji", "train", limit=1)
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as handle:
        table = csv.writer(handle)
        table.writerow(["file_name", "text"])
        for index, (image, caption) in enumerate(zip(data.images, data.captions, strict=True)):
            Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size)).save(folder / f"{index:02d}.png")
            table.writerow([f"{index:02d}.png", caption])
    return ["task/data=captioned_folder", f"task.data.folder={folder}", f"task.data.size={size}"]


def write_recordings(folder: Path) -> list[str]:
    """4 recordings of 8 s of the shipped music; the settings that read them."""
    import soundfile
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from common.data.music import load_music

    folder.mkdir(parents=True, exist_ok=True)
    sound = instantiate(OmegaConf.load(ROOT / "conf" / "teacher" / "small_uag.yaml").sound)
    clips = load_music("data/music", "train", limit=16, sound=sound)
    waves = sound.waveforms(clips.images, 8).unflatten(0, (4, 4)).flatten(1)
    for index, wave in enumerate(waves):
        soundfile.write(folder / f"{index:02d}.wav", wave.numpy(), sound.sample_rate)
    return ["task/data=audio_folder", f"task.data.folder={folder}", "teacher=audio_diffusion"]


def run_stages(overrides: list[str], folder: Path, distill: bool) -> dict[str, Any]:
    """Loads the teacher, plans, prunes, saves and loads the student; `distill`: trains it for a step, and samples in one."""
    import torch

    from common.cost.macs import count_nonzero, peak_memory_mib
    from common.diffusion.sampling import sample_latents
    from common.models.saving import load_student, save_student
    from experiments.job.planning import make_plans, prune
    from experiments.shared.job import Job
    from experiments.training.train_student import train_student

    job = Job.compose(*overrides, f"outputs={folder.parent}")
    job.folder = folder
    seconds, clock = {}, time.perf_counter()

    def ended(stage: str) -> None:
        nonlocal clock
        seconds[stage] = time.perf_counter() - clock
        clock = time.perf_counter()

    teacher = job.teacher
    ended("load")
    plans = make_plans(job)
    student = prune(job, plans)
    ended("plan")
    if distill:
        student = train_student(job, student, plans)
        ended("distill")
    save_student(teacher, student, folder / "student")
    trained = student.denoiser
    student = load_student(teacher, folder / "student")
    for name, value in student.denoiser.state_dict().items():
        if not torch.equal(value, trained.state_dict()[name].half().float()):
            raise SystemExit(f"error: {name} differs after saving and loading")
    ended("save, load")
    if distill:
        conditions, empty = student.encode_captions(["a red apple"]), student.null_condition()
        latents = sample_latents(student.denoiser, student.scheduler, student.latent_shape, [0], conditions, empty, 1, 1.0, 1)
        if not latents.isfinite().all():
            raise SystemExit("error: the sample is not finite")
        ended("sample")
    return {"nonzero": count_nonzero(student.denoiser), "seconds": seconds, "peak": peak_memory_mib()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teachers", nargs="+", choices=TASKS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--distill", action="store_true", help="one step of distillation, and one of sampling")
    parser.add_argument("--work", type=Path, default=Path("outputs/full_size"), help="folders, data and students")
    parser.add_argument("--settings", nargs="*", help=argparse.SUPPRESS)  # of the process of one method
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    (method, *_), (teacher, *_) = arguments.methods, arguments.teachers
    if arguments.settings:
        print(json.dumps(run_stages(arguments.settings, work / "students" / teacher / method, arguments.distill)))
        return

    from common.models.architectures import write_random_folder

    write = {"t2i": write_captioned_images, "uig": write_images, "uag": write_recordings}
    for teacher in arguments.teachers:
        if not (work / teacher / "model_index.json").is_file():
            write_random_folder(teacher, work / teacher, changes=CHANGES.get(teacher))
        task = TASKS[teacher]
        own = {"size": SIZES[teacher]} if teacher in SIZES else {}
        data = write[task](work / f"data_{task}", **own)
        recipe = ONE_STEP if arguments.distill else ["distill=none"]
        for method in arguments.methods:
            settings = [f"method={method}", f"task={task}", *data, f"teacher.path={work / teacher}", *SMALL, *METHODS[method]]
            command = [__file__, teacher, "--methods", method, "--work", work, *["--distill"] * arguments.distill, "--settings"]
            done = subprocess.run([sys.executable, *command, *settings, *recipe], cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                print(f"{teacher:<16} {method:<13} failed:\n{done.stderr[-3000:]}", flush=True)
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            times = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in found["seconds"].items())
            print(f"{teacher:<16} {method:<13} {found['nonzero']:>11,}  {times}; {found['peak']:,.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
