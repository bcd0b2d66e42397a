"""Any damage to a study file: it loads, or every fault is told with a path; never another exception.

DGG_RAY_EXAMPLES=6000 pytest tests/config/test_properties_study.py        many more inputs
"""

import copy
import json
import os
import re

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dgg_ray import load_study
from dgg_ray.config import yaml_reader
from dgg_ray.config.loader import KEYS, build_study
from dgg_ray.core.errors import Fault, StudyError

MANY = int(os.environ.get("DGG_RAY_EXAMPLES", "100"))
FILES = int(os.environ.get("DGG_RAY_EXAMPLES", "25"))
every = settings(max_examples=MANY, suppress_health_check=list(HealthCheck))
some = settings(max_examples=FILES, suppress_health_check=list(HealthCheck))

GOOD = {
    "name": "small",
    "question": "Which α?",
    "model": {"name": "embedded"},
    "tasks": [
        {"name": name, "reader": "embedded", "train": 12, "validation": 10, "test": 10}
        for name in ("digits", "words", "charts")
    ],
    "strategy": {"name": "dgg", "alpha": {"digits": 0.1, "words": 0.2, "charts": 1}, "buffer": 5},
    "adapter": {"rank": 2, "alpha": 4.0, "dropout": 0.1, "targets": "all"},
    "training": {"epochs": 1, "batch_size": 8, "learning_rate": 0.01, "betas": [0.9, 0.99], "clip_norm": 1.0},
    "orders": {"design": "random", "count": 2, "seed": 1},
    "seeds": [0, 3],
    "search": {
        "space": {
            "strategy.alpha": {"per_task": [0, 0.5]},
            "training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
            "strategy.buffer": [1, 5],
        },
        "method": "tpe",
        "trials": 4,
        "objective": ["faa", "stability"],
        "constraints": "plasticity >= finetune - 2 points",
    },
    "protocol": {
        "evaluate": "seen",
        "max_new_tokens": 4,
        "held_out": 2,
        "baselines": ["replay", {"A": {"strategy.buffer": 0}}],
    },
    "workers": {"groups": 2, "cpus": 1, "engine": "simulated"},
    "output": {"store": "stages"},
    "budget": {"worker_hours": 3},
    "simulation": {"seed": 1, "noise": 0.01},
}

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.sampled_from([2**53 + 1, 2**63, -(2**63) - 1, 10**20, 10**12, 10**9, 10**400])
    | st.floats()
    | st.sampled_from(
        ["", "~", "no", "all", "dgg", "digits", "a/b", "~nobody-here/x", "\0", "\ud800", "1e-3", "../x"]
    )
    | st.sampled_from(
        ["file://~x", "s3://", "://", "faa >= 1", "plasticity >= joint - 2 points", "strategy.alpha"]
    )
    | st.text(max_size=6)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["name", "values", "low", "high", "per_task", "x", "digits"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


def places(node, at=()):
    """Path of every node below the root."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in inner:
        yield (*at, key)
        yield from places(value, (*at, key))


PLACES = list(places(GOOD))


def above(content, path):
    for step in path[:-1]:
        content = content[step]
    return content


@st.composite
def damaged(draw):
    """The good study after one to three operations; a place that is gone by then is left out."""
    content = copy.deepcopy(GOOD)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(PLACES))
        try:
            inside = above(content, path)
            inside[path[-1]]
        except (KeyError, IndexError, TypeError):
            continue
        operation = draw(
            st.sampled_from(["replace", "replace", "delete", "wrap", "double", "swap", "rename", "deepen"])
        )
        if isinstance(inside, str):
            continue
        if operation == "replace":
            inside[path[-1]] = draw(VALUES)
        elif operation == "delete":
            del inside[path[-1]]
        elif operation == "wrap":
            inside[path[-1]] = draw(
                st.sampled_from([lambda v: [v], lambda v: {"name": v}, lambda v: [[v], v]])
            )(inside[path[-1]])
        elif operation == "double" and isinstance(inside, list):
            inside.append(copy.deepcopy(inside[path[-1]]))
        elif operation == "swap":
            other = draw(st.sampled_from(PLACES))
            try:
                inside[path[-1]] = copy.deepcopy(above(content, other)[other[-1]])
            except (KeyError, IndexError, TypeError):
                continue
        elif operation == "rename" and isinstance(inside, dict):
            inside[draw(st.sampled_from(["nam", "x", "trian", "-", "é", "name"]))] = inside.pop(path[-1])
        elif operation == "deepen":
            value = inside[path[-1]]
            for _ in range(draw(st.sampled_from([3, 30]))):
                value = [value]
            inside[path[-1]] = value
    return content


def known(path, content):
    """Whether a fault's path begins with something that stands in the study, or could."""
    head = re.split(r"[.\[]", path)[0]
    return head in (*KEYS, "study") or head in map(str, content)


def check(content, root):
    study, faults = build_study(content, root)
    assert study is not None or faults
    for fault in faults:
        assert fault.rule
        assert str(fault).encode("utf-8", "surrogatepass")
        assert known(fault.path, content), str(fault)
    return study, faults


@every
@given(damaged())
def test_a_damaged_study_is_built_or_refused_by_path(content):
    study, faults = check(content, "/nowhere")
    if not faults:
        assert study.name == content["name"]
        assert study.task_names == tuple(task["name"] for task in content["tasks"])
        assert study.all_orders
        written = content.get("training") or {}
        for name, value in written.items():
            read = getattr(study.training, name)
            assert (list(read) if isinstance(read, tuple) else read) == value


@every
@given(damaged())
def test_a_study_is_refused_whole_or_means_what_it_says_where_it_is_kept(content):
    """What `study.json` will hold is read back as the same study."""
    study, faults = check(content, "/nowhere")
    if not faults:
        again, none = build_study(json.loads(json.dumps(content)), "/nowhere", files=False)
        assert none == []
        assert again.training == study.training
        assert again.strategy == study.strategy
        assert again.search == study.search
        assert again.orders == study.orders


@some
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_with_a_line(data, tmp_path_factory):
    """Characters lost, doubled or changed in the text itself."""
    text = yaml.safe_dump(GOOD, sort_keys=False, allow_unicode=True)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 12))
        new = data.draw(
            st.sampled_from(
                [
                    "",
                    ":",
                    "-",
                    " ",
                    "\n",
                    "\t",
                    "&a ",
                    "*a",
                    "{",
                    "]",
                    "'",
                    '"',
                    "0",
                    "<<: ",
                    "#",
                    "é",
                    "!!x ",
                    "|",
                    "? ",
                ]
            )
        )
        text = text[:at] + new + text[at + cut :]
    file = tmp_path_factory.mktemp("study") / "study.yaml"
    file.write_text(text, encoding="utf-8")
    found: tuple[Fault, ...] = ()
    try:
        assert load_study(file).all_orders
    except StudyError as error:
        found = error.faults or (Fault("nothing", ""),)
    assert all(fault.rule and 0 <= fault.line <= text.count("\n") + 1 for fault in found)


@every
@given(damaged())
def test_what_is_written_as_yaml_is_what_is_read(content):
    try:
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    except (yaml.YAMLError, UnicodeError, ValueError):
        return
    if "\x85" in text:  # PyYAML writes this line break as it is, and YAML reads it as a space
        return
    try:
        read, _, faults = yaml_reader.read_yaml(text)
    except yaml_reader.UnreadableYamlError:
        return
    if not faults:
        assert same(read, content)


def same(read, written):
    """Equal, but for the keys, which are text, and for texts like 1e-3, which PyYAML leaves bare."""
    if isinstance(written, dict):
        return (
            isinstance(read, dict)
            and {str(k): k for k in written}.keys() == read.keys()
            and all(same(read[str(k)], v) for k, v in written.items())
        )
    if isinstance(written, list):
        return isinstance(read, list) and len(read) == len(written) and all(map(same, read, written))
    if isinstance(written, str) and isinstance(read, float):
        return re.fullmatch(r"[-+]?\d+e[-+]?\d+", written, re.IGNORECASE) is not None
    return read == written and type(read) is type(written)
