"""What only a GPU can tell, on Stable Diffusion v1.5 at full size with random weights, in one Markdown table.

python benchmarks/gpu_check.py                                    a GPU in bf16, latents of 512 x 512 images, within 8 minutes
python benchmarks/gpu_check.py --device cpu --latent 8 --batch 1 --steps 3 --rounds 3         the same on a CPU, small

job            run.py from end to end on the shipped text-to-image teacher
latency        a forward pass of BK-SDM-Base and of a LAPTOP-Diff plan for half of the parameters against the dense network
compile        the same networks by torch.compile, against the dense one as it is
channels       Diff-Pruning's channels (ratio 0.3) left as they come, and in multiples of 8, 16 and 32
two_of_four    Linear weights that are 2:4 in sparse kernels against dense ones
step           a step of the project's distillation (Lightning, BK-SDM's losses) against a bare loop with the same losses, and
               against that loop with images and captions encoded in each step, as BK-SDM's script has it
memory         what such a step holds, against the dry run's estimate
fsdp           such a step with FSDP2 on one device
scoring        LAPTOP-Diff's output loss of all layers against one full forward pass per layer

Each runs in a process of its own; what has been measured lies in --work and is not measured again.
"""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
Rows = list[tuple[str, str, str]]
"""What was measured, its figure, and what it is compared with."""


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


def three_sizes(setup: Setup) -> dict[str, Any]:
    """The dense U-Net, BK-SDM-Base and a LAPTOP-Diff plan for half of the parameters, in bf16 on a GPU."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from common import apply_plan

    settings = {"ratio": 0.5, "batch_size": setup.batch_size, "copies": setup.copies, "seed": 0}
    laptop = instantiate(OmegaConf.load(ROOT / "conf" / "method" / "laptop_diff.yaml"), **settings, _convert_="all")
    with setup.autocast():
        plan = laptop.plan(setup.unet, setup.calibration, "random", None)
    networks = {"dense": setup.unet, "BK-SDM-Base": setup.base, "LAPTOP-Diff 50 %": apply_plan(setup.unet, plan)}
    return {who: setup.in_half(network) for who, network in networks.items()}


def latency_rows(latencies: dict[str, Any], networks: dict[str, Any]) -> Rows:
    from common.cost.macs import count_parameters

    rows = []
    for who, found in latencies.items():
        size = f"{count_parameters(networks[who]) / 1e6:.0f} M, " if who in networks else ""
        figure = f"{found.milliseconds:.2f} ms"
        rows.append((f"forward pass, {who}", size + figure, f"{found.ratio:.2f}x of dense (spread {found.ratio_spread:.2f})"))
    return rows


def latency(setup: Setup) -> Rows:
    networks = three_sizes(setup)
    return latency_rows(setup.compared(networks, "dense"), networks)


def compiled(setup: Setup) -> Rows:
    import torch

    networks = three_sizes(setup)
    faster = {f"{who}, compiled": torch.compile(network) for who, network in networks.items()}
    found = setup.compared({"dense": networks["dense"], **faster}, "dense")
    return latency_rows({who: value for who, value in found.items() if who in faster}, {})


def channels(setup: Setup) -> Rows:
    from baselines.diff_pruning import DiffPruning
    from common import apply_plan

    networks = {"dense": setup.in_half(setup.unet)}
    for multiple in (1, 8, 16, 32):
        method = DiffPruning(0.3, None, "down", "magnitude", 0.0, 1, 1, (), 0, round_to=multiple)
        plan = method.plan(setup.unet, setup.calibration, "random", None)
        networks[f"channels, round_to={multiple}"] = setup.in_half(apply_plan(setup.unet, plan))
    found = setup.compared(networks, "dense")
    return latency_rows({who: value for who, value in found.items() if who != "dense"}, networks)


def two_of_four(setup: Setup) -> Rows:
    import torch
    from torch import nn

    from l1_diff.semi_structured import to_semi_structured

    dense = setup.in_half(setup.unet)
    for module in dense.modules():
        if isinstance(module, nn.Linear) and module.weight.shape[1] % 4 == 0:
            groups = module.weight.data.reshape(-1, 4)
            groups.scatter_(1, groups.abs().topk(2, largest=False).indices, 0)
    sparse = copy.deepcopy(dense)
    converted = to_semi_structured(sparse)
    rows = latency_rows(
        setup.compared({"dense kernels": dense, f"{len(converted)} Linear in 2:4": sparse}, "dense kernels"), {}
    )
    with torch.no_grad():
        inputs = [value[:1].bfloat16() for value in setup.batch.values()]
        ours, theirs = (network(inputs[0], 500, inputs[1]).sample.float() for network in (sparse, dense))
    return [
        *rows,
        ("2:4 output", f"{((ours - theirs).norm() / theirs.norm()).item():.1e}", "relative difference to dense kernels"),
    ]


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
        times: list[float] = []  # noqa: RUF012

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
    clock.times = []
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


def step(setup: Setup) -> Rows:
    student, pairs = distilled(setup)
    bare = plain_step(setup, student, pairs, lambda: setup.batch)
    with_images = plain_step(setup, student, pairs, encoder(setup))
    ours = our_step(setup, student, pairs)
    rows = [("distillation step of BK-SDM-Base", f"{ours:.3f} s", f"{ours / bare:.2f}x of a bare loop's {bare:.3f} s")]
    rows.append(("images and captions encoded in it", f"{with_images:.3f} s", f"ours is {with_images / ours:.2f}x as fast"))
    if setup.half:
        faster = our_step(setup, student, pairs, compile_options={})
        rows.append(("the same, distill.compile={}", f"{faster:.3f} s", f"{faster / ours:.2f}x of ours"))
    return rows


def memory(setup: Setup) -> Rows:
    import torch
    from hydra import compose, initialize_config_dir

    from experiments.dry_run.job_cost import JobCost
    from experiments.shared.job_id import register_job_folder
    from experiments.shared.settings import typed_settings

    register_job_folder()
    precision = "bf16-mixed" if setup.half else "32-true"
    words = ["scale=paper", "teacher=sd15", "method=bk_sdm", f"distill.batch_size={setup.batch_size}"]
    words += [f"distill.trainer.precision={precision}", "distill.gradient_checkpointing=false", "distill.ema_decay=null"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        job = JobCost(typed_settings(compose("config", words)))
    activations = job.activations(setup.batch_size, setup.half, False)
    fixed = {name: size for name, size in job.distillation().items() if not name.startswith(("autoencoder", "pruned"))}
    told = f"dry run: {(sum(fixed.values()) + activations) / 2**30:.1f} GiB ({', '.join(fixed)}, activations)"
    if not setup.half:
        return [("memory of a step", "not measured on a CPU", told)]
    student, pairs = distilled(setup)
    torch.cuda.reset_peak_memory_stats(setup.device)
    our_step(setup, student, pairs)
    return [("memory of a step", f"{torch.cuda.max_memory_allocated(setup.device) / 2**30:.1f} GiB", told)]


def fsdp(setup: Setup) -> Rows:
    from lightning.pytorch.strategies import ModelParallelStrategy

    student, pairs = distilled(setup)
    way = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1, save_distributed_checkpoint=False)
    return [("the step with FSDP2 on one device", f"{our_step(setup, student, pairs, strategy=way):.3f} s", "")]


def scoring(setup: Setup) -> Rows:
    from common.scoring.noisy_batches import noisy_batches
    from common.scoring.score_file import ScoreFile
    from laptop_diff import list_layers
    from laptop_diff.algorithm import output_losses
    from laptop_diff.criteria import layer_losses

    layers = list_layers(setup.unet)
    with setup.autocast():
        for _ in range(2 if setup.half else 1):  # once to warm up
            setup.synchronize()
            started = time.perf_counter()
            batches = noisy_batches(setup.calibration, "even", setup.batch_size, False, 0)
            plain = output_losses(setup.unet, layers, batches)
            middle = time.perf_counter()
            options = {"batch_size": setup.batch_size, "copies": setup.copies}
            shared = layer_losses(setup.unet, layers, setup.calibration, ScoreFile(), **options)
            finished = time.perf_counter()
    worst = max(abs(shared[site] - loss) for site, loss in plain.items())
    ratio = f"{(middle - started) / (finished - middle):.2f}x as fast as a pass for each, {middle - started:.2f} s"
    return [
        (f"LAPTOP-Diff's losses of {len(layers)} layers", f"{finished - middle:.2f} s", ratio),
        ("largest difference of a loss", f"{worst:.1e}", f"largest loss {max(plain.values()):.2g}"),
    ]


def job(setup: Setup) -> Rows:
    outputs = Path(tempfile.mkdtemp(dir=setup.work))  # nothing of an earlier try is found
    words = ["method=laptop_diff", "task=t2i", "method.ratio=0.4", "distill.steps=100", "evaluation.images=64", "logging=none"]
    if not setup.half:
        words += ["device=cpu", "distill.steps=2", "evaluation.images=8"]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "run.py", *words, f"outputs={outputs}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"run.py ended with {done.returncode}: {done.stderr.strip().splitlines()[-1]}")
    (path,) = outputs.glob("*/*/*/result.json")
    models = json.loads(path.read_text())["models"]
    distances = [f"{who} {models[who]['latent_mse']:.4f}" for who in ("pruned", "distilled")]
    return [
        ("python run.py " + " ".join(words), f"{time.perf_counter() - started:.0f} s", "latent MSE " + ", ".join(distances))
    ]


CHECKS: dict[str, Callable[[Setup], Rows]] = {
    "latency": latency,
    "step": step,
    "memory": memory,
    "scoring": scoring,
    "channels": channels,
    "two_of_four": two_of_four,
    "fsdp": fsdp,
    "compile": compiled,
    "job": job,
}


def measured(name: str, path: Path, command: list[str], seconds: float) -> list[list[str]]:
    """The rows of a check, from `path` or by a process of its own that is given `seconds`; the reason where there are none."""
    if path.is_file():
        return json.loads(path.read_text())
    if seconds < 5:
        return [["", "not run", "no time was left; the same command goes on"]]
    try:
        done = subprocess.run([*command, "--check", name], capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return [["", "not finished", f"within {seconds:.0f} s; the same command tries again"]]
    if done.returncode:
        return [["", "could not run", (done.stderr.strip().splitlines() or ["no reason given"])[-1][:200]]]
    path.write_text(done.stdout.splitlines()[-1], encoding="utf-8")
    return json.loads(path.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--latent", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=12, help="of distillation, for each of its ways")
    parser.add_argument("--rounds", type=int, default=20, help="of latency")
    parser.add_argument("--copies", type=int, default=4, help="layers that are scored in one forward pass")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--seconds", type=float, default=480, help="for all checks together")
    parser.add_argument("--work", type=Path, default=Path("outputs/gpu_check"), help="what has been measured")
    parser.add_argument("--check", choices=CHECKS, help=argparse.SUPPRESS)  # of the process of one check
    given = parser.parse_args()
    work = given.work.resolve()
    setup = Setup(given.device, given.latent, given.batch, given.steps, given.rounds, given.copies, work)
    if given.check:
        print(json.dumps(CHECKS[given.check](setup)))
        return
    import torch

    device = setup.device
    name = torch.cuda.get_device_name(device) if setup.half else "CPU"
    folder = work / f"{name.replace(' ', '_')}-{given.latent}-{given.batch}-{given.steps}-{given.rounds}-{given.copies}"
    folder.mkdir(parents=True, exist_ok=True)
    started, table = time.monotonic(), []
    for check in given.only:
        left = given.seconds - (time.monotonic() - started)
        command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:]]
        rows = measured(check, folder / f"{check}.json", command, left)
        table += [f"| {check} | {what} | {figure} | {beside} |" for what, figure, beside in rows]
        print(f"{check}: {rows[0][1]}", file=sys.stderr, flush=True)
    print(f"\n{name}, PyTorch {torch.__version__}, {'bf16' if setup.half else 'float32'}, {given.batch} latents of ", end="")
    print(f"{given.latent} x {given.latent}, {time.monotonic() - started:.0f} s:\n")
    print("| check | what | measured | compared |\n|---|---|---|---|")
    print("\n".join(table))


if __name__ == "__main__":
    main()
