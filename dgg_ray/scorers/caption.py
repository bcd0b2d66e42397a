"""The mean of BLEU-1..4, METEOR, ROUGE-L and CIDEr, as captioning tasks of UCIT are scored. Needs Java.

    value = mean(BLEU-1, BLEU-2, BLEU-3, BLEU-4, METEOR, ROUGE-L, CIDEr)    clipped to [0, 1]

The metrics and the tokens are those of pycocoevalcap 1.2. The published number is 100 · value.
CIDEr lies in [0, 10] and enters unclipped, as published. Near-perfect captions could therefore exceed 1
and are clipped; captions of models stay far below. `each` holds the same mean per caption, clipped as
well. Its mean is not `value`, because BLEU and METEOR are taken over the whole set.
"""

from __future__ import annotations

from collections.abc import Sequence

from dgg_ray.core.interfaces import Example, Score
from dgg_ray.scorers import _captions

VERSION = 2  # 2: one form of Unicode


def score(predictions: Sequence[str | None], examples: Sequence[Example]) -> Score:
    """Compare with the references, or the answer where there are none; an absent caption scores 0.

    StageError where pycocoevalcap or Java is missing; ValueError for unequal lengths.
    """
    return _captions.caption_score(predictions, examples, java=True)


def ready() -> str:
    """Say in a sentence what this machine lacks for this scorer; empty where it lacks nothing."""
    return _captions.missing(java=True)
