"""Forgotten answers: right when their task was learned, and wrong at the end.

Predictions come from the store of the study (archive.py), those of the final runs alone. Questions and
pictures come from the tasks' own files, where these can still be read.
"""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pandas as pd

from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import final_runs, final_split, named, once
from dgg_ray.analysis.run_table import listing as in_words
from dgg_ray.core import draws
from dgg_ray.core.errors import ResultsError, hint
from dgg_ray.core.interfaces import Example

FALL = 0.3  # of an answer's score: right to wrong is 1, a caption that got much worse may be less
WRONG = 0.5  # a score below it
RUNS, FAR_RUNS = 4, 2  # that are looked at; in a store far away each look is a request
REPEATED = 2  # times that a confusion has to occur
COLUMNS = ["order", "seed", "task", "id", "answer", "before", "after", "fell", "score", "last"]


@once
def answers(results: Results, split: str, setting: str) -> pd.DataFrame:
    """A row for every question in the final runs of a setting: what was answered then, and what now.

    before: right after the task was learned, "" for the task learned last; after: at the end; score: of
    that, in [0, 1]; fell: by how much it is lower than before, nan for the task learned last (`last`).
    No rows where the store kept no predictions.
    """
    archive, runs = results.archive, final_runs(results, split)
    if archive is None:
        return pd.DataFrame(columns=COLUMNS)
    most = RUNS if archive.near else FAR_RUNS
    names = [
        (run.setting, run.order, run.seed) for run in runs if run.setting == setting and not run.together
    ]
    found = archive.predictions(names[:most], split)
    last = found["order"].str.count(" > ")
    run = ["order", "seed", "task", "id"]
    then = found[found["task"] == found["trained_task"]].set_index(run)[["prediction", "score"]]
    now = found[found["stage"] == last].join(then.add_prefix("then "), on=run)
    ends = now["task"] == now["trained_task"]
    return now.rename(columns={"prediction": "after"}).assign(
        before=now["then prediction"].where(~ends, "").fillna(""),
        fell=(now["then score"] - now["score"]).where(~ends),
        last=ends,
    )[COLUMNS]


def lost(results: Results, split: str, setting: str, task: str = "") -> pd.DataFrame:
    """Questions answered right once and wrong at the end: a row each, as the first run that lost it has it.

    runs: that lost it, `of` as many that learned another task after this one.
    """
    rows = answers(results, split, setting)
    rows = rows[~rows["last"].astype(bool) & ((rows["task"] == task) | (not task))]
    fallen = rows[rows["fell"] >= FALL]
    first = fallen.drop_duplicates(["task", "id"]).set_index(["task", "id"])
    runs = fallen.groupby(["task", "id"]).size().rename("runs")
    of = rows.groupby(["task", "id"]).size().rename("of")
    return first.join(runs).join(of).reset_index()


def sample(rows: pd.DataFrame, count: int) -> pd.DataFrame:
    """As many rows of `lost`, drawn at random, the same again and again; of each task in proportion.

    Every task that lost something has one, as far as `count` goes.
    """
    sizes = rows.groupby("task").size().sort_values(ascending=False, kind="stable")
    sizes = sizes.iloc[:count]
    share = sizes * min(1.0, count / max(int(sizes.sum()), 1))
    places = share.clip(lower=1).astype(int)
    for task in (share - places).sort_values(ascending=False, kind="stable").index:
        if places.sum() < min(count, int(sizes.sum())) and places[task] < sizes[task]:
            places[task] += 1
    while places.sum() > count:
        places[places.idxmax()] -= 1
    drawn = []
    for task, number in places.items():
        mine = rows[rows["task"] == task].sort_values("id", kind="stable")
        which = draws.generator(0, str(task), "examples").permutation(len(mine))[:number]
        drawn.append(mine.iloc[sorted(which)])
    return pd.concat(drawn, ignore_index=True) if drawn else rows


def confusions(results: Results, split: str, setting: str, task: str = "") -> pd.DataFrame:
    """Wrong answers at the end that occur more than once, the most frequent first.

    task, answer (the right one), after (what was said), times, of: answers to questions with that right
    answer, one for each run.
    """
    rows = answers(results, split, setting)
    rows = rows[(rows["task"] == task) | (not task)]
    rows = rows.assign(after=rows["after"].astype(str).str.strip())
    of = rows.groupby(["task", "answer"]).size().rename("of")
    wrong = rows[rows["score"] < WRONG]
    times = wrong.groupby(["task", "answer", "after"]).size().rename("times")
    found = times[times >= REPEATED].reset_index().join(of, on=["task", "answer"])
    by = ["times", "task", "answer", "after"]
    return found.sort_values(by, ascending=[False, True, True, True], kind="stable", ignore_index=True)


# -- with questions and pictures -------------------------------------------------------------------


class Shown(NamedTuple):
    """A row of `lost` and its example; None where the task's files cannot be read."""

    row: dict[str, Any]
    example: Example | None

    @property
    def question(self) -> str:
        return self.example.question.strip() if self.example else ""


def shown(results: Results, rows: pd.DataFrame, split: str) -> tuple[list[Shown], str]:
    """The rows with their examples; and a line that names the tasks whose examples are missing, or ""."""
    assert results.archive is not None  # it gave the rows
    examples = {task: results.archive.examples(task, split) for task in dict.fromkeys(rows["task"])}
    found = [Shown(row, examples[row["task"]].get(row["id"])) for row in rows.to_dict("records")]
    missing = sorted({one.row["task"] for one in found if one.example is None})
    if not missing:
        return found, ""
    return found, (
        f"Questions and pictures of {in_words(missing)} are not shown: the files are not on this machine, or "
        "have changed since."
    )


# -- as `dgg-ray examples` prints it ---------------------------------------------------------------


def listing(
    results: Results, task: str = "", split: str = "", count: int = 20, method: str = ""
) -> dict[str, Any]:
    """The command's output, as JSON. Raises ResultsError for names that the study does not have."""
    split = split or final_split(results)
    label, setting = named(results, method)
    tasks = sorted({str(name) for name in results.table["eval_task"].unique()})
    if task and task not in tasks:
        raise ResultsError(
            f"{results.name} has no task {task!r}; it has {', '.join(tasks)}{hint(task, tasks)}"
        )
    known = sorted({str(name) for name in results.table["split"].unique()})
    if split not in known:
        raise ResultsError(f"nothing was evaluated on {split!r}, only on {' and '.join(known)}")
    every = answers(results, split, setting)
    if every.empty:
        raise ResultsError(
            f"the store of {results.name} holds no predictions of {label} on the {split} split; a study with "
            "the simulated engine makes none, and a run that is not finished has none at its end"
        )
    found = lost(results, split, setting, task)
    some, note = shown(results, sample(found, count), split)
    mine = every[(every["task"] == task) | (not task)]
    return {
        "study": results.name,
        "method": label,
        "split": split,
        "task": task or None,
        "runs": len(mine.drop_duplicates(["order", "seed"])),
        "questions": len(mine.drop_duplicates(["task", "id"])),
        "right_then_wrong": len(found),
        "examples": [as_json(one) for one in some],
        "confusions": json.loads(
            str(confusions(results, split, setting, task).head(count).to_json(orient="records"))
        ),
        "note": note,
    }


def as_json(one: Shown) -> dict[str, Any]:
    row, picture = one.row, one.example.image if one.example else None
    kept = ("task", "id", "answer", "before", "after", "runs", "of", "order", "seed")
    where = str(picture) if picture is not None and not hasattr(picture, "shape") else None
    return {"question": one.question, "picture": where, **{name: row[name] for name in kept}}


def as_text(found: dict[str, Any]) -> str:
    """The same for people."""
    of_task = f" of {found['task']}" if found["task"] else ""
    lines = [
        f"{found['method']} on the {found['split']} split: {found['right_then_wrong']} of "
        f"{found['questions']} questions{of_task} were answered right after their task was learned and "
        f"wrong at the end, in at least one of {found['runs']} runs."
    ]
    for number, one in enumerate(found["examples"], start=1):
        lines += [
            "",
            f"{number:3d}  {one['task']}  {one['id']}  {one['picture'] or ''}".rstrip(),
            *(f"     {line}" for line in one["question"].strip().splitlines()),
            f"     right: {one['answer']}   then: {one['before']}   now: {one['after']}   "
            f"(lost in {one['runs']} of {one['of']} runs)",
        ]
    if found["confusions"]:
        lines += ["", "Most frequent wrong answers at the end:"]
        lines += [
            f"  {one['task']}: {one['after']!r} instead of {one['answer']!r}, {one['times']} of {one['of']} "
            "times"
            for one in found["confusions"]
        ]
    return "\n".join([*lines, *(["", found["note"]] if found["note"] else [])])
