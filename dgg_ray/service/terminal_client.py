"""The command line's view of a service: a study's card as lines, its output as it comes."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgg_ray.service.client import OVER, Client

LOG_S = 2.0  # between looks at a study's output


def describe(card: Mapping[str, Any]) -> str:
    """A study's card in lines."""
    reason = f", {card['waits_for']}" if card["waits_for"] else ""
    lines = [f"{card['name']}: {card['state']}{reason}"]
    progress = card["progress"] or {}
    if progress.get("total"):
        about = "" if progress.get("exact") else "about "
        lines.append(f"  stages            {progress['done']} of {about}{progress['total']}")
    for stage in progress.get("running") or []:
        lines.append(f"    {stage['stage']}  step {stage['steps'][0]}/{stage['steps'][1]}")
    rows = {"best so far": card["best"], "problem": card["message"], "owner": card["owner"]}
    return "\n".join([*lines, *(f"  {label:<16}  {value}" for label, value in rows.items() if value)])


def submit(url: str, file: Path, follow: bool) -> int:
    """Submit a study's file; with `follow`, show its output until it ends. Return the exit code."""
    card = Client(url).submit(file)
    print(describe(card))
    return show_logs(url, card["name"], True) if follow else 0


def show_logs(url: str, name: str, follow: bool) -> int:
    """Print a study's output; with `follow`, go on until it ends. Return 1 where it failed."""
    server, shown = Client(url), ""
    while True:
        card = server.study(name)
        text = server.logs(name)
        print(new_part(shown, text), end="", flush=True)
        shown = text
        if not follow:
            return 0
        if card["state"] in OVER:
            print(describe(card), file=sys.stderr)
            return 0 if card["state"] == "finished" else 1
        time.sleep(LOG_S)


def new_part(shown: str, text: str) -> str:
    """The part of the text that was not shown yet; its beginning may be cut off meanwhile."""
    if text.startswith(shown):
        return text[len(shown) :]
    tail = shown[-500:]
    return text.rpartition(tail)[2] if tail in text else text
