"""One page about many jobs: plots, a table, pictures and sounds, in a single file that needs no network.

python -m experiments.report outputs --out report     report/index.html, and its plots as PNG files beside it

Rows of different tasks, teachers or protocols are not comparable: each group has plots and a table of its own.
"""

import argparse
from pathlib import Path

from common.errors import InputError
from experiments.reporting.page import write_report
from experiments.reporting.rows import read_rows
from experiments.shared.command_line import one_line_errors


@one_line_errors
def report(arguments: argparse.Namespace) -> None:
    """Reads the rows below the folders and writes the page."""
    rows = read_rows(arguments.folders)
    if arguments.out.exists() and not arguments.out.is_dir():
        raise InputError(f"--out {arguments.out} is a file; name a folder.")
    path = write_report(rows, arguments.out, f"{len(rows)} jobs in {', '.join(map(str, arguments.folders))}")
    print(f"{len(rows)} jobs: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("report"))
    report(parser.parse_args())


if __name__ == "__main__":
    main()
