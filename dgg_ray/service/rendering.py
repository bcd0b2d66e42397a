"""Pages from templates: what every page knows, and how numbers and times read on it.

A template gets what its route gives it, and `me` (the user; None before logging in), `csrf`, `theme` ("",
"dark" or "light"), `path`, `last_event` (id of the newest server-sent event) and `static(NAME)`.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import Request, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import dgg_ray
from dgg_ray.core.phrases import plural
from dgg_ray.service import assets
from dgg_ray.service.context import context_of
from dgg_ray.service.responses import answer_bytes
from dgg_ray.service.security import csrf_of, token_of
from dgg_ray.service.state import OVER, User

THEME = "dgg_ray_theme"  # a cookie, so that a page comes in its colours at once
UNITS = ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s"))


def page(request: Request, template: str, user: User | None, status: int = 200, **values: Any) -> Response:
    """Render a template of the folder `templates`, for example "studies.html.j2"."""
    theme = request.cookies.get(THEME, "")
    broadcast = context_of(request).broadcast
    values |= {
        "me": user,
        "csrf": csrf_of(token_of(request)[0]),
        "theme": theme if theme in ("dark", "light") else "",
        "path": request.url.path,
        "last_event": f"{broadcast.name}-{broadcast.number}",
        "open_to_all": context_of(request).access.open_to_all,
    }
    text = environment().get_template(template).render(values)
    return answer_bytes(request, text.encode(), "text/html; charset=utf-8", status)


@cache
def environment() -> Environment:
    found = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
    )
    found.filters |= {
        "duration": duration,
        "iso": iso,
        "ago": ago,
        "until": until,
        "number": number,
        "percent": percent,
        "segment": lambda text: quote(str(text), safe=""),
        "plural": plural,
        "code": code,
        "best": best,
    }
    found.globals |= {
        "static": assets.address,
        "plotly_style_ids": assets.plotly_style_ids,
        "query": query,
        "version": dgg_ray.__version__,
        "OVER": OVER,
        "THEME": THEME,
    }
    return found


def query(values: Mapping[str, Any], **changes: Any) -> str:
    """The values as an address's query, some of them changed; empty ones are left out."""
    return "?" + urlencode(
        {k: v for k, v in {**values, **changes}.items() if v not in ("", None)}, doseq=True
    )


def code(text: str) -> Markup:
    """A docstring's text, with what stands between backticks as code.

    >>> str(code("forgotten by `gc` & co"))
    'forgotten by <code>gc</code> &amp; co'
    """
    parts = re.split(r"`([^`]+)`", text)
    return Markup("").join(Markup("<code>{}</code>").format(t) if i % 2 else t for i, t in enumerate(parts))


def best(text: str) -> tuple[list[tuple[str, str]], str]:
    """The sentence about a search's best setting in its parts: [(name and value, interval)], setting.

    >>> best("faa 0.746 (95 % CI 0.701 to 0.790), bwt −0.01 (one block) with adapter.rank=8")
    ([('faa 0.746', '95 % CI 0.701 to 0.790'), ('bwt −0.01', 'one block')], 'adapter.rank=8')
    """
    values, _, setting = text.partition(" with ")
    return re.findall(r"([^,(][^(]*?)\s*\(([^)]*)\),?\s*", values) or [(values, "")], setting


# -- numbers and times -----------------------------------------------------------------------------


def number(value: float | bool | None, digits: int = 3) -> str:
    """Three significant digits, with a comma between thousands; a dash for None; `true` as in a study.

    >>> number(0.01234), number(12.3456), number(12345.6), number(999.6), number(7)
    ('0.0123', '12.3', '12,346', '1,000', '7')
    >>> number(None), number(True)
    ('–', 'true')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or not math.isfinite(value):
        return "–"
    if value == int(value) or abs(value) >= 10**digits - 0.5:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def percent(score: float | None) -> str:
    """A score in [0, 1] in percent, without a unit.

    >>> percent(0.6557), percent(None)
    ('65.6', '–')
    """
    return "–" if score is None or not math.isfinite(score) else f"{100 * score + 0:.1f}".replace("-", "−")


def duration(seconds: float | None) -> str:
    """A time in its two largest units.

    >>> duration(7380), duration(59.4), duration(93600), duration(3600), duration(None)
    ('2 h 3 min', '59 s', '1 d 2 h', '1 h', '–')
    """
    if seconds is None or not math.isfinite(seconds):
        return "–"
    left = round(max(0.0, seconds))
    for large, large_name, small, small_name in UNITS:
        if left >= large:
            rest = left % large // small
            return f"{left // large} {large_name}" + (f" {rest} {small_name}" if rest else "")
    return f"{left} s"


def ago(at: float, now: float | None = None) -> str:
    """The time since a moment, in its largest unit.

    >>> ago(100.0, now=110.0), ago(0.0, now=7300.0), ago(0.0, now=2.5 * 86400)
    ('just now', '2 h ago', '2 d ago')
    """
    passed = (time.time() if now is None else now) - at
    for large, name, _, _ in UNITS:
        if passed >= large:
            return f"{int(passed // large)} {name} ago"
    return "just now"


def until(at: float, now: float | None = None) -> str:
    """The time until a moment, at least a minute.

    >>> until(7260.0, now=0.0), until(5.0, now=10.0)
    ('2 h 1 min', '1 min')
    """
    return duration(max(60.0, at - (time.time() if now is None else now)))


def iso(at: float) -> str:
    """A Unix time as ISO 8601, in UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
