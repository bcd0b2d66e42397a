"""Export the adapter at the end of a run: its weights, and a model card that says what is known of it.

The card is the README.md of the folder. It states scores as the report does, no more strongly than the
results allow, and lists what was not tested.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dgg_ray.analysis.archive import Archive, order_name
from dgg_ray.analysis.comparison_tables import compare
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import final_split, find_setting, headline_metric
from dgg_ray.analysis.verdict import METRIC_LABELS, baseline_name, format_block_score, format_gap, verdict
from dgg_ray.config import yaml_edit
from dgg_ray.config.study import Study
from dgg_ray.config.study_mapping import plain_value
from dgg_ray.core.environment import package_version
from dgg_ray.core.errors import Fault, StudyError
from dgg_ray.core.interfaces import Model
from dgg_ray.core.phrases import join_names
from dgg_ray.core.plugins import plugin_name
from dgg_ray.core.stage import Run, Stage
from dgg_ray.report.summary import notice_sentences
from dgg_ray.stats.formats import format_percent
from dgg_ray.training import exported_adapter
from dgg_ray.training.exported_adapter import Form

FORMS: dict[Form, str] = {
    "stored": "This is a plain LoRA adapter in PEFT's format, as it was trained. Any program that reads "
    "PEFT adapters can load it.",
    "concatenated": "This is a plain LoRA adapter in PEFT's format. The method trained one LoRA per task and "
    "adds them all up; here they are one LoRA, put together along the rank, which is the same sum. Any "
    "program that reads PEFT adapters can load it.",
    "own": "**PEFT alone cannot load this adapter**: what the method adds to the base model is no single "
    "LoRA. The folder is in the format of dgg_ray, and `dgg_ray.load_adapter` loads it.",
}


@dataclass(frozen=True)
class Export:
    """An adapter that was exported. folder: where it is. form: see `exported_adapter.form_of`."""

    folder: Path
    setting: str
    order: str
    seed: int
    form: Form

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder)}

    def __str__(self) -> str:
        loads = "dgg_ray.load_adapter" if self.form == "own" else "PeftModel.from_pretrained"
        return f"{self.folder}: the adapter after {self.order}, seed {self.seed}; {loads} loads it"


def export_run(results: Results, archive: Archive, study: Study, run: Run, target: Path) -> Export:
    """Write the adapter at the end of a run into a new or empty folder, with its card.

    study: at the run's setting. Raises StudyError for a folder with files, and ResultsError where the store
    has no adapter.
    """
    target = target.expanduser().absolute()
    check_target(target)
    stage = run.stages[-1]
    folder = archive.stage_folder(stage)
    target.mkdir(parents=True, exist_ok=True)
    form = exported_adapter.write_adapter(folder, stage, study.model, archive.store, target)
    card = Card(results, study, run, form)
    (target / "README.md").write_text(card.text(), encoding="utf-8")
    return Export(target, run.setting, order_name(run.order), run.seed, form)


def check_target(target: Path) -> None:
    """Raise StudyError unless the folder is new or empty: nothing of another adapter may stay in it."""
    if target.is_dir() and any(target.iterdir()):
        rule = "must be a new or an empty folder"
        raise StudyError(
            [Fault("--to", rule, f"one with {min(p.name for p in target.iterdir())}")], "arguments"
        )
    if target.exists() and not target.is_dir():
        raise StudyError(
            [Fault("--to", "must be a new or an empty folder", f"the file {target}")], "arguments"
        )


@dataclass(frozen=True)
class Card:
    """The model card of an exported adapter. study: at the run's setting."""

    results: Results
    study: Study
    run: Run
    form: Form

    @property
    def stage(self) -> Stage:
        """The last stage of the run."""
        return self.run.stages[-1]

    def text(self) -> str:
        """The whole card, in Markdown."""
        parts = {
            "How to load it": self.loading(),
            "Method and settings": self.settings(),
            "Data": self.data(),
            "Scores": self.scores(),
            "Not tested": [f"- {line}" for line in self.untested()],
        }
        lines = [*self.header(), "", *self.opening()]
        for title, body in parts.items():
            lines += ["", f"## {title}", "", *body]
        return "\n".join(lines) + "\n"

    def header(self) -> list[str]:
        """The YAML that model hubs read."""
        content = {
            "base_model": base_name(self.study.model),
            "library_name": "peft",
            "pipeline_tag": "image-text-to-text",
            "tags": ["lora", "continual-learning", "dgg_ray"],
        }
        return ["---", *yaml_edit.to_file_text(content).splitlines(), "---"]

    def opening(self) -> list[str]:
        """The adapter's kind and origin, and the programs that can load it."""
        tasks = order_name(self.run.order)
        taught = "on all tasks at once" if self.study.strategy.simultaneous else "on one task after another"
        lines = [
            f"# {self.results.name}: {plugin_name(self.study.strategy)}",
            "",
            f"An adapter of `{base_name(self.study.model)}`, trained {taught}: {tasks}. "
            f"It is the end of one run, with seed {self.run.seed}, of the study `{self.results.name}`.",
        ]
        if self.results.question:
            lines += ["", f"The study's question: {' '.join(self.results.question.split())}"]
        return [*lines, "", FORMS[self.form]]

    def loading(self) -> list[str]:
        """Code that loads it, to be run in its folder."""
        return ["```python", *(own_code() if self.form == "own" else peft_code(self.study.model)), "```"]

    def settings(self) -> list[str]:
        """The strategy, the adapter and the training, as a study's file states them."""
        known_from = self.study.strategy.known_from
        content = {
            "strategy": plain_value(self.study.strategy),
            "adapter": all_fields(self.stage.adapter),
            "training": all_fields(self.study.training),
        }
        lines = [f"The method is known from: {known_from}.", ""] if known_from else []
        text = yaml_edit.to_file_text(content).rstrip()
        after = (
            f"Setting `{self.run.setting}`, stage `{self.stage.key}`, dgg_ray {package_version('dgg_ray')}."
        )
        return [*lines, "```yaml", *text.splitlines(), "```", "", after]

    def data(self) -> list[str]:
        """The trained tasks with the sizes and digests of their data, and the base model's fingerprint."""
        lines = [
            "| task | train | validation | test | SHA-256 of the training split |",
            "|---|---|---|---|---|",
        ]
        for name in self.run.order:
            task = self.study.data.tasks[name]
            sizes = " | ".join(str(task.sizes.get(split, 0)) for split in ("train", "validation", "test"))
            lines.append(f"| {name} | {sizes} | `{task.digests['train']}` |")
        for name in self.run.order:
            if styles := self.study.readers[name].answer_styles:
                share = f"up to {format_percent(styles.share)} % of the training examples"
                lines += ["", f"In {name}, {share} were rewritten as {join_names(styles.styles)}."]
        return [*lines, "", f"Fingerprint of the base model: `{self.stage.model}`."]

    def scores(self) -> list[str]:
        """The scores of this adapter, then those of its setting over orders and seeds."""
        rows = list(self.own_rows())
        if rows:
            lines = [
                "This adapter, one run:",
                "",
                "| task | split | score, % | examples |",
                "|---|---|---|---|",
            ]
            lines += [f"| {task} | {split} | {format_percent(s)} | {n} |" for task, split, s, n in rows]
        else:
            lines = ["This adapter was not evaluated."]
        return [*lines, "", *self.setting_sentences()]

    def own_rows(self) -> Iterator[tuple[str, str, float, int]]:
        """Yield (task, split, score, examples) of every evaluation at the end of the run."""
        table = self.results.table
        own = table[
            (table["setting"] == self.run.setting)
            & (table["order"] == order_name(self.run.order))
            & (table["seed"] == self.run.seed)
        ]
        last = own[own["stage"] == own["stage"].max()]
        for row in last.to_dict("records"):
            if row["stage"] >= 0:
                yield row["eval_task"], row["split"], row["score"], int(row["n"])

    def setting_sentences(self) -> list[str]:
        """The setting's mean over blocks with its interval, its differences, and the study's answer."""
        split, metric = final_split(self.results), headline_metric(self.results)
        label, _ = find_setting(self.results, self.run.setting)
        compared = compare(self.results, split)
        rows = compared[(compared["metric"] == metric) & compared["score"].notna()]
        name = METRIC_LABELS.get(metric, metric.replace("_", " "))
        own = rows[rows["setting"] == self.run.setting]
        if own.empty:
            lines = [f"The setting was not compared with others on {split}."]
        else:
            score = format_block_score(own.iloc[0])
            lines = [f"Its setting (`{label}`) over orders and seeds, {name} on {split}: {score}."]
        chosen = find_setting(self.results)[1] if self.results.recommended else None
        if self.run.setting == chosen:
            for _, row in rows[(rows["setting"] != chosen) & (rows["pairs"] > 0)].iterrows():
                lines.append(f"- Minus {baseline_name(row['label'])}: {format_gap(row)}.")
        answer = " ".join([verdict(self.results).headline, *notice_sentences(self.results)])
        return [*lines, "", f"The study's answer: {answer}"]

    def untested(self) -> Iterator[str]:
        """Yield what nobody should conclude from these scores."""
        yield "Tasks, images and questions other than those above."
        yield "Any base model, or any revision of it, with another fingerprint."
        if len(self.run.order) > 1 and not self.study.strategy.simultaneous:
            yield "This very adapter stands for one order and one seed; others gave other adapters."
        tokens = self.study.protocol.max_new_tokens
        yield f"Sampling, and answers longer than {tokens} tokens: all scores are of greedy answers."
        yield "Safety, bias and harmful content."
        if not self.study.evaluate_only:
            yield "What the base model could do besides: no task was evaluated that was not trained."
        yield "The licences of the base model and of the data hold for this adapter too; none is stated here."


def base_name(model: Model) -> str:
    """The base model's name on a hub, or the name of its folder."""
    path = str(getattr(model, "path", ""))
    if not path:
        return plugin_name(model)
    return path if getattr(model, "revision", None) else Path(path).name


def all_fields(section: Any) -> dict[str, Any]:
    """All settings of a section, the defaults too; those without a value are left out."""
    values = {f.name: plain_value(getattr(section, f.name)) for f in fields(section)}
    return {name: value for name, value in values.items() if value is not None}


def peft_code(model: Model) -> list[str]:
    """Load the base model and the adapter with PEFT."""
    adapter = 'model = PeftModel.from_pretrained(base, ".").eval()  # "." is this folder'
    path = getattr(model, "path", None)
    if path is None:
        cls = type(model)
        settings = ", ".join(
            f"{name}={value!r}" for name, value in plain_value(model).items() if name != "name"
        )
        base = [
            f"from {cls.__module__} import {cls.__name__}",
            "",
            f"base, processor = {cls.__name__}({settings}).load()",
        ]
        return ["from peft import PeftModel", *base, adapter]
    revision = getattr(model, "revision", None)
    name = f"{base_name(model)!r}" + (f", revision={revision!r}" if revision else "")
    dtype = getattr(model, "dtype", "auto")
    quantized = (
        ["# In the study the base model was held in 4 bits (nf4)."]
        if getattr(model, "four_bit", False)
        else []
    )
    return [
        "from peft import PeftModel",
        "from transformers import AutoModelForImageTextToText, AutoProcessor",
        "",
        *quantized,
        f"base = AutoModelForImageTextToText.from_pretrained({name}, dtype={dtype!r})",
        f"processor = AutoProcessor.from_pretrained({name})",
        adapter,
    ]


def own_code() -> list[str]:
    """Load the adapter with this package, and ask it a question."""
    return [
        "import dgg_ray",
        "from dgg_ray.plugin import Example",
        "",
        'adapter = dgg_ray.load_adapter(".")  # this folder; `model=` where the base model lies elsewhere',
        'question = Example("1", "What is shown?", "", image=None)  # or the path of an image',
        "answers = adapter.answer([question], max_new_tokens=8)",
    ]
