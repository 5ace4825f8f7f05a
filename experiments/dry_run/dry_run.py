"""What a job would take, printed from the meta device (python run.py ... dry_run=true): nothing is loaded or written."""

import textwrap

from common.cost.macs import count_parameters
from experiments.dry_run.job_cost import JobCost
from experiments.dry_run.job_stages import Stage, job_stages
from experiments.shared.gpus import GPUS, Gpu
from experiments.shared.out_of_memory import smaller
from experiments.shared.settings import Settings, UtilisationSettings
from experiments.training.distill_student import TRAINING_PRECISIONS

GIB = 2**30
WIDTH = 80
RESERVE = 1.0  # GiB that CUDA, its libraries and gaps between tensors take


def gpu_hours(stage: Stage, gpu: Gpu, utilisation: UtilisationSettings) -> float:
    """Hours on one GPU that computes at `utilisation` (half, single) of its peaks."""
    rate = gpu.half * utilisation.half if stage.half else gpu.single * utilisation.single
    return stage.operations / (1e12 * rate) / 3600


def dry_run(settings: Settings) -> float:
    """Prints sizes, memory and GPU hours of a job, and returns the hours.

    InputError for whatever the method or the teacher's description finds wrong.
    """
    gpu, distill = GPUS[settings.gpu], settings.distill
    job = JobCost(settings)
    print_networks(job)
    stages = job_stages(job)
    hours = print_stages(stages, gpu, settings)
    if distill.steps:
        print_distillation(job, gpu)
    if distill.steps and distill.trainer["precision"].startswith("bf16") and not gpu.bfloat16:
        print(f"\n{settings.gpu} does not compute in bfloat16: distill.trainer.precision=16-mixed")
    print_assumptions(job, gpu)
    return hours


def print_line(name: str, *cells: str) -> None:
    """A line of a table within 80 columns."""
    print(f"{name:<38}" + "".join(f"{cell:>14}" for cell in cells))


def print_networks(job: JobCost) -> None:
    """Parameters and MACs of one forward pass of one sample."""
    told = "exactly" if job.forecast.exact else "about"
    print(f"\n{job.teacher.name}, {job.settings.method['_target_'].rpartition('.')[2]}\n")
    print_line("", "parameters", "MACs", "w/o QK, AV")
    sizes = {"teacher": count_parameters(job.teacher.denoiser), "student": count_parameters(job.student)}
    for who, name in (("teacher", "denoiser"), ("student", f"student, {told}")):
        macs = job.macs[who]
        print_line(name, millions(sizes[who]), giga(macs.total), giga(macs.without_attention_products))
    change = [1 - sizes["student"] / sizes["teacher"], 1 - job.macs["student"].total / job.macs["teacher"].total]
    print_line("  removed", *(f"{share:.1%}" for share in change))
    operations = job.image_operations
    uses = [("autoencoder, to encode", [job.teacher.autoencoder], "encode")]
    uses += [("autoencoder, to decode", [job.teacher.autoencoder], "decode")]
    uses += [("text encoder" + "s" * (len(job.text_encoders) > 1), job.text_encoders, "read")] if job.captioned else []
    for name, networks, use in uses:
        print_line(name, millions(sum(map(count_parameters, networks))), giga(operations[use] // 2))
    if job.forecast.note:
        print("\n" + textwrap.fill(f"{job.forecast.note}.", WIDTH))


def millions(count: int) -> str:
    return f"{count / 1e6:,.2f}M"


def gibibytes(size: float) -> str:
    """To two places; of what would round to nothing its first digit."""
    return f"{size / GIB:.2f}" if not 0 < size / GIB < 0.005 else f"{size / GIB:.1g}"


def in_hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 0.05 or not hours else "<0.1"


def giga(macs: int) -> str:
    """MACs in the unit that suits them."""
    return f"{macs / 1e9:,.1f}G" if macs >= 1e9 else f"{macs / 1e6:,.1f}M"


def print_stages(stages: list[Stage], gpu: Gpu, settings: Settings) -> float:
    """GPU hours and peak memory of each stage; returns the sum of the hours."""
    print()
    print(f"{'on ' + settings.gpu:<61}{'GPU h':>8}{'GiB':>8}")
    total = 0.0
    for stage in stages:
        hours = gpu_hours(stage, gpu, settings.utilisation)
        total += hours
        memory = f"{stage.memory / GIB + RESERVE:.1f}" if stage.memory else ""
        mark = " !" if stage.memory / GIB + RESERVE > gpu.memory else ""
        print(f"{stage.name:<11} {stage.what:<49}{in_hours(hours):>8}{memory:>8}{mark}")
    print(f"{'sum':<61}{in_hours(total):>8}")
    over = [stage.name for stage in stages if stage.memory / GIB + RESERVE > gpu.memory]
    if over:
        told = f"! more than the {gpu.memory:.0f} GiB of {settings.gpu}: "
        advice = [f"{name} ({', '.join(batches(name, settings))})" if batches(name, settings) else name for name in over]
        print(textwrap.fill(told + ", ".join(advice), WIDTH, break_on_hyphens=False))
    return total


def batches(stage: str, settings: Settings) -> list[str]:
    """The settings that make a stage need less memory, with the values they have now."""
    if stage == "scoring":
        return [setting for setting in smaller(settings, "scoring") if setting.startswith("method.")]
    if stage in ("sampling", "decoding"):
        return smaller(settings, "measuring")
    return smaller(settings, stage) if stage == "encoding" else []  # what distillation takes has a table of its own


def print_distillation(job: JobCost, gpu: Gpu) -> None:
    """What a distillation step holds in memory, and what would make it fit."""
    settings = job.settings.distill
    fixed, precision = job.distillation(), settings.trainer["precision"]
    mixed = TRAINING_PRECISIONS[precision]
    held = {again: job.activations(settings.batch_size, mixed, again) for again in (True, False)}
    told = "with" if settings.gradient_checkpointing else "without"
    print(f"\n{f'a distillation step of {settings.batch_size}, {precision}':<61}{'GiB':>16}")
    for name, size in fixed.items():
        print(f"{name:<61}{gibibytes(size):>16}")
    for again, size in held.items():
        chosen = again == settings.gradient_checkpointing
        label = f"activations {'with' if again else 'without'} gradient checkpointing"
        print(f"{label if chosen else f'({label}: {gibibytes(size)})':<61}" + (f"{gibibytes(size):>16}" if chosen else ""))
    total = (sum(fixed.values()) + held[settings.gradient_checkpointing]) / GIB + RESERVE
    print(f"{f'sum, with {RESERVE:.0f} GiB for CUDA itself':<61}{total:>16.2f}")
    if total <= gpu.memory:
        print(f"fits into {job.settings.gpu} ({gpu.memory:.0f} GiB), {told} gradient checkpointing")
    else:
        print(f"does not fit into {job.settings.gpu} ({gpu.memory:.0f} GiB)")
        beside = sum(fixed.values()) / GIB + RESERVE
        advice = f"lower, checkpoint or halve: {', '.join(smaller(job.settings, 'distilling'))}; or another GPU"
        if beside > gpu.memory:
            average = "" if not settings.ema_decay else "; distill.ema_decay=null keeps no average of the weights"
            whole = sum(size for name, size in fixed.items() if not name.startswith("student")) / GIB + RESERVE
            shared = f"Over several devices distill.trainer.strategy=fsdp gives each a part of the student's{average}"
            if whole > gpu.memory:
                shared = f"{whole:.0f} of them are not the student's, and held by each of several devices: take a larger GPU"
            advice = f"at no batch size: {beside:.0f} GiB are held beside activations. {shared}"
        print(textwrap.fill(advice, WIDTH, break_on_hyphens=False))


def print_assumptions(job: JobCost, gpu: Gpu) -> None:
    """What the hours are made of."""
    shares = job.settings.utilisation
    rates = f"{shares.half:.0%} of {gpu.half:g} TFLOPS in half and {shares.single:.0%} of {gpu.single:g} in single precision"
    left_out = "Not counted: features and distances, reading data, writing files."
    others = "inference_precision=bf16 is for scoring and sampling"
    print("\n" + textwrap.fill(f"Hours: at {rates}; {others}. {left_out}", WIDTH))
