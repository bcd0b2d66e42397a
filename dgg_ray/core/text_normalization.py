"""Text normalization: when two texts are the same answer. The one rule for every scorer that compares texts.

Differences that are ignored:
    composed and decomposed characters (Unicode NFC), full-width and half-width forms: Ｂ and B, ｶﾞ and ガ
    case, by Unicode's full folding (ß and ss, σ and ς), and İ and i
    any white space, once or repeated: blanks, line breaks, no-break and ideographic spaces
    invisible characters: zero-width spaces and joiners, soft hyphens, direction marks
    one full stop at the end, of any script: . 。 । ۔ ።

All other differences count: 10² and 102, 1,000 and 1000, ٣ and 3, ı and i, ’ and ', - and –, ! at the end.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

WIDTHS = {  # full Unicode compatibility would also turn 10² into 102; only widths are normalized
    code: unicodedata.normalize("NFKC", chr(code))
    for code in (0x3000, *range(0xFF01, 0xFFEF))
    if unicodedata.decomposition(chr(code)).startswith(("<wide>", "<narrow>"))
}
INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufe00-\ufe0f\ufeff]"
)
FULL_STOPS = (".", "。", "।", "۔", "።")


def visible_text(text: str) -> str:
    """Return the text in NFC and normal width, without invisible characters; case and lines are kept."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", INVISIBLE.sub("", text.translate(WIDTHS)))


@lru_cache(maxsize=65536)  # an option's text is compared with every answer
def normalize_text(text: str) -> str:
    """Return equal texts for equal answers: folded, single spaces, no full stop at the end.

    A text that is only a full stop keeps it.
    """
    text = " ".join(visible_text(text).casefold().split())
    if not text.isascii():
        text = unicodedata.normalize("NFC", text.replace("i\u0307", "i"))  # a folded İ
    return (text[:-1].rstrip() if text.endswith(FULL_STOPS) else text) or text
