"""Checks the claims of the papers (experiments/claims.yaml) against published rows.

    python -m experiments.claims experiments/results       writes claims.md there

A difference counts where it is larger than that between seeds: the largest relative difference in the same figure of the same
model (pruned or trained) between the rows of experiment=seeds.
"""

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.runtime.files import write_text
from common.runtime.strict_json import read_json
from common.shown_text import markdown_text
from experiments.reporting.lookup import figures_of, find
from experiments.reporting.metric_table import find_metric
from experiments.reporting.page import rendered
from experiments.reporting.paper_table import markdown
from experiments.reporting.rows import ROWS_FILE, comparable, group_name, read_rows
from experiments.shared.command_line import one_line_errors
from experiments.shared.row import Row
from experiments.sweeps.result_index import fault_lines, write_index

CLAIMS = Path(__file__).with_name("claims.yaml")
SEEDS = "t2i/seeds"  # the rows that show the noise
LEAST_SEEDS = 3
TOLD = ("distance", "caption_retrieval", "latent_mse", "time")  # of whose noise the page tells
HOLDS, FAILS, OPEN, UNKNOWN = "holds", "does not hold", "within the noise", "not measured"
PAGE = Path(__file__).with_name("reporting") / "claims.md"


def read_claims() -> list[dict[str, Any]]:
    """The claims with what tells."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.load(CLAIMS))


def relative(a: float, b: float) -> float:
    """By how much b is larger than a, as a share of the larger."""
    return (b - a) / max(abs(a), abs(b)) if a != b else 0.0


def noise(rows: Sequence[Row], metric: str, model: str = "student") -> float:
    """The largest relative difference between two of the rows; 0 for what seeds do not change, as the number of zeros."""
    values = [figures_of(row, {"model": model}).get(metric) for row in rows]
    known = [value for value in values if value is not None and math.isfinite(value)]
    return abs(relative(min(known), max(known))) if known else 0.0


class Evidence:
    """The rows and files that the claims are checked against."""

    def __init__(self, folder: Path):
        self.folder = folder
        if not (folder / SEEDS).is_dir() or len(seeds := read_rows([folder / SEEDS])) < LEAST_SEEDS:
            raise InputError(
                f"{folder / SEEDS} must hold {LEAST_SEEDS} rows of experiment=seeds: they tell what a difference means."
            )
        self.seeds = seeds

    def rows(self, claim: Mapping[str, Any]) -> list[Row]:
        """The rows of a claim's experiments, none where one has not been published; InputError when they do not compare."""
        folders = [self.folder / name for name in claim.get("experiments", [])]
        if not folders or not all((folder / ROWS_FILE).is_file() for folder in folders):
            return []
        rows = read_rows(folders)
        if len({comparable(row) for row in rows}) > 1:
            raise InputError(
                f"The rows of {', '.join(map(str, folders))} differ in teacher, data or protocol: {claim['claim']!r}."
            )
        return rows

    def value(self, claim: Mapping[str, Any], rows: Sequence[Row], selector: Mapping[str, Any], metric: str) -> float | None:
        """The figure that a selector means; None where it was not measured."""
        if "path" in selector:
            path = self.folder / claim["file"]
            value: Any = read_json(path, "publish it anew (experiments.publish)") if path.is_file() else {}
            for part in selector["path"].split("."):
                value = value.get(part) if isinstance(value, dict) else None
        else:
            value = (find(rows, selector) or {}).get(metric)
        return None if value is None or not math.isfinite(value) else value

    def margin(self, selectors: Sequence[Mapping[str, Any]], metric: str) -> float:
        """By how much seeds alone change the figures that the selectors mean; the teacher is the same under all of them."""
        models = {selector.get("model", "student") for selector in selectors if "path" not in selector} - {"teacher"}
        return max((noise(self.seeds, metric, model) for model in models), default=0.0)


def cases(check: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], list[Mapping[str, Any]]]]:
    """Each single comparison that a check stands for: metric, what its selectors share, and those."""
    metrics = check.get("metric", "distance")
    given = check["order"] if "order" in check else [check[name] for name in ("value", "against") if name in check]
    for metric in metrics if isinstance(metrics, list) else [metrics]:
        for shared in check.get("each", [{}]):
            yield metric, shared, given


def with_shared(shared: Mapping[str, Any], selector: Mapping[str, Any]) -> Mapping[str, Any]:
    """A selector with what it shares with the others of its comparison; a teacher is the same in all rows."""
    return selector if selector.get("model") == "teacher" else {**shared, **selector}


def in_words(selector: Mapping[str, Any]) -> str:
    """A selector as a reader needs it: {"method": "magnitude", "method.ratio": 0.5} becomes "magnitude, ratio 0.5"."""
    if "path" in selector:
        return selector["path"]
    short = {name.rpartition(".")[2]: value for name, value in selector.items()}
    return ", ".join(
        value.rpartition(".")[2] if isinstance(value, str) else f"{name} {value:g}" for name, value in short.items()
    )


def verdict(check: Mapping[str, Any], values: Sequence[float], metric: str, margin: float) -> str:
    """Whether the values are as the check expects: in the order from best to worst, or within its bounds.

    margin: the relative difference up to which nothing can be told.
    """
    if "order" in check:
        sign = -1 if find_metric(metric).higher else 1
        gains = [sign * relative(better, worse) for better, worse in pairwise(values)]
        if any(gain < -margin for gain in gains):
            return FAILS
        return HOLDS if all(gain > margin for gain in gains) else OPEN
    value = values[0] if len(values) == 1 else values[0] / values[1] if values[1] else math.inf
    if any(math.isfinite(bound) and abs(relative(value, bound)) < margin for bound in (check["from"], check["to"])):
        return OPEN
    return HOLDS if check["from"] <= value <= check["to"] else FAILS


def check_claim(claim: Mapping[str, Any], evidence: Evidence) -> tuple[list[str], list[str]]:
    """What was measured, a text for each comparison, and the verdict of each."""
    rows, texts, verdicts = evidence.rows(claim), [], []
    for check in claim["checks"]:
        for metric, shared, given in cases(check):
            selectors = [with_shared(shared, selector) for selector in given]
            values = [evidence.value(claim, rows, selector, metric) for selector in selectors]
            if None in values:
                verdicts.append(UNKNOWN)
                continue
            verdicts.append(verdict(check, values, metric, check.get("margin", evidence.margin(selectors, metric))))
            form = find_metric(metric).form
            of = ", ".join(filter(None, (metric.replace("_", " "), in_words(shared))))
            told = [f"{in_words(each)} **{form.format(value)}**".strip() for each, value in zip(given, values, strict=True)]
            ending = "" if verdicts[-1] == HOLDS else f" ({verdicts[-1]})"
            texts.append(f"{'' if 'path' in given[0] else f'{of}: '}{'; '.join(told)}{ending}")
    return texts, verdicts


def summary(verdicts: Sequence[str]) -> str:
    """One verdict where all comparisons agree, else how many of each."""
    kinds = [kind for kind in (HOLDS, FAILS, OPEN, UNKNOWN) if kind in verdicts]
    return kinds[0] if len(kinds) == 1 else ", ".join(f"{verdicts.count(kind)} {kind}" for kind in kinds)


def page(claims: Sequence[Mapping[str, Any]], found: Sequence[tuple[list[str], list[str]]], evidence: Evidence) -> str:
    """The page of the claims, in Markdown; found: what check_claim says of each."""
    lines = []
    for place, (claim, (texts, verdicts)) in enumerate(zip(claims, found, strict=True), 1):
        names = claim.get("experiments", [str(Path(claim["file"]).parent)] if "file" in claim else [])
        links = ", ".join(f"[{name}]({name}/README.md)" for name in names)
        lines.append([str(place), claim["claim"], claim["published"], "<br>".join(texts), f"**{summary(verdicts)}**", links])
    first = evidence.seeds[0]
    margins = ", ".join(f"{name.replace('_', ' ')} {100 * noise(evidence.seeds, name):.1f} %" for name in TOLD)
    return rendered(
        PAGE,
        seeds=f"[{len(evidence.seeds)} seeds of one job]({SEEDS}/README.md)",
        job=markdown_text(group_name(first).replace(f", seed {first['settings']['seed']}", "")),
        margins=margins,
        faults="\n".join(fault_lines(evidence.folder)),
        table=markdown(["", "claim", "published", "measured here", "verdict", "rows"], lines, words=6),
    )


@one_line_errors
def check(arguments: argparse.Namespace) -> None:
    """Writes the page and tells how many claims were measured."""
    claims = read_claims()
    evidence = Evidence(arguments.results)
    found = [check_claim(claim, evidence) for claim in claims]
    write_text(arguments.results / "claims.md", page(claims, found, evidence))
    write_index(arguments.results)  # which links the page
    measured = sum(UNKNOWN not in verdicts for _, verdicts in found)
    print(f"{measured} of {len(claims)} claims measured: {arguments.results / 'claims.md'}")
    for claim, (_, verdicts) in zip(claims, found, strict=True):
        print(f"  {summary(verdicts):18} {claim['claim']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    check(parser.parse_args())


if __name__ == "__main__":
    main()
