"""Compiled ray caster of the procedural world: nearest surface, shadows, contact darkening, textures.

Float64 throughout: under a 64x zoom neighbouring rays differ by 1e-6, and a pixel covers a tenth of a millimetre.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from numba import njit, prange

from sr3d.datasets.noise import hash4
from sr3d.datasets.textures import texture_colour

ROOM, BOX, SPHERE, CYLINDER = 0, 1, 2, 3
_FAR = 1e30


@njit(cache=True)
@no_type_check
def _slabs(ox, oy, oz, dx, dy, dz, hx, hy, hz):
    """Entry and exit distance of a ray through a box centred at the origin (entry > exit: no hit)."""
    near, far = -_FAR, _FAR
    for o, d, h in ((ox, dx, hx), (oy, dy, hy), (oz, dz, hz)):
        if abs(d) < 1e-14:
            if abs(o) > h:
                return 1.0, 0.0
        else:
            a, b = (-h - o) / d, (h - o) / d
            near, far = max(near, min(a, b)), min(far, max(a, b))
    return near, far


@njit(cache=True)
@no_type_check
def _hit_body(kind, half, ox, oy, oz, dx, dy, dz):
    """Distance along a ray in the body's frame to its visible surface, or a huge number."""
    if kind == ROOM:
        near, far = _slabs(ox, oy, oz, dx, dy, dz, half[0], half[1], half[2])
        return far
    if kind == BOX:
        near, far = _slabs(ox, oy, oz, dx, dy, dz, half[0], half[1], half[2])
        return near if far >= near and near > 0 else _FAR
    radius = half[0]
    if kind == SPHERE:
        a, b = dx * dx + dy * dy + dz * dz, ox * dx + oy * dy + oz * dz
        disc = b * b - a * (ox * ox + oy * oy + oz * oz - radius * radius)
        t = (-b - np.sqrt(disc)) / a if disc >= 0 else _FAR
        return t if t > 0 else _FAR
    a, b = dx * dx + dy * dy, ox * dx + oy * dy
    c = ox * ox + oy * oy - radius * radius
    near, far = -_FAR, _FAR
    if a > 1e-14:
        disc = b * b - a * c
        if disc < 0:
            return _FAR
        root = np.sqrt(disc)
        near, far = (-b - root) / a, (-b + root) / a
    elif c > 0:
        return _FAR
    if abs(dz) > 1e-14:
        p, q = (-half[2] - oz) / dz, (half[2] - oz) / dz
        near, far = max(near, min(p, q)), min(far, max(p, q))
    elif abs(oz) > half[2]:
        return _FAR
    return near if far >= near and near > 0 else _FAR


@njit(cache=True)
@no_type_check
def _distance(i, bodies, ox, oy, oz, dx, dy, dz, limit):
    """Distance to body i in the world frame if less than `limit`, else a huge number."""
    kinds, centers, rotations, halves, radii = bodies
    x, y, z = ox - centers[i, 0], oy - centers[i, 1], oz - centers[i, 2]
    if kinds[i] != ROOM:
        a, b = dx * dx + dy * dy + dz * dz, x * dx + y * dy + z * dz
        c = x * x + y * y + z * z - radii[i] * radii[i]
        if (c > 0 and b > 0) or b * b < a * c:
            return _FAR
    r = rotations[i]
    t = _hit_body(
        kinds[i],
        halves[i],
        r[0, 0] * x + r[1, 0] * y + r[2, 0] * z,
        r[0, 1] * x + r[1, 1] * y + r[2, 1] * z,
        r[0, 2] * x + r[1, 2] * y + r[2, 2] * z,
        r[0, 0] * dx + r[1, 0] * dy + r[2, 0] * dz,
        r[0, 1] * dx + r[1, 1] * dy + r[2, 1] * dz,
        r[0, 2] * dx + r[1, 2] * dy + r[2, 2] * dz,
    )
    return t if t < limit else _FAR


@njit(cache=True)
@no_type_check
def _nearest(bodies, ox, oy, oz, dx, dy, dz):
    """Distance and number of the first body that a ray meets (the room, body 0, is always met from inside)."""
    best, found = _FAR, 0
    for i in range(bodies[0].shape[0]):
        t = _distance(i, bodies, ox, oy, oz, dx, dy, dz, best)
        if t < best:
            best, found = t, i
    return best, found


@njit(cache=True)
@no_type_check
def _lit(bodies, ox, oy, oz, dx, dy, dz):
    """Whether nothing but the room lies between a point and the light at point + direction."""
    blocker = 1
    while blocker < bodies[0].shape[0] and _distance(blocker, bodies, ox, oy, oz, dx, dy, dz, 1.0) > 1.0:
        blocker += 1
    return blocker == bodies[0].shape[0]


@njit(cache=True)
@no_type_check
def _surface(i, bodies, px, py, pz):
    """At a surface point: world normal (3), face (0 x, 1 y, 2 z, 3 curved; + 4 on its negative side), u, v (metres),
    point in the body's frame (3)."""
    kinds, centers, rotations, halves, _ = bodies
    r, half = rotations[i], halves[i]
    x, y, z = px - centers[i, 0], py - centers[i, 1], pz - centers[i, 2]
    x, y, z = (
        r[0, 0] * x + r[1, 0] * y + r[2, 0] * z,
        r[0, 1] * x + r[1, 1] * y + r[2, 1] * z,
        r[0, 2] * x + r[1, 2] * y + r[2, 2] * z,
    )
    a, b, c = x, y, z
    kind = kinds[i]
    if kind == SPHERE:
        nx, ny, nz = x / half[0], y / half[0], z / half[0]
        # Pattern coordinates: a cube of 0.85 radii around the sphere.
        scale = 0.85 * half[0] / max(abs(x), abs(y), abs(z))
        a, b, c = x * scale, y * scale, z * scale
        sx, sy, sz = abs(x), abs(y), abs(z)
    elif kind == CYLINDER:
        radial = np.sqrt(x * x + y * y)
        sx = sy = 0.0
        sz = abs(z) / half[2] - radial / half[0]
        nx, ny, nz = x / radial if radial > 0 else 1.0, y / radial if radial > 0 else 0.0, 0.0
    else:
        sx, sy, sz = abs(x) / half[0], abs(y) / half[1], abs(z) / half[2]
        nx = ny = nz = 0.0
    side = -1.0 if kind == ROOM else 1.0
    if kind == CYLINDER and sz < 0:
        face, negative = 3, False
        u, v = half[0] * np.arctan2(y, x), -z
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
        r[0, 0] * nx + r[0, 1] * ny + r[0, 2] * nz,
        r[1, 0] * nx + r[1, 1] * ny + r[1, 2] * nz,
        r[2, 0] * nx + r[2, 1] * ny + r[2, 2] * nz,
        face + 4 * negative,
        u,
        v,
        x,
        y,
        z,
    )


@njit(cache=True)
@no_type_check
def _material(i, face, kinds, materials):
    """Texture row of a face: a room has four (walls across x, walls across y, floor, ceiling)."""
    if kinds[i] != ROOM:
        return materials[i]
    return materials[i] + (3 if face == 6 else face % 4)


@njit(cache=True)
@no_type_check
def _openness(i, bodies, px, py, pz, nx, ny, nz):
    """Share of ambient light: less in the room's corners and beside bodies (each taken as its bounding sphere)."""
    kinds, centers, _, halves, radii = bodies
    open_share = 1.0
    x, y, z = px - centers[0, 0], py - centers[0, 1], pz - centers[0, 2]
    for p, h, n in ((x, halves[0, 0], nx), (y, halves[0, 1], ny), (z, halves[0, 2], nz)):
        # A wall darkens what does not lie in it or face away from it.
        open_share *= 1 - 0.35 * max(0.0, 1 - n * n) * np.exp(-3.5 * (h - abs(p)))
    for k in range(1, kinds.shape[0]):
        if k == i:
            continue
        x, y, z = centers[k, 0] - px, centers[k, 1] - py, centers[k, 2] - pz
        square = x * x + y * y + z * z
        size = 0.75 * radii[k]
        if square > 36 * size * size:
            continue
        toward = (x * nx + y * ny + z * nz) / np.sqrt(square)
        if toward > 0:
            open_share *= 1 - 0.75 * toward * min(1.0, size * size / square)
    return open_share


@njit(cache=True)
@no_type_check
def _shade(i, bodies, materials, textures, lights, ambient, images, px, py, pz, footprint, dx, dy, dz):
    """Colour of body i at a point that a sample of width `footprint` (across the ray) looks at along d."""
    nx, ny, nz, face, u, v, x, y, z = _surface(i, bodies, px, py, pz)
    slant = -(nx * dx + ny * dy + nz * dz) / np.sqrt(dx * dx + dy * dy + dz * dz)
    width = footprint / max(slant, 0.08) ** 0.75
    row = textures[_material(i, face, bodies[0], materials)]
    shift = 7.3 * face
    photos, fields, shares = images
    red, green, blue = texture_colour(row, u + shift, v, x + shift, y, z, width, photos, fields, shares)
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


@njit(cache=True, parallel=True, error_model="numpy")
@no_type_check
def cast_images(
    to_world, inverse_k, height, width, samples, seed, bodies, materials, textures, lights, ambient, images
):
    """Colours of V views, each pixel the mean of `samples` jittered samples. [V, H, W, 3] float32"""
    views = to_world.shape[0]
    out = np.empty((views, height, width, 3), np.float32)
    for job in prange(views * height):
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
    return out


@njit(cache=True, parallel=True, error_model="numpy")
@no_type_check
def cast_geometry(to_world, inverse_k, height, width, bodies, materials, classes):
    """At pixel centres of V views: z-depth [V, H, W], class [V, H, W], body number [V, H, W], normal [V, H, W, 3]."""
    views = to_world.shape[0]
    depths = np.empty((views, height, width), np.float64)
    labels = np.empty((views, height, width), np.int64)
    numbers = np.empty((views, height, width), np.int64)
    normals = np.empty((views, height, width, 3), np.float32)
    for job in prange(views * height):
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
            labels[view, row, column] = classes[_material(i, face, bodies[0], materials)]
            numbers[view, row, column] = i
            normals[view, row, column, 0] = nx
            normals[view, row, column, 1] = ny
            normals[view, row, column, 2] = nz
    return depths, labels, numbers, normals
