"""Seeded layouts of the procedural world: which bodies stand where, and what they are covered with."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sr3d.datasets.raycast import BOX, CYLINDER, ROOM, SPHERE
from sr3d.datasets.textures import COLUMNS, PHOTOS, Column, Pattern

CLASSES = ("unknown", "wall", "floor", "ceiling", "table", "furniture", "rug", "picture", "box", "sphere", "cylinder")
"""Name of every label value."""

# Whole numbers are welcome wherever metres are.
_Number = float | int
_Triple = tuple[_Number, _Number, _Number]


@dataclass
class Layout:
    """Bodies under construction; body 0 is the room. World frame: z up, metres, floor at z = 0."""

    rng: np.random.Generator
    kinds: list[int] = field(default_factory=list)
    centers: list[_Triple] = field(default_factory=list)
    rotations: list[npt.NDArray[np.float64]] = field(default_factory=list)
    halves: list[_Triple] = field(default_factory=list)
    materials: list[int] = field(default_factory=list)
    textures: list[npt.NDArray[np.float64]] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    lights: list[list[float]] = field(default_factory=list)

    def uniform(self, low: _Number, high: _Number) -> float:
        """A random number."""
        return float(self.rng.uniform(low, high))

    def material(self, name: str, texture: npt.NDArray[np.float64]) -> int:
        """Add a texture for surfaces of class `name`; returns its number."""
        self.textures.append(texture)
        self.classes.append(CLASSES.index(name))
        return len(self.textures) - 1

    def body(
        self, kind: int, center: _Triple, half: _Triple, material: int, rotation: npt.NDArray | _Number = 0
    ) -> None:
        """Add a body; `rotation` is an angle about z, or a matrix whose columns are the body's axes."""
        self.kinds.append(kind)
        self.centers.append(center)
        self.halves.append(half)
        self.materials.append(material)
        self.rotations.append(_turn_z(rotation) if isinstance(rotation, int | float) else rotation)

    def light(self, position: _Triple, strength: float, warmth: float, reach: float) -> None:
        """Add a point light; its strength halves at `reach` metres."""
        colour = [strength * (1 + 0.5 * warmth), strength, strength * (1 - warmth)]
        self.lights.append([*position, *colour, reach])


def make_room(rng: np.random.Generator) -> tuple[Layout, list[_Triple]]:
    """A furnished room of 3-6 m; returns it and points worth looking at."""
    out = Layout(rng)
    size = (out.uniform(3.2, 6), out.uniform(3.2, 6), out.uniform(2.4, 3.1))
    _shell(out, size)
    placed: list[_Triple] = []
    focus: list[_Triple] = []
    table = out.material("table", _furniture_texture(rng))
    for _ in range(int(rng.integers(1, 3))):
        half = (out.uniform(0.45, 0.85), out.uniform(0.3, 0.45), out.uniform(0.35, 0.4))
        spot = _free_spot(rng, size, placed, float(np.hypot(half[0], half[1])))
        if spot is None:
            continue
        angle = float(rng.integers(4)) * np.pi / 2 + float(rng.normal(0, 0.15))
        _table(out, spot, half, angle, table)
        _things(out, spot, 2 * half[2], (half[0] * 0.8, half[1] * 0.8), angle, int(rng.integers(3, 6)), (0.05, 0.15))
        focus.append((spot[0], spot[1], 2 * half[2] + 0.05))
    for _ in range(int(rng.integers(2, 5))):
        half = (out.uniform(0.2, 0.6), out.uniform(0.18, 0.3), out.uniform(0.2, 0.9))
        side = int(rng.integers(4))
        spot = _by_wall(rng, size, placed, side, half)
        if spot is None:
            continue
        out.body(
            BOX,
            (spot[0], spot[1], half[2]),
            half,
            out.material("furniture", _furniture_texture(rng)),
            np.pi / 2 * (side // 2),
        )
        focus.append((spot[0], spot[1], half[2]))
        if half[2] < 0.7:
            reach = (half[0] * 0.7, half[1] * 0.6)
            _things(out, spot, 2 * half[2], reach, np.pi / 2 * (side // 2), int(rng.integers(0, 3)), (0.07, 0.16))
    for _ in range(int(rng.integers(2, 5))):
        spot = _free_spot(rng, size, placed, 0.3)
        if spot is not None:
            _things(out, spot, 0, (0.05, 0.05), out.uniform(0, 6), 1, (0.12, 0.3))
    if rng.random() < 0.6:
        rug = (out.uniform(0.6, 1.1), out.uniform(0.5, 0.8), 0.006)
        out.body(BOX, (0, 0, rug[2]), rug, out.material("rug", _rug_texture(rng)), float(rng.normal(0, 0.2)))
    _pictures(out, size, int(rng.integers(2, 5)))
    return out, focus or [(0.0, 0.0, 0.5)]


def make_table(rng: np.random.Generator) -> tuple[Layout, list[_Triple]]:
    """A table-top of 1-2 m with things on it, in a small room; returns it and points worth looking at."""
    out = Layout(rng)
    size = (out.uniform(2.6, 3.6), out.uniform(2.6, 3.6), out.uniform(2.3, 2.6))
    _shell(out, size)
    half = (out.uniform(0.5, 0.95), out.uniform(0.4, 0.6), out.uniform(0.35, 0.4))
    spot = (out.uniform(-0.2, 0.2), out.uniform(-0.2, 0.2))
    angle = float(rng.normal(0, 0.3))
    _table(out, spot, half, angle, out.material("table", _furniture_texture(rng)))
    top = 2 * half[2]
    _things(out, spot, top, (half[0] * 0.75, half[1] * 0.75), angle, int(rng.integers(7, 12)), (0.04, 0.14))
    for _ in range(int(rng.integers(1, 4))):
        sheet = (0.105, 0.148, 0.0008 * float(rng.integers(1, 5)))
        x, y = out.uniform(-0.7, 0.7) * half[0], out.uniform(-0.6, 0.6) * half[1]
        c, s = np.cos(angle), np.sin(angle)
        center = (spot[0] + c * x - s * y, spot[1] + s * x + c * y, top + sheet[2])
        out.body(BOX, center, sheet, out.material("picture", _print_texture(rng, 0.012)), out.uniform(0, 6.3))
    _pictures(out, size, 3)
    return out, [(spot[0], spot[1], top + 0.08)]


def _turn_z(angle: _Number) -> npt.NDArray[np.float64]:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def _shell(out: Layout, size: _Triple) -> None:
    """Walls, floor, ceiling and two lamps."""
    rng = out.rng
    first = out.material("wall", _wall_texture(rng))
    out.material("wall", _wall_texture(rng) if rng.random() < 0.5 else out.textures[first].copy())
    out.material("floor", _floor_texture(rng))
    out.material("ceiling", _texture(rng, Pattern.PLASTER, out.uniform(0.3, 1), amount=0.2, value=0.9, saturation=0.1))
    out.body(ROOM, (0, 0, size[2] / 2), (size[0] / 2, size[1] / 2, size[2] / 2), first)
    for k in range(2):
        x = out.uniform(0.1, 0.35) * size[0] * (1 if k else -1)
        y = out.uniform(-0.35, 0.35) * size[1]
        strength = out.uniform(0.6, 0.8) if k == 0 else out.uniform(0.25, 0.45)
        out.light((x, y, size[2] - out.uniform(0.15, 0.5)), strength, float(rng.normal(0, 0.12)), out.uniform(3, 5))


def _table(out: Layout, spot: tuple[float, float], half: _Triple, angle: float, material: int) -> None:
    """A slab on four legs, standing on the floor; `half[2]` is half its height."""
    thick = out.uniform(0.015, 0.03)
    top = 2 * half[2]
    out.body(BOX, (*spot, top - thick), (half[0], half[1], thick), material, angle)
    leg, c, s = out.uniform(0.02, 0.035), np.cos(angle), np.sin(angle)
    for i in (-1, 1):
        for j in (-1, 1):
            x, y = i * (half[0] - 2 * leg), j * (half[1] - 2 * leg)
            center = (spot[0] + c * x - s * y, spot[1] + s * x + c * y, half[2] - thick)
            out.body(BOX, center, (leg, leg, half[2] - thick), material, angle)


def _things(
    out: Layout,
    spot: tuple[float, float],
    floor: _Number,
    reach: tuple[float, float],
    angle: _Number,
    count: int,
    radius: tuple[float, float],
) -> None:
    """Boxes, spheres and cylinders that stand at height `floor` without touching each other."""
    rng = out.rng
    taken: list[_Triple] = []
    c, s = np.cos(angle), np.sin(angle)
    for _ in range(count):
        r = out.uniform(*radius)
        for _ in range(12):
            x, y = out.uniform(-1, 1) * reach[0], out.uniform(-1, 1) * reach[1]
            if all(np.hypot(x - a, y - b) > r + q for a, b, q in taken):
                break
        else:
            continue
        taken.append((x, y, r))
        place = (spot[0] + c * x - s * y, spot[1] + s * x + c * y)
        kind = (BOX, BOX, SPHERE, CYLINDER, CYLINDER)[int(rng.integers(5))]
        material = out.material(("", "box", "sphere", "cylinder")[kind], _thing_texture(rng, kind, r))
        if kind == BOX:
            share = out.uniform(0.5, 0.85)
            half = (r * share, r * np.sqrt(1 - share**2), r * out.uniform(0.15, 1.6))
            out.body(BOX, (*place, floor + half[2]), half, material, out.uniform(0, 6.3))
        elif kind == SPHERE:
            axes = _turn_z(out.uniform(0, 6.3)) @ _turn_z(out.uniform(0, 6.3))[[1, 2, 0]][:, [1, 2, 0]]
            out.body(SPHERE, (*place, floor + 0.9 * r), (0.9 * r,) * 3, material, axes)
        else:
            half = (0.75 * r, 0.75 * r, r * out.uniform(0.4, 1.6))
            out.body(CYLINDER, (*place, floor + half[2]), half, material, out.uniform(0, 6.3))


def _pictures(out: Layout, size: _Triple, count: int) -> None:
    """Framed pictures and posters on the walls."""
    rng = out.rng
    for wall in rng.permutation(4)[:count]:
        axis, sign = int(wall) // 2, 1 - 2 * (int(wall) % 2)
        along, tall, thin = out.uniform(0.2, 0.6), out.uniform(0.2, 0.45), 0.012
        shift = out.uniform(-1, 1) * (size[1 - axis] / 2 - along - 0.1)
        depth = sign * (size[axis] / 2 - thin)
        half = (thin, along, tall) if axis == 0 else (along, thin, tall)
        center = (depth, shift) if axis == 0 else (shift, depth)
        texture = _photo_texture(rng, 2 * max(along, tall)) if rng.random() < 0.6 else _print_texture(rng, 0.12)
        out.body(BOX, (*center, out.uniform(1.2, 1.7)), half, out.material("picture", texture))


def _free_spot(
    rng: np.random.Generator, size: _Triple, placed: list[_Triple], radius: float
) -> tuple[float, float] | None:
    """A place on the floor for a disc of `radius`; remembers it in `placed`."""
    for _ in range(20):
        x, y = (float(rng.uniform(-1, 1)) * (size[k] / 2 - radius - 0.05) for k in range(2))
        if all(np.hypot(x - a, y - b) > radius + r for a, b, r in placed):
            placed.append((x, y, radius))
            return x, y
    return None


def _by_wall(
    rng: np.random.Generator, size: _Triple, placed: list[_Triple], side: int, half: _Triple
) -> tuple[float, float] | None:
    """A place against wall `side` for a box that is `half[0]` wide along it and `half[1]` deep."""
    radius = float(np.hypot(half[0], half[1]))
    for _ in range(20):
        along = float(rng.uniform(-1, 1)) * (size[side // 2] / 2 - half[0] - 0.02)
        depth = (1 - 2 * (side % 2)) * (size[1 - side // 2] / 2 - half[1] - 0.01)
        x, y = (along, depth) if side < 2 else (depth, along)
        if all(np.hypot(x - a, y - b) > radius + r for a, b, r in placed):
            placed.append((x, y, radius))
            return x, y
    return None


def _texture(
    rng: np.random.Generator,
    pattern: Pattern,
    scale: float,
    *,
    amount: float = 0.35,
    value: float = 0.7,
    saturation: float = 0.6,
    contrast: float = 0.45,
    turn: float = 0.0,
) -> npt.NDArray[np.float64]:
    """A texture with two random colours: one bright, one darker by `contrast`."""
    row = np.zeros(COLUMNS)
    # Rooms are mostly of warm colours.
    hue = rng.uniform(0.02, 0.16) if rng.random() < 0.55 else rng.random()
    colours: list[Sequence[float]] = []
    for k in range(2):
        other = (hue + rng.normal(0, 0.08) + (0.5 if k and rng.random() < 0.25 else 0)) % 1
        bright = min(0.98, value * (1 if k == 0 else 1 - contrast) * rng.uniform(0.9, 1.1))
        colours.append(colorsys.hsv_to_rgb(other, saturation * rng.uniform(0.5, 1.3) * (1 if k else 0.7), bright))
    row[Column.PATTERN], row[Column.SCALE], row[Column.AMOUNT] = pattern, scale, amount
    row[Column.GAIN] = rng.uniform(0.84, 0.92)
    row[Column.RED_A : Column.RED_A + 3], row[Column.RED_B : Column.RED_B + 3] = colours
    row[Column.SEED] = rng.integers(1 << 24)
    row[Column.COSINE], row[Column.SINE] = np.cos(turn), np.sin(turn)
    return row


def _photo_texture(rng: np.random.Generator, width: float) -> npt.NDArray[np.float64]:
    row = _texture(rng, Pattern.PHOTO, width, amount=0.25)
    row[Column.IMAGE] = rng.integers(len(PHOTOS))
    return row


def _print_texture(rng: np.random.Generator, size: float) -> npt.NDArray[np.float64]:
    size *= rng.uniform(0.6, 1.6)
    return _texture(rng, Pattern.PRINT, size, value=0.95, saturation=0.35, contrast=0.8, turn=rng.normal(0, 0.02))


def _wall_texture(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    pick = rng.random()
    if pick < 0.45:
        return _texture(rng, Pattern.PLASTER, rng.uniform(0.2, 1.5), amount=0.35, value=0.9, saturation=0.25)
    if pick < 0.7:
        row = _texture(rng, Pattern.TILES, rng.uniform(0.2, 0.4), amount=0.2, value=0.75, saturation=0.5)
        row[Column.SHAPE] = 1
        return row
    if pick < 0.85:
        return _texture(rng, Pattern.PRINT, rng.uniform(0.1, 0.3), value=0.9, saturation=0.3, contrast=0.45)
    return _texture(rng, Pattern.CLOTH, rng.uniform(0.2, 0.5), amount=0.2, value=0.9, saturation=0.3)


def _floor_texture(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    turn = float(rng.integers(2)) * np.pi / 2
    pick = rng.random()
    if pick < 0.4:
        return _wood_texture(rng, rng.uniform(0.08, 0.16), turn)
    if pick < 0.7:
        return _texture(rng, Pattern.TILES, rng.uniform(0.2, 0.5), amount=0.25, value=0.8, saturation=0.35)
    return _texture(rng, Pattern.TERRAZZO, rng.uniform(0.05, 0.12), value=0.8, saturation=0.3)


def _wood_texture(rng: np.random.Generator, plank: float, turn: float) -> npt.NDArray[np.float64]:
    row = _texture(rng, Pattern.WOOD, plank, amount=0.5, turn=turn)
    hue, value = rng.uniform(0.04, 0.1), rng.uniform(0.55, 0.9)
    row[Column.RED_A : Column.RED_A + 3] = colorsys.hsv_to_rgb(hue, rng.uniform(0.35, 0.6), value)
    row[Column.RED_B : Column.RED_B + 3] = colorsys.hsv_to_rgb(hue, rng.uniform(0.5, 0.75), 0.5 * value)
    return row


def _rug_texture(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    pattern = Pattern.CLOTH if rng.random() < 0.6 else Pattern.TERRAZZO
    return _texture(rng, pattern, rng.uniform(0.1, 0.3), amount=0.3, value=0.8, saturation=0.7)


def _furniture_texture(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    pick = rng.random()
    if pick < 0.55:
        return _wood_texture(rng, rng.uniform(0.08, 0.25), float(rng.integers(2)) * np.pi / 2)
    if pick < 0.75:
        return _texture(rng, Pattern.TERRAZZO, rng.uniform(0.02, 0.06), value=0.8, saturation=0.4)
    return _texture(rng, Pattern.PLASTER, rng.uniform(0.05, 0.4), amount=0.45, value=0.8)


def _thing_texture(rng: np.random.Generator, kind: int, radius: float) -> npt.NDArray[np.float64]:
    """Texture of a thing of `radius` metres."""
    pick = rng.random()
    if pick < 0.25:
        return _photo_texture(rng, radius * rng.uniform(1.2, 2.2))
    if pick < 0.5 and kind != SPHERE:
        return _print_texture(rng, radius * 0.35)
    if pick < 0.65:
        return _texture(rng, Pattern.CLOTH, radius * rng.uniform(0.3, 0.8), value=0.9, saturation=0.9)
    if pick < 0.8:
        return _texture(rng, Pattern.TERRAZZO, radius * rng.uniform(0.15, 0.4), value=0.85, saturation=0.9)
    return _texture(rng, Pattern.PLASTER, radius * rng.uniform(0.3, 1.2), amount=0.5, value=0.85, saturation=0.8)
