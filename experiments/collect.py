"""Puts the result rows of many jobs into one table.

python -m experiments.collect outputs                          every result.json below the folder, as a table
python -m experiments.collect outputs --csv rows.csv           and as CSV, one line per job and model
python -m experiments.collect outputs --parquet rows.parquet   and as Parquet (pip install -e ".[parquet]")
"""

import argparse
from pathlib import Path

from experiments.reporting.job_table import print_rows
from experiments.reporting.rows import read_rows
from experiments.reporting.tables import flatten, write_csv, write_parquet
from experiments.shared.command_line import one_line_errors


@one_line_errors
def collect(arguments: argparse.Namespace) -> None:
    """Prints the table of all rows, and writes them as CSV and Parquet where that is asked for."""
    rows = read_rows(arguments.folders)
    records = [record for row in rows for record in flatten(row)]
    if arguments.csv is not None:
        write_csv(records, arguments.csv)
        print(f"{len(records)} lines: {arguments.csv}")
    if arguments.parquet is not None:
        write_parquet(records, arguments.parquet)
        print(f"{len(records)} lines: {arguments.parquet}")
    print_rows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--parquet", type=Path)
    collect(parser.parse_args())


if __name__ == "__main__":
    main()
