"""Garments drawn by code: an endless captioned data set that needs no files.

Each picture is a handful of polygons and lines in the unit square: x from -1 (left) to 1, y from -1
(top) to 1. They are painted four times too large and averaged down, then shaded, patterned and
tinted for the whole batch at once.
"""

import functools
import hashlib
import math
from collections.abc import Sequence

import numpy as np
import PIL
from PIL import Image, ImageDraw

from sd_tf.data import captions
from sd_tf.data.pipeline import Examples
from sd_tf.errors import InputError, unknown
from sd_tf.seeding import uniforms

DRAWING_VERSION = 1  # part of the fingerprint: raise it with any change to what this file draws
EPOCH = 60_000
SIZES = (32, 64)
SPLITS = ("train", "test")
SUPERSAMPLING = 4
_CAPTION_NUMBERS, _SHADING_NUMBERS, _SHAPE_NUMBERS = 8, 8, 18
_TINTS = np.array(((255, 255, 255),) + captions.PALETTE, np.float32) / 255  # row 0: grey


class Garments:
    """The ten garments of Fashion-MNIST, drawn in endless cuts, poses, colours and patterns.

    Bright on black, as in Fashion-MNIST. Half of the captions name a colour and half a pattern
    (stripes or dots), and show it; the others are grey, and plain. Index i of an epoch is of class
    i % 10, so that an epoch is balanced. The group of an example is ((class * 9) + (0 for grey,
    else 1 + colour)) * 3 + (0 for plain, else 1 + pattern).

    Args:
        image_size: 32 or 64 pixels.
        seed: a non-negative integer, of all that is drawn.
        split: "train" or "test", two unrelated streams of pictures.

    Raises:
        InputError: for another image size or split.
    """

    name = "garments"
    class_names = captions.CLASS_NAMES
    preview_prompts = captions.PREVIEW_PROMPTS
    distinct_epochs = None

    def __init__(self, image_size: int = 32, seed: int = 0, split: str = "train"):
        if image_size not in SIZES:
            raise InputError(
                f"garments cannot be drawn at {image_size} pixels: give an image size of 32 or 64."
            )
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        self.image_size = image_size
        self._key = (seed, SPLITS.index(split))
        identity = repr(
            (self.name, image_size, self._key, DRAWING_VERSION, PIL.__version__)
            + (captions.GRAMMAR_VERSION, captions.corpus(patterns=True), captions.PALETTE)
        )
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return EPOCH

    def corpus(self) -> tuple[str, ...]:
        """Every caption, sorted and distinct."""
        return captions.corpus(patterns=True)

    @property
    def distinct_captions(self) -> tuple[str, ...]:
        """Every caption that `examples` can have, sorted."""
        return self.corpus()

    def examples(self, indices: Sequence[int], epoch: int) -> Examples:
        """Pictures uint8 (n, size, size, 3), captions and groups: a pure function of (seed, epoch, index)."""
        indices = np.asarray(indices, np.int64)
        numbers = uniforms((*self._key, epoch), indices, _CAPTION_NUMBERS + _SHADING_NUMBERS + _SHAPE_NUMBERS)
        words, shading, shapes = np.split(
            numbers, (_CAPTION_NUMBERS, _CAPTION_NUMBERS + _SHADING_NUMBERS), axis=1
        )
        labels = indices % len(captions.CLASS_NAMES)
        colours = _half_none(words[:, 0], words[:, 1], len(captions.COLOUR_NAMES))
        patterns = _half_none(words[:, 2], words[:, 3], len(captions.PATTERN_NAMES))
        texts = [
            captions.caption(label, colour - 1 if colour else None, four, pattern - 1 if pattern else None)
            for label, colour, pattern, four in zip(
                labels, colours, patterns, words[:, 4:].tolist(), strict=True
            )
        ]
        grey = np.empty((len(indices), self.image_size, self.image_size), np.float32)
        for picture, label, shape in zip(grey, labels, shapes.tolist(), strict=True):
            picture[:] = _draw(label, shape, self.image_size)
        grey *= _light(shading, patterns, self.image_size)
        images = np.rint(grey[..., None] * _TINTS[colours][:, None, None, :]).astype(np.uint8)
        return Examples(images, texts, ((labels * 9 + colours) * 3 + patterns).astype(np.int32))


def _half_none(gate, choice, count):
    """int64 (n,): 0 for half of the numbers, else 1...count."""
    return np.where(gate < 0.5, 0, 1 + (choice * count).astype(np.int64))


# ------------------------------------------------------------------------------ light and fabric


def _light(numbers, patterns, size):
    """Factors in [0, 1], float32 (n, size, size): rounding of the body, soft folds, and the pattern."""
    numbers = numbers.astype(np.float32)[:, :, None, None]
    side, folds, phase, tilt, period, turn, shift_x, shift_y = np.moveaxis(numbers, 1, 0)
    y, x = np.meshgrid(*[(np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1] * 2, indexing="ij")
    body = 1 - 0.22 * (x - 0.5 * (side - 0.5)) ** 2 - 0.05 * (1 + y)
    light = body - 0.05 * (1 + np.sin((4 + 6 * folds) * (x + (tilt - 0.5) * y) + 6.3 * phase))

    period = 0.3 + 0.12 * period
    angle = np.where(turn < 0.5, 0.0, np.where(turn < 0.75, np.pi / 2, np.pi / 4)).astype(np.float32)
    striped = np.flatnonzero(patterns == 1)
    if len(striped):  # bands across the garment, along it, or slanted
        u = x * np.sin(angle[striped]) + y * np.cos(angle[striped])
        wave = np.sin(2 * np.pi * (u / period[striped] + shift_x[striped]))
        light[striped] *= 0.68 + 0.32 * np.clip(wave * 2.5, -1, 1)
    dotted = np.flatnonzero(patterns == 2)
    if len(dotted):  # a square lattice turned by 45 degrees, bright dots on dark fabric
        u = 2 * np.pi * ((x + y) / 1.4 / period[dotted] + shift_x[dotted])
        v = 2 * np.pi * ((x - y) / 1.4 / period[dotted] + shift_y[dotted])
        bumps = np.cos(u) + np.cos(v)  # -2 between the dots, 2 at their centres
        light[dotted] *= 0.68 + 0.32 * np.clip(bumps * 1.8 - 1.0, -1, 1)
    return light


# ------------------------------------------------------------------------------------- painting


class _Painter:
    """Paints polygons and lines of the unit square on a large grey canvas, under one pose.

    `between` and `chance` spend the picture's random numbers, one each.
    """

    def __init__(self, numbers, size):
        self._numbers = iter(numbers)
        side = size * SUPERSAMPLING
        self.image = Image.new("L", (side, side))
        self._draw = ImageDraw.Draw(self.image)
        self.tone = self.between(175, 250)
        scale = self.between(0.84, 0.95) * side / 2
        angle = self.between(-0.07, 0.07)
        flip = -1 if self.chance(0.15) else 1
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        self._matrix = np.array([[flip * cos, flip * sin], [-sin, cos]])
        self._centre = side / 2 * (1 + np.array([self.between(-0.05, 0.05), self.between(-0.04, 0.04)]))
        self._scale = scale

    def between(self, low, high):
        return low + (high - low) * next(self._numbers)

    def chance(self, probability):
        return next(self._numbers) < probability

    def fill(self, points, tone=1.0, rounded=True):
        """A closed outline. Rounded, it stays within its corner points and smooths them."""
        points = np.asarray(points, np.float64)
        if rounded:
            points = _corner_cutting(len(points)) @ points
        self._draw.polygon(self._place(points), fill=int(self.tone * tone))

    def both(self, points, tone=1.0, rounded=True):
        """An outline and its mirror image."""
        self.fill(points, tone, rounded)
        self.fill([(-x, y) for x, y in points], tone, rounded)

    def symmetric(self, half, tone=1.0, rounded=True):
        """The outline whose right half, from top to bottom, is given."""
        self.fill(half + [(-x, y) for x, y in reversed(half)], tone, rounded)

    def line(self, points, width=0.05, tone=0.55):
        points = self._place(np.asarray(points, np.float64))
        self._draw.line(
            points, fill=int(self.tone * tone), width=max(1, round(width * self._scale)), joint="curve"
        )

    def both_lines(self, points, width=0.05, tone=0.55):
        self.line(points, width, tone)
        self.line([(-x, y) for x, y in points], width, tone)

    def bow(self, start, towards, end, width, tone=1.0):
        """A line from start to end that bends towards a point: a quadratic Bezier curve."""
        self.line(_BOW @ np.array([start, towards, end]), width, tone)

    def _place(self, points):
        return (points @ self._matrix + self._centre).ravel().tolist()


_BOW = np.stack(  # (9 points, 3), the Bernstein polynomials
    [math.comb(2, k) * np.linspace(0, 1, 9) ** k * np.linspace(1, 0, 9) ** (2 - k) for k in range(3)], axis=1
)


@functools.cache
def _corner_cutting(count):
    """(4 * count, count): two rounds of Chaikin's corner cutting (1974) of a closed polygon."""
    matrix = np.eye(count)
    for _ in range(2):
        following = np.roll(matrix, -1, axis=0)
        pair = np.stack([0.75 * matrix + 0.25 * following, 0.25 * matrix + 0.75 * following], axis=1)
        matrix = pair.reshape(-1, count)
    return matrix


def _draw(label, numbers, size):
    """One plain grey garment, uint8 (size, size), before shading."""
    painter = _Painter(numbers, size)
    _DRAWINGS[label](painter)
    return np.asarray(painter.image.reduce(SUPERSAMPLING))


# ------------------------------------------------------------------------------ the ten garments


def _sleeves(p, shoulder, top, chest, length, angle, width, cuff=None):
    """Two sleeves from the shoulder points, `angle` radians away from hanging straight down."""
    down, out = math.cos(angle), math.sin(angle)

    def at(along, across):  # across: to the outer side of the sleeve's middle line
        return (shoulder - 0.06 + along * out + across * down, top + 0.1 + along * down - across * out)

    outline = [
        (shoulder - 0.12, top - 0.02),
        at(0.1, width),
        at(length, width * 0.8),
        at(length, width * 0.8),
    ]
    outline += [at(length, -width * 0.8), at(length, -width * 0.8), (chest - 0.06, top + 0.42)]
    p.both(outline, 0.88)
    if cuff:
        corners = [at(length - cuff, width * 0.86), at(length, width * 0.8), at(length, -width * 0.8)]
        p.both(corners + [at(length - cuff, -width * 0.86)], 0.62, rounded=False)
    p.both_lines(
        [(shoulder - 0.1, top + 0.04), (chest - 0.01, top + 0.45), (chest - 0.01, top + 0.75)], 0.04, 0.4
    )


def _torso(p, neck, shoulder, top, chest, waist, hem, bottom):
    """The body of a garment that hangs from the shoulders."""
    p.symmetric(
        [(neck, top - 0.1), (neck, top - 0.1), (shoulder, top), (shoulder, top + 0.03), (chest, top + 0.4)]
        + [(waist, (top + bottom) / 2 + 0.1), (hem, bottom), (hem, bottom)]
    )


def _t_shirt(p):
    top, bottom = -0.78, p.between(0.7, 0.92)
    shoulder, chest = p.between(0.5, 0.6), p.between(0.44, 0.52)
    _sleeves(p, shoulder, top, chest, p.between(0.36, 0.55), p.between(0.45, 0.85), p.between(0.17, 0.23))
    _torso(
        p, p.between(0.2, 0.32), shoulder, top, chest, chest - 0.03, chest + p.between(-0.02, 0.06), bottom
    )
    neck, depth = p.between(0.2, 0.28), p.between(0.12, 0.42)
    p.symmetric([(neck, top - 0.14), (neck * 0.8, top + depth * 0.7), (0.02, top + depth)], 0.0)


def _trouser(p):
    waist, hip, top = p.between(0.24, 0.32), p.between(0.33, 0.42), -0.92
    knee, ankle = p.between(0.14, 0.22), p.between(0.1, 0.24)
    spread, crotch, bottom = p.between(0.22, 0.34), p.between(-0.35, -0.2), p.between(0.8, 0.94)
    leg = [(0.0, top), (waist, top), (waist, top), (hip, crotch - 0.1), (spread + knee * 0.8, 0.25)]
    leg += [(spread + ankle * 0.7, bottom)] * 2 + [(spread - ankle * 0.7, bottom)] * 2
    p.both(leg + [(spread - knee * 0.8, 0.25), (0.02, crotch), (0.0, crotch)])
    p.line([(-waist, top + 0.12), (waist, top + 0.12)], 0.05)
    p.line([(0, top + 0.12), (0, crotch)], 0.04)
    if p.chance(0.6):
        p.both_lines([(waist * 0.45, top + 0.15), (hip * 0.9, top + 0.34)], 0.04)


def _pullover(p):
    top, bottom = -0.76, p.between(0.66, 0.86)
    shoulder, chest = p.between(0.5, 0.58), p.between(0.46, 0.54)
    hem = chest - p.between(0.0, 0.06)
    length, cuff = p.between(1.25, 1.5), p.between(0.1, 0.18)
    _sleeves(p, shoulder, top, chest, length, p.between(0.08, 0.22), p.between(0.14, 0.19), cuff)
    _torso(p, 0.3, shoulder, top, chest, chest + 0.02, hem, bottom)
    p.symmetric([(hem + 0.01, bottom - cuff), (hem, bottom)], 0.62, rounded=False)
    neck, depth = p.between(0.2, 0.27), p.between(0.08, 0.2)
    p.symmetric(
        [(neck + 0.07, top - 0.13), (neck * 0.9, top + depth * 0.8), (0.03, top + depth + 0.07)], 0.62
    )
    p.symmetric([(neck, top - 0.17), (neck * 0.75, top + depth * 0.5), (0.02, top + depth - 0.03)], 0.0)


def _dress(p):
    top, bottom = -0.84, p.between(0.82, 0.95)
    chest, waist = p.between(0.25, 0.33), p.between(0.19, 0.26)
    hem, waistline = p.between(0.3, 0.66), p.between(-0.2, 0.0)
    if p.chance(0.45):
        shoulder = chest + 0.06
        _sleeves(p, shoulder, top + 0.04, chest, p.between(0.3, 0.5), p.between(0.25, 0.6), 0.13)
        p.symmetric(
            [(0.14, top), (0.14, top), (shoulder, top + 0.06), (chest, top + 0.45), (chest, top + 0.5)]
        )
        p.symmetric([(0.15, top - 0.05), (0.1, top + 0.14), (0.01, top + 0.2)], 0.0)
    else:
        strap = p.between(0.15, 0.22)
        p.both_lines([(strap, top + 0.38), (strap - 0.02, top)], p.between(0.06, 0.12), 1.0)
        p.symmetric([(0.08, top + 0.34), (strap + 0.04, top + 0.26), (chest, top + 0.42), (chest, top + 0.5)])
    p.symmetric(
        [(chest * 0.9, top + 0.36), (chest, top + 0.42), (waist, waistline), (waist, waistline)]
        + [
            (waist + (hem - waist) * p.between(0.5, 0.8), (waistline + bottom) / 2),
            (hem, bottom),
            (hem, bottom),
        ]
    )
    p.line([(-waist, waistline), (waist, waistline)], p.between(0.04, 0.12), 0.5)
    fold = hem * p.between(0.3, 0.6)
    p.both_lines([(waist * 0.4, waistline + 0.1), (fold, bottom - 0.04)], 0.03, 0.75)


def _coat(p):
    top, bottom = -0.78, p.between(0.86, 0.97)
    shoulder, chest = p.between(0.48, 0.55), p.between(0.46, 0.52)
    hem = chest + p.between(0.02, 0.12)
    _sleeves(p, shoulder, top, chest, p.between(1.3, 1.55), p.between(0.1, 0.24), p.between(0.14, 0.18))
    _torso(p, 0.26, shoulder, top, chest, chest - p.between(0.0, 0.08), hem, bottom)
    lapel = p.between(0.3, 0.62)
    p.symmetric([(0.17, top - 0.1), (0.01, top + lapel)], 0.12, rounded=False)
    p.both(
        [(0.15, top - 0.14), (0.31, top + 0.1), (0.2, top + lapel * 0.6), (0.0, top + lapel)],
        0.68,
        rounded=False,
    )
    p.line([(0, top + lapel - 0.05), (0, bottom)], p.between(0.06, 0.1), 0.15)
    for row in range(3):
        y = top + lapel + 0.12 + row * 0.27
        p.line([(0.1, y), (0.16, y)], 0.07, 0.35)
    pocket = p.between(0.2, 0.4)
    p.both_lines([(0.2, pocket), (0.4, pocket + p.between(-0.06, 0.1))], 0.06, 0.4)


def _sandal(p):
    heel = p.between(0.0, 0.9)  # the height of the heel, the one number that most changes a sandal
    ground, thick = 0.3 + heel * 0.35, p.between(0.1, 0.18)
    arch = ground - heel * 0.75
    sole = [(-0.95, ground - 0.05), (-0.9, ground), (-0.3, ground), (0.2, (ground + arch) / 2), (0.5, arch)]
    sole += [(0.88, arch - 0.02)] * 2
    p.fill(sole + [(x, y + thick) for x, y in reversed(sole)], 0.85)
    if heel > 0.2:
        width = p.between(0.1, 0.3)
        corners = [(0.88 - width * 1.3, arch + 0.02), (0.88, arch), (0.86, ground + thick)]
        p.fill(corners + [(0.86 - width, ground + thick)], 0.75, rounded=False)
    strap, over = p.between(0.1, 0.15), p.between(0.5, 0.8)
    p.bow((-0.82, ground), (-0.6, ground - over), (-0.38, ground), strap)
    p.bow((-0.6, ground), (-0.3, ground - over * 1.2), (-0.02, (ground + arch) / 2), strap, 0.85)
    ankle, reach = arch - p.between(0.35, 0.6), p.between(0.05, 0.35)
    p.bow((0.84, arch), (0.92, (ankle + arch) / 2), (0.8, ankle), strap * 1.3)
    p.bow((0.82, ankle), (0.5, ankle - 0.08), (reach, ankle + 0.2), strap)
    p.bow((reach, ankle + 0.18), (reach - 0.1, arch - 0.1), (reach + 0.2, arch + 0.05), strap, 0.85)


def _shirt(p):
    top, bottom = -0.76, p.between(0.74, 0.9)
    shoulder, chest = p.between(0.48, 0.56), p.between(0.42, 0.48)
    long = p.chance(0.65)
    length = p.between(1.25, 1.45) if long else p.between(0.42, 0.6)
    angle = p.between(0.1, 0.25) if long else p.between(0.35, 0.6)
    _sleeves(p, shoulder, top, chest, length, angle, p.between(0.13, 0.17), 0.12 if long else None)
    hem = chest + p.between(-0.03, 0.05)
    _torso(p, 0.24, shoulder, top, chest, chest - 0.04, hem, bottom - 0.06)
    p.symmetric([(hem * 0.98, bottom - 0.2), (hem * 0.7, bottom), (0.05, bottom + 0.08)])  # a curved tail
    p.both_lines([(0.055, top + 0.1), (0.055, bottom)], 0.03, 0.72)
    for row in range(5):
        y = top + 0.24 + row * (bottom - top - 0.3) / 5
        p.line([(-0.035, y), (0.035, y)], 0.06, 0.3)
    collar, spread = p.between(0.2, 0.3), p.between(0.2, 0.3)
    p.symmetric([(0.13, top - 0.14), (0.0, top + 0.12)], 0.25, rounded=False)
    p.both(
        [(0.11, top - 0.18), (0.25, top - 0.06), (spread, top + collar), (0.0, top + 0.1)], 0.5, rounded=False
    )
    p.both(
        [(0.12, top - 0.15), (0.22, top - 0.06), (spread - 0.03, top + collar - 0.06), (0.04, top + 0.09)],
        1.0,
    )
    if p.chance(0.5):
        p.fill([(0.15, -0.3), (0.33, -0.3), (0.33, -0.06), (0.15, -0.06)], 0.7, rounded=False)


def _sneaker(p):
    ground, sole = 0.42, p.between(0.1, 0.2)
    rise, tongue = p.between(0.46, 0.66), p.between(0.0, 0.2)
    toe = p.between(0.16, 0.28)
    seam = ground - sole
    p.fill(
        [(-0.96, seam), (-0.96, seam), (-0.92, seam - toe), (-0.55, seam - toe - 0.06), (-0.05, seam - rise)]
        + [(0.1, seam - rise - tongue), (0.24, seam - rise + 0.02), (0.5, seam - rise + 0.1)]
        + [(0.82, seam - rise - 0.06), (0.95, seam - rise), (0.92, seam), (0.92, seam)],
        0.86,
    )
    p.fill(
        [(-0.99, seam)] * 2
        + [(0.96, seam)] * 2
        + [(0.96, ground), (0.9, ground), (-0.85, ground), (-0.98, ground - 0.04)]
    )
    p.line([(-0.97, seam), (0.94, seam)], 0.04, 0.4)
    for lace in range(3):
        x, y = -0.42 + lace * 0.16, seam - toe - 0.06 - lace * (rise - toe) * 0.28
        p.line([(x, y), (x + 0.14, y + 0.13)], 0.05, 0.35)
    if p.chance(0.6):
        stripe = p.between(0.1, 0.35)
        p.line([(stripe, seam), (stripe - 0.14, seam - rise * 0.75)], 0.09, 0.4)
    p.line([(0.62, seam - rise + 0.06), (0.66, seam)], 0.04, 0.55)


def _bag(p):
    half, top = p.between(0.6, 0.88), p.between(-0.3, 0.05)
    bottom = top + p.between(0.75, 0.95)
    narrow = half * p.between(0.8, 1.05)
    grip, height = half * p.between(0.45, 0.75), p.between(0.3, 0.62)
    turns = np.linspace(math.pi, 2 * math.pi, 13)
    p.line(
        np.stack([grip * np.cos(turns), top + 0.08 + height * np.sin(turns)], axis=1),
        p.between(0.07, 0.12),
        0.8,
    )
    p.symmetric(
        [(narrow, top), (narrow, top), (half, bottom - 0.06), (half * 0.97, bottom), (half * 0.9, bottom)]
    )
    if p.chance(0.55):
        flap = top + (bottom - top) * p.between(0.35, 0.6)
        p.symmetric(
            [(narrow, top), (narrow, top), (narrow * 0.97, flap - 0.14), (0.1, flap), (0.1, flap)], 0.82
        )
        p.line(
            [(-narrow * 0.95, flap - 0.13), (-0.05, flap), (0.05, flap), (narrow * 0.95, flap - 0.13)],
            0.04,
            0.4,
        )
        p.fill(
            [(-0.08, flap - 0.1), (0.08, flap - 0.1), (0.08, flap + 0.06), (-0.08, flap + 0.06)],
            0.35,
            rounded=False,
        )
    else:
        p.line([(-narrow * 0.96, top + 0.13), (narrow * 0.96, top + 0.13)], 0.05, 0.45)
        p.both_lines([(grip, top), (grip, top + 0.3)], 0.09, 0.65)


def _ankle_boot(p):
    heel = p.between(0.0, 0.75)
    ground, sole = 0.86, p.between(0.07, 0.13)
    arch = ground - sole - heel * 0.6
    toe, top = ground - sole, p.between(-0.9, -0.65) + (0.0 if heel > 0.35 else 0.22)
    front, back = p.between(-0.14, 0.04), p.between(0.72, 0.84)
    instep = (top + toe) / 2 + p.between(0.0, 0.15)
    upper = [(-0.95, toe), (-0.95, toe), (-0.92, toe - 0.22), (-0.5, toe - 0.34), (front, instep - 0.12)]
    upper += [(front - 0.02, top), (front - 0.02, top), (back, top), (back, top), (back - 0.05, instep)]
    p.fill(upper + [(back, arch), (back, arch), (0.3, (arch + toe) / 2), (-0.2, toe), (-0.4, toe)], 0.95)
    p.fill([(-0.97, toe - 0.02), (-0.2, toe - 0.02), (-0.2, ground), (-0.93, ground)], 0.6, rounded=False)
    width = p.between(0.14, 0.5) if heel > 0.2 else 0.55
    p.fill(
        [
            (back - width, arch - 0.03),
            (back + 0.02, arch - 0.03),
            (back, ground),
            (back - width * 0.85, ground),
        ],
        0.6,
        rounded=False,
    )
    if heel <= 0.2:  # a flat boot stands on one sole
        p.fill([(-0.3, toe - 0.02), (back, arch - 0.02), (back, ground), (-0.3, ground)], 0.6, rounded=False)
    if p.chance(0.5):
        for lace in range(3):
            y = top + 0.2 + lace * (instep - top) * 0.3
            p.line([(front - 0.02, y), (front + 0.2, y + 0.06)], 0.05, 0.4)
    else:
        p.line([(front + 0.35, top + 0.05), (front + 0.3, (top + arch) / 2)], 0.16, 0.6)
    p.line([(front, top + 0.07), (back, top + 0.07)], 0.04, 0.55)


_DRAWINGS = (_t_shirt, _trouser, _pullover, _dress, _coat, _sandal, _shirt, _sneaker, _bag, _ankle_boot)
