"""A LoRA of a teacher for its student: which of its weights have a place there, which are left out and why.

    python -m experiments.adapter outputs/t2i/bk_sdm/<id> --lora style.safetensors --out style_of_student.safetensors

The file that is written goes into the student's pipeline by `pipeline.load_lora_weights`; the command has tried it. Weights of
layers that are gone are left out; where a student counts its layers otherwise than its teacher (BK-SDM's), each finds its own.
`pip install -c constraints.txt -e ".[lora]"`
"""

import argparse
from collections import Counter
from pathlib import Path

from common.errors import InputError
from common.runtime.files import write_atomically
from experiments.export import read_job
from experiments.shared.command_line import one_line_errors

SHOWN = 20  # modules that are left out, in the table


@one_line_errors
def adapt(arguments: argparse.Namespace) -> None:
    """Writes the LoRA for the student, and tells what is in it and what is not."""
    from safetensors.torch import save

    from common.models.loading import load_teacher, read_index
    from common.models.lora import for_student, fuse_lora, module_of, read_lora, with_own_scale
    from common.pruning.plan import Plan
    from common.runtime.console import PlainConsole, text_table

    job, out = arguments.job, arguments.out
    read_job(job)
    if out.suffix != ".safetensors":
        raise InputError(f"--out {out}: a name that ends in .safetensors is needed.")
    student, plan = load_teacher(str(job / "student")), Plan.load(job / "plan")
    kind = read_index(job / "student")["_class_name"]
    weights, alphas, told = read_lora(kind, str(arguments.lora), student.denoiser)
    parts = {"unet": student.denoiser, "vae": student.autoencoder, "scheduler": student.scheduler}
    parts |= {name: getattr(student, name) for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")}
    networks = {name: parts[name] for name in ("unet", "text_encoder", "text_encoder_2") if parts[name] is not None}
    kept, left_out = for_student(with_own_scale(weights, alphas, told), plan, networks)
    if not kept:
        raise InputError(f"{arguments.lora}: none of its {len(weights)} weights has a place in the student: nothing written.")
    write_atomically(out, save({name: weight.contiguous() for name, weight in kept.items()}, {"format": "pt"}))
    fuse_lora(kind, {name: part for name, part in parts.items() if part is not None}, str(out), 1.0)
    console = PlainConsole(width=80)
    console.print(f"{len(kept)} of {len(weights)} weights have a place in the student: {out}")
    if left_out:
        reasons = Counter((module_of(key), reason) for key, reason in left_out.items())
        lines = [[module, reason] for module, reason in list(reasons)[:SHOWN]]
        console.print(f"{len(left_out)} are left out:\n")
        console.print(text_table(["module", "why"], lines, words=2))
        if len(reasons) > SHOWN:
            console.print(f"and {len(reasons) - SHOWN} more modules")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path, help="folder of a finished job")
    parser.add_argument("--lora", type=Path, required=True, help="a file or folder, of the teacher")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    adapt(parser.parse_args())


if __name__ == "__main__":
    main()
