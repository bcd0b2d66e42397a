"""The mean of BLEU-1..4, METEOR, ROUGE-L and CIDEr, as captioning tasks of UCIT are scored. Needs Java.

    value = mean(BLEU-1, BLEU-2, BLEU-3, BLEU-4, METEOR, ROUGE-L, CIDEr)    cut to [0, 1]

The measures and the tokens are those of pycocoevalcap 1.2. The published number is 100 · value.
CIDEr lies in [0, 10] and enters uncut, as published, so near-perfect captions could exceed 1 and
are cut; captions of models stay far below. `each` holds the same mean per caption, cut as well;
its mean is not `value`, because BLEU and METEOR are taken over the whole set.
"""

from __future__ import annotations

from collections.abc import Sequence

from dgg_ray.core.interfaces import Example, Score
from dgg_ray.scorers import _captions

VERSION = 2  # 2: one form of Unicode


def score(predictions: Sequence[str | None], examples: Sequence[Example]) -> Score:
    """Against the references, or the answer where there are none; an absent caption scores 0.

    StageError where pycocoevalcap or Java is missing; ValueError for unequal lengths.
    """
    return _captions.judge(predictions, examples, java=True)


def ready() -> str:
    """What is missing here, as a sentence; empty when this scorer can be used."""
    return _captions.missing(java=True)
