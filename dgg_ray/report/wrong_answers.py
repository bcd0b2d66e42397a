"""The section on wrong answers: questions that were answered correctly before later tasks were trained."""

from __future__ import annotations

from collections.abc import Mapping

from dgg_ray.analysis.examples import (
    MIN_SCORE_DROP,
    ForgottenExample,
    answer_history,
    confusions,
    forgotten_answers,
    sample_in_proportion,
    with_examples,
)
from dgg_ray.analysis.results import Results
from dgg_ray.analysis.run_table import (
    chosen_label,
    chosen_setting,
    final_split,
)
from dgg_ray.core.optional_outputs import OptionalOutputs
from dgg_ray.report.page_elements import (
    ExampleCard,
    FigureImage,
    Gallery,
    SectionContent,
    Table,
    TableRow,
    section_content,
)
from dgg_ray.report.thumbnails import thumbnail

MAX_EXAMPLES = 20  # forgotten examples on the page
MAX_CONFUSIONS = 10  # rows of the table of wrong answers


def wrong_answers_section(
    results: Results, figures: Mapping[str, FigureImage], optional: OptionalOutputs
) -> SectionContent:
    """Show examples that were forgotten, and the most frequent wrong answers."""
    setting, split = chosen_setting(results), final_split(results)
    if setting is None or results.archive is None:
        return SectionContent()
    history = answer_history(results, split, setting)
    if history.empty:
        return SectionContent()
    forgotten = forgotten_answers(results, split, setting)
    examples, missing_note = with_examples(results, sample_in_proportion(forgotten, MAX_EXAMPLES), split)
    runs = len(history.drop_duplicates(["order", "seed"]))
    questions = len(history.drop_duplicates(["task", "id"]))
    first = (
        f"Of {questions} questions of the {split} split, {len(forgotten)} were answered correctly right "
        f"after their task was trained and wrongly at the end, in at least one of {runs} "
        f"run{'s' * (runs != 1)} of {chosen_label(results)}"
    )
    if history["score"].between(0.001, 0.999).any():
        first += f" (graded answers count if their score fell by {MIN_SCORE_DROP:g} or more)"
    sentences = [f"{first}."]
    if len(forgotten) > len(examples):
        sentences.append(
            f"The {len(examples)} shown here were drawn at random, from each task in proportion."
        )
    if (forgotten["runs_followed"] < runs).any():
        sentences.append(
            "Runs in which the task came last are not counted on its cards, because nothing was trained "
            "after it."
        )
    if missing_note:
        sentences.append(missing_note)
    gallery = Gallery([example_card(example, optional) for example in examples]) if examples else None
    return section_content(sentences, gallery, confusion_table(results, split, setting))


def example_card(forgotten: ForgottenExample, optional: OptionalOutputs) -> ExampleCard:
    """Show a forgotten example with its picture, where that can be read."""
    picture, width = "", 0
    if forgotten.example is not None and forgotten.example.image is not None:
        picture, width = optional.value_or(
            "pictures of examples", ("", 0), thumbnail, forgotten.example.image
        )
    row = forgotten.row
    return ExampleCard(
        row["task"],
        forgotten.question,
        row["answer"],
        row["prediction_after_training"],
        row["prediction_at_end"],
        f"forgotten in {row['runs_forgotten']} of {row['runs_followed']} runs"
        if row["runs_followed"] > 1
        else "",
        picture,
        width,
    )


def confusion_table(results: Results, split: str, setting: str) -> Table | None:
    """List the most frequent wrong answers."""
    table = confusions(results, split, setting).head(MAX_CONFUSIONS)
    if table.empty:
        return None
    rows = [
        TableRow(
            [row["task"], row["answer"], row["prediction"] or "(empty)", f"{row['count']} of {row['total']}"]
        )
        for row in table.to_dict("records")
    ]
    caption = "The most frequent wrong answers at the end, over the same runs."
    header = ["task", "correct answer", "answer given", "times"]
    return Table(caption, header, rows, "", frozenset({0, 1, 2}))
