"""A forest with the truth at every level: the surfaces of a procedural world, sampled pixel by pixel."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.datasets.world import World
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians, Lod, matrix_to_quat
from sr3d.lod import Forest
from sr3d.lod.curve import hilbert_order
from sr3d.rendering import rgb_to_sh

_CHUNK = 1 << 18  # surfels oriented at a time
_FITS = 0.25  # largest difference of depth, in logarithms, between a parent and its child


def pyramid(
    world: World,
    camera: Cameras,
    levels: int,
    factor: int,
    *,
    center: tuple[float, float] | None = None,
    sigma: float = 0.6,
    opacity: float = 0.99,
    max_stretch: float = 4.0,
    samples: int = 2,
) -> Forest:
    """Sample what a camera sees of a world at ever finer footprints, one surfel per pixel.

    Level 0 is the camera's own image. Level l has the pixels of the camera with factorˡ times its focal length: of the
    whole frame, or of the part that the frame at magnification factorˡ⁻¹ about `center` shows (what a zoom loop
    densifies). The parent of a pixel is the pixel of the level before that contains its centre, or the neighbour of
    that one whose depth is nearest (at depth edges); it is a new root where none is near. Surfels lie in the true
    surface, sized by the Nyquist rule (WonderZoom A3) and stretched where the surface is slanted.

    Args:
        world: Gives colours, depths and normals.
        camera: One view inside the world.
        levels: ≥ 1.
        factor: Linear, ≥ 2; a parent has factor² children.
        center: Pixel (u, v) to zoom on; the whole frame at every level if None.
        sigma: Standard deviation of a surfel that faces the camera, in pixels of its level.
        opacity: Of every surfel.
        max_stretch: Largest ratio of a surfel's axes.
        samples: Rays per pixel for the colour.

    Raises:
        Sr3dError: Not one camera, too few levels, a factor below 2, a camera outside the world, or a level so fine
            that float32 offsets do not reach from the foreground to the background in it.
    """
    where = "sr3d.datasets.pyramid"
    if len(camera) != 1:
        raise Sr3dError(where, "camera", f"{len(camera)} cameras", "one")
    if levels < 1 or factor < 2:
        raise Sr3dError(where, "levels, factor", (levels, factor), "1 or more, 2 or more")
    camera = camera.to(torch.float64)
    frames = [camera]
    for level in range(1, levels):
        shown = camera if center is None else camera.zoomed(float(factor ** (level - 1)), center)
        scale = factor if center is not None else factor**level
        frames.append(shown.resized(camera.width * scale, camera.height * scale))
    surfels = _surfels(world, camera, sigma, opacity, max_stretch, samples)
    forest = Forest.from_gaussians(surfels)
    rows = _rows_of_pixels(forest, surfels)
    for coarse, fine in pairwise(frames):
        surfels = _surfels(world, fine, sigma, opacity, max_stretch, samples)
        natives = _lod(forest.levels[-1].gaussians).native[rows - forest.starts[-2]]
        origin, rays = fine.world_rays()
        pixels, _ = coarse.project(origin + rays[0].reshape(-1, 3))
        native = _lod(surfels).native
        chosen, misfit = _nearest_parent(natives.reshape(coarse.height, coarse.width), pixels[0], native, factor)
        linked = misfit < _FITS
        # Siblings were made together: one footprint for all, so that they and their parent weigh 1 together.
        native = torch.where(linked, natives[chosen] / factor, native)
        surfels = replace(surfels, lod=Lod.roots(native))
        forest = forest.append(surfels, torch.where(linked, rows[chosen], -1))
        rows = _rows_of_pixels(forest, surfels)
    return forest


def _nearest_parent(
    natives: Float[Tensor, "h w"], pixels: Float[Tensor, "n 2"], children: Float[Tensor, " n"], factor: int
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """Index of the coarse pixel at a position, or of the neighbour whose footprint fits the child's clearly better.

    And the misfit: the logarithm of the parent's footprint over `factor` times the child's.
    """
    height, width = natives.shape
    column, row = pixels.long().unbind(-1)
    best, misfit = torch.zeros_like(column), torch.full_like(children, torch.inf)
    for dv, du in sorted(((dv, du) for dv in (-1, 0, 1) for du in (-1, 0, 1)), key=lambda d: d != (0, 0)):
        index = (row + dv).clamp(0, height - 1) * width + (column + du).clamp(0, width - 1)
        error = (natives.flatten()[index] / (factor * children)).log().abs()
        # A slanted surface is no depth edge: stay with the pixel itself unless it is 10 % off.
        better = error + 0.1 * ((dv, du) != (0, 0)) < misfit
        best, misfit = torch.where(better, index, best), torch.where(better, error, misfit)
    return best, misfit


def _lod(gaussians: Gaussians) -> Lod:
    assert gaussians.lod is not None
    return gaussians.lod


def _rows_of_pixels(forest: Forest, surfels: Gaussians) -> Int[Tensor, " n"]:
    """Forest row of each surfel of the last level, which the forest has put in the order of its curve. [H·W]"""
    rows = torch.empty(len(surfels), dtype=torch.int64)
    rows[hilbert_order(surfels.means)] = torch.arange(len(surfels)) + forest.starts[-2]
    return rows


def _surfels(
    world: World, camera: Cameras, sigma: float, opacity: float, max_stretch: float, samples: int
) -> Gaussians:
    """One surfel per pixel, means in float64. [H·W]"""
    depth, normals = world.geometry(camera)
    colors = world.render(camera, samples=samples).images[0].reshape(-1, 3)
    means = camera.unproject(depth)[0].reshape(-1, 3)
    native = camera.footprint(depth.reshape(1, -1))[0]
    quats, stretch = [], []
    for part in torch.arange(len(means)).split(_CHUNK):
        q, s = _oriented(means[part] - camera.positions[0], normals[0].reshape(-1, 3)[part], max_stretch)
        quats.append(q.float())
        stretch.append(s.float())
    size = (sigma * native).float()[:, None]
    return Gaussians(
        means=means,
        quats=torch.cat(quats),
        scales=size * torch.cat(stretch),
        opacities=torch.full((len(means),), opacity),
        sh=rgb_to_sh(colors),
        lod=Lod.roots(native.float()),
    )


def _oriented(
    rays: Float[Tensor, "n 3"], normals: Float[Tensor, "n 3"], max_stretch: float
) -> tuple[Float[Tensor, "n 4"], Float[Tensor, "n 3"]]:
    """Rotation of surfels into their surfaces, first axis along the slant, and their axes' lengths in footprints."""
    rays = torch.nn.functional.normalize(rays, dim=-1)
    cosine = -(rays * normals).sum(-1, keepdim=True)
    along = rays + cosine * normals
    # Seen head-on there is no slant: any direction in the surface will do.
    other = torch.linalg.cross(normals, torch.eye(3, dtype=rays.dtype)[normals.abs().argmin(dim=-1)])
    first = torch.nn.functional.normalize(torch.where(along.norm(dim=-1, keepdim=True) > 1e-6, along, other), dim=-1)
    frame = torch.stack([first, torch.linalg.cross(normals, first), normals], dim=-1)
    one = torch.ones_like(cosine)
    lengths = torch.cat([1 / cosine.abs().clamp_min(1 / max_stretch), one, 0.1 * one], dim=-1)
    return matrix_to_quat(frame), lengths
