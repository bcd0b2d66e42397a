"""When two texts are the same answer: the one rule, for every scorer that compares texts.

Not told apart:
    composed and decomposed characters (Unicode NFC), full-width and half-width forms: Ｂ and B, ｶﾞ and ガ
    case, by Unicode's full folding (ß and ss, σ and ς), and İ and i
    any white space, once or several times: blanks, line breaks, no-break and ideographic spaces
    what cannot be seen: zero-width spaces and joiners, soft hyphens, marks of direction
    one full stop at the end, of any script: . 。 । ۔ ።

Told apart is all else: 10² and 102, 1,000 and 1000, ٣ and 3, ı and i, ’ and ', - and –, ! at the end.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

WIDE = {  # Unicode's compatibility forms would also make 10² of 102: only the widths are undone
    code: unicodedata.normalize("NFKC", chr(code))
    for code in (0x3000, *range(0xFF01, 0xFFEF))
    if unicodedata.decomposition(chr(code)).startswith(("<wide>", "<narrow>"))
}
UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufe00-\ufe0f\ufeff]"
)
STOPS = ".。।۔።"


def visible(text: str) -> str:
    """The text in NFC and usual width, without what cannot be seen; case and lines as they are."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", UNSEEN.sub("", text.translate(WIDE)))


@lru_cache(maxsize=65536)  # an option's text is compared with every answer
def plain(text: str) -> str:
    """Equal for equal answers: folded, single spaces, no final full stop (unless it is all there is)."""
    text = " ".join(visible(text).casefold().split())
    if not text.isascii():
        text = unicodedata.normalize("NFC", text.replace("i\u0307", "i"))  # İ, folded
    return (text[:-1].rstrip() if text.endswith(tuple(STOPS)) else text) or text
