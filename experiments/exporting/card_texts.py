"""The paragraphs and tables of a student's card, each from the job's result row."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.models.hub import is_repository, shipped_teachers
from common.shown_text import code_block, code_span, markdown_text
from experiments.reporting.job_report import metrics_note
from experiments.reporting.metric_table import find_metric, metric_text
from experiments.reporting.paper_table import markdown
from experiments.reporting.rows import (
    COUNTS,
    KNOBS,
    drawn_by_teacher,
    method_title,
    metric_names,
    nonzero_parameters,
    recipe,
    student,
)
from experiments.shared.row import BESIDE, Row

OPERATIONS = {
    "identity": "its input goes on unchanged",
    "skip": "what passes it goes on unchanged",
    "linear": "a linear map of what passes it is added",
    "zero": "its residual branch gives zero",
    "shortcut": "only the shortcut is left",
    "conv1x1": "a 1x1 convolution in its place",
    "avg_pool": "average pooling in its place",
    "upsample": "nearest upsampling in its place",
    "resize": "fewer channels",
    "mask": "single weights set to zero",
    "drop": "gone",
}


def teacher_name(row: Row) -> str:
    """What the teacher is called: a hub's owner/name as it is, of a folder its name."""
    path = row["settings"]["teacher"]["path"]
    return path if on_hub(path) else Path(path).name


def on_hub(path: str) -> bool:
    """Whether a teacher's path is a repository of the hub rather than a folder."""
    return is_repository(path) and not Path(path).exists()


def data_name(row: Row) -> str:
    """What samples are compared with, by the last part of its name."""
    data = row["settings"]["task"]["data"]
    if drawn_by_teacher(row):
        return "samples of the teacher"
    value = next((data[key] for key in ("folder", "path", "name") if data.get(key)), data["_target_"])
    return Path(str(value)).name


def method_in_words(row: Row) -> str:
    """The method with its knobs, such as "LD-Pruner (k=72)"."""
    method = row["settings"]["method"]
    knobs = [f"{name}={method[name]}" for name in KNOBS if method.get(name) is not None]
    return f"{method_title(row)} ({', '.join(knobs)})" if knobs else method_title(row)


def counted(edits: Sequence[Mapping[str, Any]]) -> str:
    """How many edits of each operation there are, and what each does."""
    if not edits:
        return "Nothing: the denoiser is the teacher's, trained on."
    counts = Counter(edit["operation"] for edit in edits).most_common()
    lines = [f"- {count} x {code_span(name)}: {OPERATIONS.get(name, 'see the plan')}" for name, count in counts]
    return "\n".join([f"{len(edits)} edits at as many sites of the teacher's denoiser:", "", *lines])


def edit_in_words(edit: Mapping[str, Any]) -> str:
    """Operation, sizes and score of an edit, for Markdown."""
    sizes = [f"{name} {value}" for name, value in edit.items() if name not in ("site", "operation", "score")]
    score = [f"score {edit['score']:.4g}"] if edit.get("score") is not None else []
    return markdown_text(", ".join([edit["operation"], *sizes, *score]))


def size_table(row: Row) -> str:
    """Parameters, MACs, bytes and time of every model."""
    models = {who: figures for who, figures in row["models"].items() if "parameters" in figures}
    lines = []
    for who, figures in models.items():
        sparse = figures.get("sparse_file", {}).get("denoiser_bytes")
        size = f"{figures['checkpoint_bytes_fp16'] / 1e6:.2f} MB" + (f" (sparse {sparse / 1e6:.2f} MB)" if sparse else "")
        counts = [f"{figures['parameters']:,}", f"{nonzero_parameters(figures):,}", f"{figures['macs']:,}"]
        lines.append([who, *counts, size, f"{figures['latency']['ratio']:.2f}x"])
    return markdown(["", "parameters", "not zero", "MACs", "fp16 weights", "time"], lines)


def metric_table(row: Row) -> str:
    """Every metric of every model that has one."""
    names = metric_names([row])
    names += [
        name for who in row["models"].values() for name in who if name not in (*names, *COUNTS) and isinstance(who[name], float)
    ]
    names = [name for name in dict.fromkeys(names) if not name.endswith(BESIDE)]
    lines = [[who, *(metric_text(figures, name) for name in names)] for who, figures in row["models"].items()]
    return markdown(["", *(find_metric(name).title for name in names)], lines)


def protocol_text(row: Row) -> str:
    """How the metrics were measured."""
    protocol = row["protocol"]
    guidance = f", guidance {protocol['guidance_scale']:g}" if protocol.get("guidance_scale") else ""
    published = f" The papers' metrics: {metrics_note(row)}" if protocol.get("metrics") else ""
    split = code_span(protocol["split"])
    return (
        f"{protocol['images']} samples of each model against {row['models']['real']['reference_images']} images of "
        f"{code_span(data_name(row))}; {protocol['steps']} sampling steps{guidance}; seeds: {protocol['seeds']} with seed "
        f"{protocol['seed']}; captions and images of the split {split}. FD, KD: Fréchet and kernel "
        f"distance (x1000) over {protocol['extractor']}; they are no FID. real: as many others of these images. To "
        "the teacher: against its samples from equal seeds, features as a share of what unrelated ones differ by. "
        f"±: 95 % interval of samples (delete-a-group jackknife).{published}"
    )


def training_text(row: Row) -> str:
    """The recipe as the job had it."""
    import yaml

    settings, last = row["settings"], student(row)
    if last != "distilled":
        return "None: these are the weights that pruning left."
    other = ["coefficients", *(["autoencoder"] if "autoencoder" not in row["models"][last] else [])]  # not of this training
    told = {name: value for name, value in settings["distill"].items() if name not in other}
    start = "the teacher's remaining weights" if settings["init"] == "preserved" else "random weights"
    written = yaml.safe_dump(told, sort_keys=False).strip()
    name = code_span(recipe(row).rpartition(" ")[0])
    other_data = settings["task"].get("trained_on") is not None
    drawn = drawn_by_teacher(row, "task.trained_on" if other_data else "task.data")
    shown = ", on samples of the teacher" if drawn else ", on other data than it was measured with" if other_data else ""
    return f"Recipe {name} from {start}{shown}, seed {settings['seed']}:\n\n{code_block(written, 'yaml')}"


def limits(row: Row) -> str:
    """What a reader must not expect."""
    lines = ["It draws what its teacher draws, with what pruning took away; biases of the teacher and of its data are in it."]
    if row["settings"]["teacher"]["path"] in shipped_teachers():
        lines.append("The teacher is a small one, trained from scratch for experiments at small scale: no product.")
    if row["protocol"]["images"] < 5000:
        lines.append(f"Distances over {row['protocol']['images']} samples are coarse, and compare within one protocol only.")
    if any(edit["operation"] == "mask" for edit in row["plan"]):
        lines.append("Zeros among the weights save no time in dense kernels, and no bytes in this file.")
    return "\n".join(f"- {line}" for line in lines)


def licence_text(row: Row, licence: str | None, licensed_by: Sequence[Path]) -> str:
    """Whose the weights are, as far as the project knows; the loader's file is the project's."""
    told = [f"`{licence}`."] if licence else []
    if licensed_by:
        files = ", ".join(f"[{path.name}]({path.name})" for path in licensed_by)
        told.append(f"Licences and attributions of what the teacher was trained on: {files}.")
    elif not licence:
        told.append(f"That of the teacher, {markdown_text(teacher_name(row))}: look it up there before use.")
    return " ".join([*told, "`pruned_denoiser.py` beside the denoiser's weights, where it is there, is Bonsai's: Apache-2.0."])


def loading(row: Row, denoiser: str, found: Mapping[str, Any], where: str) -> tuple[str, str]:
    """The code that loads the folder, and what is to be known about it."""
    own, part = denoiser.startswith("Pruned"), "unet" if "UNet" in denoiser else "transformer"
    trust = ", trust_remote_code=True" if own else ""
    if found["pipeline"]:
        lines = ["from diffusers import DiffusionPipeline", "", f'pipe = DiffusionPipeline.from_pretrained("{where}"{trust})']
        if row["settings"]["task"]["name"] == "t2i":
            given = "".join(f", {name}={value}" for name, value in found["call"].items())
            lines.append(f'image = pipe(prompt="a red apple"{given}).images[0]')
    else:
        lines = ["from diffusers import AutoModel"]  # which finds code of a model's own in that model's folder alone
        lines += ["from huggingface_hub import snapshot_download"] if where != "." else []
        lines += ["", f'folder = snapshot_download("{where}")' if where != "." else 'folder = "."']
        lines += [f'{part} = AutoModel.from_pretrained(f"{{folder}}/{part}"{trust})']
    told = (
        [f"`{found['pipeline']}`."]
        if found["pipeline"]
        else [f"The pipeline as a whole did not load: {markdown_text(found['reason'])}"]
    )
    if own:
        told.append(
            f"No class of diffusers can express this denoiser: `{part}/pruned_denoiser.py` (`{denoiser}`) rebuilds it by the "
            "plan in its configuration. Without `trust_remote_code` the pipeline refuses to load; a bare "
            f"`from_pretrained` of the stock class on `{part}/` fills what was removed with random weights and only warns. "
            "Other pipelines take it by its parts (`AutoPipelineForImage2Image.from_pipe(pipe)`, or a class with "
            "`**pipe.components`); a pipeline's own `from_pipe` asks for the stock class and refuses."
        )
    else:
        told.append(f"The denoiser is a stock `{denoiser}`.")
    told.append(
        "A process without Bonsai drew from the same noise: its latents differ from ours by at most "
        f"{found['latents']['max_relative']:.1e} of the largest."
    )
    return "\n".join(lines), " ".join(told)


def format_lines(parts: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Titles and lines of the table of all networks in all formats."""
    titles = ["network", "runtime", "ms", "ratio", "max abs", "max rel", "MB"]
    lines = []
    for part, formats in parts.items():
        for name, figures in sorted(formats.items(), key=lambda item: item[0] != "pytorch"):
            latency = figures.get("latency")
            time = [f"{latency['milliseconds']:.2f}", f"{latency['ratio']:.2f}x"] if latency else ["", ""]
            differences = [f"{figures[key]:.1e}" if key in figures else "" for key in ("max_absolute", "max_relative")]
            size = f"{figures['bytes'] / 1e6:.2f}" if "bytes" in figures else ""
            lines.append([part, name, *time, *differences, size])
    return titles, lines


def format_code(parts: Mapping[str, Any], names: Iterable[str]) -> str:
    """How the denoiser runs in the first of the formats."""
    if "onnx" in names:
        first = 'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{file}")\n'
        call = 'out_sample = session.run(None, {{"sample": sample, "timestep": timestep{more}}})[0]'
    else:
        first = 'import openvino\n\nmodel = openvino.compile_model("{file}", "CPU")\n'
        call = 'out_sample = model({{"sample": sample, "timestep": timestep{more}}})[0]'
    name = "onnx" if "onnx" in names else "openvino"
    inputs = [each for each in parts["unet"][name]["names"] if each not in ("sample", "timestep")]
    more = "".join(f', "{each}": {each}' for each in inputs)
    return (first + call).format(file=parts["unet"][name]["file"], more=more)
