"""LAPTOP-Diff on a full-size Stable Diffusion v1.5 U-Net with random weights: criterion, plans, save, load; time and memory.

python benchmarks/full_size.py                 one row of 32x32 latents
python benchmarks/full_size.py --latent 64     latents of 512x512 images
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latent", type=int, default=32)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--copies", type=int, default=2)
    arguments = parser.parse_args()

    import torch
    from diffusers import PNDMScheduler, UNet2DConditionModel
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from common import apply_plan, load_denoiser
    from common.calibration import build_calibration
    from common.cost import count_parameters, peak_memory_mib
    from common.sampling import predict

    clock = time.perf_counter()

    def report(what: str) -> None:
        nonlocal clock
        print(f"{what:<58} {time.perf_counter() - clock:7.1f} s {peak_memory_mib():8.0f} MiB", flush=True)
        clock = time.perf_counter()

    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8).eval()
    report(f"U-Net of {count_parameters(unet):,} parameters")
    conditions = {"encoder_hidden_states": torch.randn(arguments.rows, 77, 768)}
    latents = torch.randn(arguments.rows, 4, arguments.latent, arguments.latent)
    scheduler = PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
    one = {"encoder_hidden_states": conditions["encoder_hidden_states"][:1]}
    calibration = build_calibration(
        one,
        one,
        tuple(latents.shape[1:]),
        scheduler,
        num_conditions=1,
        samples=1,
        steps=1,
        guidance_scale=1.0,
        seed=0,
        data=lambda: (latents, conditions),
    )
    settings = {"criterion": "output", "batch_size": arguments.rows, "copies": arguments.copies, "seed": 0}
    method = instantiate(OmegaConf.load(ROOT / "conf" / "method" / "laptop_diff.yaml"), **settings, _convert_="all")
    inputs = latents, torch.full((arguments.rows,), 500), conditions
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        predict(unet, *inputs)
        report(f"one forward pass, {arguments.rows} row(s) of {arguments.latent}x{arguments.latent} latents")
        for ratio in (0.33, 0.5):
            plan = replace(method, ratio=ratio).plan(unet, calibration, "random", Path(scratch) / "scores")
            report(f"plan for {ratio}: {len(plan.edits)} layers, {plan.settings['ratio_reached']:.4f} of the parameters")
            student = apply_plan(unet, plan)
            output = predict(student, *inputs)
            report(f"student of {count_parameters(student):,} parameters, one forward pass")
            student.save_pretrained(Path(scratch) / "student")
            del student
            loaded = load_denoiser(Path(scratch) / "student")
            report("saved and loaded")
            if not torch.equal(predict(loaded, *inputs), output):
                sys.exit("error: the loaded student's output differs from the saved one's")
            print("equal output")
            del loaded


if __name__ == "__main__":
    main()
