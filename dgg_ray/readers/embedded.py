"""Six small tasks that come with the package: a study runs with no download and no data folder.

    name        picture                                    answer
    digits      a handwritten digit, recoloured [1]        a figure, 0 … 9
    shapes      three coloured shapes on light ground      a colour
    counting    one to five of a shape, others among them  one … five
    relations   a square and a shape beside it             left, right, above, below
    words       a sign with one of 16 words                the word
    charts      three or four coloured bars                a colour

They differ in looks and in language, so that what is learned last hurts what was learned before;
shapes and charts answer in the same colours to different questions. Pictures are 32 × 32 pixels.
All but the digits are drawn from counters (draws.generator), one example at a time: a task with
more examples holds every smaller one, and no split moves when the size of another does.

[1] Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998, doi:10.24432/C50P49;
    the 1,797 pictures of 8 × 8 that scikit-learn bundles.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le
from PIL import Image, ImageDraw, ImageFont

from dgg_ray.core import draws
from dgg_ray.core.errors import Fault, StudyError, nearest
from dgg_ray.core.interfaces import SPLITS, Example, Reader, Split, Task

SIDE, CELL, CELLS = 32, 8, 4  # pixels; things keep to cells, so that patches of 8 pixels suffice to see them
MOST = {"train": 400, "validation": 300, "test": 300}  # together under the 1,797 digits

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 165, 60),
    "blue": (45, 80, 220),
    "yellow": (240, 215, 40),
    "purple": (145, 50, 175),
    "orange": (245, 135, 25),
}
FIGURES = tuple("0123456789")
NUMBERS = ("one", "two", "three", "four", "five")
SIDES = ("left", "right", "above", "below")
WORDS = (
    *("bus", "cafe", "door", "exit", "fish", "hill", "key", "lamp"),
    *("milk", "open", "park", "shop", "stop", "taxi", "yard", "zoo"),
)

Drawn = tuple[np.ndarray, str, str]  # pixels, question, answer


@dataclass(frozen=True)
class Embedded(Reader):
    """The embedded task that the task's name chooses.

    train: number of training examples, the first n of one fixed sequence.
    validation: number of validation examples, the first n of one fixed sequence.
    test: number of test examples, the first n of one fixed sequence.
    seed: the seed by which pictures are drawn; another one draws others of the same kind.
    """

    train: Annotated[int, Ge(10), Le(MOST["train"])] = 300
    validation: Annotated[int, Ge(10), Le(MOST["validation"])] = 100
    test: Annotated[int, Ge(10), Le(MOST["test"])] = 100
    seed: Annotated[int, Ge(0)] = 0

    def read(self, name: str) -> Task:
        if name not in TASKS:
            rule = f"the embedded tasks are {', '.join(TASKS)}"
            raise StudyError([Fault("name", rule, repr(name), nearest(name, TASKS))])
        seen: set[bytes] = set()
        examples = {split: self.draw(name, split, seen) for split in SPLITS}
        return Task(name, examples, {split: content_digest(examples[split]) for split in SPLITS})

    def draw(self, name: str, split: Split, seen: set[bytes]) -> list[Example]:
        """The split's examples; none with a picture and question that are in `seen`, which grows."""
        drawn = []
        for i in range(getattr(self, split)):
            rng = draws.generator(self.seed, f"embedded/{name}", split, i)
            while True:
                if name == "digits":
                    pixels, question, answer = digits(rng, source(self.seed, split, i))
                else:
                    pixels, question, answer = TASKS[name](rng)
                if (mark := pixels.tobytes() + question.encode()) not in seen:
                    break
            seen.add(mark)
            drawn.append(Example(f"{name}-{split}-{i}", question, answer, pixels))
        return drawn


def content_digest(examples: list[Example]) -> str:
    """SHA-256 over ids, questions, answers and pixels, 64 hex digits."""
    content = hashlib.sha256()
    for example in examples:
        content.update(f"{example.id}\0{example.question}\0{example.answer}\0".encode())
        content.update(np.asarray(example.image).tobytes())
    return content.hexdigest()


# -- drawing ---------------------------------------------------------------------------------------
# Only +, -, ·, /, √, min and max, which IEEE 754 rounds alike everywhere: the same pixels, and with
# them the same stage keys, on every machine.

Y, X = np.mgrid[0:SIDE, 0:SIDE] + 0.5  # pixel centres, (32, 32) each

SHAPES: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    # (x, y, r) -> signed distance to the edge in pixels, roughly; negative inside
    "circle": lambda x, y, r: np.sqrt(x * x + y * y) - r,
    "square": lambda x, y, r: np.maximum(abs(x), abs(y)) - 0.85 * r,
    "triangle": lambda x, y, r: np.maximum(y - 0.75 * r, 0.9 * abs(x) - 0.45 * y - 0.45 * r),
    "star": lambda x, y, r: (np.sqrt(abs(x)) + np.sqrt(abs(y)) - np.sqrt(1.35 * r)) * 0.7 * np.sqrt(r),
    "cross": lambda x, y, r: np.maximum(np.maximum(abs(x), abs(y)) - r, np.minimum(abs(x), abs(y)) - 0.3 * r),
}


def ground(rng: np.random.Generator, low: int, high: int, noise: float = 6) -> np.ndarray:
    """A canvas (32, 32, 3) of one greyish colour between `low` and `high`, in float, with grain."""
    canvas = np.zeros((SIDE, SIDE, 3)) + rng.integers(low, high + 1, 3)
    return canvas + noise * (rng.random((SIDE, SIDE, 1)) - 0.5)


def ink(rng: np.random.Generator, colour: str) -> np.ndarray:
    """The colour as someone would mix it today, (3,)."""
    return np.array(COLOURS[colour]) + rng.integers(-14, 15, 3)


def paint(canvas: np.ndarray, cover: np.ndarray, colour: np.ndarray) -> None:
    """Lay the colour over the canvas where `cover` (32, 32), clipped to [0, 1], says so."""
    cover = np.clip(cover, 0, 1)[..., None]
    canvas += cover * (colour - canvas)


def place(canvas: np.ndarray, shape: str, colour: np.ndarray, x: float, y: float, r: float) -> None:
    """A shape of radius r with its centre at (x, y), in pixels, edges smoothed."""
    paint(canvas, 0.5 - SHAPES[shape](X - x, Y - y, r), colour)


def pixels(canvas: np.ndarray) -> np.ndarray:
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def choose(rng: np.random.Generator, options, count: int) -> list:
    """`count` different ones in a random order."""
    options = list(options)
    return [options[i] for i in rng.permutation(len(options))[:count]]


def middle(cell: float) -> float:
    """The middle of a row or column of cells, in pixels."""
    return (cell + 0.5) * CELL


def spots(rng: np.random.Generator, count: int) -> list[tuple[float, float]]:
    """Middles of different cells, each moved by up to half a pixel."""
    taken = rng.permutation(CELLS * CELLS)[:count]
    moved = rng.random((count, 2)) - 0.5
    return [
        (middle(cell % CELLS) + dx, middle(cell // CELLS) + dy)
        for cell, (dx, dy) in zip(taken, moved, strict=True)
    ]


def ask(rng: np.random.Generator, task: str, **words: str) -> str:
    """One of the task's phrasings."""
    forms = PHRASINGS[task]
    return forms[rng.integers(len(forms))].format(**words)


# -- the tasks -------------------------------------------------------------------------------------

PHRASINGS = {
    "digits": ("Which digit is written here?", "What digit is this?", "Name the handwritten digit."),
    "shapes": ("What colour is the {shape}?", "The {shape} has which colour?", "Name the {shape}'s colour."),
    "counting": ("How many {shape}s are there?", "Count the {shape}s.", "What is the number of {shape}s?"),
    "relations": (
        "Where is the {one}, seen from the {other}?",
        "From the {other}, where is the {one}?",
        "On which side of the {other} is the {one}?",
    ),
    "words": ("What does the sign say?", "Which word is on the sign?", "Read the sign."),
    "charts": (
        "Which bar is the {most}est?",
        "What is the colour of the {most}est bar?",
        "Find the {most}est bar.",
    ),
}


@cache
def handwriting() -> tuple[np.ndarray, np.ndarray]:
    """(1797, 8, 8) in 0 … 16, and the digit of each."""
    # The file itself: sklearn.datasets.load_digits would give the same after a second of imports.
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise StudyError([Fault("name", "needs scikit-learn, which bundles the handwritten digits")])
    with gzip.open(
        Path(package.origin).parent / "datasets/data/digits.csv.gz", "rt", encoding="ascii"
    ) as file:
        rows = np.loadtxt(file, delimiter=",", dtype=int)
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1]


@cache
def shuffled(seed: int) -> np.ndarray:
    return draws.generator(seed, "embedded/digits", "sources").permutation(len(handwriting()[1]))


def source(seed: int, split: Split, i: int) -> int:
    """The handwritten digit behind example i: no two examples of any split share one."""
    start = sum(MOST[earlier] for earlier in SPLITS[: SPLITS.index(split)])
    return int(shuffled(seed)[start + i])


def digits(rng: np.random.Generator, which: int) -> Drawn:
    images, targets = handwriting()
    small = Image.fromarray((images[which] * 255 / 16).astype(np.uint8))
    cover = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BILINEAR)) / 255
    canvas = ground(rng, 0, 50)
    paint(canvas, cover, rng.integers(150, 256, 3))
    return pixels(canvas), ask(rng, "digits"), FIGURES[targets[which]]


def shapes(rng: np.random.Generator) -> Drawn:
    canvas, names, colours = ground(rng, 190, 245), choose(rng, SHAPES, 3), choose(rng, COLOURS, 3)
    for name, colour, (x, y) in zip(names, colours, spots(rng, 3), strict=True):
        place(canvas, name, ink(rng, colour), x, y, 3.3 + 0.8 * rng.random())
    return pixels(canvas), ask(rng, "shapes", shape=names[0]), colours[0]


def counting(rng: np.random.Generator) -> Drawn:
    count, others = int(rng.integers(1, 6)), int(rng.integers(0, 3))
    wanted, other = choose(rng, ("circle", "square", "triangle"), 2)
    canvas, colour = ground(rng, 20, 70), rng.integers(170, 256, 3)
    for i, (x, y) in enumerate(spots(rng, count + others)):
        place(canvas, wanted if i < count else other, colour, x, y, 3.3 + 0.8 * rng.random())
    return pixels(canvas), ask(rng, "counting", shape=wanted), NUMBERS[count - 1]


def relations(rng: np.random.Generator) -> Drawn:
    """A square in the middle, and one thing at the edge on one of its sides."""
    one, other = choose(rng, [shape for shape in SHAPES if shape != "square"], 1)[0], "square"
    colours, side = choose(rng, COLOURS, 2), SIDES[rng.integers(4)]
    edge = 0 if side in ("left", "above") else CELLS - 1
    inner, level = rng.integers(1, CELLS - 1, 2)
    canvas = ground(rng, 100, 150)
    for name, colour, at in zip((one, other), colours, (edge, inner), strict=True):
        x, y = (at, level) if side in ("left", "right") else (level, at)
        place(canvas, name, ink(rng, colour), middle(x), middle(y), 3.3 + 0.8 * rng.random())
    return pixels(canvas), ask(rng, "relations", one=one, other=other), side


@cache
def letter(character: str) -> np.ndarray:
    """A character in Pillow's own bitmap font, which no FreeType version changes: (16, 8) of 0 and 1."""
    picture = Image.new("L", (CELL, 2 * CELL))
    font = ImageFont.load_default_imagefont()
    ImageDraw.Draw(picture).text((1, 2), character, fill=1, font=font)
    return np.asarray(picture)


def sign(rng: np.random.Generator, text: str, column: int, row: int) -> np.ndarray:
    """A canvas with light letters on a dark board, each a cell wide and two high, from that cell on."""
    letters = np.concatenate([letter(character) for character in text], axis=1)
    x, y = column * CELL, row * CELL
    cover = np.zeros((SIDE, SIDE))
    cover[y : y + 2 * CELL, x : x + letters.shape[1]] = letters
    canvas = ground(rng, 20, 110)
    paint(canvas, CELL + 0.5 - abs(Y - y - CELL), rng.integers(0, 90, 3))  # the board
    paint(canvas, cover, rng.integers(190, 256, 3))
    return canvas


def berth(rng: np.random.Generator, text: str) -> tuple[int, int]:
    """A column and a row from which the text fits."""
    return int(rng.integers(0, CELLS - len(text) + 1)), int(rng.integers(0, CELLS - 1))


def words(rng: np.random.Generator) -> Drawn:
    word = WORDS[rng.integers(len(WORDS))]
    return pixels(sign(rng, word, *berth(rng, word))), ask(rng, "words"), word


def charts(rng: np.random.Generator) -> Drawn:
    count, most = int(rng.integers(3, 5)), ("high", "low")[rng.integers(2)]
    colours = choose(rng, COLOURS, count)
    heights = rng.permutation(CELLS)[:count] * 7 + 5 + rng.integers(0, 3)  # pixels
    canvas = ground(rng, 235, 255, noise=3)
    for i, (colour, height) in enumerate(zip(colours, heights, strict=True)):
        cover = np.minimum(3.5 - abs(X - middle(i)), 0.5 + Y - (SIDE - height))
        paint(canvas, cover, ink(rng, colour))
    canvas[SIDE - 1 :] = 60  # the axis
    best = int(np.argmax(heights) if most == "high" else np.argmin(heights))
    return pixels(canvas), ask(rng, "charts", most=most), colours[best]


TASKS: dict[str, Callable[..., Drawn]] = {
    "digits": digits,
    "shapes": shapes,
    "counting": counting,
    "relations": relations,
    "words": words,
    "charts": charts,
}
ANSWERS = {
    "digits": FIGURES,
    "shapes": tuple(COLOURS),
    "counting": NUMBERS,
    "relations": SIDES,
    "words": WORDS,
    "charts": tuple(COLOURS),
}
