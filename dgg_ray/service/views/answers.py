"""The view of answers: forgotten ones, wrong ones, and those on which two settings differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

import pandas as pd

from dgg_ray.analysis.examples import (
    EXAMPLE,
    MIN_SCORE_DROP,
    WRONG_BELOW,
    history_until,
    rows_of_task,
    stored_predictions,
    was_forgotten,
)
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import cached, chosen_setting, scored_runs, settings_by_label
from dgg_ray.api import Outcome
from dgg_ray.core.errors import ResultsError, did_you_mean
from dgg_ray.core.interfaces import SPLITS, Example
from dgg_ray.report.thumbnails import small_copy
from dgg_ray.service.examples_query import FILTERS, PER_PAGE
from dgg_ray.service.views.findings import label_of

PICTURE_SIDE = 1024  # pixels of the longer side, at most
RUN = ["order", "seed"]
NO_SETTING = "No setting has been evaluated on all its orders and seeds yet; name one to see its answers."
NO_PREDICTIONS = (
    "The store holds no predictions of this setting on this split: the simulated engine makes none, and an "
    "unfinished run has none at its end."
)


def examples(  # noqa: PLR0913 - each is a parameter of the page's address
    outcome: Outcome,
    task: str = "",
    setting: str = "",
    split: str = "",
    stage: int | None = None,
    filter: str = "forgotten",
    other_setting: str = "",
    page: int = 1,
    per_page: int = PER_PAGE,
) -> dict[str, Any]:
    """Questions with the answers before and after, a page of them.

    before: the answer right after the question's task was trained; with other_setting, the answer of
    `setting` after the stage. after: the answer after the stage; with other_setting, that of the other one
    in the same run. An item is of the first run that passes the filter; `runs` of `runs_of` do.

    task: by default all. stage: t, 0-based; by default the last one of each run.
    drop, wrong_below: MIN_SCORE_DROP and WRONG_BELOW.
    filter: `forgotten` are the answers whose score fell by at least MIN_SCORE_DROP from before to after,
        `wrong` those that are wrong after, `all` every one.
    """
    results = outcome.results
    require("task", task, ["", *outcome.study.readers])
    require("filter", filter, FILTERS)
    known: dict[str, Any] = {"tasks": list(outcome.study.readers), "settings": [], "stages": []}
    if not outcome.begun or not (setting or chosen_setting(results)):
        if outcome.begun:
            known["settings"] = settings_with_answers(results, outcome.split(split or None))
        return page_of([], 0, page, per_page) | {"split": split, **known, "note": NO_SETTING}
    split, names = outcome.split(split or None), [outcome.setting(setting or None)]
    names += [outcome.setting(other_setting)] if other_setting else []
    tables = [stored_predictions(results, split, name) for name in names]
    stages = sorted({int(t) for table in tables for t in table["stage"].unique() if t >= 0})
    if stage is not None and stages:
        require("stage", stage, stages)
    rows = before_and_after([answers(table, stage) for table in tables])
    rows = rows_of_task(rows, task)
    selected = rows
    if filter == "forgotten":
        selected = rows[was_forgotten(rows)]
    elif filter == "wrong":
        selected = rows[rows["score_after"] < WRONG_BELOW]
    counts, of = (part.groupby(EXAMPLE).size() for part in (selected, rows))
    first = selected.drop_duplicates(EXAMPLE).sort_values(EXAMPLE, kind="stable")
    start = (page - 1) * per_page
    shown = first.iloc[start : start + per_page]
    items = [item(results, row, split, counts, of) for row in shown.to_dict("records")]
    known |= {"settings": settings_with_answers(results, split), "stages": stages}
    note = "" if len(rows) else NO_PREDICTIONS
    return page_of(items, len(first), page, per_page) | {"split": split, **known, "note": note}


def require(what: str, value: object, known: Iterable[object]) -> None:
    """Raise ResultsError unless the value is one of those known."""
    known = list(known)
    if value not in known:
        names = [str(name) for name in known if name != ""]
        raise ResultsError(
            f"no {what} is called {str(value)!r}; there are {', '.join(names)}"
            f"{did_you_mean(str(value), names)}"
        )


def page_of(items: list[dict[str, Any]], total: int, page: int, per_page: int) -> dict[str, Any]:
    """A page of the list, with its counts and what the filters mean; page: 1 is the first."""
    counts = {"total": total, "page": page, "per_page": per_page, "pages": -(-total // per_page)}
    return {"items": items, **counts, "drop": MIN_SCORE_DROP, "wrong_below": WRONG_BELOW}


def answers(predictions: pd.DataFrame, stage: int | None) -> pd.DataFrame:
    """The history of a setting's answers until a stage, the last one of each run by default."""
    end = predictions["order"].str.count(" > ") if stage is None else stage
    return history_until(predictions, end)


def before_and_after(histories: list[pd.DataFrame]) -> pd.DataFrame:
    """The answers of one setting then and now, or those of two settings in equal runs."""
    own = histories[0]
    columns = {"prediction_after_training": "before", "prediction_at_end": "after", "score": "score_after"}
    if len(histories) == 1:
        return own.rename(columns=columns).assign(score_before=own["score"] + own["score_drop"])
    keys = [*RUN, *EXAMPLE]
    other = histories[1].set_index(keys)[["prediction_at_end", "score"]].add_prefix("other ")
    both = own.join(other, on=keys, how="inner")
    return both.assign(
        before=both["prediction_at_end"],
        score_before=both["score"],
        after=both["other prediction_at_end"],
        score_after=both["other score"],
        score_drop=both["score"] - both["other score"],
    )


def item(
    results: Results, row: Mapping[Any, Any], split: str, counts: pd.Series, of: pd.Series
) -> dict[str, Any]:
    """One question with its picture's address, relative to the study's."""
    task, id_ = row["task"], row["id"]
    example = task_examples(results, task, split).get(id_)
    picture = None
    if example is not None and example.image is not None:
        picture = f"pictures/{quote(task, safe='')}/{quote(str(id_), safe='')}?split={split}"
    shown = ("order", "seed", "task", "id", "answer", "before", "after", "score_before", "score_after")
    return {
        **{name: row[name] for name in shown},
        "question": example.question.strip() if example else "",
        "choices": example.choices if example else (),
        "runs": counts[task, id_],
        "runs_of": of[task, id_],
        "picture": picture,
    }


def settings_with_answers(results: Results, split: str) -> list[dict[str, Any]]:
    """The settings with runs on a split: the compared ones first."""
    scored = {run.setting for run in scored_runs(results, split) if not run.together}
    compared = [setting for setting in settings_by_label(results).values() if setting in scored]
    ids = dict.fromkeys([*compared, *sorted(scored)])
    return [{"setting": setting, "label": label_of(results, setting)} for setting in ids]


@cached
def task_examples(results: Results, task: str, split: str) -> Mapping[str, Example]:
    """The examples of a task by id; empty where its files cannot be read here."""
    return results.archive.examples(task, split) if results.archive else {}


def picture(outcome: Outcome, task: str, id: str, split: str = "") -> tuple[bytes, str]:
    """The picture of an example and its media type, as the task's reader finds it.

    split: by default the first one that has an example of that id. Raises ResultsError where the task, the
    example or its file cannot be found.
    """
    require("task", task, outcome.study.readers)
    require("split", split, ["", *SPLITS])
    for name in [split] if split else reversed(SPLITS):
        example = task_examples(outcome.results, task, name).get(id)
        if example is not None and example.image is not None:
            try:
                data, media_type, _ = small_copy(example.image, PICTURE_SIDE)
            except OSError as problem:
                raise ResultsError(f"the picture of {task} {id!r} cannot be read: {problem}") from problem
            return data, media_type
    raise ResultsError(
        f"{outcome.results.name}: {task} has no example {id!r} with a picture, or its files are not on this "
        "machine, or have changed since"
    )
