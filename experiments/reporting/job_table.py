"""Result rows of many jobs as tables on a terminal."""

from typing import Any

from experiments.reporting.rows import distance_name, groups_of, labels, left, method_title, recipe, student


def print_rows(rows: list[dict[str, Any]]) -> None:
    """A table for each task, teacher and protocol; one line a job, within 80 columns: before → after distillation."""
    from common.runtime.console import PlainConsole

    console = PlainConsole(width=80)
    for name, members in groups_of(rows).items():
        teacher = members[0]["models"]["teacher"]
        distance = distance_name(members[0])
        console.print(table_of(members, distance))
        retrieval = f", retrieval {100 * teacher['caption_retrieval']:.0f} %" if "caption_retrieval" in teacher else ""
        console.print(
            f"\n{len(members)} jobs; {name}; the teacher: FD {teacher.get(distance, float('nan')):.0f}{retrieval}. "
            "left: parameters of the student that are not zero; file: its bytes in fp16, sparse where that exists; "
            "before → after distillation.\n",
            style="dim",
        )


def table_of(rows: list[dict[str, Any]], distance: str) -> Any:
    """The rich table of one group of rows; `distance`: the name of its Fréchet distance."""
    from common.runtime.console import text_table

    def arrow(models: dict[str, Any], name: str, form: str, factor: float = 1.0) -> str:
        values = [models[who].get(name) for who in ("pruned", "distilled") if who in models]
        return "→".join(form.format(factor * value) for value in values if value is not None)

    lines: dict[str, list[str]] = {}
    for row, label in zip(rows, labels(rows), strict=True):
        models = row["models"]
        last, teacher = models[student(row)], models["teacher"]
        for title, text in {
            "method": method_title(row),
            "setting": label.removeprefix(method_title(row)).strip(),
            "distill": recipe(row),
            "left": f"{100 * left(row, last):.0f}%",
            "file": f"{100 * file_bytes(last) / file_bytes(teacher):.0f}%" if "sparse_file" in last else "",
            "time": f"{last['latency']['ratio']:.2f}x",
            "FD": arrow(models, distance, "{:.0f}"),
            "retrieval": arrow(models, "caption_retrieval", "{:.0f}%", 100),
            "MSE to t.": arrow(models, "latent_mse", "{:.3f}"),
        }.items():
            lines.setdefault(title, []).append(text)
    shown = {title: texts for title, texts in lines.items() if any(texts)}
    words = sum(title in ("method", "setting", "distill") for title in shown)
    return text_table(list(shown), zip(*shown.values(), strict=True), words)


def file_bytes(figures: dict[str, Any]) -> int:
    """Bytes of the denoiser's file, the sparse one where there is one; 0 where a row does not say."""
    return figures.get("sparse_file", {}).get("denoiser_bytes", figures.get("checkpoint_bytes_fp16", 0))
