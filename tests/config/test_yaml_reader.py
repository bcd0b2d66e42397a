"""Reading YAML: what is written is what is read, or the file says how to write it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgg_ray.config import yaml_reader
from dgg_ray.core.errors import Fault


def value(text):
    content, _, faults = yaml_reader.read_yaml(f"a: {text}\n")
    assert faults == []
    return content["a"]


def fault(text):
    """The only fault, as a sentence."""
    _, lines, faults = yaml_reader.read_yaml(text)
    (only,) = yaml_reader.add_lines(faults, lines)
    return str(only)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        *(("0", 0), ("-12", -12), ("+5", 5), ("1_000", 1000), ("0x1f", 31), ("0b11", 3), ("0o17", 15)),
        *((".5", 0.5), ("5.", 5.0), ("-.5", -0.5), ("1e-3", 0.001), ("1E3", 1000.0), ("1.5e+3", 1500.0)),
        *(("true", True), ("Yes", True), ("on", True), ("FALSE", False), ("no", False), ("off", False)),
        *(("~", None), ("null", None), ("", None)),
        *(("2026-11-29", "2026-11-29"), ("1_0", "1_0"), ("0,01", "0,01"), ("10.0.0.1", "10.0.0.1")),
        *(("'010'", "010"), ('"no"', "no"), ("!!str 5", "5"), ("y", "y"), ("=", "="), ("１２", "１２")),
        ('"\\ud83d\\ude00"', "😀"),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_a_value_is_what_a_person_reads(text, meant):
    read = value(text)
    assert (read, type(read)) == (meant, type(meant))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("010", "write 10, or '010' for text"),
        ("-007", "write -7, or"),
        ("08", "write 8, or '08' for text"),
        ("00.5", "write 0.5, or"),
        ("1:30", "write '1:30' for text"),
        ("190:20:30.15", "YAML 1.1 reads as base 60"),
        ("9223372036854775808", "whole number of 63 bits"),
        ("1" * 5000, "whole number of 63 bits"),
        (".nan", "must be a finite number"),
        ("-.inf", "must be a finite number"),
        ("1e999", "the largest is about 1.8e308"),
        ("1e-999", "is too small to be distinguished from 0"),
        ("!!int '5'", "tags have no meaning"),
        ("!!python/name:os.system", "tags have no meaning"),
        ("&x [*x]", "would never end"),
        ("&x {b: [1, *x]}", "would never end"),
        ('"a\\0b"', "without control characters"),
        ('"\\ud83d"', "half characters"),
    ],
)
def test_what_two_readers_would_read_differently_is_a_fault_with_its_line(text, said):
    sentence = fault(f"b: 1\na: {text}\n")
    assert said in sentence
    assert sentence.startswith("line 2  a")


def test_a_comma_inside_braces_is_one_fault_at_the_number():
    assert fault("training: {learning_rate: 0,01, epochs: 2}\n") == (
        "line 1  training.learning_rate: a number is written with a point, not with a comma, got 0,01"
    )
    assert yaml_reader.read_yaml("a: [0,5, 1,0]\n")[0] == {"a": [0, 5, 1, 0]}  # a list without spaces


def test_keys_are_text_as_they_are_written():
    assert yaml_reader.read_yaml("no: 1\n5: 2\n010: 3\n1e3: 4\n")[0] == {"no": 1, "5": 2, "010": 3, "1e3": 4}
    assert "is given twice" in fault("'5': 1\n5: 2\n")
    assert "before the colon" in fault("a: {'': 1}\n")
    assert "must be text" in fault("? [a]\n: 1\n")


def test_anchors_and_merge_keys_are_followed_and_own_values_come_first():
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {<<: [{x: 5}, *a]}\nd: *a\n"
    content = yaml_reader.read_yaml(text)[0]
    assert (content["b"], content["c"], content["d"]) == (
        {"x": 1, "y": 3},
        {"x": 5, "y": 2},
        {"x": 1, "y": 2},
    )
    assert "must be an alias of a mapping" in fault("b: {<<: 3}\n")


def laughs(levels):
    return "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, levels)
    )


@pytest.mark.parametrize(
    ("text", "said", "line"),
    [
        (laughs(9), "its aliases expand to too many values", 0),
        ("a: " + "[" * 60 + "]" * 60, "nested deeper than 40", 1),
        ("a: " + "[" * 5000 + "]" * 5000, "nested deeper than 40", 0),
        ("a: 1\n---\nb: 2\n", "a second one begins here", 2),
        ("a:\n\tb: 2\n", "indent with spaces", 2),
        ("a: 1\nb: \x07", "must be YAML", 2),
        ("a: *nobody\n", "undefined alias", 1),
        ("a: " + "x" * 2**20, "at most 1,048,576 characters", 0),
    ],
)
def test_a_text_that_cannot_be_read_says_why(text, said, line):
    with pytest.raises(yaml_reader.UnreadableYamlError) as caught:
        yaml_reader.read_yaml(text)
    assert said in caught.value.fault.rule
    assert caught.value.fault.line == line


def test_a_fault_of_meaning_says_how_yaml_read_it():
    _, lines, _ = yaml_reader.read_yaml("name: no\nepochs: 1e3\nrate: 0,01\n")
    found = [Fault("name", "must be text", "False"), Fault("epochs", "must be a whole number", "1000.0")]
    found += [Fault("rate", "must be a number", "'0,01'"), Fault("rate.deeper", "is required")]
    assert [str(fault) for fault in yaml_reader.add_lines(found, lines)] == [
        "line 1  name: must be text: put it in quotes, got no, which is read as false",
        "line 2  epochs: must be a whole number, got 1e3, which is read as 1000.0",
        "line 3  rate: must be a number, written with a point, got '0,01'",
        "line 3  rate.deeper: is required",
    ]


def test_of_a_path_with_a_fault_of_notation_nothing_else_is_said():
    assert fault("a: 010\n") == next(
        str(f)
        for f in yaml_reader.add_lines(
            [*yaml_reader.read_yaml("a: 010\n")[2], Fault("a", "must be odd")], {"a": 1}
        )
    )


# -- an oracle: numbers and texts that are written by rule, and what they mean ---------------------

WHOLE = st.integers(-(2**63), 2**63 - 1)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@given(WHOLE)
def test_whole_numbers_are_read_as_they_are_written(n):
    assert value(str(n)) == n
    assert value(f"{n:_}") == n
    assert value(f"[{n}]") == [n]


@given(NUMBERS)
def test_numbers_are_read_to_the_last_digit(x):
    read = value(repr(x))
    assert read == x
    assert math.copysign(1, read) == math.copysign(1, x)


@given(st.integers(0, 2**70), st.integers(1, 5))
def test_a_number_with_zeros_before_it_is_never_read(n, zeros):
    assert "begins with 0" in fault(f"a: {'0' * zeros}{n}\n")


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30))
def test_text_in_quotes_is_read_as_it_is_written(text):
    assert value("'" + text.replace("'", "''") + "'") == text or text.strip() != text or "\n" in text


WORD = st.text("abcxyz019.:-+_,eEfnosyNO~=<", min_size=1, max_size=8)


@given(WORD)
def test_a_plain_word_is_text_as_written_or_what_its_number_says_or_a_fault(word):
    try:
        content, _, faults = yaml_reader.read_yaml(f"- {word}\n")
    except yaml_reader.UnreadableYamlError:
        return
    if faults or not isinstance(content, list) or len(content) != 1:
        return
    (read,) = content
    if isinstance(read, dict | list):
        return  # `a: ` or `- x`: YAML's own structure
    if isinstance(read, str):
        assert read == word or "#" in word or "&" in word
    elif isinstance(read, bool):
        assert word.lower() in ("yes", "no", "on", "off", "true", "false")
    elif read is None:
        assert word in ("~", "null")
    elif isinstance(read, int):
        assert int(word, 0) == read
    else:
        assert float(word) == read
