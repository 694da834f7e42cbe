"""The `shapes` world: small drawn pictures with captions, made on the spot from a seed and an index.

A picture holds one to four equal things ("three small striped red stars") or two things side by side or one above the
other ("a large solid blue ring above a small dotted pink heart"), on a varied grey background. The shape-colour
combinations in `HELD_OUT` never occur in training, alone or in a pair, so naming them is a real test of composition.

Each picture draws its random numbers from a generator of its own, so it is the same in any order and any process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import cos, pi, sin
from random import Random
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from clip_core.data.example import fingerprint_of
from clip_core.preprocess import resize

SIDE = 64  # pixels along one side of a picture
PITCH = 8  # pixels between the places where things can stand
OVERSAMPLING = 4  # shapes are drawn this many times larger and averaged down, which smooths their edges

Size = Literal["small", "large"]
Relation = Literal["left of", "above"]
Point = tuple[float, float]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 28, 36),
    "orange": (250, 140, 10),
    "yellow": (245, 225, 30),
    "green": (30, 150, 50),
    "turquoise": (45, 215, 205),
    "blue": (30, 70, 220),
    "purple": (130, 40, 175),
    "pink": (250, 120, 190),
    "brown": (125, 70, 25),
}
TEXTURES = ("solid", "striped", "dotted", "checked")
RADII: dict[Size, tuple[float, float]] = {"small": (8.5, 9.5), "large": (13.0, 14.5)}  # pixels, from and to
COUNTS = ("a", "two", "three", "four")
OPPOSITE: dict[Relation, str] = {"left of": "right of", "above": "below"}
SYNONYMS: dict[str, tuple[str, ...]] = {
    "small": ("little", "tiny"),
    "large": ("big", "huge"),
    "solid": ("plain", "uniform"),
    "striped": ("stripy", "banded"),
    "dotted": ("spotted", "speckled"),
    "checked": ("chequered", "checkered"),
    "turquoise": ("cyan", "aqua"),
    "purple": ("violet",),
    "pink": ("rosy",),
    "brown": ("chocolate",),
    "circle": ("disc", "disk"),
    "triangle": ("wedge",),
    "diamond": ("rhombus",),
    "cross": ("plus",),
    "ring": ("hoop", "annulus"),
    "crescent": ("moon",),
    "left of": ("to the left of", "on the left of"),
    "right of": ("to the right of", "on the right of"),
    "above": ("over", "on top of"),
    "below": ("under", "beneath", "underneath"),
}
TEMPLATES = (
    "{}",
    "{}.",
    "a picture of {}",
    "a photo of {}",
    "an image of {}",
    "a drawing of {}",
    "this picture shows {}",
    "there you can see {}",
    "{} on a grey background",
)


def _arc(radius: float, start: float, end: float, centre: Point = (0.0, 0.0), points: int = 24) -> list[Point]:
    """Points on a circle from one angle to another, in turns, clockwise from the right."""
    angles = (2 * pi * (start + (end - start) * step / points) for step in range(points + 1))
    return [(centre[0] + radius * cos(angle), centre[1] + radius * sin(angle)) for angle in angles]


def _corners(radii: Sequence[float]) -> list[Point]:
    """A closed outline whose corners lie at ``radii`` around the centre, the first one at the top."""
    return [
        (radius * sin(2 * pi * corner / len(radii)), -radius * cos(2 * pi * corner / len(radii)))
        for corner, radius in enumerate(radii)
    ]


def _heart() -> list[Point]:
    turns = [2 * pi * step / 48 for step in range(48)]
    return [(sin(t) ** 3, -(13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t)) / 16 - 0.1) for t in turns]


# Outlines within about one unit of the centre, x to the right and y down.
SHAPES: dict[str, list[Point]] = {
    "circle": _arc(0.95, 0, 1),
    "square": [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)],
    "triangle": [(0.0, -1.0), (1.0, 0.8), (-1.0, 0.8)],
    "diamond": [(0.0, -1.1), (0.78, 0.0), (0.0, 1.1), (-0.78, 0.0)],
    "star": _corners([1.1, 0.46] * 5),
    "cross": [
        *((-0.34, -1.0), (0.34, -1.0), (0.34, -0.34), (1.0, -0.34), (1.0, 0.34), (0.34, 0.34)),
        *((0.34, 1.0), (-0.34, 1.0), (-0.34, 0.34), (-1.0, 0.34), (-1.0, -0.34), (-0.34, -0.34)),
    ],
    "heart": _heart(),
    "ring": _arc(1.0, 0, 1),
    "crescent": _arc(1.0, 0.11, 0.89) + _arc(0.71, 0.82, 0.18, centre=(0.46, 0.0)),
}

HOLES: dict[str, list[Point]] = {"ring": _arc(0.42, 0, 1)}

Kind = tuple[str, str]  # shape, colour
KINDS: tuple[Kind, ...] = tuple(product(SHAPES, COLOURS))
# Two diagonals of the table shapes x colours: each shape lacks two colours, and each colour two shapes.
HELD_OUT: tuple[Kind, ...] = tuple(
    (shape, list(COLOURS)[(row + offset) % len(COLOURS)]) for row, shape in enumerate(SHAPES) for offset in (0, 4)
)
TRAINED: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind not in HELD_OUT)


@dataclass(frozen=True)
class Thing:
    """What is drawn: every attribute that a full caption names."""

    shape: str
    colour: str
    size: Size
    texture: str


@dataclass(frozen=True)
class Scene:
    """What a picture shows: ``count`` equal things, or ``first`` left of or above ``second``."""

    first: Thing
    count: int = 1
    relation: Relation | None = None
    second: Thing | None = None


@dataclass(frozen=True)
class Example:
    """One picture, RGB of `SIDE` x `SIDE` pixels, with what it shows and how that is said."""

    picture: Image.Image
    caption: str
    scene: Scene


def random_for(purpose: str, seed: int, index: int) -> Random:
    """The generator of example ``index``; different purposes never share pictures."""
    return Random(f"shapes/{purpose}/{seed}/{index}")


def random_scene(random: Random, kinds: Sequence[Kind]) -> Scene:
    """A scene whose things are of ``kinds``: 30 % one thing, 30 % two to four equal things, 40 % a pair."""
    form = random.random()
    first = _random_thing(random, kinds)
    if form < 0.3:
        return Scene(first)
    if form < 0.6:
        return Scene(first, count=random.randint(2, len(COUNTS)))
    others = [kind for kind in kinds if kind != (first.shape, first.colour)]
    return Scene(first, relation=random.choice(list(OPPOSITE)), second=_random_thing(random, others))


def _random_thing(random: Random, kinds: Sequence[Kind]) -> Thing:
    shape, colour = random.choice(kinds)
    return Thing(shape, colour, random.choice(list(RADII)), random.choice(TEXTURES))


def training_example(seed: int, index: int) -> Example:
    """Example ``index`` of the training set ``seed``: no `HELD_OUT` kind occurs in it."""
    random = random_for("training", seed, index)
    scene = random_scene(random, TRAINED)
    words = caption(scene, random)
    return Example(draw(scene, random), words, scene)


@dataclass(frozen=True)
class TrainingSet:
    """The first ``examples`` pictures of training set ``seed``, drawn when they are asked for."""

    seed: int
    examples: int

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self.examples:  # where iterating ends
            raise IndexError(index)
        return training_example(self.seed, index)

    def fingerprint(self) -> str:
        return fingerprint_of(f"shapes {self.seed} {self.examples}")

    def files(self) -> Iterable[str]:
        return ()

    def captions(self) -> Iterator[str]:
        """Not those of these pictures, but the same of every training set."""
        return vocabulary_captions()


def vocabulary_captions() -> Iterator[str]:
    """The captions that a vocabulary for this world is learnt from."""
    for index in range(5000):
        random = random_for("vocabulary", 0, index)
        yield caption(random_scene(random, TRAINED), random)


# Captions


def describe(
    scene: Scene,
    named: Sequence[str] = ("size", "texture", "colour"),
    backwards: bool = False,
    say: Callable[[str], str] = str,
) -> str:
    """What ``scene`` shows, in words; by default in full, so that equal descriptions mean equal scenes.

    Args:
        named: the attributes that are told besides number and shape.
        backwards: name the second thing of a pair first, with the opposite relation.
        say: puts another word for an attribute or a relation.
    """
    if scene.second is None or scene.relation is None:
        return _noun(scene.first, scene.count, named, say)
    first, second = (_noun(thing, 1, named, say) for thing in (scene.first, scene.second))
    if backwards:
        return f"{second} {say(OPPOSITE[scene.relation])} {first}"
    return f"{first} {say(scene.relation)} {second}"


def _noun(thing: Thing, count: int, named: Sequence[str], say: Callable[[str], str]) -> str:
    words = [say(getattr(thing, attribute)) for attribute in (*named, "shape")]
    if count > 1:
        words[-1] += "es" if words[-1].endswith("s") else "s"
    article = "an" if count == 1 and words[0][0] in "aeio" else COUNTS[count - 1]  # a uniform, an orange
    return " ".join([article, *words])


def caption(scene: Scene, random: Random) -> str:
    """One of the many ways to say it: a random template, direction and choice of words, and often fewer attributes.

    When a caption leaves out the colour, the shape alone has to tell its picture from others: without such captions a
    model learns colours at once and shapes only very late.
    """

    def say(word: str) -> str:
        return random.choice(SYNONYMS[word]) if word in SYNONYMS and random.random() < 0.3 else word

    named = [attribute for attribute in ("size", "texture", "colour") if random.random() < 0.6]
    return random.choice(TEMPLATES).format(describe(scene, named, random.random() < 0.5, say))


# Drawing


def draw(scene: Scene, random: Random) -> Image.Image:
    """A picture of ``scene``; position, tilt, exact size and shade, and the background are random."""
    things = [scene.first] * scene.count if scene.second is None else [scene.first, scene.second]
    radii = [random.uniform(*RADII[thing.size]) for thing in things]
    picture = _background(random)
    for thing, radius, centre in zip(things, radii, _centres(scene, random)):
        _paint(picture, thing, radius, centre, random)
    return picture


def _centres(scene: Scene, random: Random) -> list[Point]:
    """Where the things go: near points `PITCH` pixels apart, so that they touch at most.

    A vision transformer cuts the picture at fixed places. Were things put anywhere, it would have to learn each shape
    anew for every place at which it can be cut, which takes a small model very long.
    """
    middle, near_edge, far_edge = SIDE / 2, SIDE / 4, SIDE * 3 / 4

    def near(point: float, steps: int = 0) -> float:
        return point + PITCH * random.randint(-steps, steps) + random.uniform(-1.5, 1.5)

    if scene.relation is not None:
        # Across the relation both stand at about the same place, so that only one relation holds.
        level = middle + PITCH * random.randint(-1, 1)
        points = [(near(place), near(level)) for place in (near_edge, far_edge)]
        return points if scene.relation == "left of" else [(y, x) for x, y in points]
    if scene.count == 1:
        return [(near(middle, steps=1), near(middle, steps=1))]
    quarters = [(x, y) for x in (near_edge, far_edge) for y in (near_edge, far_edge)]
    return [(near(x), near(y)) for x, y in random.sample(quarters, scene.count)]


def _background(random: Random) -> Image.Image:
    """Grey with a slight tint: plain, or changing smoothly over the picture."""
    level = random.uniform(150, 215)
    cells = random.choice((1, 2, 4))
    colours = [[level + random.uniform(-16, 16) for _ in range(3)] for _ in range(cells * cells)]
    coarse = np.array(colours).clip(0, 255).astype(np.uint8).reshape(cells, cells, 3)
    return resize(Image.fromarray(coarse), (SIDE, SIDE))


def _paint(picture: Image.Image, thing: Thing, radius: float, centre: Point, random: Random) -> None:
    tilt = random.uniform(-0.15, 0.15)  # radians; a square must not become a diamond
    shade = tuple(round(min(max(value + random.uniform(-12, 12), 0), 255)) for value in COLOURS[thing.colour])
    pattern = random.choice(_PATTERNS[thing.texture])
    offset = random.randrange(_PERIOD), random.randrange(_PERIOD)

    reach = int(radius * 1.2) + 1
    left, top = round(centre[0]) - reach, round(centre[1]) - reach
    across, along = cos(tilt) * radius * OVERSAMPLING, sin(tilt) * radius * OVERSAMPLING
    x, y = (centre[0] - left) * OVERSAMPLING, (centre[1] - top) * OVERSAMPLING
    stencil = Image.new("L", (2 * reach * OVERSAMPLING,) * 2)
    for points, fill in ((SHAPES[thing.shape], 255), (HOLES.get(thing.shape), 0)):
        if points is not None:
            turned = [(x + u * across - v * along, y + u * along + v * across) for u, v in points]
            ImageDraw.Draw(stencil).polygon(turned, fill=fill)
    whole = np.asarray(stencil)
    inside = _shrink(whole)
    marks = pattern[offset[0] :, offset[1] :][: stencil.height, : stencil.width]
    for colour, mask in ((_OUTLINE, whole), (shade, inside), (_MARK, inside & marks)):
        picture.paste(colour, (left, top), Image.fromarray(mask).reduce(OVERSAMPLING))


def _shrink(mask: np.ndarray) -> np.ndarray:
    """``mask`` without what is within `_BORDER` of its edge, in the eight directions."""
    inside = mask.copy()
    diagonal = round(_BORDER * 0.7)
    for y, x in ((0, _BORDER), (_BORDER, 0), (diagonal, diagonal), (diagonal, -diagonal)):
        inside &= np.roll(mask, (y, x), (0, 1)) & np.roll(mask, (-y, -x), (0, 1))
    return inside


_OUTLINE = (20, 20, 20)  # the same for all, so that a shape is known whatever its colour and texture
_BORDER = 5  # width of the outline, in oversampled pixels
_MARK = (255, 255, 255)  # stripes, dots and checks are white on the thing's colour
_PERIOD = 6 * OVERSAMPLING  # of every pattern, in oversampled pixels


def _patterns() -> dict[str, list[np.ndarray]]:
    """Texture -> its variants, uint8 masks of 0 and 255, larger than any thing by one period."""
    side = (2 * (int(max(RADII["large"]) * 1.2) + 1)) * OVERSAMPLING + _PERIOD
    y, x = np.mgrid[:side, :side] / _PERIOD
    half = [np.sin(2 * pi * axis) > 0 for axis in (x, y, x + y, x - y)]
    dots = (x % 1 - 0.5) ** 2 + (y % 1 - 0.5) ** 2 < 0.3**2
    masks = {"solid": [half[0] & False], "striped": half, "dotted": [dots], "checked": [half[0] ^ half[1]]}
    return {texture: [mask.astype(np.uint8) * 255 for mask in variants] for texture, variants in masks.items()}


_PATTERNS = _patterns()
