"""The mean of BLEU-1..4, ROUGE-L and CIDEr: caption scores without Java.

    value = mean(BLEU-1, BLEU-2, BLEU-3, BLEU-4, ROUGE-L, CIDEr)    clipped to [0, 1]

The metrics are those of pycocoevalcap 1.2. The tokens come from a regular expression: lower case,
words and numbers, no punctuation. The mean cannot be compared with published ones, which contain METEOR
as well; use `caption` for that. CIDEr lies in [0, 10] and enters unclipped, so near-perfect captions could
exceed 1 and are clipped. `each` holds the same mean per caption, clipped as well. Its mean is not `value`,
because BLEU is taken over the whole set.
"""

from __future__ import annotations

from collections.abc import Sequence

from dgg_ray.core.interfaces import Example, Score
from dgg_ray.scorers import _captions

VERSION = 2  # 2: one form of Unicode


def score(predictions: Sequence[str | None], examples: Sequence[Example]) -> Score:
    """Compare with the references, or the answer where there are none; an absent caption scores 0.

    StageError where pycocoevalcap is missing; ValueError for unequal lengths.
    """
    return _captions.caption_score(predictions, examples, java=False)


def ready() -> str:
    """Say in a sentence what this machine lacks for this scorer; empty where it lacks nothing."""
    return _captions.missing(java=False)
