"""LAPTOP-Diff's output loss of every layer: one full forward pass per layer against the shared prefix, in one run.

python benchmarks/layer_losses.py                    the shipped text-to-image teacher
python benchmarks/layer_losses.py --copies 1         without several layers in one forward pass
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="emoji_t2i")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    import torch

    from common.data.emoji import load_emoji
    from common.models.loading import load_teacher
    from common.runtime.progress import progress_bar
    from common.scoring.calibration import build_calibration
    from common.scoring.noisy_batches import noisy_batches
    from common.scoring.score_file import ScoreFile
    from laptop_diff import list_layers
    from laptop_diff.algorithm import output_losses
    from laptop_diff.criteria import layer_losses

    teacher = load_teacher(arguments.teacher)
    data = load_emoji("data/emoji", "train")
    chosen = torch.arange(arguments.rows) * len(data) // arguments.rows
    rows = teacher.encode_images(data.images[chosen]), teacher.encode_captions([data.captions[i] for i in chosen])
    calibration = build_calibration(
        teacher.encode_captions(data.captions[:1]),
        teacher.null_condition(),
        teacher.latent_shape,
        teacher.scheduler,
        num_conditions=1,
        samples=1,
        steps=1,
        guidance_scale=1.0,
        seed=0,
        data=lambda: rows,
    )
    layers = list_layers(teacher.denoiser)
    batches = noisy_batches(calibration, "even", arguments.batch, False, 0)

    times: dict[str, list[float]] = {"plain": [], "shared": []}
    options = {"batch_size": arguments.batch, "copies": arguments.copies}
    with progress_bar("timing", arguments.rounds) as bar:
        for _ in range(arguments.rounds):
            started = time.perf_counter()
            plain = output_losses(teacher.denoiser, layers, batches)
            times["plain"].append(time.perf_counter() - started)
            started = time.perf_counter()
            shared = layer_losses(teacher.denoiser, layers, calibration, ScoreFile(), **options)
            times["shared"].append(time.perf_counter() - started)
            bar.advance(1)
    seconds = {name: median(values) for name, values in times.items()}
    ratios = sorted(plain / shared for plain, shared in zip(*times.values(), strict=True))
    worst = max(abs(shared[site] - loss) for site, loss in plain.items())
    print(f"{len(layers)} layers, {arguments.rows} rows in batches of {arguments.batch}, {arguments.copies} layers a pass,")
    print(f"median of {arguments.rounds} rounds")
    print(f"a forward pass each  {seconds['plain']:7.2f} s  1.0x")
    print(f"shared prefix        {seconds['shared']:7.2f} s  {median(ratios):.1f}x ({ratios[0]:.1f} to {ratios[-1]:.1f})")
    print(f"largest loss {max(plain.values()):.3g}, largest difference {worst:.1e}")


if __name__ == "__main__":
    main()
