"""Networks of Stable Diffusion v1.5's sizes with random weights, and what a distillation step on them takes (gpu_check.py)."""

import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import common  # noqa: F401  # lets diffusers and lightning import torchvision


@dataclass
class Setup:
    """Networks of Stable Diffusion v1.5's sizes with random weights, and a batch for them, each made when it is asked for."""

    device_name: str
    latent: int
    batch_size: int
    steps: int
    rounds: int
    copies: int
    work: Path

    @cached_property
    def device(self) -> Any:
        from common.runtime.processes import pick_device

        return pick_device(self.device_name)

    @property
    def half(self) -> bool:
        """Whether half precision is used: on a GPU."""
        return self.device.type == "cuda"

    @cached_property
    def parts(self) -> dict[str, Any]:
        from common.models.architectures import architecture

        return architecture("sd1")["parts"]

    def built(self, part: str) -> Any:
        """A network of that part's sizes, on the device."""
        import torch

        from common.models.architectures import build

        torch.manual_seed(0)
        return build(self.parts[part]).to(self.device).eval().requires_grad_(False)

    @cached_property
    def unet(self) -> Any:
        return self.built("unet")

    @cached_property
    def batch(self) -> dict[str, Any]:
        import torch

        return {
            "latents": torch.randn((self.batch_size, 4, self.latent, self.latent), device=self.device),
            "encoder_hidden_states": torch.randn(self.batch_size, 77, 768, device=self.device),
        }

    @property
    def null_condition(self) -> dict[str, Any]:
        return {"encoder_hidden_states": self.batch["encoder_hidden_states"][:1]}

    @cached_property
    def calibration(self) -> Any:
        from common.models.architectures import build
        from common.scoring.calibration import build_calibration

        own = {"encoder_hidden_states": self.batch["encoder_hidden_states"]}
        sizes = {"num_conditions": 1, "samples": 1, "steps": 1, "guidance_scale": 1.0, "seed": 0}
        shape = self.batch["latents"].shape[1:]
        scheduler = build(self.parts["scheduler"])
        data = lambda: (self.batch["latents"], own)  # noqa: E731
        return build_calibration(self.null_condition, self.null_condition, shape, scheduler, **sizes, data=data)

    @cached_property
    def base(self) -> Any:
        """BK-SDM-Base."""
        from baselines.bk_sdm import BKSDM
        from common import apply_plan

        return apply_plan(self.unet, BKSDM(variant="base").plan(self.unet, self.calibration, "random", None))

    def autocast(self) -> Any:
        import torch

        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half)

    def synchronize(self) -> None:
        """Waits until the GPU has done what it was asked for."""
        import torch

        if self.half:
            torch.cuda.synchronize(self.device)

    def compared(self, networks: dict[str, Any], reference: str) -> dict[str, Any]:
        """common.cost.latency of a forward pass of one sample of each."""
        import torch

        from common.cost.latency import compare_latency
        from experiments.evaluation.measure_cost import forward_call, in_dtype

        inputs, condition = (self.batch["latents"][:1], torch.full((1,), 500, device=self.device)), self.null_condition
        if self.half:
            inputs, condition = in_dtype(torch.bfloat16, inputs, condition)
        calls = {who: forward_call(network, inputs, condition) for who, network in networks.items()}
        return compare_latency(calls, reference, rounds=self.rounds)

    def in_half(self, network: Any) -> Any:
        import torch

        return copy.deepcopy(network).to(torch.bfloat16) if self.half else network


def plain_step(setup: Setup, student: Any, pairs: list[Any], encode: Callable[[], dict[str, Any]]) -> float:
    """Median seconds of a step in plain PyTorch: the same three losses and optimiser, nothing logged or kept."""
    import torch
    from torch.nn import functional as F

    from common.training.features import FeatureHooks

    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-5, weight_decay=0.01)
    hooks = FeatureHooks(student, [pair[0] for pair in pairs]), FeatureHooks(setup.unet, [pair[1] for pair in pairs])
    times = []
    for _ in range(setup.steps):
        setup.synchronize()
        started = time.perf_counter()
        with setup.autocast():
            batch = encode()
            latents, states = batch["latents"], batch["encoder_hidden_states"]
            timesteps = torch.randint(1000, (len(latents),), device=setup.device)
            ours = student(latents, timesteps, states).sample
            with torch.no_grad():
                theirs = setup.unet(latents, timesteps, states).sample
            noise = torch.randn_like(theirs)
            loss = F.mse_loss(ours.float(), noise.float()) + F.mse_loss(ours.float(), theirs.float())
            for s, t in zip(hooks[0].features(), hooks[1].features(), strict=True):
                loss = loss + F.mse_loss(s.float(), t.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        setup.synchronize()
        times.append(time.perf_counter() - started)
    for hook in hooks:
        hook.remove()
    return median(times[1:])


def our_step(setup: Setup, student: Any, pairs: list[Any], compile_options: Any = None, **trainer: Any) -> float:
    """Median seconds of a step of common.training.fit.fit, the rows on the CPU as in a job."""
    import lightning as L
    import torch
    from diffusers import PNDMScheduler

    from common.training.batches import TensorRows
    from common.training.distillation import DenoiserTraining
    from common.training.fit import fit
    from common.training.schedules import scheduler

    class Clock(L.Callback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_train_batch_start(self, *_: Any) -> None:
            setup.synchronize()
            self.started = time.perf_counter()

        def on_train_batch_end(self, *_: Any) -> None:
            setup.synchronize()
            self.times.append(time.perf_counter() - self.started)

    noise = PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True)
    optimizer = lambda parameters: torch.optim.AdamW(parameters, lr=5e-5, weight_decay=0.01)  # noqa: E731
    weights = {"task_weight": 1.0, "output_weight": 1.0, "feature_weight": 1.0, "feature_pairs": pairs}
    weights |= {"teacher": setup.unet, "compile_options": compile_options}
    module = DenoiserTraining(student, noise, optimizer, scheduler("constant", setup.steps, 0), 0, **weights)
    clock = Clock()
    precision = "bf16-mixed" if setup.half else "32-true"
    trainer = {"accelerator": setup.device.type, "devices": 1, "precision": precision, "gradient_clip_val": 1.0} | trainer
    rows = TensorRows(**{name: value.cpu() for name, value in setup.batch.items()})
    with tempfile.TemporaryDirectory() as scratch:
        settings = {"steps": setup.steps, "batch_size": len(rows), "seed": 0, "checkpoint_every": 10 * setup.steps}
        module.on_save_checkpoint = lambda checkpoint: checkpoint.clear()  # the steps are timed, not the disk
        fit(module, rows, folder=Path(scratch), description="steps", callbacks=[clock], trainer=trainer, **settings)
    module.remove_hooks()
    return median(clock.times[1:])


def distilled(setup: Setup) -> tuple[Any, list[Any]]:
    """BK-SDM-Base to be trained, and the pairs of its features with the teacher's."""
    from experiments.training.distill_student import feature_pairs

    return setup.base.train().requires_grad_(True), feature_pairs(["down_blocks.*", "up_blocks.*"], setup.base, setup.unet)


def encoder(setup: Setup) -> Callable[[], dict[str, Any]]:
    """What encodes a batch of images and captions with networks of the sizes of Stable Diffusion v1.5's."""
    import torch

    autoencoder, text_encoder = setup.built("vae"), setup.built("text_encoder")
    images = torch.rand(setup.batch_size, 3, 8 * setup.latent, 8 * setup.latent, device=setup.device) * 2 - 1
    tokens = torch.randint(49000, (setup.batch_size, 77), device=setup.device)

    @torch.no_grad()
    def encoded() -> dict[str, Any]:
        latents = autoencoder.encode(images).latent_dist.sample() * autoencoder.config.scaling_factor
        return {"latents": latents, "encoder_hidden_states": text_encoder(tokens).last_hidden_state}

    return encoded
