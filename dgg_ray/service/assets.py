"""Scripts and style sheets, each under an address that holds a hash of them all.

    /static/HASH/app.css      an answer that a browser keeps for ever
    /static/OTHER/app.css     of a page from before an upgrade: today's file, which no browser keeps

One hash for the whole folder lets modules import each other by relative names.
"""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

FOLDER = Path(__file__).with_name("static")
PLOTLY = "plotly.min.js"  # lies in Python's plotly package
FOR_EVER = "public, max-age=31536000, immutable"
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}

router = APIRouter(include_in_schema=False)


@cache
def files() -> dict[str, Path]:
    """The files that are served, by name."""
    found = {file.name: file for file in sorted(FOLDER.iterdir()) if file.is_file()}
    package = find_spec("plotly")  # found, not imported: the server stays small
    if package and package.origin:
        found[PLOTLY] = Path(package.origin).parent / "package_data" / PLOTLY
    return found


@cache
def contents(name: str) -> tuple[bytes, bytes]:
    """A file as it is and compressed."""
    plain = files()[name].read_bytes()
    return plain, gzip.compress(plain, mtime=0)


@cache
def plotly_style_ids() -> list[str]:
    """Ids of the style elements that Plotly adds to a page that has none of that id; pages allow none."""
    script = contents(PLOTLY)[0].decode("utf-8")
    return sorted(set(re.findall(r'getElementById\("([0-9a-f]{40,64})"\)', script)))


@cache
def version() -> str:
    """A hash of all files; Plotly's large one counts with its size alone."""
    digest = hashlib.sha256()
    for name, file in files().items():
        digest.update(f"{name} {file.stat().st_size} ".encode())
        if name != PLOTLY:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def address(name: str) -> str:
    """The address of a file; KeyError for one that there is not."""
    return f"/static/{version()}/{files()[name].name}"


@router.get("/static/{asked_for}/{name}")
def static(request: Request, asked_for: str, name: str) -> Response:
    if name not in files():
        raise HTTPException(404, f"there is no file {name!r}")
    plain, compressed = contents(name)
    kind = TYPES.get(Path(name).suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    headers = {"cache-control": FOR_EVER if asked_for == version() else "no-store", "vary": "accept-encoding"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(compressed, 200, headers | {"content-encoding": "gzip"}, kind)
    return Response(plain, 200, headers, kind)
