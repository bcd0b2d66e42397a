"""The comparison of settings of any studies of a store: what differs, and the scores on shared blocks.

Two settings share a block where they were run on the same order and seed, with the same training data and
the same evaluations of all its tasks. On other blocks the scores differ by more than the settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pandas as pd

from dgg_ray.analysis.comparison_tables import (
    PairedIntervals,
    difference_intervals,
    interval_over_blocks,
)
from dgg_ray.analysis.run_table import (
    BLOCK,
    ScoredRun,
    chosen_setting,
    find_setting,
    runs,
    scored_runs,
    setting_values,
)
from dgg_ray.analysis.verdict import METRIC_LABELS
from dgg_ray.api import Outcome
from dgg_ray.config import study_changes
from dgg_ray.config.study import Study
from dgg_ray.core.errors import ResultsError
from dgg_ray.core.phrases import join_names, plural
from dgg_ray.report.figures.learning_along import means_along
from dgg_ray.stats.formats import UNLABELLED, UNLABELLED_SIGNED, format_estimate
from dgg_ray.stats.intervals import MIN_CLUSTERS, Interval

FEWEST, MOST = 2, 8  # subjects of a comparison
Block = tuple[str, int]  # task names joined by " > ", seed


class Subject(NamedTuple):
    """A setting of a study. name: of the subject, in sentences; study: at this setting."""

    name: str
    outcome: Outcome
    setting: str
    label: str
    study: Study

    def scored(self, split: str) -> dict[Block, ScoredRun]:
        """Its runs on a split, by block."""
        found = scored_runs(self.outcome.results, split) if self.outcome.begun else []
        return {(run.order, run.seed): run for run in found if run.setting == self.setting}

    def metrics(self, split: str, blocks: Sequence[Block]) -> pd.DataFrame:
        """The rows of `runs` on these blocks, by block, in their order."""
        table = runs(self.outcome.results, split)
        table = table[table["setting"] == self.setting].set_index(BLOCK, drop=False)
        table = table.rename_axis([None, None])  # the columns have these names
        return table.loc[[block for block in blocks if block in table.index]]

    def data(self, split: str) -> dict[str, tuple[str, str]]:
        """Task → fingerprint of its training data, and of its evaluation on a split."""
        tasks = self.study.data.tasks
        return {
            name: (task.digests["train"], self.study.runs.evaluation(name, split).key)
            for name, task in tasks.items()
        }


def compare_settings(subjects: Sequence[tuple[Outcome, str]]) -> dict[str, Any]:
    """Compare 2 to 8 settings, given with their studies; "" is the setting that the study chose.

    rows: each subject's metrics over the blocks that all share. `difference` is this subject minus the
    first, paired over these blocks; the bounds hold for all subjects of a metric at once (Bonferroni).
    Where no block is shared by all, scores are over each subject's own blocks, and differences over those
    that it shares with the first, if any; `warnings` says so.
    """
    if not FEWEST <= len(subjects) <= MOST:
        raise ResultsError(f"a comparison is of {FEWEST} to {MOST} settings, got {len(subjects)}")
    compared = named_subjects(subjects)
    on_test = all(finished_blocks(subject, "test") for subject in compared)
    split = "test" if on_test else "validation"
    shared = shared_blocks(compared, split)
    rows, warnings = [], data_warnings(compared, split)
    for subject in compared:
        pairs = shared or shared_blocks([compared[0], subject], split)
        rows.append(row_of(subject, compared[0], split, shared, pairs, len(compared) - 1))
    along = [
        (subject.name, run)
        for subject in compared
        for block, run in subject.scored(split).items()
        if not shared or block in shared
    ]
    return {
        "split": split,
        "subjects": [
            {"name": s.name, "study": s.outcome.results.name, "setting": s.setting, "label": s.label}
            for s in compared
        ],
        "differences": difference_sentences(compared),
        "warnings": [*warnings, *block_warnings(compared, split, shared), *choice_warnings(compared, split)],
        "metrics": [{"key": metric, "label": label} for metric, label in METRIC_LABELS.items()],
        "blocks": [{"order": order, "seed": seed} for order, seed in shared],
        "rows": rows,
        "curves": {"learning": curves(along)},
    }


def named_subjects(subjects: Sequence[tuple[Outcome, str]]) -> list[Subject]:
    """The subjects, each with a name of its own. Raises ResultsError for a setting that is listed twice."""
    found = []
    for outcome, name in subjects:
        label, setting = find_setting(outcome.results, name)
        study = next((s for (of, *_), (s, _) in outcome.archive.runs.items() if of == setting), None)
        if study is None:
            raise ResultsError(f"{outcome.results.name}: setting {setting} has no run yet")
        studies = {o.results.name for o, _ in subjects}
        title = outcome.results.name if len(studies) == len(subjects) else f"{outcome.results.name}: {label}"
        found.append(Subject(title, outcome, setting, label, study))
    listed = [(subject.outcome.results.name, subject.setting) for subject in found]
    if len(set(listed)) < len(listed):
        twice = next(subject for subject, key in zip(found, listed, strict=True) if listed.count(key) > 1)
        raise ResultsError(f"setting {twice.setting} of {twice.outcome.results.name} is listed twice")
    return found


def shared_blocks(subjects: Sequence[Subject], split: str) -> list[Block]:
    """The blocks that all these subjects finished, with equal data of all tasks."""
    first, *others = subjects
    data = [subject.data(split) for subject in subjects]
    finished = [finished_blocks(other, split) for other in others]
    return [
        block
        for block in finished_blocks(first, split)
        if all(block in own for own in finished)
        and all(known.get(task) == data[0][task] for known in data for task in block[0].split(" > "))
    ]


def finished_blocks(subject: Subject, split: str) -> list[Block]:
    """The blocks on which the subject's run is evaluated to its end."""
    if not subject.scored(split):
        return []
    table = subject.metrics(split, list(subject.scored(split))).dropna(subset="faa")
    return list(zip(table["order"], table["seed"].astype(int), strict=True))


def row_of(
    subject: Subject, first: Subject, split: str, shared: Sequence[Block], pairs: Sequence[Block], family: int
) -> dict[str, Any]:
    """The metrics of a subject, over the shared blocks or its own, and its difference to the first one."""
    values = setting_values(subject.outcome.results)["strategy"]
    row = {
        "name": subject.name,
        "study": subject.outcome.results.name,
        "setting": subject.setting,
        "label": subject.label,
        "strategy": values.get(subject.setting, ""),
        "metrics": {},
    }
    blocks = shared or finished_blocks(subject, split)
    if not blocks:
        return row | {"blocks": 0}
    own = subject.metrics(split, blocks)
    for metric in METRIC_LABELS:
        score = interval_over_blocks(own, metric)
        cell: dict[str, Any] = {"score": score.mean, "low": score.low, "high": score.high, "n": score.n}
        cell["text"] = format_estimate(score, UNLABELLED)
        row["metrics"][metric] = cell | difference_of(subject, first, split, pairs, metric, family)
    return row | {"blocks": len(own)}


def difference_of(
    subject: Subject, first: Subject, split: str, pairs: Sequence[Block], metric: str, family: int
) -> dict[str, Any]:
    """The paired difference of a subject to the first; all null for the first itself and without a pair."""
    names = ("difference", "difference_low", "difference_high", "pairs")
    if subject is first or not pairs:
        return dict.fromkeys(names) | {"difference_text": ""}
    own, other = (one.metrics(split, pairs) for one in (subject, first))
    together = bool(own["together"].any() or other["together"].any())
    gaps = (own[metric] - other[metric]).dropna()
    found: PairedIntervals = difference_intervals(gaps, metric, family, together)
    shown = Interval(found.single.mean, *found.simultaneous, found.single.n, found.single.values)
    text = format_estimate(shown, UNLABELLED_SIGNED) if len(gaps) else ""
    return dict(zip(names, shown, strict=False)) | {"difference_text": text}


def curves(runs_by_name: Sequence[tuple[str, ScoredRun]]) -> list[dict[str, Any]]:
    """The mean score over the tasks trained so far, a line for each subject."""
    table, lines = means_along(runs_by_name), []
    for name in dict.fromkeys(name for name, _ in runs_by_name):
        rows = table[table["label"] == name].to_dict("records")
        points = [
            {"tasks": row["stage"] + 1, **{k: row[k] for k in ("score", "low", "high")}} for row in rows
        ]
        lines.append({"name": name, "points": points})
    return lines


# -- in words --------------------------------------------------------------------------------------


def difference_sentences(subjects: Sequence[Subject]) -> list[str]:
    """Say what differs between the studies at these settings, a sentence for each part."""
    names = [subject.name for subject in subjects]
    changes = list(study_changes.differing_values([subject.study for subject in subjects]))
    sentences = []
    for path, values in changes[: study_changes.MOST]:
        texts = study_changes.around_first_difference(*values)
        by_text: dict[str, list[str]] = {}
        for name, text in zip(names, texts, strict=True):
            by_text.setdefault(text, []).append(name)
        parts = [f"{text} in {join_names(of)}" for text, of in by_text.items()]
        sentences.append(f"{path}: {'; '.join(parts)}.")
    if len(changes) > study_changes.MOST:
        sentences.append(f"There are {len(changes) - study_changes.MOST} more differences.")
    return sentences


def data_warnings(subjects: Sequence[Subject], split: str) -> list[str]:
    """Name the tasks that two subjects have in common under one name, with other data."""
    first, *others = subjects
    data, sentences = first.data(split), []
    for other in others:
        theirs = other.data(split)
        differing = [task for task in data if task in theirs and data[task] != theirs[task]]
        if differing:
            sentences.append(
                f"{first.name} and {other.name} have other data, scorers or answer lengths of "
                f"{join_names(differing)}: their scores on these tasks cannot be compared."
            )
    return sentences


def block_warnings(subjects: Sequence[Subject], split: str, shared: Sequence[Block]) -> Iterator[str]:
    """Say on which split and blocks the comparison rests: where not on the test split, and few or none."""
    if split != "test":
        yield "Not every setting has finished a run on the test split: the scores are of the validation one."
    if not shared:
        without = [s.name for s in subjects[1:] if not shared_blocks([subjects[0], s], split)]
        yield (
            "No block (order and seed, with equal data) was finished by all of these settings. Scores are "
            "over each setting's own blocks, which may be easier or harder ones."
        )
        if without:
            yield f"No difference can be given between {subjects[0].name} and {join_names(without)}."
        return
    clusters = interval_over_blocks(subjects[0].metrics(split, shared), "faa").n
    if clusters < MIN_CLUSTERS:
        yield (
            f"The settings share {plural(clusters, 'independent block')}, and {MIN_CLUSTERS} are needed for "
            "an interval."
        )


def choice_warnings(subjects: Sequence[Subject], split: str) -> Iterator[str]:
    """Name the settings that were chosen by these very scores, which are then optimistic."""
    for subject in subjects:
        results = subject.outcome.results
        was_chosen = results.search is not None and subject.setting == chosen_setting(results)
        if was_chosen and results.setup.selection_split == split:
            yield f"{subject.name} was chosen by its scores on the {split} split, so these are optimistic."
