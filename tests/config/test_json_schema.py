"""The schema that editors are given tells what every setting is."""

from collections.abc import Iterator
from typing import Any

from dgg_ray.config.descriptions import described_names, descriptions, sentence
from dgg_ray.config.json_schema import schema
from dgg_ray.config.sections import Workers
from dgg_ray.core import plugins


def settings(form: Any, at: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(Path, schema) of every key that a study may have."""
    if isinstance(form, list):
        for i, part in enumerate(form):
            yield from settings(part, f"{at}[{i}]")
    elif isinstance(form, dict):
        for name, inner in form.get("properties", {}).items():
            yield f"{at}.{name}", inner
        for key, inner in form.items():
            yield from settings(inner, at if key == "properties" else f"{at}.{key}")


def test_every_setting_has_a_description():
    found = dict(settings(schema()))
    assert len(found) > 130
    assert [path for path, form in found.items() if not form.get("description")] == []


def test_a_description_is_whole_sentences():
    for path, form in settings(schema()):
        text = form["description"]
        assert text.endswith((".", "?", ")")), path
        assert text[0].isupper() or text[0] in "`αβγλτρκ", path
        assert "\n" not in text, path
        assert len(text.split()) > 1, path


def test_a_docstring_describes_fields_with_lines_that_go_on():
    doc = """Title.

    one, two: of each kind;
        and more.
    three: α, a symbol
    No field here: not one, for it has spaces.
        neither this.
    """
    assert described_names(doc) == {
        "one": "Of each kind; and more.",
        "two": "Of each kind; and more.",
        "three": "α, a symbol.",
    }


def test_a_field_is_described_by_the_base_class_that_has_it():
    text = descriptions(plugins.find("strategies", "dgg"))
    assert text["buffer"] == descriptions(plugins.find("strategies", "replay"))["buffer"]
    assert text["buffer"].startswith("Number of training examples kept")


def test_what_is_no_field_is_not_described():
    assert set(descriptions(Workers)) <= set(Workers.__dataclass_fields__)


def test_a_sentence_keeps_the_end_that_it_has():
    assert sentence("is it?") == "Is it?"
    assert sentence("as published (α > 0)") == "As published (α > 0)"


def test_a_sentence_names_none_of_our_source_files():
    assert sentence("as it is defined there (pruning.py); so") == "As it is defined there; so."
