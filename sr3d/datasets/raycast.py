"""Compiled ray caster of the procedural world: nearest surface, shadows, contact darkening, textures.

Float64 throughout: under a 64x zoom neighbouring rays differ by 1e-6, and a pixel covers a tenth of a millimetre.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit

from sr3d.datasets.noise import FAST, hash4
from sr3d.datasets.textures import texture_colour

ROOM, BOX, SPHERE, CYLINDER = 0, 1, 2, 3
# Columns of a body's row: kind, centre (3), axes (row-major, 9), half sizes (3), bounding radius.
CENTER, AXES, HALF, RADIUS, BODY_COLUMNS = 1, 4, 13, 16, 17
_FAR = 1e30


@njit(cache=True, error_model="numpy", fastmath=FAST)
@no_type_check
def _slab(o, d, h, near, far):
    """Narrow the part of a ray between two planes at ±h."""
    if abs(d) < 1e-14:
        return (near, far) if abs(o) <= h else (_FAR, -_FAR)
    a, b = (-h - o) / d, (h - o) / d
    return max(near, min(a, b)), min(far, max(a, b))


@njit(cache=True, error_model="numpy", fastmath=FAST)
@no_type_check
def _cylinder(radius, half, ox, oy, oz, dx, dy, dz):
    """Entry and exit of a ray through a capped cylinder along z."""
    near, far = _slab(oz, dz, half, -_FAR, _FAR)
    a, b, c = dx * dx + dy * dy, ox * dx + oy * dy, ox * ox + oy * oy - radius * radius
    if a < 1e-14:
        return (near, far) if c <= 0 else (_FAR, -_FAR)
    square = b * b - a * c
    if square < 0:
        return _FAR, -_FAR
    root = np.sqrt(square)
    return max(near, (-b - root) / a), min(far, (-b + root) / a)


@njit(cache=True, error_model="numpy", fastmath=FAST)
@no_type_check
def _distance(i, bodies, ox, oy, oz, dx, dy, dz, length, limit):
    """Parameter at which a ray (|d|² = length) meets body i if less than `limit`, else a huge number."""
    kind = int(bodies[i, 0])
    x, y, z = ox - bodies[i, 1], oy - bodies[i, 2], oz - bodies[i, 3]
    b = x * dx + y * dy + z * dz
    c = x * x + y * y + z * z - bodies[i, 16] * bodies[i, 16]
    if kind != ROOM and ((c > 0 and b > 0) or b * b < length * c):
        return _FAR
    if kind == SPHERE:
        t = (-b - np.sqrt(b * b - length * c)) / length
        return t if 0 < t < limit else _FAR
    lx = bodies[i, 4] * x + bodies[i, 7] * y + bodies[i, 10] * z
    ly = bodies[i, 5] * x + bodies[i, 8] * y + bodies[i, 11] * z
    lz = bodies[i, 6] * x + bodies[i, 9] * y + bodies[i, 12] * z
    ex = bodies[i, 4] * dx + bodies[i, 7] * dy + bodies[i, 10] * dz
    ey = bodies[i, 5] * dx + bodies[i, 8] * dy + bodies[i, 11] * dz
    ez = bodies[i, 6] * dx + bodies[i, 9] * dy + bodies[i, 12] * dz
    if kind == CYLINDER:
        near, far = _cylinder(bodies[i, 13], bodies[i, 15], lx, ly, lz, ex, ey, ez)
    else:
        near, far = _slab(lx, ex, bodies[i, 13], -_FAR, _FAR)
        near, far = _slab(ly, ey, bodies[i, 14], near, far)
        near, far = _slab(lz, ez, bodies[i, 15], near, far)
    if kind == ROOM:
        return far
    return near if near <= far and 0 < near < limit else _FAR


@njit(cache=True, error_model="numpy", fastmath=FAST)
@no_type_check
def _nearest(bodies, ox, oy, oz, dx, dy, dz):
    """Distance and number of the first body that a ray meets (the room, body 0, is always met from inside)."""
    best, found, length = _FAR, 0, dx * dx + dy * dy + dz * dz
    for i in range(bodies.shape[0]):
        t = _distance(i, bodies, ox, oy, oz, dx, dy, dz, length, best)
        if t < best:
            best, found = t, i
    return best, found


@njit(cache=True, error_model="numpy", fastmath=FAST)
@no_type_check
def _lit(bodies, ox, oy, oz, dx, dy, dz):
    """Whether nothing but the room lies between a point and the light at point + direction."""
    blocker, length = 1, dx * dx + dy * dy + dz * dz
    while blocker < bodies.shape[0] and _distance(blocker, bodies, ox, oy, oz, dx, dy, dz, length, 1.0) > 1:
        blocker += 1
    return blocker == bodies.shape[0]


@njit(cache=True, error_model="numpy", fastmath=FAST)
@no_type_check
def _surface(i, bodies, px, py, pz):
    """At a surface point: world normal (3), face (0 x, 1 y, 2 z, 3 curved; + 4 on its negative side), u, v (metres),
    point in the body's frame (3)."""
    kind, hx, hy, hz = int(bodies[i, 0]), bodies[i, 13], bodies[i, 14], bodies[i, 15]
    x, y, z = px - bodies[i, 1], py - bodies[i, 2], pz - bodies[i, 3]
    x, y, z = (
        bodies[i, 4] * x + bodies[i, 7] * y + bodies[i, 10] * z,
        bodies[i, 5] * x + bodies[i, 8] * y + bodies[i, 11] * z,
        bodies[i, 6] * x + bodies[i, 9] * y + bodies[i, 12] * z,
    )
    a, b, c = x, y, z
    if kind == SPHERE:
        nx, ny, nz = x / hx, y / hx, z / hx
        # Pattern coordinates: a cube of 0.85 radii around the sphere.
        scale = 0.85 * hx / max(abs(x), abs(y), abs(z))
        a, b, c = x * scale, y * scale, z * scale
        sx, sy, sz = abs(x), abs(y), abs(z)
    elif kind == CYLINDER:
        radial = np.sqrt(x * x + y * y)
        sx = sy = 0.0
        sz = abs(z) / hz - radial / hx
        nx, ny, nz = x / radial if radial > 0 else 1.0, y / radial if radial > 0 else 0.0, 0.0
    else:
        sx, sy, sz = abs(x) / hx, abs(y) / hy, abs(z) / hz
        nx = ny = nz = 0.0
    side = -1.0 if kind == ROOM else 1.0
    if kind == CYLINDER and sz < 0:
        face, negative = 3, False
        u, v = hx * np.arctan2(y, x), -z
    elif sx >= sy and sx >= sz:
        face, negative = 0, side * x < 0
        u, v = (-b if negative else b), -c
    elif sy >= sz:
        face, negative = 1, side * y < 0
        u, v = (a if negative else -a), -c
    else:
        face, negative = 2, side * z < 0
        u, v = a, (b if negative else -b)
    if kind != SPHERE and face != 3:
        sign = -1.0 if negative else 1.0
        nx, ny, nz = sign * (face == 0), sign * (face == 1), sign * (face == 2)
    return (
        bodies[i, 4] * nx + bodies[i, 5] * ny + bodies[i, 6] * nz,
        bodies[i, 7] * nx + bodies[i, 8] * ny + bodies[i, 9] * nz,
        bodies[i, 10] * nx + bodies[i, 11] * ny + bodies[i, 12] * nz,
        face + 4 * negative,
        u,
        v,
        x,
        y,
        z,
    )


@njit(cache=True, error_model="numpy", fastmath=FAST)
@no_type_check
def _material(i, face, bodies, materials):
    """Texture row of a face: a room has four (walls across x, walls across y, floor, ceiling)."""
    if bodies[i, 0] != ROOM:
        return materials[i]
    return materials[i] + (3 if face == 6 else face % 4)


@njit(cache=True, error_model="numpy", fastmath=FAST)
@no_type_check
def _openness(i, bodies, px, py, pz, nx, ny, nz):
    """Share of ambient light: less in the room's corners and beside bodies (each taken as its bounding sphere)."""
    open_share = 1.0
    x, y, z = px - bodies[0, 1], py - bodies[0, 2], pz - bodies[0, 3]
    # A wall darkens what does not lie in it.
    open_share *= 1 - 0.35 * max(0.0, 1 - nx * nx) * np.exp(-3.5 * (bodies[0, 13] - abs(x)))
    open_share *= 1 - 0.35 * max(0.0, 1 - ny * ny) * np.exp(-3.5 * (bodies[0, 14] - abs(y)))
    open_share *= 1 - 0.35 * max(0.0, 1 - nz * nz) * np.exp(-3.5 * (bodies[0, 15] - abs(z)))
    for k in range(1, bodies.shape[0]):
        if k == i:
            continue
        x, y, z = bodies[k, 1] - px, bodies[k, 2] - py, bodies[k, 3] - pz
        square = x * x + y * y + z * z
        size = 0.75 * bodies[k, 16]
        facing = x * nx + y * ny + z * nz
        if facing > 0 and square < 36 * size * size:
            open_share *= 1 - 0.75 * facing / np.sqrt(square) * min(1.0, size * size / square)
    return open_share


@njit(cache=True, error_model="numpy", fastmath=FAST)
@no_type_check
def _shade(i, bodies, materials, textures, lights, ambient, images, px, py, pz, footprint, dx, dy, dz):
    """Colour of body i at a point that a sample of width `footprint` (across the ray) looks at along d."""
    nx, ny, nz, face, u, v, x, y, z = _surface(i, bodies, px, py, pz)
    slant = -(nx * dx + ny * dy + nz * dz) / np.sqrt(dx * dx + dy * dy + dz * dz)
    width = footprint / max(slant, 0.08) ** 0.75
    row = textures[_material(i, face, bodies, materials)]
    photos, fields, shares = images
    red, green, blue = texture_colour(row, face, u, v, x, y, z, width, photos, fields, shares)
    light_red = light_green = light_blue = ambient * _openness(i, bodies, px, py, pz, nx, ny, nz)
    ox, oy, oz = px + 1e-6 * nx, py + 1e-6 * ny, pz + 1e-6 * nz
    for k in range(lights.shape[0]):
        lx, ly, lz = lights[k, 0] - ox, lights[k, 1] - oy, lights[k, 2] - oz
        square = lx * lx + ly * ly + lz * lz
        cosine = (nx * lx + ny * ly + nz * lz) / np.sqrt(square)
        if cosine > 0 and _lit(bodies, ox, oy, oz, lx, ly, lz):
            strength = cosine / (1 + square / (lights[k, 6] * lights[k, 6]))
            light_red += strength * lights[k, 3]
            light_green += strength * lights[k, 4]
            light_blue += strength * lights[k, 5]
    return (
        min(max(red * light_red, 0.0), 1.0),
        min(max(green * light_green, 0.0), 1.0),
        min(max(blue * light_blue, 0.0), 1.0),
    )


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
@no_type_check
def cast_images(
    part, parts, to_world, inverse_k, samples, seed, bodies, materials, textures, lights, ambient, images, out
):
    """Every `parts`-th row of `out` [V, H, W, 3]: colours, each pixel the mean of `samples` jittered samples."""
    views, height, width = out.shape[:3]
    for job in range(part, views * height, parts):
        view, row = job // height, job % height
        pose, lens = to_world[view], inverse_k[view]
        ox, oy, oz = pose[0, 3], pose[1, 3], pose[2, 3]
        pixel = np.sqrt(lens[0, 0] * lens[1, 1] / samples)
        for column in range(width):
            bits = hash4(column, row, view, seed)
            shift_x, shift_y = (bits & 0xFFFF) / 65536.0, (bits >> 16) / 65536.0
            red = green = blue = 0.0
            for s in range(samples):
                # The R2 sequence, shifted per pixel: even coverage for any number of samples.
                jx, jy = shift_x + 0.7548776662466927 * s, shift_y + 0.5698402909980532 * s
                cy = lens[1, 1] * (row + jy - np.floor(jy)) + lens[1, 2]
                cx = lens[0, 0] * (column + jx - np.floor(jx)) + lens[0, 1] * (row + jy - np.floor(jy)) + lens[0, 2]
                dx = pose[0, 0] * cx + pose[0, 1] * cy + pose[0, 2]
                dy = pose[1, 0] * cx + pose[1, 1] * cy + pose[1, 2]
                dz = pose[2, 0] * cx + pose[2, 1] * cy + pose[2, 2]
                t, i = _nearest(bodies, ox, oy, oz, dx, dy, dz)
                r, g, b = _shade(
                    i,
                    bodies,
                    materials,
                    textures,
                    lights,
                    ambient,
                    images,
                    ox + t * dx,
                    oy + t * dy,
                    oz + t * dz,
                    t * pixel,
                    dx,
                    dy,
                    dz,
                )
                red, green, blue = red + r, green + g, blue + b
            out[view, row, column, 0] = red / samples
            out[view, row, column, 1] = green / samples
            out[view, row, column, 2] = blue / samples


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
@no_type_check
def cast_geometry(part, parts, to_world, inverse_k, bodies, materials, classes, depths, labels, numbers, normals):
    """Every `parts`-th row at pixel centres: z-depth, class and body number [V, H, W], normal [V, H, W, 3]."""
    views, height, width = depths.shape
    for job in range(part, views * height, parts):
        view, row = job // height, job % height
        pose, lens = to_world[view], inverse_k[view]
        ox, oy, oz = pose[0, 3], pose[1, 3], pose[2, 3]
        for column in range(width):
            cy = lens[1, 1] * (row + 0.5) + lens[1, 2]
            cx = lens[0, 0] * (column + 0.5) + lens[0, 1] * (row + 0.5) + lens[0, 2]
            dx = pose[0, 0] * cx + pose[0, 1] * cy + pose[0, 2]
            dy = pose[1, 0] * cx + pose[1, 1] * cy + pose[1, 2]
            dz = pose[2, 0] * cx + pose[2, 1] * cy + pose[2, 2]
            # The ray's camera-frame z is 1, so its parameter is the z-depth.
            t, i = _nearest(bodies, ox, oy, oz, dx, dy, dz)
            nx, ny, nz, face = _surface(i, bodies, ox + t * dx, oy + t * dy, oz + t * dz)[:4]
            depths[view, row, column] = t
            labels[view, row, column] = classes[_material(i, face, bodies, materials)]
            numbers[view, row, column] = i
            normals[view, row, column, 0] = nx
            normals[view, row, column, 1] = ny
            normals[view, row, column, 2] = nz
