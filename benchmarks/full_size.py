"""Every method on the papers' models at full size with random weights, by the jobs of run.py: time and peak memory of each.

python benchmarks/full_size.py ldm4_celebahq audio_diffusion sd1       write their folders and data, run every method
python benchmarks/full_size.py sd1 --methods laptop_diff --steps 1     with one step of distillation

Each job scores on one row in one step, saves its student, and draws two samples in one step: enough to pass
through everything, nothing to judge a method by.
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

METHODS = {
    "bk_sdm": ["method.variant=base"],
    "laptop_diff": ["method.ratio=0.5", "method.batch_size=1", "method.copies=1"],
    "ld_pruner": ["method.k=6", "method.rows=1", "method.screen_rows=1", "method.kinds=[transformer,resnet]"],
    "magnitude": ["method.ratio=0.5"],
    "random_layers": ["method.ratio=0.5"],
    "l1_diff": ["method.sparsity=0.5", "method.batch_size=1"],
    "diff_pruning": ["method.ratio=0.3", "method.rows=1", "method.every=500"],
    "dense": [],
}
TASKS = {"sd1": "t2i", "sd21_base": "t2i", "ldm4_celebahq": "uig", "audio_diffusion": "uag"}
SMALL = [
    "calibration.num_conditions=1",
    "calibration.samples=1",
    "calibration.steps=1",
    "calibration.data_rows=1",
    "calibration.guidance_scale=1",
    "evaluation.images=2",
    "evaluation.reference_images=8",
    "evaluation.steps=1",
    "evaluation.guidance_scale=1",
    "evaluation.batch_size=1",
    "evaluation.latency_rounds=1",
    "evaluation.latency_batch=1",
    "logging=none",
]


def write_images(folder: Path) -> list[str]:
    """24 tiles of the Blue Marble, 256 pixels wide; the settings that read them."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    with Image.open(ROOT / "data" / "earth" / "bmng.jpg") as world:
        for index in range(24):
            left, top = 216 * index, 900 + 40 * (index % 5)
            world.crop((left, top, left + 256, top + 256)).save(folder / f"{index:02d}.png")
    return ["task/data=image_folder", f"task.data.folder={folder}", "task.data.size=256"]


def write_captioned_images(folder: Path) -> list[str]:
    """24 emoji and their names in BK-SDM's layout, 512 pixels wide; the settings that read them."""
    from PIL import Image

    from common.emoji import load_emoji

    folder.mkdir(parents=True, exist_ok=True)
    data = load_emoji("data/emoji", "train", limit=6)
    with open(folder / "metadata.csv", "w", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(["file_name", "text"])
        for index, (image, caption) in enumerate(zip(data.images, data.captions, strict=True)):
            Image.fromarray(image.permute(1, 2, 0).numpy()).resize((512, 512)).save(folder / f"{index:02d}.png")
            table.writerow([f"{index:02d}.png", caption])
    return ["task/data=captioned_folder", f"task.data.folder={folder}", "task.data.size=512"]


def write_recordings(folder: Path) -> list[str]:
    """24 recordings of 6 s and more, of the shipped music; the settings that read them."""
    import soundfile
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from common.music import load_music

    folder.mkdir(parents=True, exist_ok=True)
    sound = instantiate(OmegaConf.load(ROOT / "conf" / "teacher" / "small_uag.yaml").sound)
    clips = load_music("data/music", "train", limit=96, sound=sound)
    waves = sound.waveforms(clips.images, 8).unflatten(0, (24, 4)).flatten(1)
    for index, wave in enumerate(waves):
        soundfile.write(folder / f"{index:02d}.wav", wave.numpy(), sound.sample_rate)
    return ["task/data=audio_folder", f"task.data.folder={folder}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teachers", nargs="+", choices=TASKS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, default=0, help="of distillation, one row each")
    parser.add_argument("--work", type=Path, default=Path("outputs/full_size"), help="folders, data and jobs")
    arguments = parser.parse_args()

    from common.architectures import write_random_folder

    work = arguments.work.resolve()
    write = {"t2i": write_captioned_images, "uig": write_images, "uag": write_recordings}
    print(f"{'':<29}{'student':>13}{'scoring':>9}{'distil':>8}{'save+load, measure':>20}{'peak':>11}")
    for teacher in arguments.teachers:
        if not (work / teacher / "model_index.json").is_file():
            write_random_folder(teacher, work / teacher)
        task = TASKS[teacher]
        of_teacher = {"uag": ["teacher=audio_diffusion"]}.get(task, [])
        data = write[task](work / f"data_{task}")
        trained = [f"distill.steps={arguments.steps}", "distill.batch_size=1", "distill.accumulate=1"]
        recipe = trained if arguments.steps else ["distill=none"]
        for method in arguments.methods:
            settings = [f"method={method}", f"task={task}", *of_teacher, f"teacher.path={work / teacher}", *data, *SMALL]
            command = [*settings, *METHODS[method], *recipe, f"outputs={work / 'jobs' / teacher}"]
            done = subprocess.run([sys.executable, "run.py", *command], cwd=ROOT, capture_output=True, text=True)
            line = next((line for line in done.stdout.splitlines() if line.startswith(("result ", "This job is done"))), None)
            if line is None:
                print(f"{teacher:<16}{method:<13} failed:\n{done.stderr[-3000:]}", flush=True)
                continue
            row = json.loads(Path(line.split()[1] if line.startswith("result") else line.split()[4]).read_text())
            student = row["models"]["distilled" if arguments.steps else "pruned"]["nonzero_parameters"]
            seconds, peak = row["seconds"], row["environment"]["peak_memory_mib"]
            print(
                f"{teacher:<16}{method:<13}{student:>13,}{seconds['scoring']:>8.0f}s{seconds['distilling']:>7.0f}s"
                f"{seconds['measuring']:>19.0f}s{peak:>7,} MiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
