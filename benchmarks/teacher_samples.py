"""Samples of a teacher as a student's data: latents a second against a bare batched sampling loop, in one run.

python benchmarks/teacher_samples.py             256 samples of the shipped text-to-image teacher, three rounds of each
"""

import argparse
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def bare_loop(teacher: Any, captions: list[str], steps: int, guidance: float, batch: int) -> Any:
    """Latents by diffusers' parts and classifier-free guidance alone, as a script would have it; kept nowhere."""
    import torch

    latents = []
    for start in range(0, len(captions), batch):
        words = teacher.tokenizer(
            ["", *captions[start : start + batch]],
            padding="max_length",
            max_length=teacher.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        encoded = teacher.text_encoder(words.input_ids).last_hidden_state
        states = torch.cat([encoded[:1].expand(len(encoded) - 1, -1, -1), encoded[1:]])
        x = torch.randn(len(encoded) - 1, *teacher.latent_shape) * teacher.scheduler.init_noise_sigma
        teacher.scheduler.set_timesteps(steps)
        for t in teacher.scheduler.timesteps:
            both = teacher.scheduler.scale_model_input(torch.cat([x, x]), t)
            without, given = teacher.denoiser(both, t, encoder_hidden_states=states).sample.chunk(2)
            x = teacher.scheduler.step(without + guidance * (given - without), t, x).prev_sample
        latents.append(x)
    return torch.cat(latents)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="emoji_t2i", help="a text-to-image teacher")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    import torch

    from common.data.teacher_samples import TeacherSamples
    from common.models.loading import load_teacher

    torch.set_grad_enabled(False)
    teacher = load_teacher(arguments.teacher)
    how = {"steps": arguments.steps, "guidance_scale": arguments.guidance, "batch_size": arguments.batch}
    sizes = {"images": arguments.images, "held_out": 16, "rows_per_shard": max(arguments.batch, arguments.images // 2)}
    data = TeacherSamples("train", "data/prompts/emoji.txt", seed=0, **how, **sizes)

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            found = data.drawn_by(teacher, Path(folder), 3, nullcontext)
            assert len(found.images.latents()) == arguments.images

    def bare() -> None:
        bare_loop(teacher, data.captions, arguments.steps, arguments.guidance, arguments.batch)

    seconds: dict[str, list[float]] = {"bare loop": [], "teacher_samples": []}
    for _ in range(arguments.rounds):
        for name, draw in zip(seconds, (bare, ours), strict=True):
            started = time.perf_counter()
            draw()
            seconds[name].append(time.perf_counter() - started)
    middle = {name: statistics.median(each) for name, each in seconds.items()}
    print(
        f"{arguments.images} samples of {arguments.steps} steps, {arguments.batch} at once; median of {arguments.rounds} rounds"
    )
    for name, each in middle.items():
        print(f"{name:<16} {each:7.1f} s  {arguments.images / each:6.1f} a second  {middle['bare loop'] / each:.2f}")


if __name__ == "__main__":
    main()
