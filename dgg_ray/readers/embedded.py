"""Six small tasks that come with the package: a study needs no download and no data folder.

    name        image                                              answer
    digits      a handwritten digit, recoloured [1]                a digit, 0 … 9
    shapes      three coloured shapes on a light background        a colour
    counting    one to five of a shape, some of another            one … five
    relations   a square in the middle and a shape at its side     left, right, above, below
    words       a sign with one of 16 words                        the word
    charts      three or four coloured bars                        a colour

The tasks differ in looks and language, so that training on one makes a model forget the others; shapes and
charts answer different questions with the same colours. Images are 32 × 32 pixels. All except the digits are
drawn from counter-based random numbers (core/rng.py), one example at a time. A task with more examples
therefore contains every smaller one, and the size of one split changes no other split.

[1] Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998, doi:10.24432/C50P49;
    the 1,797 images of 8 × 8 pixels that scikit-learn bundles.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le
from PIL import Image, ImageDraw, ImageFont

from dgg_ray.core.errors import Fault, StudyError, nearest_name
from dgg_ray.core.interfaces import SPLITS, Example, Reader, Split, Task
from dgg_ray.core.rng import make_rng

SIDE, CELL, CELLS = 32, 8, 4  # pixels; shapes stay in cells, so that patches of 8 pixels show them whole
MAX_EXAMPLES = {"train": 400, "validation": 300, "test": 300}  # together fewer than the 1,797 digits

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 165, 60),
    "blue": (45, 80, 220),
    "yellow": (240, 215, 40),
    "purple": (145, 50, 175),
    "orange": (245, 135, 25),
}
DIGITS = tuple("0123456789")
NUMBERS = ("one", "two", "three", "four", "five")
SIDES = ("left", "right", "above", "below")
WORDS = (
    *("bus", "cafe", "door", "exit", "fish", "hill", "key", "lamp"),
    *("milk", "open", "park", "shop", "stop", "taxi", "yard", "zoo"),
)

DrawnExample = tuple[np.ndarray, str, str]  # pixels, question, answer


@dataclass(frozen=True)
class Embedded(Reader):
    """The embedded task that has the task's name.

    train: number of training examples, the first n of one fixed sequence.
    validation: number of validation examples, the first n of one fixed sequence.
    test: number of test examples, the first n of one fixed sequence.
    seed: the seed of the images; another one draws other images of the same kind.
    """

    train: Annotated[int, Ge(10), Le(MAX_EXAMPLES["train"])] = 300
    validation: Annotated[int, Ge(10), Le(MAX_EXAMPLES["validation"])] = 100
    test: Annotated[int, Ge(10), Le(MAX_EXAMPLES["test"])] = 100
    seed: Annotated[int, Ge(0)] = 0

    def read(self, name: str) -> Task:
        if name not in TASKS:
            rule = f"must be one of the embedded tasks {', '.join(TASKS)}"
            raise StudyError([Fault("name", rule, repr(name), nearest_name(name, TASKS))])
        return self._draw(name)

    @lru_cache(maxsize=16)  # noqa: B019 - readers are small values; a study is read several times
    def _draw(self, name: str) -> Task:
        seen: set[bytes] = set()
        examples = {split: self._draw_split(name, split, seen) for split in SPLITS}
        return Task(name, examples, {split: content_digest(examples[split]) for split in SPLITS})

    def _draw_split(self, name: str, split: Split, seen: set[bytes]) -> list[Example]:
        """Draw the split's examples.

        seen: images with their questions that are in the task already. They are not drawn again; new ones are
            added.
        """
        examples = []
        for i in range(getattr(self, split)):
            rng = make_rng(self.seed, f"embedded/{name}", split, i)
            while True:
                if name == "digits":
                    pixels, question, answer = digits(rng, digit_index(self.seed, split, i))
                else:
                    pixels, question, answer = TASKS[name](rng)
                if (content := pixels.tobytes() + question.encode()) not in seen:
                    break
            seen.add(content)
            examples.append(Example(f"{name}-{split}-{i}", question, answer, pixels))
        return examples


def content_digest(examples: list[Example]) -> str:
    """Return the SHA-256 over ids, questions, answers and pixels, as 64 hex digits."""
    content = hashlib.sha256()
    for example in examples:
        content.update(f"{example.id}\0{example.question}\0{example.answer}\0".encode())
        content.update(np.asarray(example.image).tobytes())
    return content.hexdigest()


# -- drawing ---------------------------------------------------------------------------------------
# Only +, -, ·, /, √, min and max are used. IEEE 754 rounds these alike on every machine, so that pixels and
# stage keys are the same everywhere.

Y, X = np.mgrid[0:SIDE, 0:SIDE] + 0.5  # pixel centres, (32, 32) each

SHAPES: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    # (x, y, r) -> approximate signed distance to the edge in pixels; negative inside
    "circle": lambda x, y, r: np.sqrt(x * x + y * y) - r,
    "square": lambda x, y, r: np.maximum(abs(x), abs(y)) - 0.85 * r,
    "triangle": lambda x, y, r: np.maximum(y - 0.75 * r, 0.9 * abs(x) - 0.45 * y - 0.45 * r),
    "star": lambda x, y, r: (np.sqrt(abs(x)) + np.sqrt(abs(y)) - np.sqrt(1.35 * r)) * 0.7 * np.sqrt(r),
    "cross": lambda x, y, r: np.maximum(np.maximum(abs(x), abs(y)) - r, np.minimum(abs(x), abs(y)) - 0.3 * r),
}


def background(rng: np.random.Generator, low: int, high: int, noise: float = 6) -> np.ndarray:
    """Return a float canvas (32, 32, 3) of one greyish colour between `low` and `high`, with grain."""
    canvas = np.zeros((SIDE, SIDE, 3)) + rng.integers(low, high + 1, 3)
    return canvas + noise * (rng.random((SIDE, SIDE, 1)) - 0.5)


def mix_colour(rng: np.random.Generator, colour: str) -> np.ndarray:
    """Return the named colour with a random deviation, (3,)."""
    return np.array(COLOURS[colour]) + rng.integers(-14, 15, 3)


def paint(canvas: np.ndarray, cover: np.ndarray, colour: np.ndarray) -> None:
    """Blend the colour into the canvas with the opacity `cover` (32, 32), clipped to [0, 1]."""
    cover = np.clip(cover, 0, 1)[..., None]
    canvas += cover * (colour - canvas)


def draw_shape(canvas: np.ndarray, shape: str, colour: np.ndarray, x: float, y: float, r: float) -> None:
    """Draw a shape of radius r around (x, y), in pixels, with smoothed edges."""
    paint(canvas, 0.5 - SHAPES[shape](X - x, Y - y, r), colour)


def to_pixels(canvas: np.ndarray) -> np.ndarray:
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def sample_options(rng: np.random.Generator, options: Iterable[Any], count: int) -> list[Any]:
    """Return `count` different options in a random order."""
    options = list(options)
    return [options[i] for i in rng.permutation(len(options))[:count]]


def cell_centre(cell: float) -> float:
    """Return the middle of a row or column of cells, in pixels."""
    return (cell + 0.5) * CELL


def random_centres(rng: np.random.Generator, count: int) -> list[tuple[float, float]]:
    """Return the middles of different cells, each moved by up to half a pixel."""
    cells = rng.permutation(CELLS * CELLS)[:count]
    offsets = rng.random((count, 2)) - 0.5
    return [
        (cell_centre(cell % CELLS) + dx, cell_centre(cell // CELLS) + dy)
        for cell, (dx, dy) in zip(cells, offsets, strict=True)
    ]


def phrase_question(rng: np.random.Generator, task: str, **words: str) -> str:
    """Return the question in one of the task's phrasings."""
    phrasings = PHRASINGS[task]
    return phrasings[rng.integers(len(phrasings))].format(**words)


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
def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return the images (1797, 8, 8) in 0 … 16, and the digit of each."""
    # The file is read directly: importing sklearn.datasets takes a second.
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        rule = "needs scikit-learn, which bundles the handwritten digits: pip install scikit-learn"
        raise StudyError([Fault("name", rule, "'digits'")])
    with gzip.open(
        Path(package.origin).parent / "datasets/data/digits.csv.gz", "rt", encoding="ascii"
    ) as file:
        rows = np.loadtxt(file, delimiter=",", dtype=int)
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1]


@cache
def shuffled_digits(seed: int) -> np.ndarray:
    return make_rng(seed, "embedded/digits", "sources").permutation(len(load_digits()[1]))


def digit_index(seed: int, split: Split, i: int) -> int:
    """Return the handwritten digit of example i; no two examples of any split share one."""
    start = sum(MAX_EXAMPLES[earlier] for earlier in SPLITS[: SPLITS.index(split)])
    return int(shuffled_digits(seed)[start + i])


def digits(rng: np.random.Generator, index: int) -> DrawnExample:
    images, targets = load_digits()
    small = Image.fromarray((images[index] * 255 / 16).astype(np.uint8))
    cover = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BILINEAR)) / 255
    canvas = background(rng, 0, 50)
    paint(canvas, cover, rng.integers(150, 256, 3))
    return to_pixels(canvas), phrase_question(rng, "digits"), DIGITS[targets[index]]


def shapes(rng: np.random.Generator) -> DrawnExample:
    canvas, names, colours = (
        background(rng, 190, 245),
        sample_options(rng, SHAPES, 3),
        sample_options(rng, COLOURS, 3),
    )
    for name, colour, (x, y) in zip(names, colours, random_centres(rng, 3), strict=True):
        draw_shape(canvas, name, mix_colour(rng, colour), x, y, 3.3 + 0.8 * rng.random())
    return to_pixels(canvas), phrase_question(rng, "shapes", shape=names[0]), colours[0]


def counting(rng: np.random.Generator) -> DrawnExample:
    count, others = int(rng.integers(1, 6)), int(rng.integers(0, 3))
    wanted, other = sample_options(rng, ("circle", "square", "triangle"), 2)
    canvas, colour = background(rng, 20, 70), rng.integers(170, 256, 3)
    for i, (x, y) in enumerate(random_centres(rng, count + others)):
        draw_shape(canvas, wanted if i < count else other, colour, x, y, 3.3 + 0.8 * rng.random())
    return to_pixels(canvas), phrase_question(rng, "counting", shape=wanted), NUMBERS[count - 1]


def relations(rng: np.random.Generator) -> DrawnExample:
    """Draw a square in the middle, and a shape at the edge on one of its sides."""
    shape, reference = sample_options(rng, [name for name in SHAPES if name != "square"], 1)[0], "square"
    colours, side = sample_options(rng, COLOURS, 2), SIDES[rng.integers(4)]
    edge = 0 if side in ("left", "above") else CELLS - 1
    inner, across = rng.integers(1, CELLS - 1, 2)
    canvas = background(rng, 100, 150)
    for name, colour, along in zip((shape, reference), colours, (edge, inner), strict=True):
        x, y = (along, across) if side in ("left", "right") else (across, along)
        draw_shape(
            canvas, name, mix_colour(rng, colour), cell_centre(x), cell_centre(y), 3.3 + 0.8 * rng.random()
        )
    return to_pixels(canvas), phrase_question(rng, "relations", one=shape, other=reference), side


@cache
def render_letter(character: str) -> np.ndarray:
    """Return a character (16, 8) of 0 and 1, in Pillow's bitmap font, which no FreeType version changes."""
    image = Image.new("L", (CELL, 2 * CELL))
    font = ImageFont.load_default_imagefont()
    ImageDraw.Draw(image).text((1, 2), character, fill=1, font=font)
    return np.asarray(image)


def draw_sign(rng: np.random.Generator, text: str, column: int, row: int) -> np.ndarray:
    """Return a canvas with light letters on a dark board.

    Each letter is one cell wide and two cells high. The text starts at the given cell.
    """
    letters = np.concatenate([render_letter(character) for character in text], axis=1)
    x, y = column * CELL, row * CELL
    cover = np.zeros((SIDE, SIDE))
    cover[y : y + 2 * CELL, x : x + letters.shape[1]] = letters
    canvas = background(rng, 20, 110)
    paint(canvas, CELL + 0.5 - abs(Y - y - CELL), rng.integers(0, 90, 3))  # the board
    paint(canvas, cover, rng.integers(190, 256, 3))
    return canvas


def random_position(rng: np.random.Generator, text: str) -> tuple[int, int]:
    """Return a column and a row at which the text fits."""
    return int(rng.integers(0, CELLS - len(text) + 1)), int(rng.integers(0, CELLS - 1))


def words(rng: np.random.Generator) -> DrawnExample:
    word = WORDS[rng.integers(len(WORDS))]
    return to_pixels(draw_sign(rng, word, *random_position(rng, word))), phrase_question(rng, "words"), word


def charts(rng: np.random.Generator) -> DrawnExample:
    count, most = int(rng.integers(3, 5)), ("high", "low")[rng.integers(2)]
    colours = sample_options(rng, COLOURS, count)
    heights = rng.permutation(CELLS)[:count] * 7 + 5 + rng.integers(0, 3)  # pixels
    canvas = background(rng, 235, 255, noise=3)
    for i, (colour, height) in enumerate(zip(colours, heights, strict=True)):
        cover = np.minimum(3.5 - abs(X - cell_centre(i)), 0.5 + Y - (SIDE - height))
        paint(canvas, cover, mix_colour(rng, colour))
    canvas[SIDE - 1 :] = 60  # the axis
    best = int(np.argmax(heights) if most == "high" else np.argmin(heights))
    return to_pixels(canvas), phrase_question(rng, "charts", most=most), colours[best]


TASKS: dict[str, Callable[..., DrawnExample]] = {
    "digits": digits,
    "shapes": shapes,
    "counting": counting,
    "relations": relations,
    "words": words,
    "charts": charts,
}
