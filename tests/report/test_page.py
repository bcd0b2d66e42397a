"""The sections of the page and their order, its links, structure and words."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_samples import small_study

from dgg_ray.analysis.results import CandidateSetting, Results, SearchSummary
from dgg_ray.core.optional_outputs import OptionalOutputs
from dgg_ray.report import page, page_sections
from dgg_ray.report.page_sections import SECTIONS

VOID = {"meta", "img", "br", "link", "input", "hr"}
PRIVATE_WORDS = re.compile(
    r"\b(exams?|examined|sittings?|fleets?|desks?|purses?|crews?|knobs?|rivals?|contenders?|probes?"
    r"|rac(?:es?|ing)|hop(?:es?|ed)"
    r"|hopeless|given up|judg(?:es?|ed|ing)|sentinels?|ledger|handful|outlook|workshop|snapshots?"
    r"|set aside|shed|litter|whoever|learned? (?:right|after|it)|told apart)\b",
    re.IGNORECASE,
)


class ParsedPage(HTMLParser):
    """The tags of a page in order, its text, and the tags that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.unclosed: list[str] = []
        self.misnested: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.unclosed.append(tag)

    def handle_endtag(self, tag):
        if not self.unclosed or self.unclosed.pop() != tag:
            self.misnested.append(f"</{tag}>")

    def handle_data(self, data):
        if self.unclosed and self.unclosed[-1] not in ("style", "pre", "title"):
            self.words.append(data)

    def attributes_of(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def searched_study() -> Results:
    candidates = tuple(
        CandidateSetting(name, "evaluated", ((score,),), (score,))
        for name, score in (("d1", 0.67), ("d2", 0.53))
    )
    search = SearchSummary("tpe", ("faa",), candidates=candidates, expected_settings=2)
    failure = {
        "stage": "ab",
        "trained_task": "b",
        "error": "NonFiniteError",
        "message": "nan",
        "traceback": "line 7",
    }
    facts = {"tasks": {"a": {"train": 3, "test": 2}}, "study file": "name: small\n"}
    return small_study(search=search, failures=[failure], facts=facts, evaluated=("d1", "d2"))


@pytest.fixture(scope="module", params=["three figures", pytest.param("all", marks=pytest.mark.whole)])
def written(request, tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "all":  # they take seconds
            patch.setattr(page, "figure_names", lambda: ["forest", "alpha_effect", "stability_plasticity"])
        return page.write_report(searched_study(), tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def parsed(written) -> ParsedPage:
    return ParsedPage(written.read_text(encoding="utf-8"))


def test_sections_are_in_order_and_those_without_content_are_left_out(parsed):
    names = [attributes["id"] for attributes in parsed.attributes_of("section")]
    assert names == ["use", "compare", "tasks", "stability", "order", "choice", "appendix"]
    assert [spec.anchor for spec in SECTIONS] == [*names[:-1], "wrong"]  # no predictions were stored


def test_every_tag_is_closed_and_every_id_is_unique(parsed):
    assert parsed.misnested == []
    assert parsed.unclosed == []
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_every_link_has_a_target(parsed, written):
    ids = {attributes.get("id") for _, attributes in parsed.tags}
    for link in parsed.attributes_of("a"):
        target = link["href"] or ""
        assert target[1:] in ids if target.startswith("#") else (written.parent / target).is_file(), target


def test_every_table_and_figure_of_the_report_is_linked(parsed, written):
    linked = {link["href"] for link in parsed.attributes_of("a")}
    files = [*written.parent.glob("*.csv"), *(written.parent / "figures").glob("*.csv")]
    assert {file.relative_to(written.parent).as_posix() for file in files} <= linked


def test_headings_do_not_skip_a_level(parsed):
    levels = [int(tag[1]) for tag, _ in parsed.tags if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert set(levels[1:]) == {2}


def test_the_page_is_accessible_to_screen_readers(parsed):
    assert all(attributes.get("alt") for attributes in parsed.attributes_of("img"))
    assert {attributes.get("scope") for attributes in parsed.attributes_of("th")} == {"col", "row"}
    known = {attributes.get("id") for _, attributes in parsed.tags}
    assert all(
        attributes["aria-labelledby"] in known
        for _, attributes in parsed.tags
        if "aria-labelledby" in attributes
    )
    assert parsed.attributes_of("html")[0]["lang"] == "en"
    assert (
        parsed.tags[[tag for tag, _ in parsed.tags].index("body") + 1][1]["href"] == "#use"
    )  # skips the contents


def test_the_page_uses_the_words_of_the_field(parsed):
    assert PRIVATE_WORDS.findall(parsed.text) == []


def test_no_section_has_more_than_three_sentences(parsed, written):
    sections = page_sections.build_sections(searched_study(), {}, OptionalOutputs())
    assert [
        (section.anchor, len(section.sentences)) for section in sections if len(section.sentences) > 4
    ] == []
    assert [section.anchor for section in sections[1:] if len(section.sentences) > 3] == []


def test_a_section_that_fails_is_named_and_all_others_are_shown(monkeypatch, tmp_path):
    def broken(*_):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(page_sections, "per_task", broken)
    monkeypatch.setattr(page, "figure_names", list)
    optional = OptionalOutputs()
    parsed = ParsedPage(page.write_report(searched_study(), tmp_path, optional).read_text(encoding="utf-8"))
    names = [attributes["id"] for attributes in parsed.attributes_of("section")]
    assert "tasks" not in names
    assert {"use", "compare", "order", "appendix"} <= set(names)
    line = "the section “What happens to each task?” is missing: ZeroDivisionError: division by zero"
    assert optional.messages == [line]
    assert line in parsed.text


def test_a_figure_that_fails_is_named_and_the_page_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(page, "figure_names", lambda: ["forest", "no_such_figure"])
    optional = OptionalOutputs()
    html = page.write_report(searched_study(), tmp_path, optional).read_text(encoding="utf-8")
    assert 'id="figure-forest"' in html
    assert [line.split(":")[0] for line in optional.messages] == ["the figure no_such_figure is missing"]


def test_one_task_is_named_as_the_most_forgotten(parsed):
    # a: best 0.8 and 0.8 (order c a b: 0.7), ends at 0.6 in both; c: 0.9 → 0.7 where it is first
    assert "On average, dgg forgets c most: when other tasks follow it, it ends" in parsed.text


def test_the_page_of_a_study_with_two_blocks_gives_no_interval(written):
    comparison = (written.parent / "comparison.csv").read_text(encoding="utf-8")
    assert "2 blocks" in written.read_text(encoding="utf-8")
    assert "nan" not in comparison


def test_a_study_without_a_search_says_so_in_one_line():
    only = small_study(settings=("d1",), recommended=None, baselines={}, parameters=())
    sections = {
        section.anchor: section for section in page_sections.build_sections(only, {}, OptionalOutputs())
    }
    assert sections["choice"].sentences == ["Nothing was searched: the setting is the study's own."]
    assert sections["choice"].elements == []
    assert "compared with no other method" in sections["compare"].sentences[0]


def test_the_settings_of_the_search_are_counted():
    sections = {
        section.anchor: section
        for section in page_sections.build_sections(searched_study(), {}, OptionalOutputs())
    }
    assert "proposed 2 settings and evaluated 2 of them by FAA" in sections["choice"].sentences[0]


def test_the_page_gives_the_trade_off_of_one_alpha_for_all_tasks(parsed):
    # over both orders, d2 (α = 0.125): (0.2 + 0.5 + 0.3 + 0.4) / 4 and (0.7 + 0.9 + 0.8 + 0.6) / 4;
    # d1 (0.25): (0.6 + 0.5 + 0.7 + 0.6) / 4 and (0.6 + 0.9 + 0.7 + 0.5) / 4
    said = "With one α for all tasks, α = 0.25 instead of 0.125 changes stability by +25.0 points (2 "
    said += "blocks: +20.0, +30.0) and plasticity by −7.5 points (2 blocks: −5.0, −10.0), over the blocks on"
    assert said in parsed.text
