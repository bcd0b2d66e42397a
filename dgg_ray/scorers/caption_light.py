"""The mean of BLEU-1..4, ROUGE-L and CIDEr: caption scores without Java.

    value = mean(BLEU-1, BLEU-2, BLEU-3, BLEU-4, ROUGE-L, CIDEr)    cut to [0, 1]

The measures are those of pycocoevalcap 1.2, the tokens come from a regular expression: lower case,
words and numbers, no punctuation. Not comparable with published means, which hold METEOR as well;
`caption` is for those. CIDEr lies in [0, 10] and enters uncut, so near-perfect captions could exceed
1 and are cut. `each` holds the same mean per caption, cut as well; its mean is not `value`, because
BLEU is taken over the whole set.
"""

from __future__ import annotations

from collections.abc import Sequence

from dgg_ray.core.interfaces import Example, Score
from dgg_ray.scorers import _captions

VERSION = 2  # 2: one form of Unicode


def score(predictions: Sequence[str | None], examples: Sequence[Example]) -> Score:
    """Against the references, or the answer where there are none; an absent caption scores 0.

    StageError where pycocoevalcap is missing; ValueError for unequal lengths.
    """
    return _captions.judge(predictions, examples, java=False)


def ready() -> str:
    """What is missing here, as a sentence; empty when this scorer can be used."""
    return _captions.missing(java=False)
