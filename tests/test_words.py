"""One word for one thing: words that were given up occur in no identifier, message or page."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
GIVEN_UP = {  # → the word to use, see docs/concepts.md
    "exam": "evaluation",
    "sitting": "evaluation record",
    "fleet": "worker group",
    "desk": "work queue",
    "purse": "budget",
    "crew": "executor",
    "knob": "search parameter",
    "rival": "baseline",
    "probe": "query, or profiling run",
    "hopeless": "should_prune",
    "workshop": "stage runner",
    "errand": "submission",
    "sentinel": "hardware check",
    "likeness": "similarity",
    "litter": "garbage",
    "handful": "batch",
    "ailment": "outage",
    "foresee": "dry-run",
    "outlook": "cost forecast",
    "contender": "compared setting",
    "rehearse": "simulate",
    "rehearsal": "simulation",
    "snapshot": "mid-stage checkpoint",
    "ledger": "state publisher",
}
# Alone, in the plural, and inside identifiers: `fleets`, `exam_noise`, `FleetSize`.
PATTERN = re.compile(
    "|".join(rf"(?<![A-Za-z]){word}s?(?![a-z])|{word.title()}s?(?![a-z])" for word in GIVEN_UP)
)
ALLOWED = {
    "dgg_ray/config/simulation.py": "exam_noise",  # part of the keys of simulated stages
    "dgg_ray/scorers/_captions.py": "ACL Workshop",
    "tests/stats/test_coverage.py": '"rival"',  # names a random stream
}
LISTS = ("tests/test_words.py", "tests/report/test_page.py", "CHANGELOG.md")  # hold the old words
KINDS = ("*.py", "*.md", "*.j2", "*.yaml", "*.toml", "*.sh")
TRACKED = subprocess.run(
    ["git", "ls-files", *KINDS], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.splitlines()
NAMES = [name for name in TRACKED if name not in LISTS and (ROOT / name).is_file()]


def words_in(text: str) -> list[str]:
    return [match.group(0) for match in PATTERN.finditer(text)]


def test_a_word_is_found_alone_in_the_plural_and_inside_identifiers():
    assert words_in("a fleet, two fleets, exam_noise, FleetSize, desk") == [
        "fleet",
        "fleets",
        "exam",
        "Fleet",
        "desk",
    ]
    assert words_in("an example of an examined arrival, desktop, examples") == []


def test_no_file_has_a_word_that_was_given_up():
    found = []
    for name in NAMES:
        text = (ROOT / name).read_text(encoding="utf-8").replace(ALLOWED.get(name, "\0"), "")
        for number, line in enumerate(text.splitlines(), 1):
            found += [f"{name}:{number}: {word}" for word in words_in(line)]
    assert found == []
