"""Tables as files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
import pyarrow
import pyarrow.csv

WAY = pyarrow.csv.WriteOptions(quoting_style="needed")


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Leave no part of a file that could not be written to its end, and none of an earlier one."""
    try:
        yield
    except Exception:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Without the index; the same table gives the same bytes.

    By Arrow, which writes a million rows in the time that pandas takes for a tenth of them. A column of
    several types is written as text.
    """
    mixed = [name for name in table if pd.api.types.infer_dtype(table[name], skipna=True).startswith("mixed")]
    table = table.assign(**{name: table[name].map(str, na_action="ignore") for name in mixed})
    with whole(path):
        pyarrow.csv.write_csv(pyarrow.Table.from_pandas(table, preserve_index=False), path, WAY)


def write_sorted(table: pd.DataFrame, by: Sequence[str], path: Path) -> None:
    """As .parquet and .csv, its rows in the order of those of these columns that it has.

    Each is written whatever comes of the other."""
    table = table.sort_values([c for c in by if c in table], kind="stable", ignore_index=True)
    try:
        with whole(path.with_suffix(".parquet")):
            table.to_parquet(path.with_suffix(".parquet"), index=False)
    finally:
        write_csv(table, path.with_suffix(".csv"))
