"""The page: what it asks and answers, in which order, and that a browser and a reader can follow it."""

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_samples import small_study

from dgg_ray.analysis.results import Candidate, Results, Searched
from dgg_ray.core.fence import Fence
from dgg_ray.report import questions, report
from dgg_ray.report.questions import QUESTIONS

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Read(HTMLParser):
    """What a test asks of a page: its tags in order, ids, links, headings, and tags left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.faults: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}>")

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "pre", "title"):
            self.words.append(data)

    def of(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def searched_study() -> Results:
    judged = [
        Candidate(name, "judged", ((score,),), (score,)) for name, score in (("d1", 0.67), ("d2", 0.53))
    ]
    search = Searched("tpe", ("faa",), candidates=tuple(judged), count=2)
    failure = {
        "stage": "ab",
        "trained_task": "b",
        "error": "NotFinite",
        "message": "nan",
        "traceback": "line 7",
    }
    facts = {"tasks": {"a": {"train": 3, "test": 2}}, "study file": "name: small\n"}
    return small_study(search=search, failures=[failure], facts=facts, tried=("d1", "d2"))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return report.write(searched_study(), tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def read(written) -> Read:
    return Read(written.read_text(encoding="utf-8"))


def test_the_questions_stand_in_their_order_and_those_without_an_answer_are_left_out(read):
    names = [of["id"] for of in read.of("section")]
    assert names == ["use", "compare", "tasks", "stability", "order", "choice", "appendix"]
    assert list(QUESTIONS) == [*names[:-1], "wrong"]  # no predictions were kept, so nothing is shown of them


def test_every_tag_is_closed_and_no_id_is_there_twice(read):
    assert read.faults == []
    assert read.open == []
    ids = [of["id"] for _, of in read.tags if "id" in of]
    assert len(ids) == len(set(ids))


def test_every_link_leads_somewhere(read, written):
    ids = {of.get("id") for _, of in read.tags}
    for link in read.of("a"):
        target = link["href"] or ""
        assert target[1:] in ids if target.startswith("#") else (written.parent / target).is_file(), target


def test_every_table_and_figure_of_the_report_is_linked(read, written):
    linked = {link["href"] for link in read.of("a")}
    files = [*written.parent.glob("*.csv"), *(written.parent / "figures").glob("*.csv")]
    assert {file.relative_to(written.parent).as_posix() for file in files} <= linked


def test_headings_do_not_skip_a_level(read):
    levels = [int(tag[1]) for tag, _ in read.tags if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert set(levels[1:]) == {2}


def test_who_does_not_see_the_page_can_read_it(read):
    assert all(of.get("alt") for of in read.of("img"))
    assert {of.get("scope") for of in read.of("th")} == {"col", "row"}
    known = {of.get("id") for _, of in read.tags}
    assert all(of["aria-labelledby"] in known for _, of in read.tags if "aria-labelledby" in of)
    assert read.of("html")[0]["lang"] == "en"
    assert (
        read.tags[[tag for tag, _ in read.tags].index("body") + 1][1]["href"] == "#use"
    )  # skips the contents


def test_the_page_speaks_the_words_of_the_field(read):
    strange = re.compile(r"\b(exams?|examined|fleets?|knobs?|sentinel|given up|sittings?)\b", re.IGNORECASE)
    assert strange.findall(read.text) == []


def test_no_section_has_more_than_three_sentences_of_its_own(read, written):
    made = questions.sections(searched_study(), {}, Fence())
    assert [(section.name, len(section.sentences)) for section in made if len(section.sentences) > 4] == []
    assert [section.name for section in made[1:] if len(section.sentences) > 3] == []


def test_a_section_that_fails_is_named_and_all_others_are_there(monkeypatch, tmp_path):
    def broken(*_):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(questions, "per_task", broken)
    monkeypatch.setattr(report, "figure_names", list)
    fence = Fence()
    page = Read(report.write(searched_study(), tmp_path, fence).read_text(encoding="utf-8"))
    names = [of["id"] for of in page.of("section")]
    assert "tasks" not in names
    assert {"use", "compare", "order", "appendix"} <= set(names)
    line = "the section “What happens to each task?” is missing: ZeroDivisionError: division by zero"
    assert fence.lines == [line]
    assert line in page.text


def test_a_figure_that_fails_is_named_and_the_report_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "figure_names", lambda: ["forest", "no_such_figure"])
    fence = Fence()
    page = report.write(searched_study(), tmp_path, fence).read_text(encoding="utf-8")
    assert 'id="figure-forest"' in page
    assert [line.split(":")[0] for line in fence.lines] == ["the figure no_such_figure is missing"]


def test_one_task_is_named_as_the_most_forgotten(read):
    # a: best 0.8 and 0.8 (order c a b: 0.7), ends at 0.6 in both; c: 0.9 → 0.7 where it is first
    assert "On average dgg forgets c most: where other tasks follow it, it ends" in read.text


def test_the_page_of_a_study_with_two_blocks_draws_no_interval(written):
    comparison = (written.parent / "comparison.csv").read_text(encoding="utf-8")
    assert "2 blocks" in written.read_text(encoding="utf-8")
    assert "nan" not in comparison


def test_a_study_where_nothing_was_searched_says_so_in_one_line():
    only = small_study(settings=("d1",), recommended=None, baselines={}, parameters=())
    made = {section.name: section for section in questions.sections(only, {}, Fence())}
    assert made["choice"].sentences == ["Nothing was searched: the setting is the study's own."]
    assert made["choice"].parts == []
    assert "compared with no other method" in made["compare"].sentences[0]


def test_what_was_searched_is_counted_once():
    page = dataclasses.replace(searched_study())
    made = {section.name: section for section in questions.sections(page, {}, Fence())}
    assert "proposed 2 settings and judged 2 of them by FAA" in made["choice"].sentences[0]


def test_the_page_says_what_one_alpha_for_all_tasks_trades(read):
    # over both orders, d2 (α = 0.125): (0.2 + 0.5 + 0.3 + 0.4) / 4 and (0.7 + 0.9 + 0.8 + 0.6) / 4;
    # d1 (0.25): (0.6 + 0.5 + 0.7 + 0.6) / 4 and (0.6 + 0.9 + 0.7 + 0.5) / 4
    said = "With one α for all tasks, α = 0.25 in place of 0.125 changes stability by +25.0 points (2 "
    said += (
        "blocks: +20.0, +30.0) and plasticity by −7.5 points (2 blocks: −5.0, −10.0), over the blocks that"
    )
    assert said in read.text
