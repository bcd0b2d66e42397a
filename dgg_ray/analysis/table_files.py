"""Write tables as CSV and Parquet files, with the same bytes for the same table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
import pyarrow
import pyarrow.csv

WRITE_OPTIONS = pyarrow.csv.WriteOptions(quoting_style="needed")


@contextmanager
def remove_if_incomplete(path: Path) -> Iterator[None]:
    """Remove a file if writing it fails, whether it is incomplete or left from an earlier time."""
    try:
        yield
    except Exception:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, without its index.

    Arrow writes it, because it needs a tenth of pandas' time for a million rows. A column with values of
    several types is written as text.
    """
    for name in table.columns:
        if pd.api.types.infer_dtype(table[name], skipna=True).startswith("mixed"):
            table = table.assign(**{str(name): table[name].map(str, na_action="ignore")})
    with remove_if_incomplete(path):
        pyarrow.csv.write_csv(pyarrow.Table.from_pandas(table, preserve_index=False), path, WRITE_OPTIONS)


def write_sorted(table: pd.DataFrame, by: Sequence[str], path: Path) -> None:
    """Write a table as .parquet and .csv, its rows sorted by those of the named columns that it has.

    If one of the two files cannot be written, the other one is written nevertheless.
    """
    table = table.sort_values([c for c in by if c in table], kind="stable", ignore_index=True)
    try:
        with remove_if_incomplete(path.with_suffix(".parquet")):
            table.to_parquet(path.with_suffix(".parquet"), index=False)
    finally:
        write_csv(table, path.with_suffix(".csv"))
