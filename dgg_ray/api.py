"""The Python face: load a study, run it, open its results.

study = load_study("studies/quickstart.yaml")             # or load_study({...}), a mapping of settings
result = run_study(study, "out/quickstart")               # searches, compares, writes the report
result = dgg_ray.open("out/quickstart")                   # later, finished or not
result                          # what was found, in a notebook as a small page
result.table                    # one row per score
result.scores()                 # R[t, i] with task names: the score on task i after task t was trained
result.predictions("charts")    # every answer, with the example's question on request
result.adapter()                # the stored adapter's folder
result.export("my_adapter")     # a copy with a model card, as plain LoRA where the method allows it
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd

from dgg_ray.analysis import load, run_table
from dgg_ray.analysis.archive import Archive, blocks_of, order_name
from dgg_ray.analysis.predictions import examples_by_id
from dgg_ray.analysis.predictions import predictions_table as stored
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import final_split, format_value
from dgg_ray.config import loader, registry, saved_study, study_mapping, yaml_edit
from dgg_ray.config.sections import name_of
from dgg_ray.config.study import Study
from dgg_ray.core import event_log
from dgg_ray.core.error_records import format_error_record
from dgg_ray.core.errors import Fault, ResultsError, did_you_mean
from dgg_ray.core.interfaces import SPLITS
from dgg_ray.core.optional_outputs import OptionalOutputs
from dgg_ray.core.stage import Run
from dgg_ray.core.terminal import warn
from dgg_ray.planning.status import StudyStatus as StudyStatus
from dgg_ray.search.evidence import EvidenceReader
from dgg_ray.storage.stage_store import StageStore
from dgg_ray.storage.store_view import view_of

if TYPE_CHECKING:
    from dgg_ray.execution.session import RaySession
    from dgg_ray.planning.plan import Plan
    from dgg_ray.report.model_card import Export

REPORT = "the report"  # its name in messages
T = TypeVar("T")
Order = int | str | Sequence[str]  # its place among the orders, "a > b > c", or the names of the tasks


def load_study(
    source: str | Path | Mapping[str, Any], data: str | Path | None = None, store: str | None = None
) -> Study:
    """Load the study in a YAML file or a mapping, read its data and check both.

    Raises StudyError, which holds every fault.

    source: the file; or keys and values as a file has them. Parts of a mapping may be objects too
        (`DGG(alpha=0.3)`, `Training(epochs=3)`), and `tasks` may map names to readers
        (`{"digits": Embedded(train=200)}`).
    data: folder or URL that the tasks' relative paths start from; by default the environment's
        DGG_RAY_DATA, or else the file's own folder, for a mapping the working folder.
    store: used in place of `output.store`.
    """
    if isinstance(source, str | Path):
        return loader.load_file(Path(source), data, store, with_warm_starts)
    return loader.load_mapping(source, data, store, with_warm_starts)


def with_warm_starts(study: Study) -> tuple[Study, list[Fault]]:
    from dgg_ray.search import warm_start  # late: most studies are read without Optuna

    return warm_start.add_warm_starts(study)


def study_to_dict(study: Study) -> dict[str, Any]:
    """The mapping from which `load_study` makes this study: plain values, no defaults, absolute paths."""
    return study_mapping.study_mapping(study, loader.KEYS)


def study_to_yaml(study: Study) -> str:
    """The study as the text of a file."""
    return yaml_edit.to_file_text(study_to_dict(study))


def run_study(
    study: Study,
    out: str | Path,
    local: bool = False,
    address: str | None = None,
    quiet: bool = False,
    session: RaySession | None = None,
) -> Outcome:
    """Run or continue the study; what its store holds already is not trained again.

    Warnings about its data go to standard error first. Raises StudyError for data with which stages would
    fail.

    local: run in this process, without Ray; the results are the same.
    address: of a Ray cluster; None starts one on this machine if a stage has to be trained.
    quiet: show no progress.
    session: Ray with the worker groups of earlier studies of this process, in place of an address.
    """
    check(study)
    return run_checked_study(study, Path(out), local, address, quiet, session)


def check(study: Study) -> None:
    """Warn of what a person should know about the study's data; raise StudyError where stages would fail."""
    from dgg_ray.training import preflight  # late: it needs torch and transformers

    for note in (*study.data.warnings, *preflight.check(study)):
        warn(note)


def run_checked_study(
    study: Study,
    out: Path,
    local: bool = False,
    address: str | None = None,
    quiet: bool = False,
    session: RaySession | None = None,
) -> Outcome:
    """`run_study`, for a study whose data were checked."""
    from dgg_ray.execution import driver  # late: it needs Ray
    from dgg_ray.execution.session import RaySession

    if session and address not in (None, session.address):
        raise ValueError(f"the session is at {session.address}, not at {address}; give one address")
    out, optional = out.absolute(), OptionalOutputs(warn)
    # Imported now and not at the end: what prevents the report is said before hours of training.
    report = optional.value_or(REPORT, None, import_module, "dgg_ray.report.page")
    study, store = driver.prepare(study, out, local, optional)
    with event_log.driver_log(study.name, out):
        tally = driver.run(study, store, out, optional, local, session or RaySession(address), quiet)
        results = load.load_results(out, optional)
        with optional.attempt(REPORT):
            if report:
                report.write_report(results, out, optional)
    return Outcome(results, out, tally, optional)


def plan_study(
    study: Study,
    out: str | Path,
    detect: float | None = None,
    sd: float | None = None,
    on_this_machine: bool = True,
) -> Plan:
    """Predict what a checked study costs, and what each design of its orders could detect.

    Warns of what does not fit this machine, of a study in the folder that said otherwise, and of plug-ins
    that were edited. Raises StudyError where the budget does not suffice for the first run.

    detect: a difference in points of 100, to say how many blocks it takes to detect it.
    sd: standard deviation of a paired difference, in points of 100; None measures it where possible.
    """
    from dgg_ray.config import study_changes
    from dgg_ray.cost import budget
    from dgg_ray.execution import capacity
    from dgg_ray.planning import edited_plugins, order_designs
    from dgg_ray.planning.plan import plan
    from dgg_ray.search import comparison, warm_start

    out = Path(out).absolute()
    study = warm_start.restore_warm_starts(study, out)
    if changes := study_changes.describe_changes(study, out):
        warn(changes)
    view = view_of(study.store(out))
    study = registry.with_decisions(study, view)
    predicted = replace(plan(study, view), designs=order_designs.compare_designs(study, view, detect, sd))
    budget.make_tracker(study, view, comparison.comparison_chains).check(comparison.first_run_items(study))
    if on_this_machine:
        for line in capacity.missing_resources(study, view.url, predicted.cost_forecast):
            warn(line)
    for line in edited_plugins.describe_unused_work(study, view):
        warn(line)
    return predicted


def study_status(out: str | Path) -> StudyStatus:
    """Read how far the study in a folder is; raise ResultsError where there is none."""
    from dgg_ray.execution import progress
    from dgg_ray.planning.plan import plan
    from dgg_ray.search import comparison

    out, optional = Path(out).absolute(), OptionalOutputs(warn)
    study = saved_study.require_saved_study(out)
    view = view_of(study.store(out))
    study = registry.with_decisions(study, view)
    contents = load.read_contents(EvidenceReader(study, view))
    search, best = contents.comparison.search, ""
    if search:
        best = optional.value_or("the best setting so far", "", comparison.describe_best_so_far, search)
    failures = load.failed_stages(view, contents.stages)
    failed = list(dict.fromkeys(format_error_record(failure) for failure in failures))
    return StudyStatus(plan(study, view), progress.read_live(out), best, failed)


def open(out: str | Path) -> Outcome:
    """Open the results in a folder, as far as they got; raise ResultsError where no study was run into it."""
    out, optional = Path(out).expanduser().absolute(), OptionalOutputs(warn)
    return Outcome(load.load_results(out, optional), out, optional=optional)


@dataclass(frozen=True, eq=False, repr=False)
class Outcome:
    """A study's results in Python; `run_study` and `dgg_ray.open` return them.

    Settings are named by their id, or by the label that they were compared under ("replay"). None and
    "chosen" are the setting that the search chose; the verdict says whether it is the one to use. Orders are
    named by their number (0 is the first), as "a > b > c", or as a list of tasks.

    tally: counts of a run that just ended: stages asked for, there (in the store already), trained, failed;
        seconds.
    optional: what could not be made besides the results, in `optional.messages`.
    """

    results: Results
    out: Path
    tally: dict[str, Any] = field(default_factory=dict)
    optional: OptionalOutputs = field(default_factory=OptionalOutputs)

    # -- what was found ----------------------------------------------------------------------------

    @property
    def table(self) -> pd.DataFrame:
        """The scores: one row per setting, order, seed, stage and evaluation."""
        return self.results.table

    @property
    def best(self) -> dict[str, Any]:
        """The recommendation and what it was compared with, as JSON."""
        return load.recommendation(self.results)

    @property
    def settings(self) -> pd.DataFrame:
        """The settings with finished stages, one row per id: labels, strategy, searched values."""
        found = run_table.setting_values(self.results)
        own = run_table.chosen_setting(self.results)
        names = {own: [run_table.CHOSEN]} if own else {}
        for label, setting in self.results.baselines.items():
            names.setdefault(setting, []).append(label)
        labels = [", ".join(names.get(setting, [])) for setting in found.index]
        return found.assign(labels=labels)[["labels", *found.columns]]

    def runs(self, split: str | None = None, setting: str | None = None) -> pd.DataFrame:
        """The orders and seeds of a setting's runs that were evaluated on a split, one row per run."""
        found = self._scored_runs(self.setting(setting), self.split(split))
        return pd.DataFrame([(run.order, run.seed) for run in found], columns=["order", "seed"])

    def scores(
        self,
        order: Order | None = None,
        seed: int | None = None,
        setting: str | None = None,
        split: str | None = None,
    ) -> pd.DataFrame:
        """A run's score matrix R: after each task (rows), the score on each task (columns), in [0, 1].

        Tasks are in the order of their training; nan is not evaluated. Without an order and a seed it is the
        first run; `attrs` of the frame say which. Tasks that are only evaluated are the last columns.

        split: None is the split of the final comparison.
        """
        split, chosen = self.split(split), self.setting(setting)
        found = self._scored_runs(chosen, split)
        blocks = [(run.order, run.seed) for run in found]
        run = found[self._matching(blocks, order, seed, f"setting {chosen} on the {split} split")[0]]
        columns = pd.Index([*run.tasks, *self.results.evaluate_only], name="score on")
        scores = np.hstack([run.scores.R, run.scores.outside])
        matrix = pd.DataFrame(scores, pd.Index(run.tasks, name="after"), columns)
        matrix.attrs = {"setting": chosen, "order": run.order, "seed": run.seed, "split": split}
        return matrix

    def predictions(
        self,
        task: str | None = None,
        order: Order | None = None,
        seed: int | None = None,
        setting: str | None = None,
        split: str | None = None,
        questions: bool = False,
    ) -> pd.DataFrame:
        """Every answer, one row per run, stage and example: see
        `dgg_ray.analysis.predictions.PREDICTION_COLUMNS`.

        task: None is every task, those only evaluated too. order, seed: None is every one.
        questions: add the column `question`, "" where the task's files are gone or have changed.
        """
        split, chosen = self.split(split), self.setting(setting)
        known = tuple(self.study.readers)
        if task is not None and task not in known:
            raise ResultsError(
                f"no task is called {task!r}; there are {', '.join(known)}{did_you_mean(task, known)}"
            )
        runs = self._runs_of(chosen)
        some = [runs[i] for i in self._matching(blocks_of(runs), order, seed, f"setting {chosen}")]
        found = stored(self.store, some, split, known if task is None else [task])
        return self._with_questions(found, split) if questions else found

    def adapter(
        self, order: Order | None = None, seed: int | None = None, setting: str | None = None
    ) -> Path:
        """The stored folder of the adapter at the end of a run; without order and seed, of the first run.

        For a store at a URL it is a copy in this machine's cache, which may be deleted when the cache is
        full. Raises ResultsError where the run's last stage is not finished, or its adapter was removed.
        """
        return self.archive.stage_folder(self._run(order, seed, setting)[1].stages[-1]) / "adapter"

    def export(
        self,
        folder: str | Path,
        setting: str | None = None,
        order: Order | None = None,
        seed: int | None = None,
    ) -> Export:
        """Write such an adapter with a model card into a new or empty folder; see `dgg-ray export`.

        Raises StudyError for a folder with files, ResultsError where `adapter` does.
        """
        from dgg_ray.report import model_card

        return model_card.export_run(
            self.results, self.archive, *self._run(order, seed, setting), Path(folder)
        )

    def report(self) -> Path:
        """Write the report; return the path of its page."""
        from dgg_ray.report import page

        return page.write_report(self.results, self.out)

    # -- in words ----------------------------------------------------------------------------------

    def answer_text(self) -> str:
        """The answer in words and as a table, and where each adapter is."""
        from dgg_ray.report import console

        adapters = self.optional.value_or("the list of adapters", [], console.adapter_lines, self.results)
        return "\n".join([*console.summary_lines(self.results, self.optional), "", *adapters])

    def __str__(self) -> str:
        """The answer in words and as a table, what it cost, and where the report is."""
        from dgg_ray.report.console import summary_lines

        lines = (
            self.optional.value_or("the answer", [], summary_lines, self.results, self.optional)
            if self.begun
            else [self.state()]
        )
        if t := self.tally:
            item = f"{t['trained']} stages trained" if t["trained"] else "nothing trained"
            if t["there"]:
                item += f", {'all' if t['there'] == t['asked'] else 'others'} answered from the store"
            lines += ["", f"{item}; {t['seconds']:.0f} s"]
            if REPORT not in self.optional.failures:
                lines.append(f"report: {self.out / 'report.html'}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<results of {self.results.name!r} in {self.out}: {self.state()}>"

    def _repr_html_(self) -> str:
        """The answer for notebooks."""
        from dgg_ray.report.summary import summary_sentences

        lines = summary_sentences(self.results) if self.begun else ["Nothing is finished yet."]
        head, *more = (html.escape(line) for line in lines)
        parts = [
            f"<p><b>{html.escape(self.results.name)}</b> · {html.escape(self.state())}</p>",
            f"<p>{head}</p>",
        ]
        parts += [f"<ul>{''.join(f'<li>{line}</li>' for line in more)}</ul>"] if more else []
        return "".join(parts)

    @property
    def begun(self) -> bool:
        """Return whether anything is finished."""
        return not self.results.table.empty

    def state(self) -> str:
        """The study's progress and its chosen setting, in one line."""
        facts = self.results.facts
        text = f"{facts['finished stages']} of {facts['distinct stages']} stages finished"
        known = run_table.setting_values(self.results) if self.begun else pd.DataFrame()
        if (chosen := self.results.recommended) not in known.index:
            return f"{text}, no setting chosen yet"
        values = known.loc[chosen]
        named = ", ".join(
            f"{name_of(parameter)} = {format_value(values[parameter])}"
            for parameter in self.results.parameters
        )
        return f"{text}, chosen: {values['strategy']}{named and f' with {named}'}"

    # -- looking up runs -----------------------------------------------------------------------------

    @property
    def archive(self) -> Archive:
        """The store's predictions, losses and adapters. Raises ResultsError if it cannot be opened."""
        if self.results.archive is None:
            why = "; ".join(self.optional.messages) or "`dgg_ray.open` the folder again"
            raise ResultsError(f"{self.results.name}: the store cannot be read for more than scores: {why}")
        return self.results.archive

    @property
    def study(self) -> Study:
        """The study that was run, as saved with its results."""
        return self.archive.study

    @property
    def store(self) -> StageStore:
        return self.archive.store

    def _runs_of(self, setting: str) -> list[tuple[Study, Run]]:
        """The runs of a setting, each with the study at that setting; those of the final comparison first."""
        runs = [found for (of, *_), found in self.archive.runs.items() if of == setting]
        return self._final_first(runs, blocks_of(runs))

    def _run(self, order: Order | None, seed: int | None, setting: str | None) -> tuple[Study, Run]:
        """The first run that matches, with the study at its setting."""
        chosen = self.setting(setting)
        runs = self._runs_of(chosen)
        return runs[self._matching(blocks_of(runs), order, seed, f"setting {chosen}")[0]]

    def _scored_runs(self, setting: str, split: str) -> list[run_table.ScoredRun]:
        """The setting's runs as evaluated on a split; those of the final comparison first."""
        runs = [run for run in run_table.scored_runs(self.results, split) if run.setting == setting]
        return self._final_first(runs, [(run.order, run.seed) for run in runs])

    def _final_first(self, runs: Sequence[T], blocks: Sequence[tuple[str, int]]) -> list[T]:
        """Sort runs, given with their blocks: those of the final comparison first, in its order."""
        final = {block: i for i, block in enumerate(self.results.setup.final_blocks)}
        ranks = [final.get(block, len(final)) for block in blocks]
        return [runs[i] for i in sorted(range(len(runs)), key=ranks.__getitem__)]

    def split(self, split: str | None) -> str:
        if split is not None and split not in SPLITS:
            raise ResultsError(
                f"no split is called {split!r}; there are {', '.join(SPLITS)}{did_you_mean(split, SPLITS)}"
            )
        evaluated = self.results.recommended in set(self.results.table["setting"])
        return split or (final_split(self.results) if evaluated else self.results.setup.selection_split)

    def setting(self, setting: str | None) -> str:
        """The id that a label, an id or None stands for; ResultsError lists the known ones."""
        return run_table.find_setting(self.results, setting)[1]

    def _matching(
        self, blocks: Sequence[tuple[str, int]], order: Order | None, seed: int | None, what: str
    ) -> list[int]:
        """Indices of the blocks with this order and this seed, None being any; ResultsError if there is none.

        blocks: ("a > b > c", seed) of each run. what: whose runs they are, for messages.
        """
        if not blocks:
            raise ResultsError(f"{self.results.name}: {what} has no run yet; run the study further")
        if isinstance(order, Integral):
            orders = list(dict.fromkeys(name for name, _ in blocks))
            number = int(order)
            if not -len(orders) <= number < len(orders):
                raise ResultsError(f"there is no order {number}; {what} has {len(orders)}, the first is 0")
            order = orders[number]
        wanted = None if order is None else order_name(order)  # type: ignore[arg-type]
        matching = [i for i, (name, s) in enumerate(blocks) if wanted in (None, name) and seed in (None, s)]
        if not matching:
            asked = " with ".join(
                [*([wanted] if wanted else []), *([f"seed {seed}"] if seed is not None else [])]
            )
            known = "; ".join(f"{name} with seed {s}" for name, s in blocks)
            raise ResultsError(f"{what} has no run of {asked}; it has {known}")
        return matching

    def _with_questions(self, found: pd.DataFrame, split: str) -> pd.DataFrame:
        asked: Mapping[str, dict[str, str]] = {
            task: {id_: e.question for id_, e in examples_by_id(self.study, task, split).items()}
            for task in found["task"].unique()
        }
        texts = [asked[task].get(id_, "") for task, id_ in zip(found["task"], found["id"], strict=True)]
        found.insert(list(found.columns).index("id") + 1, "question", texts)
        return found
