"""Checks the claims of the papers (experiments/claims.yaml) against published rows.

    python -m experiments.claims experiments/results       writes claims.md there

A difference counts where it is larger than that between seeds: the largest relative difference that the rows of
experiment=seeds show in the same figure.
"""

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import write_atomically
from experiments.command_line import one_line_errors
from experiments.lookup import find
from experiments.paper_table import markdown
from experiments.rows import Row, read_rows

CLAIMS = Path(__file__).with_name("claims.yaml")
SEEDS = "seeds"  # the experiment that shows the noise
HIGHER_IS_BETTER = ("caption_retrieval", "ssim", "psnr", "pickscore", "clip_score", "upward")
HOLDS, FAILS, OPEN, UNKNOWN = "holds", "does not hold", "within the noise", "not measured"


def read_claims() -> list[dict[str, Any]]:
    """The claims with what tells."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.load(CLAIMS))


def relative(a: float, b: float) -> float:
    """By how much b is larger than a, as a share of the larger."""
    return (b - a) / max(abs(a), abs(b)) if a != b else 0.0


def noise(rows: Sequence[Row], metric: str) -> float:
    """The largest relative difference between two of the rows; 0 where they do not have the figure."""
    from experiments.lookup import figures_of

    values = [value for row in rows if isinstance(value := figures_of(row, {}).get(metric), int | float)]
    return abs(relative(min(values), max(values))) if values else 0.0


class Evidence:
    """The rows and files that the claims are checked against."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.seeds = read_rows([folder / SEEDS])

    def rows(self, claim: Mapping[str, Any]) -> list[Row]:
        folders = [self.folder / name for name in claim.get("experiments", [])]
        return read_rows(folders) if folders and all(folder.is_dir() for folder in folders) else []

    def value(self, claim: Mapping[str, Any], rows: Sequence[Row], selector: Mapping[str, Any], metric: str) -> float | None:
        """The figure that a selector means; None where it was not measured."""
        if "path" in selector:
            path = self.folder / claim["file"]
            value: Any = json.loads(path.read_text()) if path.is_file() else {}
            for part in selector["path"].split("."):
                value = value.get(part) if isinstance(value, dict) else None
        else:
            value = (find(rows, selector) or {}).get(metric)
        return None if value is None or not math.isfinite(value) else value

    def command(self, experiment: str) -> str:
        """The command whose rows lie in a folder of the results."""
        path = self.folder / experiment / "sweep.json"
        return json.loads(path.read_text())["command"] if path.is_file() else ""


def cases(check: Mapping[str, Any]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Metric and selectors of each single comparison that a check stands for."""
    metrics = check.get("metric", "distance")
    for metric in metrics if isinstance(metrics, list) else [metrics]:
        for shared in check.get("each", [{}]):
            given = (
                check["order"] if "order" in check else [check["value"], *([check["against"]] if "against" in check else [])]
            )
            yield metric, [selector if selector.get("model") == "teacher" else {**shared, **selector} for selector in given]


def number(value: float, metric: str) -> str:
    """A figure in few digits."""
    if metric in ("caption_retrieval", "sparsity_actual", "upward"):
        return f"{100 * value:.1f} %"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def verdict(check: Mapping[str, Any], values: Sequence[float], metric: str, margin: float) -> str:
    """Whether the values are as the check expects: in the order from best to worst, or within its bounds."""
    if "order" in check:
        sign = -1 if metric in HIGHER_IS_BETTER else 1
        gains = [sign * relative(better, worse) for better, worse in pairwise(values)]
        if any(gain < -margin for gain in gains):
            return FAILS
        return HOLDS if all(gain > margin for gain in gains) else OPEN
    value = values[0] / values[1] if len(values) > 1 else values[0]
    return HOLDS if check["from"] <= value <= check["to"] else FAILS


def check_claim(claim: Mapping[str, Any], evidence: Evidence) -> tuple[list[str], list[str]]:
    """What was measured, a text for each comparison, and the verdict of each."""
    rows = evidence.rows(claim)
    texts, verdicts = [], []
    for check in claim["checks"]:
        for metric, selectors in cases(check):
            values = [evidence.value(claim, rows, selector, metric) for selector in selectors]
            if any(value is None for value in values):
                verdicts.append(UNKNOWN)
                continue
            found = verdict(check, values, metric, noise(evidence.seeds, metric))
            name = selectors[0].get("path", metric).replace("_", " ")
            told = (" against " if len(values) == 2 else ", ").join(number(value, metric) for value in values)
            texts.append(f"{name} {told}{'' if found == HOLDS else f' ({found})'}")
            verdicts.append(found)
    return texts, verdicts


def summary(verdicts: Sequence[str]) -> str:
    """One verdict where all comparisons agree, else how many hold."""
    kinds = set(verdicts)
    return kinds.pop() if len(kinds) == 1 else f"holds in {verdicts.count(HOLDS)} of {len(verdicts)}"


def page(claims: Sequence[Mapping[str, Any]], evidence: Evidence) -> str:
    """The page of the claims, in Markdown."""
    lines, commands = [], {}
    for place, claim in enumerate(claims, 1):
        texts, verdicts = check_claim(claim, evidence)
        names = claim.get("experiments", [str(Path(claim["file"]).parent)] if "file" in claim else [])
        commands |= {name: evidence.command(name) for name in names}
        links = ", ".join(f"[{name}]({name}/README.md)" for name in names)
        lines.append([str(place), claim["claim"], claim["published"], "<br>".join(texts), f"**{summary(verdicts)}**", links])
    margins = ", ".join(
        f"{metric.replace('_', ' ')} {100 * noise(evidence.seeds, metric):.1f} %"
        for metric in ("distance", "caption_retrieval", "latent_mse", "time")
    )
    return "\n".join(
        [
            "# Claims",
            "",
            "What the papers claim of large models, looked for in the small ones of this project: other models, data and",
            "metrics, so that only the direction of a claim can be compared. *distance* is a Fréchet distance over the",
            "features that the result pages name, never FID. Values stand from the one that should be best to the worst. A",
            f"difference counts that is larger than between three seeds of one job: {margins}",
            f"(`{evidence.command(SEEDS)}`).",
            "",
            markdown(["", "claim", "published", "measured here", "verdict", "rows"], lines),
            "",
            "The commands:",
            "",
            *(f"- {name}: `{command}`" for name, command in sorted(commands.items())),
            "",
            "`python -m experiments.claims experiments/results` writes this page from the rows (experiments/claims.yaml).",
            "",
        ]
    )


@one_line_errors
def check(arguments: argparse.Namespace) -> None:
    """Writes the page and tells how many claims were measured."""
    claims = read_claims()
    if not (arguments.results / SEEDS).is_dir():
        raise InputError(f"{arguments.results} holds no rows of experiment={SEEDS}, which tell what a difference means.")
    evidence = Evidence(arguments.results)
    write_atomically(arguments.results / "claims.md", page(claims, evidence).encode())
    verdicts = [check_claim(claim, evidence)[1] for claim in claims]
    measured = [found for found in verdicts if UNKNOWN not in found]
    print(f"{len(measured)} of {len(claims)} claims measured: {arguments.results / 'claims.md'}")
    for claim, found in zip(claims, verdicts, strict=True):
        print(f"  {summary(found):18} {claim['claim']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    check(parser.parse_args())


if __name__ == "__main__":
    main()
