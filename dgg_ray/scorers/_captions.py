"""Caption metrics of pycocoevalcap, an optional dependency that only this module knows.

    BLEU-1..4   Papineni et al., ACL 2002        ROUGE-L   Lin, ACL Workshop 2004, β = 1.2
    CIDEr       Vedantam et al., CVPR 2015,      METEOR    Denkowski & Lavie, WMT 2014, needs Java
                arXiv:1411.5726, here CIDEr-D, in [0, 10]

Texts are brought to one form of Unicode first (core/text_normalization.py). A missing caption scores 0 in
each metric and stays in every mean. CIDEr is 0 for a set of one image: its weights
log(images / images with the phrase) are all 0.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dgg_ray.core.errors import StageError
from dgg_ray.core.interfaces import Example, Score
from dgg_ray.core.text_normalization import visible_text

WORD = re.compile(r"\w+(?:-\w+)*|'\w+")
NOTHING = "\N{EMPTY SET}"  # stands for a reference without a word, which an absent caption would match


def missing(java: bool) -> str:
    """Say in a sentence what this machine lacks for the metrics; empty where it lacks nothing."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return "caption scores need pycocoevalcap, which is not installed: pip install 'dgg_ray[caption]'"
    if java and shutil.which("java") is None:
        return (
            "the scorer `caption` needs Java for METEOR and for its tokenizer, and no `java` is on the PATH; "
            "install a Java runtime, or take the scorer `caption_light`, which needs none"
        )
    return ""


def caption_score(predictions: Sequence[str | None], examples: Sequence[Example], java: bool) -> Score:
    """Average the metrics, over the set and per caption, both clipped to [0, 1]."""
    if len(predictions) != len(examples):
        raise ValueError(f"{len(predictions)} predictions for {len(examples)} examples")
    if sentence := missing(java):
        raise StageError(sentence)
    if not examples:
        return Score(0.0, ())
    texts = [visible_text(prediction or "") for prediction in predictions]
    accepted = [[visible_text(text) for text in e.references or (e.answer,)] for e in examples]
    tokenize = penn_treebank if java else words
    tokenized = iter(tokenize([*texts, *(text for group in accepted for text in group)]))
    captions = [next(tokenized) for _ in texts]
    references = [[next(tokenized) or NOTHING for _ in group] for group in accepted]

    whole, each = metrics(captions, references, java)
    return Score(float(np.clip(whole.mean(), 0, 1)), tuple(np.clip(each.mean(axis=0), 0, 1).tolist()))


def metrics(
    captions: Sequence[str], references: Sequence[Sequence[str]], java: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Compute each metric over the set, (M,), and per caption, (M, N); texts are tokens joined by spaces."""
    results = {i: [text] for i, text in enumerate(captions)}
    accepted = {i: list(group) for i, group in enumerate(references)}
    bleu, bleu_each = metric("bleu.bleu", "Bleu").compute_score(accepted, results, verbose=0)
    rouge, rouge_each = metric("rouge.rouge", "Rouge").compute_score(accepted, results)
    cider, cider_each = metric("cider.cider", "Cider").compute_score(accepted, results)
    whole, each = [*bleu, rouge, cider], [*bleu_each, rouge_each, cider_each]
    if java:
        meteor_whole, meteor_each = meteor(captions, references)
        whole, each = [*whole, meteor_whole], [*each, meteor_each]
    return np.array(whole, dtype=float), np.array(each, dtype=float)


def metric(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"pycocoevalcap.{module}"), name)()


# -- tokens ----------------------------------------------------------------------------------------


def words(texts: Sequence[str]) -> list[str]:
    """Split texts into lower-case words without punctuation. Unlike Penn Treebank, "isn't" is isn, 't."""
    return [" ".join(WORD.findall(text.lower())) for text in texts]


def penn_treebank(texts: Sequence[str]) -> list[str]:
    """Split texts into lower-case Penn Treebank tokens without punctuation, as the published scores do.

    pycocoevalcap's own class is not used: it writes into its installation folder, and its text
    encoding follows the machine's locale.
    """
    tokenizer = importlib.import_module("pycocoevalcap.tokenizer.ptbtokenizer")
    jar = Path(str(tokenizer.__file__)).with_name(tokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    text = "".join(" ".join(text.split()) + "\n" for text in texts)
    process = subprocess.run(
        [*command, "-preserveLines", "-lowerCase"], input=text.encode(), capture_output=True, check=False
    )
    lines = process.stdout.decode().split("\n")[:-1]
    if process.returncode or len(lines) != len(texts):
        raise java_error("the Penn Treebank tokenizer", process.stderr)
    dropped = set(tokenizer.PUNCTUATIONS)
    return [" ".join(token for token in line.split() if token not in dropped) for line in lines]


# -- METEOR ----------------------------------------------------------------------------------------


def meteor(captions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """Compute METEOR over the set (from summed counts, so not the mean) and per caption.

    pycocoevalcap's own class is not used: it leaves its pipes open, and its text encoding follows
    the machine's locale.
    """
    module = importlib.import_module("pycocoevalcap.meteor.meteor")
    jar = Path(str(module.__file__)).with_name(module.METEOR_JAR)
    command = ["java", "-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", str(jar)]
    with subprocess.Popen(
        [*command, "-", "-", "-stdio", "-l", "en", "-norm"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    ) as process:
        assert process.stdin
        assert process.stdout

        def reply(line: str) -> str:
            process.stdin.write(line + "\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            return process.stdout.readline().strip()  # type: ignore[union-attr]

        try:
            counts = [
                reply(" ||| ".join(text.replace("|||", " ") for text in ("SCORE", *group, caption)))
                for caption, group in zip(captions, references, strict=True)
            ]
            first = reply(" ||| ".join(["EVAL", *counts]))
            each = [float(first), *(float(process.stdout.readline()) for _ in captions[1:])]
            return float(process.stdout.readline()), each
        except (OSError, ValueError) as error:
            raise java_error("METEOR", str(error).encode()) from error
        finally:
            process.kill()


def java_error(program: str, output: bytes) -> StageError:
    last_line = output.decode(errors="replace").strip().split("\n")[-1]
    return StageError(
        f"Java ended before {program} had answered ({last_line}); the scorer `caption_light` needs no Java"
    )
