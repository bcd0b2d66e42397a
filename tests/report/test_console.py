"""The last lines that a run prints."""

import dataclasses

import pandas as pd
import pytest
from report_samples import small_study

from dgg_ray.analysis.archive import AdapterLocation
from dgg_ray.core.optional_outputs import OptionalOutputs
from dgg_ray.report import console


def test_the_table_has_a_line_for_each_method_below_a_head():
    lines = console.method_table(small_study())
    assert len(lines) == 4
    assert lines[0].split() == ["FAA", "on", "test,", "%", "dgg", "minus", "this", "forgetting"]
    assert lines[1].startswith("* dgg")
    assert "66.7 (2 blocks: 71.7, 61.7)" in lines[1]
    assert "+12.5 (2 blocks: +8.3, +16.7)" in lines[2]
    # finetune: a falls from 0.8 to 0.3 and b from 0.8 to 0.4; c from 0.9 to 0.4 and a from 0.8 to 0.3
    assert lines[2].endswith("47.5")
    assert (
        len({line.index(text) for line, text in zip(lines[1:], ("66.7", "54.2", "81.7"), strict=True)}) == 1
    )


def test_of_many_methods_five_lines_are_shown_and_the_others_are_counted():
    results = small_study()
    copies = [results.table[results.table["setting"] == "ft"].assign(setting=f"f{i}") for i in range(3)]
    table = pd.concat([results.table, *copies])
    baselines = {"one": "f0", "two": "f1", "three": "f2", **results.baselines}
    lines = console.method_table(dataclasses.replace(results, table=table, baselines=baselines))
    assert len(lines) == 1 + 4 + 1
    assert [line.split()[0] for line in lines[1:5]] == ["*", "one", "finetune", "joint"]
    assert lines[-1].strip() == "(2 more methods in the report)"


def test_a_study_without_a_score_has_no_table():
    failed = small_study(failures=[{"error": "NonFiniteError", "trained_task": "b"}])
    assert console.method_table(dataclasses.replace(failed, table=failed.table[:0])) == []


def test_the_verdict_comes_first_and_no_line_is_repeated():
    lines = console.summary_lines(small_study(), OptionalOutputs())
    assert lines[0].startswith("No setting was shown to beat plain fine-tuning")
    assert len(lines) == len(set(lines) - {""}) + 1


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (
            ["/s/a/adapter", ""],
            ["  a > b, seed 0: /s/a/adapter", "  b > a, seed 1: removed to free disk space"],
        ),
        (["", ""], []),
    ],
)
def test_the_adapters_of_the_chosen_setting_are_listed(paths, expected):
    class FakeArchive:
        def adapters(self, setting):
            assert setting == "d1"
            yield AdapterLocation("a > b", 0, paths[0])
            yield AdapterLocation("b > a", 1, paths[1])

    results = small_study()
    object.__setattr__(results, "archive", FakeArchive())
    assert console.adapter_lines(results)[1:] == expected
