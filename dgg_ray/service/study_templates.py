"""Studies to begin with: the project's where its files lie beside the package, else one small study."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

STUDIES = Path(__file__).parents[2] / "studies"
FIRST = "quickstart"
QUESTION = re.compile(r"^question:\s*(.+)$", re.MULTILINE)
NAME = re.compile(r"^name:\s*(\S+)", re.MULTILINE)
SMALL = """\
name: first
question: Does guidance help two small tasks?
model: embedded
tasks:
  - {name: digits, reader: embedded, train: 200}
  - {name: words, reader: embedded, train: 200}
strategy: {name: dgg, alpha: 0.1, buffer: 20}
adapter: {rank: 8}
training: {epochs: 3, batch_size: 16, learning_rate: 1e-2}
orders: {design: all}
seeds: per_order
protocol:
  evaluate: seen
  baselines: [finetune, replay, joint]
workers: {groups: 2}
"""


@cache
def templates() -> list[dict[str, str]]:
    """The templates, the quickstart first: {name, question, text}."""
    files = sorted(STUDIES.glob("*.yaml"), key=lambda file: (file.stem != FIRST, file.stem))
    texts = [file.read_text(encoding="utf-8") for file in files] or [SMALL]
    return [{"name": found(NAME, text), "question": found(QUESTION, text), "text": text} for text in texts]


def found(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return match[1].strip() if match else ""
