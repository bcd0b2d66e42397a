"""Forgotten answers: correct right after their task was trained, and wrong at the end.

Predictions come from the study's store (archive.py), for the final runs alone. Questions and images come
from the tasks' own files, where these can still be read.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pandas as pd

from dgg_ray.analysis.predictions import PREDICTION_COLUMNS
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import (
    cached,
    evaluated_tasks,
    final_runs,
    final_split,
    find_setting,
    scored_runs,
)
from dgg_ray.core.errors import ResultsError, did_you_mean
from dgg_ray.core.interfaces import Example
from dgg_ray.core.phrases import join_names
from dgg_ray.core.rng import make_rng

MIN_SCORE_DROP = (
    0.3  # of a forgotten answer: from right to wrong is 1, but a caption may become worse by less
)
WRONG_BELOW = 0.5  # answers that score less are wrong
MAX_RUNS, MAX_REMOTE_RUNS = 4, 2  # runs that are read; on a remote store each costs requests
MIN_REPETITIONS = 2  # of a confusion that is listed
HISTORY_COLUMNS = [
    *("order", "seed"),  # the run
    *("task", "id", "answer"),  # the example and its correct answer
    "prediction_after_training",  # right after the task was trained; "" for the last task of the order
    "prediction_at_end",
    "score_drop",  # by how much the score at the end is lower; nan for the last task of the order
    "score",  # of the prediction at the end, in [0, 1]
    "is_last_task",
]
EXAMPLE = ["task", "id"]


@cached
def stored_predictions(results: Results, split: str, setting: str) -> pd.DataFrame:
    """Return every answer in a setting's final runs, of every stage; PREDICTION_COLUMNS.

    A setting without final runs is read in the runs that it has. There are no rows where the store holds no
    predictions.
    """
    archive = results.archive
    if archive is None:
        return pd.DataFrame(columns=[*PREDICTION_COLUMNS])
    final, scored = (
        [run for run in runs if run.setting == setting and not run.together]
        for runs in (final_runs(results, split), scored_runs(results, split))
    )
    names = [(run.setting, run.order, run.seed) for run in final or scored]
    return archive.predictions(names[: MAX_RUNS if archive.is_local else MAX_REMOTE_RUNS], split)


@cached
def answer_history(results: Results, split: str, setting: str) -> pd.DataFrame:
    """Return the answers to every question in a setting's final runs, then and at the end; HISTORY_COLUMNS.

    There are no rows where the store holds no predictions.
    """
    predictions = stored_predictions(results, split, setting)
    return history_until(predictions, predictions["order"].str.count(" > "))


def history_until(predictions: pd.DataFrame, stage: pd.Series | int) -> pd.DataFrame:
    """Return each question's answer right after its task was trained, and after a stage; HISTORY_COLUMNS.

    stage: t, 0-based, of every row's run, or one for all of them. The columns call it the end, and the task
    trained in it the last one.
    """
    keys = ["order", "seed", *EXAMPLE]
    own_stage = predictions[predictions["task"] == predictions["trained_task"]]
    after_training = own_stage.set_index(keys)[["prediction", "score"]].add_prefix("earlier ")
    at_end = predictions[predictions["stage"] == stage].join(after_training, on=keys)
    is_last_task = at_end["task"] == at_end["trained_task"]
    return at_end.rename(columns={"prediction": "prediction_at_end"}).assign(
        prediction_after_training=at_end["earlier prediction"].where(~is_last_task, "").fillna(""),
        score_drop=(at_end["earlier score"] - at_end["score"]).where(~is_last_task),
        is_last_task=is_last_task,
    )[HISTORY_COLUMNS]


def forgotten_answers(results: Results, split: str, setting: str, task: str = "") -> pd.DataFrame:
    """Return the questions answered correctly after training and wrongly at the end: a row per question.

    A row is that of the first run that forgot the answer, with HISTORY_COLUMNS and two more:

    runs_forgotten: runs that forgot it.
    runs_followed: runs that trained another task after this one, and so could forget it.
    """
    rows = answer_history(results, split, setting)
    rows = rows_of_task(rows[~rows["is_last_task"].astype(bool)], task)
    dropped = rows[was_forgotten(rows)]
    first = dropped.drop_duplicates(EXAMPLE).set_index(EXAMPLE)
    runs_forgotten = dropped.groupby(EXAMPLE).size().rename("runs_forgotten")
    runs_followed = rows.groupby(EXAMPLE).size().rename("runs_followed")
    return first.join(runs_forgotten).join(runs_followed).reset_index()


def was_forgotten(rows: pd.DataFrame) -> pd.Series:
    """Mark the rows of a history whose score fell by at least MIN_SCORE_DROP."""
    return rows["score_drop"] >= MIN_SCORE_DROP


def rows_of_task(rows: pd.DataFrame, task: str) -> pd.DataFrame:
    """Return the rows of one task; "" stands for all."""
    return rows[rows["task"] == task] if task else rows


def sample_in_proportion(rows: pd.DataFrame, count: int) -> pd.DataFrame:
    """Draw rows of `forgotten_answers` at random, always the same ones, from each task in proportion.

    Every task has at least one row, as far as `count` allows.
    """
    sizes = rows.groupby("task").size().sort_values(ascending=False, kind="stable")
    sizes = sizes.iloc[:count]
    shares = sizes * min(1.0, count / max(int(sizes.sum()), 1))
    counts = shares.clip(lower=1).astype(int)
    for task in (shares - counts).sort_values(ascending=False, kind="stable").index:
        if counts.sum() < min(count, int(sizes.sum())) and counts[task] < sizes[task]:
            counts[task] += 1
    while counts.sum() > count:
        counts[str(counts.idxmax())] -= 1
    samples = []
    for task, number in counts.items():
        task_rows = rows[rows["task"] == task].sort_values("id", kind="stable")
        indices = make_rng(0, str(task), "examples").permutation(len(task_rows))[:number]
        samples.append(task_rows.iloc[sorted(indices)])
    return pd.concat(samples, ignore_index=True) if samples else rows


def confusions(results: Results, split: str, setting: str, task: str = "") -> pd.DataFrame:
    """Return the wrong answers at the end that occur more than once, the most frequent first.

    task, answer, prediction: the task, the correct answer, and the answer given instead.
    count: how often it was given, over questions and runs.
    total: answers to questions with that correct answer.
    """
    rows = rows_of_task(answer_history(results, split, setting), task)
    rows = rows.assign(prediction=rows["prediction_at_end"].astype(str).str.strip())
    total = rows.groupby(["task", "answer"]).size().rename("total")
    wrong = rows[rows["score"] < WRONG_BELOW]
    counts = wrong.groupby(["task", "answer", "prediction"]).size().rename("count")
    repeated = counts[counts >= MIN_REPETITIONS].reset_index().join(total, on=["task", "answer"])
    by = ["count", "task", "answer", "prediction"]
    return repeated.sort_values(by, ascending=[False, True, True, True], kind="stable", ignore_index=True)


# -- with questions and images ---------------------------------------------------------------------


class ForgottenExample(NamedTuple):
    """A row of `forgotten_answers` and its example; None where the task's files cannot be read."""

    row: dict[Any, Any]
    example: Example | None

    @property
    def question(self) -> str:
        """The question; "" where it cannot be read."""
        return self.example.question.strip() if self.example else ""


def with_examples(results: Results, rows: pd.DataFrame, split: str) -> tuple[list[ForgottenExample], str]:
    """Return the rows with their examples, and a sentence that names the tasks without examples, or ""."""
    assert results.archive is not None  # it provided the rows
    examples = {task: results.archive.examples(task, split) for task in dict.fromkeys(rows["task"])}
    forgotten = [
        ForgottenExample(row, examples[row["task"]].get(row["id"])) for row in rows.to_dict("records")
    ]
    missing = sorted({item.row["task"] for item in forgotten if item.example is None})
    if not missing:
        return forgotten, ""
    return forgotten, (
        f"Questions and images of {join_names(missing)} are not shown: the files are not on this machine, "
        "or have changed since."
    )


# -- for the command `dgg-ray examples` ------------------------------------------------------------


def examples_report(
    results: Results, task: str = "", split: str = "", count: int = 20, method: str = ""
) -> dict[str, Any]:
    """Return the command's output for JSON. Raises ResultsError for names that the study does not have."""
    split = split or final_split(results)
    label, setting = find_setting(results, method)
    tasks = sorted(evaluated_tasks(results))  # what was never trained cannot be forgotten in this sense
    if task and task not in tasks:
        raise ResultsError(
            f"{results.name} has no task {task!r}; it has {', '.join(tasks)}{did_you_mean(task, tasks)}"
        )
    splits = sorted({str(name) for name in results.table["split"].unique()})
    if split not in splits:
        raise ResultsError(f"nothing was evaluated on {split!r}, only on {' and '.join(splits)}")
    history = answer_history(results, split, setting)
    if history.empty:
        raise ResultsError(
            f"the store of {results.name} holds no predictions of {label} on the {split} split; the "
            "simulated engine makes none, and an unfinished run has none at its end"
        )
    forgotten = forgotten_answers(results, split, setting, task)
    examples, note = with_examples(results, sample_in_proportion(forgotten, count), split)
    rows = rows_of_task(history, task)
    repeated = confusions(results, split, setting, task).head(count)
    return {
        "study": results.name,
        "method": label,
        "split": split,
        "task": task or None,
        "runs": len(rows.drop_duplicates(["order", "seed"])),
        "questions": len(rows.drop_duplicates(EXAMPLE)),
        "forgotten": len(forgotten),
        "examples": [example_record(example) for example in examples],
        "confusions": json.loads(str(repeated.to_json(orient="records"))),
        "note": note,
    }


def example_record(forgotten: ForgottenExample) -> dict[str, Any]:
    """Return one example for JSON; `image` is its path, or null for an image that is no file."""
    row, image = forgotten.row, forgotten.example.image if forgotten.example else None
    names = ["task", "id", "answer", "prediction_after_training", "prediction_at_end"]
    names += ["runs_forgotten", "runs_followed", "order", "seed"]
    path = str(image) if image is not None and not hasattr(image, "shape") else None
    return {"question": forgotten.question, "image": path, **{name: row[name] for name in names}}


def format_examples(report: dict[str, Any]) -> str:
    """Format the output of `examples_report` as text."""
    of_task = f" of {report['task']}" if report["task"] else ""
    lines = [
        f"{report['method']} on the {report['split']} split: {report['forgotten']} of {report['questions']} "
        f"questions{of_task} were answered correctly right after their task was trained and wrongly at the "
        f"end, in at least one of {report['runs']} runs."
    ]
    for number, example in enumerate(report["examples"], start=1):
        lines += [
            "",
            f"{number:3d}  {example['task']}  {example['id']}  {example['image'] or ''}".rstrip(),
            *(f"     {line}" for line in example["question"].strip().splitlines()),
            f"     correct: {example['answer']}   after training: {example['prediction_after_training']}   "
            f"at the end: {example['prediction_at_end']}   "
            f"(forgotten in {example['runs_forgotten']} of {example['runs_followed']} runs)",
        ]
    if report["confusions"]:
        lines += ["", "Most frequent wrong answers at the end:"]
        for row in report["confusions"]:
            times = f"{row['count']} of {row['total']} times"
            lines.append(f"  {row['task']}: {row['prediction']!r} instead of {row['answer']!r}, {times}")
    if report["note"]:
        lines += ["", report["note"]]
    return "\n".join(lines)
