"""Surface colours of the procedural world: patterns with detail at every scale, filtered to one sample's footprint.

A texture is one row of numbers (`Column` names them) so that compiled code can read it; lengths are metres on the
surface.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from typing import no_type_check

import cv2
import numpy as np
import numpy.typing as npt
import skimage
from numba import njit

from sr3d.datasets.noise import FAST, fractal, gradient_noise, hash4, keep, pulse, smoothstep, uniform


class Pattern(IntEnum):
    """What a texture shows."""

    PLASTER = 0
    PRINT = 1
    WOOD = 2
    TILES = 3
    PHOTO = 4
    CLOTH = 5
    TERRAZZO = 6


class Column(IntEnum):
    """Columns of a texture row. RED_A.. and RED_B.. start two RGB colours."""

    PATTERN = 0
    SCALE = 1
    GAIN = 2
    AMOUNT = 3
    RED_A = 4
    RED_B = 7
    SEED = 10
    IMAGE = 11
    COSINE = 12
    SINE = 13
    SHAPE = 14


COLUMNS = 15
# Photographs that are part of scikit-image's wheel (nothing is downloaded).
PHOTOS = (
    "astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "retina.jpg", "ihc.png",
    "camera.png", "coins.png", "grass.png", "gravel.png", "brick.png", "moon.png",
)  # fmt: skip
_PHOTO_SIZE = 512
_PHOTO_LEVELS = 10
_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789&?"
_GLYPH_HEIGHT, _GLYPH_WIDTH = 40, 24
# Share of a text line's cells that hold a character, and of lines that are not blank.
_WORD, _LINE = 0.84, 0.88

_SCALE, _GAIN, _AMOUNT = int(Column.SCALE), int(Column.GAIN), int(Column.AMOUNT)
_A, _B, _SEED, _IMAGE = int(Column.RED_A), int(Column.RED_B), int(Column.SEED), int(Column.IMAGE)
_COSINE, _SINE, _SHAPE = int(Column.COSINE), int(Column.SINE), int(Column.SHAPE)
_PRINT, _WOOD, _TILES = int(Pattern.PRINT), int(Pattern.WOOD), int(Pattern.TILES)
_PHOTO, _CLOTH, _TERRAZZO = int(Pattern.PHOTO), int(Pattern.CLOTH), int(Pattern.TERRAZZO)


@lru_cache(maxsize=1)
def photographs() -> npt.NDArray[np.uint8]:
    """Mip pyramids of `PHOTOS` (middle square), 512² to 1², level after level, RGB. [photos, texels, 3]"""
    folder = Path(skimage.__file__).parent / "data"
    pyramids = []
    for name in PHOTOS:
        image = cv2.cvtColor(cv2.imread(str(folder / name), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        side = min(image.shape[:2])
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        image = image[top : top + side, left : left + side]
        level = cv2.resize(image, (_PHOTO_SIZE, _PHOTO_SIZE), interpolation=cv2.INTER_AREA)
        levels = []
        for _ in range(_PHOTO_LEVELS):
            levels.append(level.reshape(-1, 3))
            level = cv2.resize(level, (max(1, level.shape[1] // 2), max(1, level.shape[0] // 2)), interpolation=3)
        pyramids.append(np.concatenate(levels))
    return np.stack(pyramids)


@lru_cache(maxsize=1)
def glyphs() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Letters as signed distances in cell heights, > 0 on ink [G, 40, 24]; share of ink, and last the mean [G + 1]."""
    fine = 8
    height, width = _GLYPH_HEIGHT * fine, _GLYPH_WIDTH * fine
    fields, shares = [], []
    for character in _CHARACTERS:
        canvas = np.zeros((height, width), np.uint8)
        (w, _), _ = cv2.getTextSize(character, cv2.FONT_HERSHEY_SIMPLEX, 7.4, 26)
        origin = ((width - w) // 2, int(height * 0.76))
        cv2.putText(canvas, character, origin, cv2.FONT_HERSHEY_SIMPLEX, 7.4, 255, 26, cv2.LINE_8)
        inside = cv2.distanceTransform(canvas, cv2.DIST_L2, 5)
        outside = cv2.distanceTransform(255 - canvas, cv2.DIST_L2, 5)
        fields.append(((inside - outside) / height)[fine // 2 :: fine, fine // 2 :: fine])
        shares.append((canvas > 0).mean())
    shares.append(np.mean(shares))
    return np.stack(fields).astype(np.float32), np.array(shares, np.float32)


@njit(cache=True, error_model="numpy", fastmath=FAST)
@no_type_check
def _ink(u, v, size, width, seed, fields, shares):
    """Coverage by lines of text with cells of `size` × 0.6 `size`."""
    mean = shares[-1] * _WORD * _LINE
    w = width / size
    if w > 1.5:
        return mean
    x, y = u / (0.6 * size), v / size
    column, row = int(np.floor(x)), int(np.floor(y))
    if uniform(row, 5, seed) > _LINE or uniform(column, row, seed) > _WORD:
        sharp = near = 0.0
    else:
        g = hash4(column, row, 3, seed) % fields.shape[0]
        fx = min(max((x - column) * fields.shape[2] - 0.5, 0.0), fields.shape[2] - 1.001)
        fy = min(max((y - row) * fields.shape[1] - 0.5, 0.0), fields.shape[1] - 1.001)
        i, j = int(fx), int(fy)
        fx, fy = fx - i, fy - j
        top = fields[g, j, i] * (1 - fx) + fields[g, j, i + 1] * fx
        bottom = fields[g, j + 1, i] * (1 - fx) + fields[g, j + 1, i + 1] * fx
        sharp = min(max(0.5 + (top * (1 - fy) + bottom * fy) / max(w, 1e-9), 0.0), 1.0)
        near = shares[g]
    near += (mean - near) * smoothstep(0.5, 1.5, w)
    return sharp + (near - sharp) * smoothstep(0.12, 0.5, w)


@njit(cache=True, error_model="numpy", fastmath=FAST)
@no_type_check
def _print(u, v, size, width, seed, fields, shares):
    """Darkness of a printed page: blocks of large, medium and small print, finer print inside everything."""
    bx, by = u / (8.4 * size), v / (6 * size)
    column, row = int(np.floor(bx)), int(np.floor(by))
    here = size / (1 << (hash4(column, row, 1, seed) % 3))
    ink = _ink(u, v, here, width, seed, fields, shares)
    if uniform(column, row, seed + 1) < 0.3:
        ink = 1 - ink
    strength = 0.5
    for level in range(3):
        here = here / 14
        if width > 1.5 * here:
            break
        fine = _ink(u, v, here, width, seed + 2 + level, fields, shares) - shares[-1] * _WORD * _LINE
        # Dark on paper and light on ink; the mean is taken out so that it comes up gently.
        ink += strength * fine * (1 - smoothstep(0.2, 1.5, width / here)) * (1 - 2 * ink)
        strength *= 0.9
    return ink


@njit(cache=True, error_model="numpy", fastmath=FAST)
@no_type_check
def _photo_level(photo, u, v, level):
    """Bilinear look-up in one pyramid level, mirrored repeat; u, v in image sizes."""
    offset = 0
    for k in range(level):
        offset += (_PHOTO_SIZE >> k) ** 2
    size = _PHOTO_SIZE >> level
    u, v = u - 2 * np.floor(u / 2), v - 2 * np.floor(v / 2)
    x = min(max((2 - u if u > 1 else u) * size - 0.5, 0.0), size - 1.0)
    y = min(max((2 - v if v > 1 else v) * size - 0.5, 0.0), size - 1.0)
    i, j = int(x), int(y)
    x, y = x - i, y - j
    i2, j2 = min(i + 1, size - 1), min(j + 1, size - 1)
    a, b, c, d = (1 - x) * (1 - y) / 255, x * (1 - y) / 255, (1 - x) * y / 255, x * y / 255
    p, q, r, s = offset + j * size + i, offset + j * size + i2, offset + j2 * size + i, offset + j2 * size + i2
    return (
        a * photo[p, 0] + b * photo[q, 0] + c * photo[r, 0] + d * photo[s, 0],
        a * photo[p, 1] + b * photo[q, 1] + c * photo[r, 1] + d * photo[s, 1],
        a * photo[p, 2] + b * photo[q, 2] + c * photo[r, 2] + d * photo[s, 2],
    )


@njit(cache=True, error_model="numpy", fastmath=FAST)
@no_type_check
def _photo(photo, u, v, texels):
    """Trilinear look-up; `texels` is the filter width in texels of the finest level."""
    level = min(max(np.log2(max(texels, 1e-9)), 0.0), _PHOTO_LEVELS - 1.001)
    k = int(level)
    t = level - k
    r, g, b = _photo_level(photo, u, v, k)
    if t > 0:
        r2, g2, b2 = _photo_level(photo, u, v, k + 1)
        r, g, b = r + t * (r2 - r), g + t * (g2 - g), b + t * (b2 - b)
    return r, g, b


@njit(cache=True, error_model="numpy", fastmath=FAST)
@no_type_check
def _chips(u, v, size, width, seed):
    """Round chips of stone: coverage and a number in ±0.5 that differs from chip to chip."""
    x, y, w = u / size, v / size, max(width / size, 1e-9)
    column, row = int(np.floor(x)), int(np.floor(y))
    best, tone = 0.0, 0.0
    for i in range(column - 1, column + 2):
        for j in range(row - 1, row + 2):
            dx = x - i - 0.2 - 0.6 * uniform(i, j, seed)
            dy = y - j - 0.2 - 0.6 * uniform(i, j, seed + 1)
            squeeze = 0.6 + 0.8 * uniform(i, j, seed + 2)
            radius = 0.18 + 0.3 * uniform(i, j, seed + 3)
            distance = np.sqrt(dx * dx * squeeze + dy * dy / squeeze)
            cover = min(max(0.5 + (radius - distance) / w, 0.0), 1.0)
            if cover > best:
                best, tone = cover, uniform(i, j, seed + 4) - 0.5
    fade = smoothstep(0.25, 1.0, w)
    return best + (0.4 - best) * fade, tone * (1 - fade)


@njit(cache=True, error_model="numpy", fastmath=FAST)
@no_type_check
def _wood(u, v, size, width, gain, seed):
    """Planks along u: rings drawn out by slow noise, and fibres twelve times longer than wide."""
    plank = np.floor(v / size)
    tone = uniform(int(plank), 0, seed) - 0.5
    gap = pulse(v / size, 0.015, width / size)
    shift = 40 * tone
    warp = 0.6 * gradient_noise(u / (6 * size) + shift, v / (0.8 * size), shift, seed)
    warp += 0.15 * gradient_noise(u / size + shift, v / (0.25 * size), shift, seed + 1)
    period = size / 7
    rings = np.sin(2 * np.pi * (v / period + 7 * warp)) * keep(min(1.0, 1.6 * width / period))
    fibres = fractal(u / 12 + shift, v, shift, size / 3, gain, width, seed + 2)
    return 0.25 * rings + fibres + 0.5 * tone * keep(width / size), gap


@njit(cache=True, error_model="numpy", fastmath=FAST)
@no_type_check
def _tiles(u, v, size, width, shape, seed):
    """Tiles (shape 0) or running-bond bricks (shape 1): share of grout, and a number in ±0.5 per tile."""
    height = size / (3 if shape > 0.5 else 1)
    y = v / height
    row = np.floor(y)
    x = u / size + (0.5 * (row - 2 * np.floor(row / 2)) if shape > 0.5 else 0.0)
    grout_x, grout_y = pulse(x, 0.03, width / size), pulse(y, 0.03 * size / height, width / height)
    tone = (uniform(int(np.floor(x)), int(row), seed) - 0.5) * keep(width / height)
    return 1 - (1 - grout_x) * (1 - grout_y), tone


@njit(cache=True, error_model="numpy", fastmath=FAST)
@no_type_check
def _cloth(u, v, size, width, seed):
    """A plaid woven from threads of a hundredth of its period."""
    w = width / size
    plaid = 0.45 * pulse(u / size, 0.3, w) + 0.45 * pulse(v / size, 0.3, w)
    plaid += 0.3 * pulse(u / size + 0.6, 0.08, w) + 0.3 * pulse(v / size + 0.6, 0.08, w)
    thread = size / 100
    weave = np.sin(np.pi * u / thread) * np.sin(np.pi * v / thread) * keep(min(1.0, width / thread))
    return plaid + 0.2 * weave


@njit(cache=True, error_model="numpy", fastmath=FAST)
@no_type_check
def texture_colour(row, face, u, v, x, y, z, width, photos, fields, shares):
    """RGB of one texture at a surface point.

    face: faces of a body differ; u, v: metres on the surface, from the face's middle; x, y, z: metres inside the
    body; width: filter width, metres.
    """
    pattern, size, gain, amount = int(row[0]), row[_SCALE], row[_GAIN], row[_AMOUNT]
    solid = int(row[_SEED])
    seed = solid + 101 * face
    u, v = row[_COSINE] * u - row[_SINE] * v, row[_SINE] * u + row[_COSINE] * v
    mix, light, dark = 0.0, 1.0, 0.0
    if pattern == _PHOTO:
        texel = size / _PHOTO_SIZE
        r, g, b = _photo(photos[int(row[_IMAGE])], u / size + 0.5, v / size + 0.5, width / texel)
        # Below the photograph's own resolution noise goes on.
        finer = amount * fractal(x, y, z, 6 * texel, gain, width, solid)
        return r + (r + 0.1) * finer, g + (g + 0.1) * finer, b + (b + 0.1) * finer
    if pattern == _PRINT:
        mix = _print(u, v, size, width, seed, fields, shares)
        light = 1 + 0.4 * amount * fractal(x, y, z, size, gain, width, solid)
    elif pattern == _WOOD:
        mix, dark = _wood(u, v, size, width, gain, seed)
        mix = 0.5 + amount * mix
    elif pattern == _TILES:
        dark, mix = _tiles(u, v, size, width, row[_SHAPE], seed)
        mix = 0.5 + 0.9 * mix
        light = 1 + amount * fractal(x, y, z, 0.5 * size, gain, width, solid)
    elif pattern == _CLOTH:
        mix = _cloth(u, v, size, width, seed)
        light = 1 + amount * fractal(x, y, z, size, gain, width, solid)
    elif pattern == _TERRAZZO:
        light = 1 + 0.5 * amount * fractal(x, y, z, 4 * size, gain, width, solid)
        here = size
        for level in range(4):
            if level > 0 and width > here:
                break
            cover, tone = _chips(u, v, here, width, seed + 7 * level)
            weight = 1.0 if level == 0 else 0.6
            mix += weight * (cover - 0.4)
            light += weight * 0.7 * tone * cover
            here /= 6
        mix += 0.4
    else:
        mix = 0.5 + amount * fractal(x, y, z, size, gain, width, solid)
    light *= 1 - 0.6 * dark
    return (
        light * (row[_A] + mix * (row[_B] - row[_A])),
        light * (row[_A + 1] + mix * (row[_B + 1] - row[_A + 1])),
        light * (row[_A + 2] + mix * (row[_B + 2] - row[_A + 2])),
    )
