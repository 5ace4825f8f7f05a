"""The card of an exported student: README.md with the hub's front matter. Every number is of result.json or export.json."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.models.hub import shipped_teachers
from common.runtime.files import ROOT, SHIPPED, write_text
from common.shown_text import code_block, code_span, markdown_text
from experiments.exporting.card_texts import (
    counted,
    data_name,
    edit_in_words,
    format_code,
    format_lines,
    licence_text,
    limits,
    loading,
    method_in_words,
    metric_table,
    on_hub,
    protocol_text,
    size_table,
    teacher_name,
    training_text,
)
from experiments.reporting.metric_table import find_metric
from experiments.reporting.page import rendered
from experiments.reporting.paper_table import markdown
from experiments.reporting.result_pages import shown_command
from experiments.reporting.rows import method_name, metric_names, nonzero_parameters, student
from experiments.shared.row import Row

TEMPLATE = Path(__file__).with_name("model_card.md")
PICTURES = ("samples.png", "plan.png", "sparsity.png")
TASKS = {"t2i": "text-to-image", "uig": "unconditional image", "uag": "unconditional audio"}
PIPELINE_TAGS = {"t2i": "text-to-image", "uig": "unconditional-image-generation"}  # the hub has none for audio


def licence_files(row: Row) -> list[Path]:
    """LICENSES.md of the data that a shipped teacher was trained on, as its card names it, with the texts beside it."""
    name = row["settings"]["teacher"]["path"]
    card = SHIPPED / name / "README.md"
    known = name in shipped_teachers() and card.is_file()
    found = re.search(r"`(data/\w+)`", card.read_text(encoding="utf-8")) if known else None
    folder = ROOT / found.group(1) if found else None
    return [] if folder is None else sorted(folder.glob("LICENSE*"))


def front_matter(row: Row, licence: str | None, licensed_by: Sequence[Path]) -> str:
    """The hub's metadata as YAML: licence, library, task, base model, tags, and the student's metrics."""
    from huggingface_hub import EvalResult, ModelCardData

    task = row["settings"]["task"]["name"]
    told: dict[str, Any] = {"license": licence or "other"}
    if licence is None:
        told["license_name"] = "see-licenses-md" if licensed_by else "that-of-the-teacher"
        told |= {"license_link": "LICENSES.md"} if licensed_by else {}
    if on_hub(row["settings"]["teacher"]["path"]):
        told |= {"base_model": row["settings"]["teacher"]["path"]}
    if task in PIPELINE_TAGS:
        told["pipeline_tag"] = PIPELINE_TAGS[task]
    figures, data = row["models"][student(row)], data_name(row)
    results = [
        EvalResult(
            PIPELINE_TAGS.get(task, task),
            data,
            data,
            metric_type=name,
            metric_value=figures[name],
            metric_name=find_metric(name).title,
        )
        for name in (*metric_names([row]), "parameters", "macs")
        if name in figures
    ]
    tags = ["pruning", *(["distillation"] if student(row) == "distilled" else []), method_name(row).replace("_", "-")]
    tags += ["audio"] if task == "uag" else []
    named = f"{teacher_name(row).rpartition('/')[2]}-{method_name(row)}"
    data_of_card = ModelCardData(library_name="diffusers", tags=tags, model_name=named, eval_results=results, **told)
    return data_of_card.to_yaml()


def write_card(
    row: Row, folder: Path, found: Mapping[str, Any], formats: Mapping[str, Any], licence: str | None, where: str
) -> None:
    """README.md in `folder`, beside the pictures that lie there.

    found: what loads_alone tells; formats: what export_formats tells, {} without; where: what is passed to from_pretrained.
    """
    last, licensed_by, parts = student(row), licence_files(row), formats.get("parts", {})
    counts = {"kept": row["models"][last]["parameters"], "nonzero": nonzero_parameters(row["models"][last])}
    share = {key: f"{100 * value / row['models']['teacher']['parameters']:.1f} %" for key, value in counts.items()}
    code, told = loading(row, found["denoiser"], found, where)
    names = [name for name in formats.get("sampling", {}) if name in ("onnx", "openvino")]
    revision, environment = row["environment"]["revision"], row["environment"]
    words = {
        "front": front_matter(row, licence, licensed_by),
        "task": TASKS.get(row["settings"]["task"]["name"], row["settings"]["task"]["name"]),
        "teacher": markdown_text(teacher_name(row)),
        "method": markdown_text(method_in_words(row)),
        "trained": last == "distilled",
        **share,
        "pictures": [name for name in PICTURES if (folder / name).is_file()],
        "code": code,
        "loading": told,
        "parts": parts,
        "one_file": formats.get("single_file"),
        "stock": formats.get("stock"),
        "where": where,
        "factor": formats.get("factor"),
        "dtype": formats.get("dtype"),
        "format_code": format_code(parts, names) if parts else "",
        "format_table": markdown(*format_lines(parts)) if parts else "",
        "latency": formats.get("latency_protocol", {}),
        "sampling": {name: formats["sampling"][name] for name in names},
        "sampling_steps": formats.get("sampling", {}).get("steps"),
        "removed": counted(row["plan"]),
        "sites": len(row["plan"]),
        "site_table": markdown(["site", "edit"], [[code_span(e["site"]), edit_in_words(e)] for e in row["plan"]], words=2),
        "size_table": size_table(row),
        "protocol": row["protocol"],
        "device": markdown_text(environment["device"]),
        "metric_table": metric_table(row),
        "protocol_text": protocol_text(row),
        "training": training_text(row),
        "command": code_block(shown_command(row["command"]), "bash"),
        "changed": revision.get("dirty", False),
        "revision": revision.get("commit") or revision.get("version", "unknown"),
        "versions": ", ".join(f"{name} {version}" for name, version in environment["packages"].items()),
        "limits": limits(row),
        "licence": licence_text(row, licence, licensed_by),
    }
    write_text(folder / "README.md", rendered(TEMPLATE, **words).rstrip() + "\n")


def known_licence(licence: str | None) -> None:
    """InputError where --license is none of the hub's identifiers by its form."""
    if licence is not None and not re.fullmatch(r"[a-z0-9.+-]+", licence):
        raise InputError(f"--license {licence!r} is no identifier of the hub, such as apache-2.0 or creativeml-openrail-m.")
