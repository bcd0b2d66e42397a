"""The fifteen exercises on which the embedded model is pre-trained, most of them visual.

    exercise    image                                  answer
    describe    one to three things                    each with its colour, in reading order
    chart_out   three to eight things                  the thing or colour in each cell, or none
    pick        two to four things                     the one with a colour, a name or a corner
    walk        two things                             the way from one to the other
    line_up     two or three things in a line          their names, in order
    tally       one or two kinds of things             the number of each, or of one
    character   a digit or letter, in many fonts       the character
    spell       one to four random letters             the letters
    read        a sign with a word, none of the tasks' the word
    text_only   nothing                                a word repeated, or joined from letters
    echo        nothing                                invented words, repeated
    pattern     stripes, checks, dots, …               its name
    dominant    a background with things on it         the background's colour
    sizes       things of one shape                    their colours, from large to small
    beams       bars from any edge but the lower one   their colours, by length

No exercise shares a question with the embedded tasks (dgg_ray/readers/embedded.py), and none shows the
handwritten digits or one of the tasks' words. Shapes, colours and signs are drawn by the tasks' own code,
because features of other drawings would not transfer.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dgg_ray.core.rng import make_rng
from dgg_ray.readers import embedded as tasks
from dgg_ray.readers.embedded import (
    CELL,
    CELLS,
    COLOURS,
    NUMBERS,
    SHAPES,
    SIDE,
    X,
    Y,
    background,
    cell_centre,
    draw_shape,
    mix_colour,
    paint,
    random_centres,
    sample_options,
)

EVERYDAY = (
    "the a an is are was were be this that these those it its in on at of to for with from by as and or not "
    "no yes what which who whose where when why how many much does do did can has have there here image "
    "picture photo shown colour color shape number word name size kind type left right top bottom above "
    "below behind front next between man woman person people child dog cat car tree house street water food "
    "table sky black white gray brown pink none up down bird hat sun moon book cup ball road fire bag box "
    "bed pen toy leaf rain snow wind sea hand foot eye nose ear face arm leg gold iron wood fast slow big "
    "old new hot cold wet dry jump run walk swim quiz jazz onyx vote wax yolk kiwi"
)
COMMON = EVERYDAY.split()
SAID = [*COMMON, *tasks.WORDS, *tasks.NUMBERS, *tasks.SIDES, *SHAPES, *COLOURS]  # in text only, never drawn
SHORT = [word for word in COMMON if 2 <= len(word) <= 4 and word not in tasks.WORDS]
Sample = tuple[np.ndarray, str, str]  # canvas or pixels, question, answer
FACES = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif", "DejaVuSans-Oblique"),
    *(
        "DejaVuSerif-Italic",
        "STIXGeneral",
        "STIXGeneralItalic",
        "cmr10",
        "cmss10",
        "cmtt10",
        "STIXGeneralBol",
    ),
)
FONTS = [str(Path(matplotlib.get_data_path(), "fonts/ttf", f"{face}.ttf")) for face in FACES]


def random_background(rng: np.random.Generator) -> np.ndarray:
    """Return a background of any brightness."""
    low = int(rng.integers(0, 215))
    return background(rng, low, low + 40, noise=8 * rng.random())


def radius(rng: np.random.Generator) -> float:
    return 3 + 1.2 * rng.random()


def describe(rng: np.random.Generator) -> Sample:
    canvas, answers = random_background(rng), []
    for x, y in sorted(
        random_centres(rng, int(rng.integers(1, 4))), key=lambda spot: (spot[1] // CELL, spot[0])
    ):
        shape, colour = sample_options(rng, SHAPES, 1)[0], sample_options(rng, COLOURS, 1)[0]
        draw_shape(canvas, shape, mix_colour(rng, colour), x, y, radius(rng))
        answers.append(f"{colour} {shape}")
    return canvas, "Describe all you see.", ", ".join(answers)


def chart_out(rng: np.random.Generator) -> Sample:
    """List all cells in reading order: no other exercise teaches which patch holds a thing."""
    canvas, answers = random_background(rng), ["none"] * CELLS * CELLS
    asked = ("shapes", "colours")[int(rng.random() < 0.25)]
    for x, y in random_centres(rng, int(rng.integers(3, 9))):
        shape, colour = sample_options(rng, SHAPES, 1)[0], sample_options(rng, COLOURS, 1)[0]
        draw_shape(canvas, shape, mix_colour(rng, colour), x, y, radius(rng))
        answers[int(y // CELL * CELLS + x // CELL)] = shape if asked == "shapes" else colour
    return canvas, f"Map the {asked}.", " ".join(answers)


def pick(rng: np.random.Generator) -> Sample:
    canvas, names, colours = (
        random_background(rng),
        sample_options(rng, SHAPES, 4),
        sample_options(rng, COLOURS, 4),
    )
    corners = sample_options(rng, [(0, 0), (0, 2), (2, 0), (2, 2)], int(rng.integers(2, 5)))
    for name, colour, corner in zip(names, colours, corners, strict=False):
        x, y = corner + rng.integers(0, 2, 2)
        draw_shape(canvas, name, mix_colour(rng, colour), cell_centre(x), cell_centre(y), radius(rng))
    form = rng.integers(3)
    if form == 0:
        return canvas, f"Which thing is {colours[0]}?", names[0]
    if form == 1:
        return canvas, f"Describe the {names[0]}.", f"{colours[0]} {names[0]}"
    corner = f"{('upper', 'lower')[corners[0][1] // 2]} {('left', 'right')[corners[0][0] // 2]}"
    return canvas, f"Describe the {corner} corner.", f"{colours[0]} {names[0]}"


def walk(rng: np.random.Generator) -> Sample:
    canvas, names = random_background(rng), sample_options(rng, SHAPES, 2)
    (x0, y0), (x1, y1) = (divmod(cell, CELLS) for cell in sample_options(rng, range(CELLS * CELLS), 2))
    if rng.random() < 0.8:  # straight
        x1, y1 = ((x1, y0), (x0, y1))[rng.integers(2)]
        if (x0, y0) == (x1, y1):
            return walk(rng)
    for name, x, y in zip(names, (x0, x1), (y0, y1), strict=True):
        draw_shape(
            canvas,
            name,
            mix_colour(rng, sample_options(rng, COLOURS, 1)[0]),
            cell_centre(x),
            cell_centre(y),
            radius(rng),
        )
    steps = [*(["right"] * (x1 > x0) + ["left"] * (x1 < x0)), *(["down"] * (y1 > y0) + ["up"] * (y1 < y0))]
    return canvas, f"Walk to the {names[1]}, starting at the {names[0]}.", " ".join(steps)


def line_up(rng: np.random.Generator) -> Sample:
    canvas, across, count = random_background(rng), rng.random() < 0.5, int(rng.integers(2, 4))
    names = sample_options(rng, SHAPES, count)
    for name, at in zip(names, sorted(sample_options(rng, range(4), count)), strict=True):
        x, y = (at, rng.integers(4)) if across else (rng.integers(4), at)
        draw_shape(
            canvas,
            name,
            mix_colour(rng, sample_options(rng, COLOURS, 1)[0]),
            cell_centre(x),
            cell_centre(y),
            radius(rng),
        )
    order = "left to right" if across else "top to bottom"
    return canvas, f"List the things from {order}.", ", ".join(names)


def tally(rng: np.random.Generator) -> Sample:
    canvas, counts = random_background(rng), rng.integers(1, 6, 2)
    colour = (
        mix_colour(rng, sample_options(rng, COLOURS, 1)[0]) if rng.random() < 0.5 else rng.integers(0, 256, 3)
    )
    names = sample_options(rng, SHAPES, 2)
    counts = [counts[0]] if rng.random() < 0.3 else [min(counts[0], 4), min(counts[1], 4)]
    places = iter(random_centres(rng, int(sum(counts))))
    for name, count in zip(names, counts, strict=False):
        for _ in range(count):
            draw_shape(canvas, name, colour, *next(places), radius(rng))
    pairs = sorted(zip(names, counts, strict=False))
    if rng.random() < 0.5:
        pairs, kind = [(names[0], counts[0])], f"{names[0]}s"
    else:
        kind = "picture"
    answers = ", ".join(f"{NUMBERS[number - 1]} {name}" for name, number in pairs)
    return canvas, f"Take stock of the {kind}.", answers


def written(rng: np.random.Generator, text: str, size: int) -> Image.Image:
    """Return the text, rotated and sheared a little, cropped to its ink."""
    font = ImageFont.truetype(FONTS[rng.integers(len(FONTS))], size)
    left, top, right, bottom = font.getbbox(text)
    picture = Image.new("L", (int(right - left) + size, int(bottom - top) + size))
    ImageDraw.Draw(picture).text((size / 2 - left, size / 2 - top), text, fill=255, font=font)
    shear, turn = rng.normal(0, [0.15, 6])
    picture = picture.transform(picture.size, Image.Transform.AFFINE, (1, shear, -shear * size, 0, 1, 0))
    picture = picture.rotate(turn, Image.Resampling.BILINEAR)
    return picture.crop(picture.getbbox())


def character(rng: np.random.Generator) -> Sample:
    """Draw a character as coarse as a bad scan: 8 × 8 pixels, then enlarged."""
    shown = sample_options(rng, string.digits if rng.random() < 0.7 else string.ascii_uppercase, 1)[0]
    width = int(rng.integers(4, 9))
    small = Image.new("L", (8, 8))
    small.paste(written(rng, shown, 40).resize((width, 8), Image.Resampling.BOX), ((8 - width) // 2, 0))
    cover = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BILINEAR)) / 255
    canvas = background(rng, 0, 70)
    paint(canvas, cover * (1 + 0.5 * rng.random()), rng.integers(140, 256, 3))
    return canvas, "Which character?", shown


def spell(rng: np.random.Generator) -> Sample:
    while (text := "".join(rng.choice(list(string.ascii_lowercase), rng.integers(1, 5)))) in tasks.WORDS:
        pass
    return tasks.draw_sign(rng, text, *tasks.random_position(rng, text)), "Spell it out.", " ".join(text)


def read(rng: np.random.Generator) -> Sample:
    word = sample_options(rng, SHORT, 1)[0]
    return tasks.draw_sign(rng, word, *tasks.random_position(rng, word)), "Say the word.", word


def text_only(rng: np.random.Generator) -> Sample:
    """Ask without an image, so that each answer's token is trained, and letters join to words."""
    word = sample_options(rng, SAID, 1)[0]
    question = f"Join {' '.join(word)}." if rng.random() < 0.6 else f"Repeat {word}."
    return random_background(rng), question, word


def echo(rng: np.random.Generator) -> Sample:
    """Train every token of the vocabulary, in any position of a word.

    Rows of the output head that are never trained stay almost equal. No adapter below a frozen head can
    distinguish them, so an answer that needs them could not be learned.
    """
    answers = []
    for _ in range(rng.integers(1, 4)):
        syllables = []
        for _ in range(rng.integers(1, 4)):
            source = sample_options(rng, SAID, 1)[0]
            first = int(rng.integers(0, max(1, len(source) - 1)))
            syllables.append(source[first : first + int(rng.integers(1, 5))])
        word = "".join(syllables)
        answers.append((word, word, word, word.capitalize(), word.upper())[rng.integers(5)])
    if rng.random() < 0.15:
        answers.append(str(rng.integers(0, 10 ** rng.integers(1, 5))))
    text = " ".join(answers)
    return random_background(rng), f"Repeat {text}", text


def pattern(rng: np.random.Generator) -> Sample:
    canvas, period = random_background(rng), rng.integers(5, 12)
    covers = {
        "rows": Y % period < period / 2,
        "columns": X % period < period / 2,
        "slanted": (X + Y) % period < period / 2,
        "checks": (X % period < period / 2) ^ (Y % period < period / 2),
        "dots": (X % period - period / 2) ** 2 + (Y % period - period / 2) ** 2 < (period / 3.5) ** 2,
        "rings": np.sqrt((X - 16) ** 2 + (Y - 16) ** 2) % period < period / 2,
        "specks": rng.random((SIDE, SIDE)) < 0.3,
        "plain": np.zeros((SIDE, SIDE)),
    }
    name = sample_options(rng, covers, 1)[0]
    paint(canvas, covers[name].astype(float), rng.integers(0, 256, 3))
    return canvas, "Which pattern?", name


def dominant(rng: np.random.Generator) -> Sample:
    name, *others = sample_options(rng, COLOURS, 4)
    canvas = background(rng, 0, 0, noise=20) + mix_colour(rng, name)
    for other, (x, y) in zip(others, random_centres(rng, 3), strict=True):
        draw_shape(
            canvas, sample_options(rng, SHAPES, 1)[0], mix_colour(rng, other), x, y, 2 + 2 * rng.random()
        )
    return canvas, "Which paint fills most of the canvas?", name


def sizes(rng: np.random.Generator) -> Sample:
    canvas, shape = random_background(rng), sample_options(rng, SHAPES, 1)[0]
    count = int(rng.integers(2, 4))
    radii, names = 7.2 - 2 * np.arange(count) + 0.4 * rng.random(count), sample_options(rng, COLOURS, count)
    for name, r, (x, y) in zip(
        names, radii, sample_options(rng, [(8, 8), (8, 24), (24, 8), (24, 24)], count), strict=True
    ):
        draw_shape(canvas, shape, mix_colour(rng, name), x, y, r)
    return canvas, "Rank by size.", ", ".join(names)


def bars(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[str], list[np.ndarray]]:
    """Draw bars from any edge but the lower one; return canvas, lengths in pixels, colours and covers."""
    canvas, count, covers = random_background(rng), int(rng.integers(2, 5)), []
    lengths, colours = rng.permutation(8)[:count] * 3 + 4, sample_options(rng, COLOURS, count)
    u, v = [(X, Y), (SIDE - X, Y), (Y, X)][rng.integers(3)]
    for i, (colour, length) in enumerate(zip(colours, lengths, strict=True)):
        covers.append(np.minimum(3.5 - abs(v - cell_centre(i)), 0.5 + length - u))
        paint(canvas, covers[-1], mix_colour(rng, colour))
    return canvas, lengths, colours, covers


def beams(rng: np.random.Generator) -> Sample:
    canvas, lengths, colours, _ = bars(rng)
    order, down = np.argsort(-lengths), rng.random() < 0.5
    question = f"Rank the beams, {'longest' if down else 'shortest'} first."
    return canvas, question, ", ".join(colours[i] for i in (order if down else order[::-1]))


# -- labels of single patches: the vision tower is trained on these first --------------------------

THINGS = ["none", *SHAPES, *string.ascii_lowercase, *string.digits, *string.ascii_uppercase]
PAINTS = ["none", *COLOURS]
QUARTERS = 5  # how full a cell is, from empty to full


def draw_patches(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels, and for each cell its thing, colour and fill: (16, 3), -1 where not labelled."""
    labels = np.zeros((CELLS, CELLS, 3), dtype=int)
    labels[..., 2] = -1
    kind = rng.choice(4, p=[0.35, 0.25, 0.25, 0.15])
    if kind == 0:
        canvas = random_background(rng)
        for x, y in random_centres(rng, int(rng.integers(2, 9))):
            shape, colour = sample_options(rng, SHAPES, 1)[0], sample_options(rng, COLOURS, 1)[0]
            draw_shape(canvas, shape, mix_colour(rng, colour), x, y, radius(rng))
            labels[int(y // CELL), int(x // CELL), :2] = THINGS.index(shape), PAINTS.index(colour)
    elif kind == 1:
        text = "".join(rng.choice(list(string.ascii_lowercase), rng.integers(1, 5)))
        column, row = tasks.random_position(rng, text)
        canvas = tasks.draw_sign(rng, text, column, row)
        for i, letter in enumerate(text):
            labels[row : row + 2, column + i, 0] = THINGS.index(letter)
    elif kind == 2:
        canvas, _, shown = character(rng)
        labels[..., 0] = THINGS.index(shown)
    else:
        canvas, _, colours, covers = bars(rng)
        for colour, cover in zip(colours, covers, strict=True):
            share = np.clip(cover, 0, 1).reshape(CELLS, CELL, CELLS, CELL).mean((1, 3)) * CELL / 6
            labels[share > 0.1, 1] = PAINTS.index(colour)
            labels[share > 0.1, 2] = np.rint(share[share > 0.1] * (QUARTERS - 1))
    return tasks.to_pixels(canvas), labels.reshape(-1, 3)


# -- all together ----------------------------------------------------------------------------------

EXERCISES: dict[Callable[[np.random.Generator], Sample], float] = {  # shares of the mixture
    describe: 0.06,
    chart_out: 0.08,
    walk: 0.11,
    read: 0.06,
    text_only: 0.03,
    echo: 0.08,
    pick: 0.12,
    line_up: 0.06,
    tally: 0.14,
    character: 0.09,
    spell: 0.06,
    pattern: 0.01,
    dominant: 0.01,
    sizes: 0.01,
    beams: 0.08,
}


def mixture(
    seed: int, purpose: str, step: int, count: int, only: Callable[..., Sample] | None = None
) -> list[Sample]:
    """Return `count` samples of all exercises by their shares, or of one exercise, as pixels."""
    rng = make_rng(seed, "pretraining", purpose, step)
    kinds, shares = list(EXERCISES), np.array(list(EXERCISES.values()))
    picked = (
        [only] * count if only else [kinds[i] for i in rng.choice(len(kinds), count, p=shares / shares.sum())]
    )
    return [(tasks.to_pixels(canvas), *texts) for canvas, *texts in (kind(rng) for kind in picked)]
