"""Small tables for the terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence

GAP = "  "


def format_table(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """Format rows as indented lines; `left`: the columns that are aligned left, the others are aligned right.

    >>> for line in format_table([("task", "train"), ("charts", "1,200")]): print(line)
      task    train
      charts  1,200
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((GAP + GAP.join(cells)).rstrip())
    return lines
