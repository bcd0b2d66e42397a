"""The settings judged, in one table, best first."""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import pandas as pd

from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import (
    chosen,
    compared,
    headline,
    metrics,
    once,
    over_blocks,
    searched,
    selected,
    settings,
)


@once
def judged(results: Results) -> pd.DataFrame:
    """Every setting on the validation split, best first: its values, and each metric with its interval.

    whole: False for what the search gave up or has not finished; it stands after all others, whatever its
        few blocks say.
    """
    table = selected(results)
    known = settings(results)
    label = {setting: name for name, setting in compared(results).items()}
    partial = set(searched(results).index) - {*results.tried, chosen(results)} if results.search else set()
    rows = []
    for setting, group in table.groupby("setting", sort=True):
        row = {
            "setting": setting,
            "whole": setting not in partial,
            "role": label.get(str(setting), ""),
            **known.loc[str(setting)].to_dict(),
        }
        for metric in metrics():
            mean, low, high, n, values = over_blocks(group, metric)
            row |= {metric: mean, f"{metric}_low": low, f"{metric}_high": high}
            row |= {f"{metric}_n": n, f"{metric}_values": values}
        done = group.dropna(subset="faa")
        row["blocks"] = done["seed"].nunique() if group["together"].any() else len(done)
        rows.append(row)
    if not rows:  # no stage was finished
        return pd.DataFrame(columns=["setting", "whole", "role", *results.parameters, *metrics()])
    frame = pd.DataFrame(rows)
    by = ["whole", headline(results), "setting"]
    return frame.sort_values(by, ascending=[False, False, True], ignore_index=True)
