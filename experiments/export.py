"""A finished job's student as people use it: a diffusers folder with a card, one file, ONNX, OpenVINO, a repository of the hub.

python -m experiments.export outputs/t2i/ld_pruner/<id>                                  diffusers folder and card
python -m experiments.export outputs/t2i/ld_pruner/<id> --to onnx --to openvino          and the networks in both formats
python -m experiments.export outputs/t2i/bk_sdm/<id> --to single_file --dtype fp16       and one file, as other programs read it
python -m experiments.export outputs/t2i/laptop_diff/<id> --to stock        and a transformer's stock class with fewer blocks
python -m experiments.export outputs/t2i/ld_pruner/<id> --push owner/name --private      and sends it to the hub

<job>/export/ (or --out) holds the pipeline folder, which diffusers loads without this project (a process apart tries it),
README.md with pictures, result.json, <format>/<network>/, and export.json: how far each network's outputs are from PyTorch's,
on fresh inputs of two batch sizes and over a short sampling, and what each takes of PyTorch's time. Outputs further away than
the tolerance end the command with an error, and nothing is written. `pip install -c constraints.txt -e ".[export]"`

The single file has the names of Stable Diffusion's own code, and diffusers reads every weight of it back before the command
ends; it can hold students of bk_sdm, l1_diff and dense, whose U-Net is of the stock class. A diffusion transformer that lost
whole blocks is a stock class with fewer of them (stock/, with the map of its blocks to the teacher's, blocks.json).
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.runtime.files import whole_folder, write_json
from common.runtime.progress import under_way
from experiments.reporting.rows import read_row
from experiments.shared.command_line import one_line_errors

TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2}
EXPORT_FILE = "export.json"
SINGLE_FILE = "single_file"
STOCK = "stock"


def read_job(folder: Path) -> dict[str, Any]:
    """The result row of a finished job that has a student; InputError when there is none."""
    row, student = folder / "result.json", folder / "student" / "model_index.json"
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give that of a finished job, such as outputs/t2i/ld_pruner/<id>.")
    missing = [path.relative_to(folder) for path in (row, student) if not path.is_file()]
    if missing:
        raise InputError(f"{folder} lacks {missing[0]}: give the folder of a finished job (<outputs>/<task>/<method>/<id>).")
    return read_row(row, "delete it and run the job again")


def check_out(out: Path) -> None:
    """InputError where writing to `out` would take the place of something that is no earlier export."""
    if out.exists() and not (out.is_dir() and ((out / EXPORT_FILE).is_file() or not any(out.iterdir()))):
        raise InputError(f"--out {out} is there already and no export; name another folder.")


def check_numbers(arguments: argparse.Namespace) -> None:
    """InputError for numbers with which nothing can be measured."""
    if arguments.batch < 1 or arguments.rounds < 0:
        raise InputError(f"--batch {arguments.batch} --rounds {arguments.rounds}: at least 1 and 0 are needed.")
    if arguments.tolerance is not None and not arguments.tolerance > 0:
        raise InputError(f"--tolerance {arguments.tolerance}: a number above 0 is needed.")


def copy_beside(job: Path, row: dict[str, Any], folder: Path) -> None:
    """Pictures, licences and the result row (without where things are on this machine) beside the student."""
    from experiments.exporting.model_card import PICTURES, licence_files
    from experiments.reporting.result_pages import shown_command, without_places

    for path in [*(job / name for name in PICTURES), *licence_files(row)]:
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    write_json(folder / "result.json", {**without_places(row), "command": shown_command(row["command"])})


def print_report(found: dict[str, Any], formats: dict[str, Any]) -> None:
    """What was found, within 80 columns."""
    from common.runtime.console import PlainConsole, text_table
    from experiments.exporting.card_texts import format_lines

    console = PlainConsole(width=80)
    alone = f"as {found['pipeline']}" if found["pipeline"] else f"part by part ({found['reason']})"
    console.print(
        f"diffusers loads it without this project, {alone}, and draws the same: latents differ by "
        f"{found['latents']['max_relative']:.0e} of the largest.",
    )
    if found["denoiser"].startswith("Pruned"):
        console.print(
            f"No class of diffusers expresses this denoiser: {found['denoiser']} comes with it (trust_remote_code=True).",
        )
    if SINGLE_FILE in formats:
        one = formats[SINGLE_FILE]
        console.print(
            f"{one['file']}: {one['bytes'] / 1e6:.1f} MB in {one['dtype']}, in the layout of Stable Diffusion's own code; "
            f"diffusers reads every weight of it back, and outputs differ by {one['max_relative']:.0e} of the largest."
        )
    if STOCK in formats:
        one = formats[STOCK]
        console.print(
            f"{one['folder']}/ is a stock {one['class']} of {one['blocks']} blocks ({one['bytes'] / 1e6:.1f} MB in "
            f"{one['dtype']}); outputs differ by {one['max_relative']:.0e} of the largest. blocks.json: which of the teacher's "
            "blocks they are."
        )
    if "parts" not in formats:
        return
    console.print()
    console.print(text_table(*format_lines(formats["parts"]), words=2))
    protocol, sampling = formats["latency_protocol"], formats["sampling"]
    ends = [f"{name} {value['max_relative']:.0e}" for name, value in sampling.items() if isinstance(value, dict)]
    console.print(
        f"\nms: median of {protocol['rounds']} rounds of a batch of {protocol['batch']}, {protocol['threads']} threads; "
        f"ratio: to PyTorch (float32) in the same run; max abs, max rel: largest difference to PyTorch's outputs, and as a "
        f"share of the largest output (tolerance {formats['tolerance']:.0e}), on batches 1 and 3; files in {formats['dtype']}. "
        f"Latents after {sampling['steps']} DDIM steps differ by: {', '.join(ends)} of the largest.",
        style="dim",
    )


@one_line_errors
def export(arguments: argparse.Namespace) -> None:
    """Exports a job's student; InputError, and nothing written, where an output differs from PyTorch's."""
    from common.denoisers.denoiser import architecture_of
    from common.export.onnx_openvino import check_installed
    from common.export.original_layout import check_expressible
    from experiments.exporting.hub_push import check_pushable, push
    from experiments.exporting.model_card import known_licence, write_card

    job, out = arguments.job, arguments.out or arguments.job / "export"
    formats = tuple(dict.fromkeys(name for name in arguments.to if name not in (SINGLE_FILE, STOCK)))
    row = read_job(job)
    check_out(out)
    check_numbers(arguments)
    known_licence(arguments.license)
    check_installed(formats)
    if arguments.push:
        check_pushable(arguments.push)

    from common.models.loading import load_teacher, read_index
    from common.models.pipeline_defaults import call_options
    from common.models.saving import clean_configs
    from experiments.exporting.exported_formats import Wanted, export_formats, loads_alone
    from experiments.exporting.one_file import export_one_file
    from experiments.exporting.stock_class import export_stock_class

    with under_way("loading the student"):
        teacher = load_teacher(str(job / "student"))
    part = architecture_of(teacher.denoiser).part
    if part != "unet" and formats:
        raise InputError(
            f"--to {formats[0]}: of U-Nets alone, and this student is a {type(teacher.denoiser).__name__}; --to stock is of it."
        )
    if part == "unet" and STOCK in arguments.to:
        raise InputError("--to stock: of diffusion transformers, whose blocks a stock class counts; this student is a U-Net.")
    if SINGLE_FILE in arguments.to:
        check_expressible(teacher)
    guidance = row["protocol"].get("guidance_scale") or 1.0
    tolerance = arguments.tolerance or TOLERANCES[arguments.dtype]
    wanted = Wanted(formats, arguments.dtype, tolerance, arguments.batch, arguments.rounds, arguments.seed)
    with whole_folder(out) as scratch:
        shutil.copytree(job / "student", scratch, dirs_exist_ok=True)
        clean_configs(scratch)
        copy_beside(job, row, scratch)
        with under_way("loading it without this project"):
            alone = loads_alone(scratch, teacher, guidance, arguments.seed)
        call = call_options(read_index(job / "student"), teacher)
        found = {"denoiser": type(teacher.denoiser).__name__, "call": call, **alone}
        exported = export_formats(teacher, scratch, guidance, wanted) if formats else {}
        if SINGLE_FILE in arguments.to:
            with under_way("writing one file and reading it back"):
                exported[SINGLE_FILE] = export_one_file(teacher, scratch, arguments.dtype, arguments.seed)
        if STOCK in arguments.to:
            with under_way("writing a stock class and reading it back"):
                exported[STOCK] = export_stock_class(teacher, scratch, arguments.dtype, tolerance, arguments.seed)
        document = {"job": "/".join(job.resolve().parts[-3:]), "student": found, **exported}
        write_json(scratch / EXPORT_FILE, document)
        write_card(row, scratch, found, exported, arguments.license, arguments.push or ".")
    print_report(found, exported)
    print(f"\nexported {out}\ncard {out / 'README.md'}")
    if arguments.push:
        print(f"pushed {push(out, arguments.push, arguments.private, 'Student of ' + document['job'])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path, help="folder of a finished job")
    parser.add_argument(
        "--to", action="append", choices=("onnx", "openvino", SINGLE_FILE, STOCK), default=[], help="may be given several times"
    )
    parser.add_argument("--out", type=Path, help="instead of <job>/export; an earlier export there is replaced")
    parser.add_argument("--dtype", choices=tuple(TOLERANCES), default="fp32", help="of weights, inputs and outputs (fp32)")
    parser.add_argument("--tolerance", type=float, help="largest share of the largest output to differ by (1e-4; fp16: 1e-2)")
    parser.add_argument("--batch", type=int, default=4, help="rows of the inputs that are timed (4)")
    parser.add_argument("--rounds", type=int, default=10, help="of timing (10); 0: none")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs that are compared (0)")
    parser.add_argument("--license", help="of the student, by the hub's identifiers; without it the card says 'other'")
    parser.add_argument("--push", metavar="OWNER/NAME", help="send it to this repository of the Hugging Face hub")
    parser.add_argument("--private", action="store_true", help="a repository that is new is not public")
    export(parser.parse_args())


if __name__ == "__main__":
    main()
