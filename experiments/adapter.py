"""A LoRA, IP-Adapter or ControlNet of a teacher for its student: what has a place there, and what is left out and why.

    python -m experiments.adapter outputs/t2i/bk_sdm/<id> --lora style.safetensors --out style_of_student.safetensors
    python -m experiments.adapter outputs/t2i/bk_sdm/<id> --ip-adapter faces.safetensors --out faces_of_student.safetensors
    python -m experiments.adapter outputs/t2i/bk_sdm/<id> --controlnet sd-controlnet-canny --out canny_of_student

The command has tried what it writes: it goes into the student's pipeline by `pipeline.load_lora_weights`,
`pipeline.load_ip_adapter`, or `AutoModel.from_pretrained(<out>, trust_remote_code=True)`. Layers of which a student counts
otherwise than its teacher (BK-SDM's) each find their own. `pip install -c constraints.txt -e ".[lora]"` for LoRAs.
"""

import argparse
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import InputError
from common.runtime.files import whole_folder, write_atomically
from experiments.export import read_job
from experiments.shared.command_line import one_line_errors

if TYPE_CHECKING:
    from torch import nn

    from common.models.latent_diffusion import LatentDiffusion
    from common.pruning.plan import Plan

SHOWN = 20  # modules that are left out, in the table


def original_denoiser(student: Any, plan: "Plan", teacher: str) -> "nn.Module":
    """The U-Net that the student was made of, as shapes without weights."""
    import torch

    from common.models.architectures import meta_teacher

    if plan.config_changes:  # the student's own configuration does not tell
        return meta_teacher(teacher).denoiser
    stock: Any = type(student).__mro__[1] if type(student).__name__.startswith("Pruned") else type(student)
    settings = {name: value for name, value in student.config.items() if name not in ("plan", "auto_map")}
    with torch.device("meta"):
        return stock.from_config(settings)


def tell(kept: str, left_out: int, reasons: Iterable[tuple[str, str]]) -> None:
    """What has a place, and a table of what has none."""
    from common.runtime.console import PlainConsole, text_table

    console, reasons = PlainConsole(width=80), list(reasons)
    console.print(kept)
    if left_out:
        console.print(f"{left_out} are left out:\n")
        console.print(text_table(["module", "why"], [[*each] for each in reasons[:SHOWN]], words=2))
        if len(reasons) > SHOWN:
            console.print(f"and {len(reasons) - SHOWN} more modules")


def adapt_lora(student: "LatentDiffusion", kind: str, plan: "Plan", path: Path, out: Path) -> None:
    """Writes the LoRA for the student, and tells what is in it and what is not."""
    from safetensors.torch import save

    from common.denoisers.denoiser import architecture_of
    from common.models.hub import TEXT_ENCODERS, TOKENIZERS
    from common.models.lora import for_student, fuse_lora, module_of, read_lora, with_own_scale

    weights, alphas, told = read_lora(kind, str(path), student.denoiser)
    part = architecture_of(student.denoiser).part
    parts = {part: student.denoiser, "vae": student.autoencoder, "scheduler": student.scheduler}
    parts |= {name: getattr(student, name) for name in (*TEXT_ENCODERS, *TOKENIZERS)}
    networks = {name: parts[name] for name in (part, *TEXT_ENCODERS) if parts[name] is not None}
    kept, left_out = for_student(with_own_scale(weights, alphas, told), plan, networks)
    if not kept:
        raise InputError(f"{path}: none of its {len(weights)} weights has a place in the student: nothing written.")
    write_atomically(out, save({name: weight.contiguous() for name, weight in kept.items()}, {"format": "pt"}))
    fuse_lora(kind, {name: part for name, part in parts.items() if part is not None}, str(out), 1.0)
    reasons = Counter((module_of(key), reason) for key, reason in left_out.items())
    tell(f"{len(kept)} of {len(weights)} weights have a place in the student: {out}", len(left_out), reasons)


def adapt_ip_adapter(student: "LatentDiffusion", original: "nn.Module", plan: "Plan", path: Path, out: Path) -> None:
    """Writes the IP-Adapter under the student's numbers, and tells which attentions are in it and which are not."""
    from common.export.ip_adapter import attentions_of, for_student, read_ip_adapter, write_ip_adapter

    parts = read_ip_adapter(path)
    kept, left_out = for_student(parts["ip_adapter"], original, student.denoiser, plan.sources)
    parts["ip_adapter"] = kept
    denoiser: Any = student.denoiser
    denoiser._load_ip_adapter_weights([parts], low_cpu_mem_usage=False)
    write_ip_adapter(parts, out)
    count = len(attentions_of(original))
    told = f"{count - len(left_out)} of {count} attentions of the teacher have a place in the student: {out}"
    tell(told, len(left_out), left_out.items())


def adapt_controlnet(student: "LatentDiffusion", original: "nn.Module", plan: "Plan", path: Path, out: Path) -> None:
    """Writes a ControlNet with the student's residuals, and tells which they are and which are left out."""
    from common.export.controlnet import controlnet_of_student, load_controlnet, residuals_for

    network = load_controlnet(path, original)
    residuals, left_out = residuals_for(original, student.denoiser, plan.sources)
    whole = len(residuals) + len(left_out)
    told = f"{len(residuals)} of {whole} residuals of skip connections have a place in the student, and that of the middle"
    if residuals == [*range(whole)]:
        print(f"{told}: {path} fits as it is, nothing written.")
        return
    with whole_folder(out) as scratch:
        controlnet_of_student(network, residuals).save_pretrained(scratch)
    tell(f"{told}: {out}", len(left_out), [(module, "its skip connection is gone") for module in left_out])


@one_line_errors
def adapt(arguments: argparse.Namespace) -> None:
    """Carries out one command: InputError, and nothing written, where nothing has a place."""
    from common.denoisers.denoiser import architecture_of
    from common.models.loading import load_teacher, read_index
    from common.pruning.plan import Plan

    job, out = arguments.job, arguments.out
    row = read_job(job)
    if arguments.controlnet is None and out.suffix != ".safetensors":
        raise InputError(f"--out {out}: a name that ends in .safetensors is needed.")
    if arguments.controlnet is not None and out.exists():
        raise InputError(f"--out {out} is there already; name another folder.")
    student, plan = load_teacher(str(job / "student")), Plan.load(job / "plan")
    if arguments.lora is not None:
        return adapt_lora(student, read_index(job / "student")["_class_name"], plan, arguments.lora, out)
    if architecture_of(student.denoiser).part != "unet" or "cross_attention_dim" not in student.denoiser.config:
        raise InputError(
            f"{job}: its denoiser is a {type(student.denoiser).__name__}; IP-Adapters and ControlNets are of U-Nets that take "
            "text (Stable Diffusion 1, 2 and XL)."
        )
    original = original_denoiser(student.denoiser, plan, row["settings"]["teacher"]["path"])
    if arguments.ip_adapter is not None:
        return adapt_ip_adapter(student, original, plan, arguments.ip_adapter, out)
    return adapt_controlnet(student, original, plan, arguments.controlnet, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path, help="folder of a finished job")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--lora", type=Path, help="a file or folder, of the teacher")
    what.add_argument("--ip-adapter", type=Path, help="a file, of the teacher")
    what.add_argument("--controlnet", type=Path, help="a folder, of the teacher")
    parser.add_argument("--out", type=Path, required=True, help="the file to write; of a ControlNet the folder")
    adapt(parser.parse_args())


if __name__ == "__main__":
    main()
