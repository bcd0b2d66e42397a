"""Studies and results as a person meets them in Python.

study = load_study("studies/quickstart.yaml")             # or load_study({...}), a mapping of settings
result = run_study(study, "out/quickstart")               # searches, compares, writes the report
result = dgg_ray.open("out/quickstart")                   # later, finished or not
result                          # what was found, in a notebook as a small page
result.table                    # one row per score
result.scores()                 # R[t, i] with task names: score on task i after task t was learned
result.predictions("charts")    # every answer, with the example's question on request
result.adapter()                # folder that PeftModel.from_pretrained loads
"""

# pandas has no types that a checker can follow through indexing and groupby:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from numbers import Integral
from pathlib import Path
from typing import Any

import pandas as pd

from dgg_ray.analysis import load, matrices, run_table
from dgg_ray.analysis.archive import Archive
from dgg_ray.analysis.predictions import examples
from dgg_ray.analysis.predictions import predictions as stored
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import final_split, text_of
from dgg_ray.config import loader, mappings, yaml_edit
from dgg_ray.config.sections import name_of
from dgg_ray.config.study import Study
from dgg_ray.core import event_log
from dgg_ray.core.errors import Fault, ResultsError, hint
from dgg_ray.core.fence import Fence
from dgg_ray.core.interfaces import SPLITS
from dgg_ray.core.stage import Run
from dgg_ray.core.terminal import warn
from dgg_ray.storage.stage_store import StageStore

PAGE = "the report"  # its name where it cannot be written
Order = int | str | Sequence[str]  # its place among the orders, "a > b > c", or the names of the tasks


def load_study(
    source: str | Path | Mapping[str, Any], data: str | Path | None = None, store: str | None = None
) -> Study:
    """The study in a YAML file or in a mapping, its data read and checked; StudyError holds every fault.

    source: the file; or keys and values as a file has them. Parts of a mapping may be objects too
        (`DGG(alpha=0.3)`, `Training(epochs=3)`), and `tasks` may map names to readers
        (`{"digits": Embedded(train=200)}`).
    data: folder, or URL, that the tasks' relative paths start from; by default the environment's
        DGG_RAY_DATA, or else the file's own folder, for a mapping the working folder.
    store: in place of `output.store`.
    """
    if isinstance(source, str | Path):
        return loader.load(Path(source), data, store, warmed)
    return loader.from_dict(source, data, store, warmed)


def warmed(study: Study) -> tuple[Study, list[Fault]]:
    from dgg_ray.search import warm_start  # here: Optuna comes with it, which most studies are read without

    return warm_start.warmed(study)


def study_to_dict(study: Study) -> dict[str, Any]:
    """The mapping of which `load_study` makes this study: plain values, defaults left out, paths whole."""
    return mappings.settings(study, loader.KEYS)


def study_to_yaml(study: Study) -> str:
    """The study as the text of a file."""
    return yaml_edit.dumped(study_to_dict(study))


def run_study(
    study: Study, out: str | Path, local: bool = False, address: str | None = None, quiet: bool = False
) -> Outcome:
    """Run or continue the study; everything that is in the store already is taken from there.

    What should be known of its data is said on standard error before. Raises StudyError for data with
    which stages would fail.

    local: in this process, without Ray; the results are the same.
    address: of a Ray cluster; None starts one on this machine if a stage has to be trained.
    quiet: without what is said on the way.
    """
    check(study)
    return carry_out(study, Path(out), local, address, quiet)


def check(study: Study) -> None:
    """Say what should be known of the study's data; StudyError for data with which stages would fail."""
    from dgg_ray.training import preflight  # here: it needs torch and transformers

    for note in (*study.warnings, *preflight.check(study)):
        warn(note)


def carry_out(
    study: Study, out: Path, local: bool = False, address: str | None = None, quiet: bool = False
) -> Outcome:
    """`run_study`, once the data were checked."""
    from dgg_ray.execution import driver  # here: it needs Ray

    out, fence = out.absolute(), Fence(warn)
    # Imported now, not at the end: what keeps the page from being made is told before hours of training.
    pages = fence.tried(PAGE, None, import_module, "dgg_ray.report.report")
    study, store = driver.prepared(study, out, local, fence)
    with event_log.of_driver(study.name, out):
        tally = driver.run(study, store, out, fence, local, address, quiet)
        found = load.load(out, fence)
        with fence(PAGE):
            if pages:
                pages.write(found, out, fence)
    return Outcome(found, out, tally, fence)


def open(out: str | Path) -> Outcome:
    """The results in a folder, as far as they got; ResultsError where no study was run into it."""
    out = Path(out).expanduser().absolute()
    return Outcome(load.load(out), out)


@dataclass(frozen=True, eq=False, repr=False)
class Outcome:
    """A study's results in Python: `run_study` and `dgg_ray.open` return them.

    Settings are named by their id, or by the label that they were compared under ("replay"). None and
    "chosen" are the one that the study chose; whether it is the one to use, the verdict says. Orders are
    named by their place (0 is the first), as "a > b > c", or as a list of tasks.

    tally: of a run just ended: stages asked for, there (in the store already), trained, failed; seconds.
    fence: what could not be made beside the results, in `fence.lines`.
    """

    results: Results
    out: Path
    tally: dict[str, Any] = field(default_factory=dict)
    fence: Fence = field(default_factory=Fence)

    # -- what was found ----------------------------------------------------------------------------

    @property
    def table(self) -> pd.DataFrame:
        """One row per setting, order, seed, stage and evaluation."""
        return self.results.table

    @property
    def best(self) -> dict[str, Any]:
        """The recommendation and what it was compared with, as JSON."""
        return load.recommendation(self.results)

    @property
    def settings(self) -> pd.DataFrame:
        """One row per setting with finished stages, by its id: labels, strategy, the searched values."""
        found = run_table.settings(self.results)
        own = run_table.chosen(self.results)
        names = {own: [run_table.CHOSEN]} if own else {}
        for label, setting in self.results.baselines.items():
            names.setdefault(setting, []).append(label)
        labels = [", ".join(names.get(setting, [])) for setting in found.index]
        return found.assign(labels=labels)[["labels", *found.columns]]

    def runs(self, split: str | None = None, setting: str | None = None) -> pd.DataFrame:
        """The orders and seeds of a setting's runs that were evaluated on a split, one row per run."""
        found = self.walked(self.setting(setting), self.split(split))
        return pd.DataFrame([(run.order, run.seed) for run in found], columns=["order", "seed"])

    def scores(
        self,
        order: Order | None = None,
        seed: int | None = None,
        setting: str | None = None,
        split: str | None = None,
    ) -> pd.DataFrame:
        """A run's score matrix R: after each task (rows), the score on each task (columns), in [0, 1].

        Tasks stand in the order in which they were learned; nan is not evaluated. `attrs` say which run it
        is: the first one, where neither an order nor a seed is named.

        split: None is the split of the final comparison.
        """
        split, chosen = self.split(split), self.setting(setting)
        found = self.walked(chosen, split)
        blocks = [(run.order, run.seed) for run in found]
        run = found[self.fitting(blocks, order, seed, f"setting {chosen} on the {split} split")[0]]
        labels = pd.Index(run.tasks, name="after"), pd.Index(run.tasks, name="score on")
        matrix = pd.DataFrame(run.scores.R, *labels)
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
        """Every answer, one row per run, stage and example: see `dgg_ray.analysis.predictions.COLUMNS`.

        task: None is every task. order, seed: None is every one.
        questions: add the column `question`, "" where the task's files are gone or have changed.
        """
        split, chosen = self.split(split), self.setting(setting)
        known = self.study.names
        if task is not None and task not in known:
            raise ResultsError(f"no task is called {task!r}; there are {', '.join(known)}{hint(task, known)}")
        runs = self.asked(chosen)
        some = [runs[i] for i in self.fitting(blocks_of(runs), order, seed, f"setting {chosen}")]
        found = stored(self.store, some, split, None if task is None else [task])
        return self.with_questions(found, split) if questions else found

    def adapter(
        self, order: Order | None = None, seed: int | None = None, setting: str | None = None
    ) -> Path:
        """Folder of the PEFT adapter at the end of a run: the first, where neither order nor seed is named.

        Of a store at a URL it is a copy in this machine's cache, which may go when the cache is full.
        ResultsError where the run's last stage is not finished, or its adapter was removed.
        """
        chosen = self.setting(setting)
        runs = self.asked(chosen)
        last = runs[self.fitting(blocks_of(runs), order, seed, f"setting {chosen}")[0]][1].stages[-1]
        folder = self.store.open(last)
        if folder is None or not (folder / "adapter").is_dir():
            gone = (
                "has no adapter (a simulated one, or `dgg-ray gc` removed it)"
                if folder
                else "is not finished"
            )
            raise ResultsError(f"stage {last} {gone}; run the study again to have it")
        return folder / "adapter"

    def report(self) -> Path:
        """Write the report anew; the path of its page."""
        from dgg_ray.report import report

        return report.write(self.results, self.out)

    # -- in words ----------------------------------------------------------------------------------

    def __str__(self) -> str:
        """The answer in words and as a table, what it cost, and where the report is."""
        from dgg_ray.report.closing import summary

        lines = (
            self.fence.tried("the answer", [], summary, self.results, self.fence)
            if self.begun
            else [self.state()]
        )
        if t := self.tally:
            item = f"{t['trained']} stages trained" if t["trained"] else "nothing trained"
            if t["there"]:
                item += f", {'all' if t['there'] == t['asked'] else 'others'} answered from the store"
            lines += ["", f"{item}; {t['seconds']:.0f} s"]
            if PAGE not in self.fence.lost:
                lines.append(f"report: {self.out / 'report.html'}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<results of {self.results.name!r} in {self.out}: {self.state()}>"

    def _repr_html_(self) -> str:
        """For notebooks: what was found, and the comparison."""
        from dgg_ray.report.report import answer

        lines = answer(self.results) if self.begun else ["Nothing is finished yet."]
        head, *more = (html.escape(line) for line in lines)
        parts = [
            f"<p><b>{html.escape(self.results.name)}</b> · {html.escape(self.state())}</p>",
            f"<p>{head}</p>",
        ]
        parts += [f"<ul>{''.join(f'<li>{line}</li>' for line in more)}</ul>"] if more else []
        return "".join(parts)

    @property
    def begun(self) -> bool:
        """Whether anything is finished."""
        return not self.results.table.empty

    def state(self) -> str:
        """How far it is, and what it recommends, in one line."""
        facts = self.results.facts
        text = f"{facts['finished stages']} of {facts['distinct stages']} stages finished"
        known = run_table.settings(self.results) if self.begun else pd.DataFrame()
        if (chosen := self.results.recommended) not in known.index:
            return f"{text}, no setting chosen yet"
        values = known.loc[chosen]
        named = ", ".join(
            f"{name_of(parameter)} = {text_of(values[parameter])}" for parameter in self.results.parameters
        )
        return f"{text}, chosen: {values['strategy']}{named and f' with {named}'}"

    # -- what is meant -----------------------------------------------------------------------------

    @property
    def archive(self) -> Archive:
        """What the store holds beside scores; ResultsError where it could not be opened."""
        if self.results.archive is None:
            why = "; ".join(self.fence.lines) or "`dgg_ray.open` the folder again"
            raise ResultsError(f"{self.results.name}: the store cannot be read for more than scores: {why}")
        return self.results.archive

    @property
    def study(self) -> Study:
        """The study that was run, as it was kept with its results."""
        return self.archive.study

    @property
    def store(self) -> StageStore:
        return self.archive.store

    def asked(self, setting: str) -> list[tuple[Study, Run]]:
        """The runs of a setting, those of the final comparison first, each with the study at the setting."""
        final = {block: i for i, block in enumerate(self.study.final_blocks)}
        runs = [found for (of, *_), found in self.archive.runs.items() if of == setting]
        return sorted(runs, key=lambda one: final.get((one[1].order, one[1].seed), len(final)))

    def walked(self, setting: str, split: str) -> list[matrices.Run]:
        """The setting's runs as they were evaluated on a split, those of the final comparison first."""
        final = {block: i for i, block in enumerate(self.results.terms.compared_on)}
        found = [run for run in matrices.walk(self.results, split) if run.setting == setting]
        return sorted(found, key=lambda run: final.get((run.order, run.seed), len(final)))

    def split(self, split: str | None) -> str:
        if split is not None and split not in SPLITS:
            raise ResultsError(
                f"no split is called {split!r}; there are {', '.join(SPLITS)}{hint(split, SPLITS)}"
            )
        judged = self.results.recommended in set(self.results.table["setting"])
        return split or (final_split(self.results) if judged else self.results.terms.selection_split)

    def setting(self, setting: str | None) -> str:
        """The id that a label, an id or None stands for; ResultsError names those that there are."""
        return run_table.named(self.results, setting)[1]

    def fitting(
        self, blocks: Sequence[tuple[str, int]], order: Order | None, seed: int | None, what: str
    ) -> list[int]:
        """Places of the blocks on that order with that seed, None being any; ResultsError for none.

        blocks: ("a > b > c", seed) of each run; what: whose runs they are.
        """
        if not blocks:
            raise ResultsError(f"{self.results.name}: {what} has no run yet; run the study further")
        orders = list(dict.fromkeys(of for of, _ in blocks))
        if isinstance(order, Integral):
            place = int(order)
            if not -len(orders) <= place < len(orders):
                raise ResultsError(f"there is no order {place}; {what} has {len(orders)}, the first is 0")
            order = orders[place]
        wanted = text(order) if order is not None else None
        found = [i for i, (of, s) in enumerate(blocks) if wanted in (None, of) and seed in (None, s)]
        if not found:
            named = "; ".join(f"{of} with seed {s}" for of, s in blocks)
            asked = " with ".join(
                ([wanted] if wanted else []) + ([f"seed {seed}"] if seed is not None else [])
            )
            raise ResultsError(f"{what} has no run of {asked}; it has {named}")
        return found

    def with_questions(self, found: pd.DataFrame, split: str) -> pd.DataFrame:
        asked: Mapping[str, dict[str, str]] = {
            task: {id_: e.question for id_, e in examples(self.study, task, split).items()}
            for task in found["task"].unique()
        }
        texts = [asked[task].get(id_, "") for task, id_ in zip(found["task"], found["id"], strict=True)]
        found.insert(list(found.columns).index("id") + 1, "question", texts)
        return found


def blocks_of(runs: Iterable[tuple[Study, Run]]) -> list[tuple[str, int]]:
    return [(text(run.order), run.seed) for _, run in runs]


def text(order: str | Sequence[str]) -> str:
    return order if isinstance(order, str) else " > ".join(order)
