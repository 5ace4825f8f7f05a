"""Checks the claims of the papers (experiments/claims.yaml) against published rows.

    python -m experiments.claims experiments/results       writes claims.md there

A difference counts where its 95 % interval leaves out 0: of the samples, which are drawn from equal seeds, and of the seeds of
calibration and training (experiments/reporting/comparison.py).
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
from experiments.reporting.comparison import Interval, Measured, SeedNoise, difference, interval, measured
from experiments.reporting.lookup import find_all
from experiments.reporting.metric_table import find_metric, negligible
from experiments.reporting.page import rendered
from experiments.reporting.paper_table import markdown
from experiments.reporting.rows import ROWS_FILE, comparable, page_place, read_rows
from experiments.shared.command_line import one_line_errors
from experiments.shared.row import Row
from experiments.sweeps.result_index import fault_lines, write_index

CLAIMS = Path(__file__).with_name("claims.yaml")
TOLD = ("feature_mse", "distance", "caption_retrieval", "latent_mse")  # of whose noise the page tells
HOLDS, FAILS, EQUAL, OPEN, UNKNOWN = "holds", "does not hold", "no difference", "cannot be told", "not measured"
PAGE = Path(__file__).with_name("reporting") / "claims.md"


def read_claims() -> list[dict[str, Any]]:
    """The claims with what tells."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.load(CLAIMS))


class Evidence:
    """The rows and files that the claims are checked against."""

    def __init__(self, folder: Path):
        self.folder = folder
        by_task: dict[str, list[Row]] = {}
        for row in read_rows([folder]):
            by_task.setdefault(page_place(row), []).append(row)
        self.noise_by_task = {task: SeedNoise(rows) for task, rows in sorted(by_task.items())}
        if not any(noise.families for noise in self.noise_by_task.values()):
            raise InputError(
                f"No rows below {folder} differ in their seed alone: publish experiment=seeds, by which differences are judged."
            )

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

    def measured(
        self, claim: Mapping[str, Any], rows: Sequence[Row], selector: Mapping[str, Any], metric: str
    ) -> Measured | None:
        """The figure that a selector means; None where it was not measured."""
        if "path" not in selector:
            return measured(find_all(rows, selector), metric)
        path = self.folder / claim["file"]
        figures: Any = read_json(path, "publish it anew (experiments.publish)") if path.is_file() else {}
        for group in selector["path"].split("."):
            figures = figures.get(group) if isinstance(figures, dict) else None
        return measured([figures or {}], metric)

    def noise(self, rows: Sequence[Row]) -> SeedNoise:
        """What seeds do to figures of the rows: these tell where they were run with several, else all of their task."""
        return SeedNoise(rows, self.noise_by_task[page_place(rows[0])]) if rows else SeedNoise([])


def cases(check: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], list[Mapping[str, Any]]]]:
    """Each single comparison that a check stands for: metric, what its selectors share, and those."""
    metrics = check.get("metric", "feature_mse")
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


def verdict(check: Mapping[str, Any], found: Sequence[Measured], metric: str, noise: SeedNoise) -> tuple[str, float]:
    """Whether the figures are as the check expects: in the order from best to worst, or within its bounds.

    And half the width of the widest interval that was looked at, as a share of the figure: smaller differences are not seen. A
    check's own margin, a share of the figure, takes the place of the interval.
    """
    own = check.get("margin")
    if "order" in check:
        pairs, sign = list(pairwise(found)), -1 if find_metric(metric).higher else 1
        gains = [difference(worse, better, metric, noise) for better, worse in pairs]
        gains = [Interval(sign * gain.value, gain.half) for gain in gains]
        gains = [Interval(0.0, 0.0) if same(*pair) else gain for gain, pair in zip(gains, pairs, strict=True)]
        if own is not None:
            gains = [Interval(gain.value, own * larger(*pair)) for gain, pair in zip(gains, pairs, strict=True)]
        seen = max(share(gain.half, larger(*pair)) for gain, pair in zip(gains, pairs, strict=True))
        if any(gain.below(0) for gain in gains):
            return FAILS, seen
        if all(gain.above(0) for gain in gains):
            return HOLDS, seen
        small = [same(*pair) or gain.within(negligible(metric, larger(*pair))) for gain, pair in zip(gains, pairs, strict=True)]
        return (EQUAL if all(few or gain.above(0) for few, gain in zip(small, gains, strict=True)) else OPEN), seen
    low, high = check["from"], check["to"]
    value = found[0].estimate.value
    if len(found) == 1:
        told = interval(found[0], metric, noise)
    else:
        against = found[1].estimate.value
        apart = difference(found[0], found[1], metric, noise)
        told = Interval(value / against, apart.half / abs(against)) if against else Interval(math.inf, 0.0)
    if own is not None:
        told = Interval(told.value, own * abs(told.value) if math.isfinite(told.value) else 0.0)
    seen = share(told.half, told.value)
    if told.below(low) or told.above(high):
        return FAILS, seen
    inside = told.value - told.half >= low and told.value + told.half <= high
    return (HOLDS if inside else OPEN), seen


def same(one: Measured, other: Measured) -> bool:
    """Whether two figures are of the very same samples, as of two criteria that choose the same layers."""
    return bool(one.estimate.replicates) and one.estimate == other.estimate


def larger(*pair: Measured) -> float:
    return max(abs(each.estimate.value) for each in pair)


def share(part: float, whole: float) -> float:
    return part / abs(whole) if whole and math.isfinite(whole) else 0.0


def check_claim(claim: Mapping[str, Any], evidence: Evidence) -> tuple[list[str], list[str]]:
    """What was measured, a text for each comparison, and the verdict of each."""
    rows, texts, verdicts = evidence.rows(claim), [], []
    noise = evidence.noise(rows)
    for check in claim["checks"]:
        for metric, shared, given in cases(check):
            selectors = [with_shared(shared, selector) for selector in given]
            found = [evidence.measured(claim, rows, selector, metric) for selector in selectors]
            known = [each for each in found if each is not None]
            if len(known) < len(found):
                verdicts.append(UNKNOWN)
                continue
            if any(each.model for each in known) and not any(
                noise.of(metric, each.model, each.varies_as)[1] for each in known if each.model
            ):
                verdicts.append(UNKNOWN)  # how much seeds change it
                continue
            decided, seen = verdict(check, known, metric, noise)
            verdicts.append(decided)
            form = find_metric(metric).form
            of = ", ".join(filter(None, (find_metric(metric).title, in_words(shared))))
            told = [
                f"{in_words(each)} **{form.format(figure.estimate.value)}**".strip()
                for each, figure in zip(given, known, strict=True)
            ]
            notes = [] if decided == HOLDS else [decided]
            notes += [f"{100 * seen:.2g} % would be seen"] if seen else []
            ending = f" ({'; '.join(notes)})" if notes else ""
            texts.append(f"{of}: {'; '.join(told)}{ending}")
    return texts, verdicts


def summary(verdicts: Sequence[str]) -> str:
    """One verdict where all comparisons agree, else how many of each."""
    kinds = [kind for kind in (HOLDS, FAILS, EQUAL, OPEN, UNKNOWN) if kind in verdicts]
    return kinds[0] if len(kinds) == 1 else ", ".join(f"{verdicts.count(kind)} {kind}" for kind in kinds)


def noise_lines(evidence: Evidence) -> Iterator[str]:
    """Of each task, how much seeds of training change its figures."""
    for task, noise in evidence.noise_by_task.items():
        deviations = {name: noise.of(name)[0] for name in TOLD}
        told = [f"{find_metric(name).title} {find_metric(name).form.format(by)}" for name, by in deviations.items() if by]
        if told:
            yield f"- {task}, {len(noise.families)} jobs with several seeds: {', '.join(told)}"


def page(claims: Sequence[Mapping[str, Any]], found: Sequence[tuple[list[str], list[str]]], evidence: Evidence) -> str:
    """The page of the claims, in Markdown; found: what check_claim says of each."""
    lines = []
    for place, (claim, (texts, verdicts)) in enumerate(zip(claims, found, strict=True), 1):
        names = claim.get("experiments", [str(Path(claim["file"]).parent)] if "file" in claim else [])
        links = ", ".join(f"[{name}]({name}/README.md)" for name in names)
        lines.append([str(place), claim["claim"], claim["published"], "<br>".join(texts), f"**{summary(verdicts)}**", links])
    verdicts = [each for _, of_claim in found for each in of_claim]
    return rendered(
        PAGE,
        noise="\n".join(noise_lines(evidence)),
        decided=sum(each in (HOLDS, FAILS, EQUAL) for each in verdicts),
        comparisons=len(verdicts),
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
