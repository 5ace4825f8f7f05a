"""Stable Diffusion v1.5 at full size with random weights: distillation steps, scoring and latency, each against a plain way.

python benchmarks/sd15_speed.py                                          a GPU in bf16, latents of 512 x 512 images
python benchmarks/sd15_speed.py --device cpu --latent 8 --batch 1 --steps 3 --rounds 3       the same on a CPU, small

distillation   a step of the project's training (Lightning, BK-SDM's losses) against a bare loop with the same losses
scoring        LAPTOP-Diff's output loss of all layers against one full forward pass per layer
latency        one forward pass of BK-SDM-Base and of a LAPTOP-Diff plan for half of the parameters against the dense network
"""

import argparse
import copy
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def seconds_of_plain_steps(
    student: Any, teacher: Any, pairs: list[Any], batch: dict[str, Any], bf16: bool, steps: int
) -> float:
    """Median seconds of a step in plain PyTorch: the same three losses and optimiser, nothing logged or kept."""
    import torch
    from torch.nn import functional as F

    from common.training.features import FeatureHooks

    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-5, weight_decay=0.01)
    hooks = FeatureHooks(student, [pair[0] for pair in pairs]), FeatureHooks(teacher, [pair[1] for pair in pairs])
    device = batch["latents"].device
    times = []
    for _ in range(steps):
        synchronize(device)
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            timesteps = torch.randint(1000, (len(batch["latents"]),), device=device)
            states = batch["encoder_hidden_states"]
            ours = student(batch["latents"], timesteps, states).sample
            with torch.no_grad():
                theirs = teacher(batch["latents"], timesteps, states).sample
            noise = torch.randn_like(theirs)
            loss = F.mse_loss(ours.float(), noise.float()) + F.mse_loss(ours.float(), theirs.float())
            for s, t in zip(hooks[0].features(), hooks[1].features(), strict=True):
                loss = loss + F.mse_loss(s.float(), t.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        synchronize(device)
        times.append(time.perf_counter() - started)
    for hook in hooks:
        hook.remove()
    return median(times[1:])


def seconds_of_our_steps(student: Any, teacher: Any, pairs: list, batch: dict[str, Any], bf16: bool, steps: int) -> float:
    """Median seconds of a step of common.training.fit.fit, the rows on the CPU as in a job."""
    import lightning as L
    import torch
    from diffusers import PNDMScheduler

    from common.training.batches import TensorRows
    from common.training.distillation import DenoiserTraining
    from common.training.fit import fit
    from common.training.schedules import scheduler

    device = batch["latents"].device

    class Clock(L.Callback):
        times: list[float] = []  # noqa: RUF012

        def on_train_batch_start(self, *_: Any) -> None:
            synchronize(device)
            self.started = time.perf_counter()

        def on_train_batch_end(self, *_: Any) -> None:
            synchronize(device)
            self.times.append(time.perf_counter() - self.started)

    noise = PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True)
    optimizer = lambda parameters: torch.optim.AdamW(parameters, lr=5e-5, weight_decay=0.01)  # noqa: E731
    weights = {"task_weight": 1.0, "output_weight": 1.0, "feature_weight": 1.0, "feature_pairs": pairs}
    module = DenoiserTraining(student, noise, optimizer, scheduler("constant", steps, 0), 0, teacher=teacher, **weights)
    clock = Clock()
    precision = "bf16-mixed" if bf16 else "32-true"
    trainer = {"accelerator": device.type, "devices": 1, "precision": precision, "gradient_clip_val": 1.0}
    rows = TensorRows(**{name: value.cpu() for name, value in batch.items()})
    with tempfile.TemporaryDirectory() as scratch:
        settings = {"steps": steps, "batch_size": len(rows), "seed": 0, "checkpoint_every": 10 * steps, "trainer": trainer}
        module.on_save_checkpoint = lambda checkpoint: checkpoint.clear()  # the steps are timed, not the disk
        fit(module, rows, folder=Path(scratch), description="steps", callbacks=[clock], **settings)
    module.remove_hooks()
    return median(clock.times[1:])


def synchronize(device: Any) -> None:
    """Waits until the GPU has done what it was asked for."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--latent", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20, help="of distillation, for each of the two ways")
    parser.add_argument("--rounds", type=int, default=30, help="of latency")
    parser.add_argument("--copies", type=int, default=4, help="layers that are scored in one forward pass")
    arguments = parser.parse_args()

    import torch
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from baselines.bk_sdm import BKSDM
    from common import apply_plan
    from common.cost.latency import compare_latency
    from common.cost.macs import count_parameters
    from common.models.architectures import architecture, build
    from common.scoring.calibration import build_calibration
    from common.scoring.noisy_batches import noisy_batches
    from common.scoring.score_file import ScoreFile
    from experiments.evaluation.measure_cost import forward_call, in_dtype
    from experiments.training.distill_student import feature_pairs
    from laptop_diff import list_layers
    from laptop_diff.algorithm import output_losses
    from laptop_diff.criteria import layer_losses

    device = torch.device(arguments.device)
    bf16 = device.type == "cuda"
    torch.manual_seed(0)
    parts = architecture("sd1")["parts"]
    unet = build(parts["unet"]).to(device).eval().requires_grad_(False)
    size = (arguments.batch, 4, arguments.latent, arguments.latent)
    batch = {
        "latents": torch.randn(size, device=device),
        "encoder_hidden_states": torch.randn(arguments.batch, 77, 768, device=device),
    }
    name = torch.cuda.get_device_name(device) if bf16 else "CPU"
    print(f"{name}, {'bf16' if bf16 else 'float32'}, {arguments.batch} latents of {arguments.latent} x {arguments.latent}")

    conditions = {"encoder_hidden_states": batch["encoder_hidden_states"]}
    empty = {"encoder_hidden_states": batch["encoder_hidden_states"][:1]}
    sizes = {"num_conditions": 1, "samples": 1, "steps": 1, "guidance_scale": 1.0, "seed": 0}
    data = lambda: (batch["latents"], conditions)  # noqa: E731
    calibration = build_calibration(empty, empty, size[1:], build(parts["scheduler"]), **sizes, data=data)
    settings = {"ratio": 0.5, "batch_size": arguments.batch, "copies": arguments.copies, "seed": 0}
    laptop = instantiate(OmegaConf.load(ROOT / "conf" / "method" / "laptop_diff.yaml"), **settings, _convert_="all")
    layers = list_layers(unet)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        for each in range(2):  # once to warm up
            started = time.perf_counter()
            plain = output_losses(unet, layers, noisy_batches(calibration, "even", arguments.batch, False, 0))
            middle = time.perf_counter()
            options = {"batch_size": arguments.batch, "copies": arguments.copies}
            shared = layer_losses(unet, layers, calibration, ScoreFile(), **options)
            finished = time.perf_counter()
            if each or not bf16:
                break
    worst = max(abs(shared[site] - loss) for site, loss in plain.items())
    print(
        f"scoring {len(layers)} layers: a forward pass each {middle - started:.2f} s, shared {finished - middle:.2f} s, "
        f"{(middle - started) / (finished - middle):.2f}x; largest loss {max(plain.values()):.2g}, difference {worst:.1g}"
    )

    base = apply_plan(unet, BKSDM(variant="base").plan(unet, calibration, "random", None))
    half = apply_plan(unet, laptop.plan(unet, calibration, "random", None))
    one, condition = (batch["latents"][:1], torch.full((1,), 500, device=device)), empty
    timed = {"dense": unet, "base": base, "half": half}
    if bf16:
        one, condition = in_dtype(torch.bfloat16, one, empty)
        timed = {who: copy.deepcopy(network).to(torch.bfloat16) for who, network in timed.items()}
    calls = {who: forward_call(network, one, condition) for who, network in timed.items()}
    latencies = compare_latency(calls, "dense", rounds=arguments.rounds)
    labels = {"dense": "dense", "base": "BK-SDM-Base", "half": "LAPTOP-Diff 50 %"}
    for who, network in (("dense", unet), ("base", base), ("half", half)):
        found = latencies[who]
        print(
            f"latency {labels[who]:<18} {count_parameters(network):>12,} parameters {found.milliseconds:9.2f} ms "
            f"{found.ratio:.3f}x (spread {found.ratio_spread:.3f})"
        )
    del half, calls, timed

    pairs = feature_pairs(["down_blocks.*", "up_blocks.*"], base, unet)
    base.train().requires_grad_(True)
    plain_step = seconds_of_plain_steps(base, unet, pairs, batch, bf16, arguments.steps)
    our_step = seconds_of_our_steps(base, unet, pairs, batch, bf16, arguments.steps)
    print(
        f"distillation of BK-SDM-Base, batch {arguments.batch}: bare loop {plain_step:.3f} s a step, ours {our_step:.3f} s, "
        f"{our_step / plain_step:.2f}x"
    )
    if bf16:
        print(f"peak memory {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
