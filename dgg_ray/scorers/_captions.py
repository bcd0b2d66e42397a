"""Captions are measured: the one place that knows pycocoevalcap, an optional dependency.

    BLEU-1..4   Papineni et al., ACL 2002        ROUGE-L   Lin, ACL Workshop 2004, β = 1.2
    CIDEr       Vedantam et al., CVPR 2015,      METEOR    Denkowski & Lavie, WMT 2014, needs Java
                arXiv:1411.5726, here CIDEr-D, in [0, 10]

Texts are brought to one form of Unicode first (texts.visible). A caption that is missing scores 0 in each
of them and stays in every mean. So does CIDEr for a set of one picture: its weights
log(pictures / pictures with the phrase) are all 0.
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
from dgg_ray.core.texts import visible

WORD = re.compile(r"\w+(?:-\w+)*|'\w+")
NOTHING = "\N{EMPTY SET}"  # a reference without a word, which an absent caption would match


def missing(java: bool) -> str:
    """What stands between this machine and the measures, as a sentence; empty when nothing does."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return "caption scores need pycocoevalcap, which is not installed: pip install 'dgg_ray[caption]'"
    if java and shutil.which("java") is None:
        return (
            "the scorer `caption` needs Java for METEOR and for its tokenizer, and no `java` is on the PATH; "
            "install a Java runtime, or take the scorer `caption_light`, which needs none"
        )
    return ""


def judge(predictions: Sequence[str | None], examples: Sequence[Example], java: bool) -> Score:
    """The mean of the measures, over the set and per caption, both cut to [0, 1]."""
    if len(predictions) != len(examples):
        raise ValueError(f"{len(predictions)} predictions for {len(examples)} examples")
    if sentence := missing(java):
        raise StageError(sentence)
    if not examples:
        return Score(0.0, ())
    texts = [visible(prediction or "") for prediction in predictions]
    answers = [[visible(text) for text in example.references or (example.answer,)] for example in examples]
    split = penn_treebank if java else words
    tokens = iter(split([*texts, *(text for group in answers for text in group)]))
    said = [next(tokens) for _ in texts]
    wanted = [[next(tokens) or NOTHING for _ in group] for group in answers]

    whole, each = measures(said, wanted, java)
    return Score(float(np.clip(whole.mean(), 0, 1)), tuple(np.clip(each.mean(axis=0), 0, 1).tolist()))


def measures(
    said: Sequence[str], wanted: Sequence[Sequence[str]], java: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Per measure over the set, (M,), and per caption, (M, N); from texts of tokens with a space between."""
    results = {i: [text] for i, text in enumerate(said)}
    references = {i: list(group) for i, group in enumerate(wanted)}
    bleu, bleu_each = measure("bleu.bleu", "Bleu").compute_score(references, results, verbose=0)
    rouge, rouge_each = measure("rouge.rouge", "Rouge").compute_score(references, results)
    cider, cider_each = measure("cider.cider", "Cider").compute_score(references, results)
    whole, each = [*bleu, rouge, cider], [*bleu_each, rouge_each, cider_each]
    if java:
        meteor_whole, meteor_each = meteor(said, wanted)
        whole, each = [*whole, meteor_whole], [*each, meteor_each]
    return np.array(whole, dtype=float), np.array(each, dtype=float)


def measure(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"pycocoevalcap.{module}"), name)()


# -- tokens ----------------------------------------------------------------------------------------


def words(texts: Sequence[str]) -> list[str]:
    """Words in lower case, without punctuation: close to Penn Treebank tokens, but "isn't" is isn, 't."""
    return [" ".join(WORD.findall(text.lower())) for text in texts]


def penn_treebank(texts: Sequence[str]) -> list[str]:
    """Penn Treebank tokens in lower case, without punctuation, as the published scores have them.

    pycocoevalcap's own class is not used: it writes into its installation folder, and its text
    encoding follows the machine's locale.
    """
    tokenizer = importlib.import_module("pycocoevalcap.tokenizer.ptbtokenizer")
    jar = Path(str(tokenizer.__file__)).with_name(tokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    text = "".join(" ".join(text.split()) + "\n" for text in texts)
    done = subprocess.run(
        [*command, "-preserveLines", "-lowerCase"], input=text.encode(), capture_output=True, check=False
    )
    lines = done.stdout.decode().split("\n")[:-1]
    if done.returncode or len(lines) != len(texts):
        raise java_failed("the Penn Treebank tokenizer", done.stderr)
    dropped = set(tokenizer.PUNCTUATIONS)
    return [" ".join(token for token in line.split() if token not in dropped) for line in lines]


# -- METEOR ----------------------------------------------------------------------------------------


def meteor(said: Sequence[str], wanted: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """Over the set (from summed counts, so not the mean) and per caption.

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
                reply(" ||| ".join(text.replace("|||", " ") for text in ("SCORE", *references, text)))
                for text, references in zip(said, wanted, strict=True)
            ]
            first = reply(" ||| ".join(["EVAL", *counts]))
            each = [float(first), *(float(process.stdout.readline()) for _ in said[1:])]
            return float(process.stdout.readline()), each
        except (OSError, ValueError) as error:
            raise java_failed("METEOR", str(error).encode()) from error
        finally:
            process.kill()


def java_failed(what: str, output: bytes) -> StageError:
    last = output.decode(errors="replace").strip().split("\n")[-1]
    return StageError(
        f"Java ended before {what} had answered ({last}); the scorer `caption_light` needs no Java"
    )
