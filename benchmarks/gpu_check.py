"""What only a GPU can tell, on Stable Diffusion v1.5 at full size with random weights, in one Markdown table.

python benchmarks/gpu_check.py                                    a GPU in bf16, latents of 512 x 512 images, within 8 minutes
python benchmarks/gpu_check.py --device cpu --latent 8 --batch 1 --steps 3 --rounds 3         the same on a CPU, small

latency        a forward pass of BK-SDM-Base and of a LAPTOP-Diff plan for half of the parameters against the dense network
memory         what a step of the project's distillation (Lightning, BK-SDM's losses) holds, against the dry run's estimate
step           such a step against a bare loop with the same losses, and against that loop with images and captions encoded
               in each step, as BK-SDM's script has it
scoring        LAPTOP-Diff's output loss of all layers against one full forward pass per layer
two_of_four    Linear weights that are 2:4 in sparse kernels against dense ones
fsdp           a step of distillation with FSDP2 on one device
channels       Diff-Pruning's channels (ratio 0.3) left as they come, and in multiples of 8, 16 and 32
job            run.py from end to end on the shipped text-to-image teacher
compile        the networks of `latency` by torch.compile, against the dense one as it is
compiled_step  a step of distillation by torch.compile, against the step as it is

Each runs in a process of its own, those that compile last: of the time that is left, 25 s are kept for each check to come.
What has been measured lies in --work and is not measured again.
"""

import argparse
import copy
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.sd15 import Setup, distilled, encoder, our_step, plain_step  # noqa: E402

Rows = list[tuple[str, str, str]]
"""What was measured, its figure, and what it is compared with."""


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


def step(setup: Setup) -> Rows:
    student, pairs = distilled(setup)
    bare = plain_step(setup, student, pairs, lambda: setup.batch)
    with_images = plain_step(setup, student, pairs, encoder(setup))
    ours = our_step(setup, student, pairs)
    rows = [("distillation step of BK-SDM-Base", f"{ours:.3f} s", f"{ours / bare:.2f}x of a bare loop's {bare:.3f} s")]
    rows.append(("images and captions encoded in it", f"{with_images:.3f} s", f"ours is {with_images / ours:.2f}x as fast"))
    return rows


def compiled_step(setup: Setup) -> Rows:
    student, pairs = distilled(setup)
    ours = our_step(setup, student, pairs)
    faster = our_step(setup, student, pairs, compile_options={})
    return [("the step with distill.compile={}", f"{faster:.3f} s", f"{faster / ours:.2f}x of the step as it is, {ours:.3f} s")]


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
    size = ["distill.steps=100", "evaluation.images=64"] if setup.half else ["distill.steps=2", "evaluation.images=8"]
    words = ["method=laptop_diff", "task=t2i", "method.ratio=0.4", f"device={setup.device.type}", "logging=none", *size]
    with tempfile.TemporaryDirectory(dir=setup.work) as outputs:  # nothing of an earlier try is found
        started = time.perf_counter()
        command = [sys.executable, "run.py", *words, f"outputs={outputs}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
        if done.returncode:
            raise SystemExit(f"run.py ended with {done.returncode}: {done.stderr.strip().splitlines()[-1]}")
        (path,) = Path(outputs).glob("*/*/*/result.json")
        models = json.loads(path.read_text())["models"]
    distances = [f"{who} {models[who]['latent_mse']:.4f}" for who in ("pruned", "distilled")]
    return [("python run.py " + " ".join(words), f"{seconds:.0f} s", "latent MSE " + ", ".join(distances))]


CHECKS: dict[str, Callable[[Setup], Rows]] = {
    "latency": latency,
    "memory": memory,
    "step": step,
    "scoring": scoring,
    "two_of_four": two_of_four,
    "fsdp": fsdp,
    "channels": channels,
    "job": job,
    "compile": compiled,
    "compiled_step": compiled_step,
}
KEPT = 25  # seconds for each check to come, or an equal share where there is less


def measured(name: str, path: Path, command: list[str], seconds: float) -> list[list[str]]:
    """The rows of a check, from `path` or by a process of its own that is given `seconds`; the reason where there are none."""
    if path.is_file():
        return json.loads(path.read_text())
    if seconds < 5:
        return [["", "not run", "no time was left; the same command goes on"]]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    check = subprocess.Popen([*command, "--check", name], **options)
    try:
        output, errors = check.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(check.pid, signal.SIGKILL)  # what it has started, too
        check.communicate()
        return [["", "not finished", f"within {seconds:.0f} s; the same command tries again"]]
    if check.returncode:
        last = (errors.strip().splitlines() or ["no reason given"])[-1][:200]
        killed = f"killed by signal {-check.returncode}: too little memory?"  # by the machine, which says nothing
        return [["", "could not run", killed if check.returncode < 0 else last]]
    path.write_text(output.splitlines()[-1], encoding="utf-8")
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
    for number, check in enumerate(given.only, 1):
        begun = time.monotonic()
        left, to_come = given.seconds - (begun - started), len(given.only) - number
        left -= to_come * min(KEPT, left / (to_come + 1))
        command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:]]
        rows = measured(check, folder / f"{check}.json", command, left)
        table += [f"| {check} | {what} | {figure} | {beside} |" for what, figure, beside in rows]
        print(f"{check}: {rows[0][1]} ({time.monotonic() - begun:.0f} s)", file=sys.stderr, flush=True)
    print(f"\n{name}, PyTorch {torch.__version__}, {'bf16' if setup.half else 'float32'}, {given.batch} latents of ", end="")
    print(f"{given.latent} x {given.latent}, {time.monotonic() - started:.0f} s:\n")
    print("| check | what | measured | compared |\n|---|---|---|---|")
    print("\n".join(table))


if __name__ == "__main__":
    main()
