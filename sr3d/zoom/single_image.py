"""Start from one photograph: surfels at monocular depth, and what stands behind them seen from a small orbit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.coarse import CoarseConfig, pixel_gaussians
from sr3d.coarse.fill import fill_holes
from sr3d.coarse.surface import JUMP, inverse
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.io.images import read_image
from sr3d.rendering import Rendering, render
from sr3d.scene import Scene
from sr3d.training.metrics import COVERED_ALPHA
from sr3d.zoom.providers.base import (
    AuxiliaryViews,
    DepthGuess,
    MonocularDepth,
    Segmenter,
    ask,
    check_depth,
    check_images,
)
from sr3d.zoom.viewpoints import orbit

RANGE = 8.0  # far / near of a depth whose scale and shift are unknown: sky must not run away
KNOWN_ALPHA = 0.5  # under this alpha a view does not show the scene
SOLID_ALPHA = 0.95  # under this alpha surfels are added behind: less of the background's black shows as dark lines
_WHERE = "sr3d.zoom.start_from_image"
_EXIF, _FOCAL_35MM = 0x8769, 0xA405
_DIAGONAL_35MM = 43.2666  # millimetres: 35 mm equivalents compare diagonals
_REACH = 2  # pixels that a surfel covers around its own
_PUSH, _PUSHES = 1.02, 120  # steps by which a point moves away until it is hidden, and how many of them


@dataclass(kw_only=True)
class Started:
    """Level 0 of a zoom into one photograph.

    Attributes:
        gaussians: Surfels, SH degree 0, roots of a level of detail: those of the photograph (row, column), then those
            that each auxiliary view added.
        scene: The photograph: images [1, H, W, 3], one camera at the origin (OpenCV axes), depths [1, H, W].
        auxiliary: The filled views along the orbit: images [K, H, W, 3], cameras, depths [K, H, W] (0 where unknown).
        notes: How focal length, depth and coverage came about, a sentence each.
    """

    gaussians: Gaussians
    scene: Scene
    auxiliary: Scene
    notes: list[str]


def start_from_image(
    image: Float[Tensor, "h w 3"] | str | Path,
    *,
    depth: MonocularDepth,
    auxiliary: AuxiliaryViews,
    segmenter: Segmenter | None,
    fov_degrees: int | float = 50.0,
    views: int = 4,
    degrees: int | float = 8.0,
    prompt: str = "",
    seed: int = 0,
) -> Started:
    """Monocular depth, one surfel per pixel, auxiliary views, and surfels for what only those see (WonderZoom, E_0).

    Surfels are those of `pixel_gaussians`: sized by the pixel's footprint (WonderZoom Eq. 1), orientation from normals.
    What an auxiliary view does not see (alpha < 0.5, and one pixel around) gets colours from its provider, and the
    depth of the background (`background_depth`), moved away until nothing that the photograph shows, there or in any
    view, is behind it (`hidden_depth`). Views are lifted in the order of the path, each one only where nothing is yet
    (alpha < 0.95), so a view sees what earlier ones added.

    Args:
        image: In [0, 1] [H, W, 3]; or a file, whose EXIF orientation is applied.
        depth: Its answer becomes z-depth by `world_depth`.
        auxiliary: Colours of what the photograph does not show.
        segmenter: Whose segments decide which surface the blurred pixels at a depth edge belong to; None: the nearer
            value.
        fov_degrees: Angle of view along the longer side, for images without an EXIF focal length.
        views: Auxiliary views, K ≥ 1.
        degrees: Their angle from the line of sight, seen from the scene's middle; over 0 and up to 45.
        prompt: Words about the scene.
        seed: Of everything random in the provider.

    Raises:
        Sr3dError: An unreadable file, an image that is not [H, W, 3] in [0, 1] of at least 8 × 8 pixels, arguments out
            of range, or a provider that dies or returns a wrong size, NaN or depths that are not positive.
    """
    _check_arguments(fov_degrees, views, degrees)
    name = "photograph" if isinstance(image, Tensor) else Path(image).stem
    focal = None if isinstance(image, Tensor) else exif_focal(image)
    pixels = image if isinstance(image, Tensor) else torch.from_numpy(read_image(image, upright=True))
    _check_image(name, pixels)
    notes = [f"focal length: {'EXIF' if focal else f'{fov_degrees:g} degrees along the longer side'}"]
    camera = _camera_at_origin(pixels, focal, fov_degrees)
    z, note = _photograph_depth(pixels, float(camera.focal[0]), depth, segmenter)
    scene = Scene(images=pixels[None], cameras=camera, depths=z[None], name=name)
    middle = torch.tensor([0.0, 0.0, float(z.median())]).to(pixels)
    path = orbit(camera, middle, views, float(degrees))
    gaussians, found, coverage = _with_auxiliary_views(scene, path, auxiliary, prompt, seed)
    return Started(gaussians=gaussians, scene=scene, auxiliary=found, notes=[*notes, note, *coverage])


def exif_focal(path: str | Path) -> float | None:
    """Focal length in pixels of the stored size by the 35 mm equivalent in EXIF (it survives resizing); None without.

    Raises:
        Sr3dError: The file is missing or no image.
    """
    if not Path(path).is_file():
        raise Sr3dError(path, "file", "no such file", "an image")
    try:
        with Image.open(path) as photo:
            equivalent = float(photo.getexif().get_ifd(_EXIF).get(_FOCAL_35MM, 0))
            width, height = photo.size
    except (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError) as error:
        raise Sr3dError(path, "image", f"{type(error).__name__}: {error}", "a readable PNG or JPEG") from error
    return equivalent / _DIAGONAL_35MM * math.hypot(width, height) if equivalent > 0 else None


def world_depth(guess: DepthGuess) -> Float[Tensor, "h w"]:
    """z-depth in world units of a monocular guess.

    Metric depth is taken as it is. Of the others scale and shift are unknown: values (z-depth, or its inverse) beyond
    their 0.5 % and 99.5 % quantiles are clamped to those; the smallest shift that brings far / near down to 8 is
    added (none where it is below already); and the median depth becomes 1.
    """
    if guess.kind == "metric":
        return guess.depth
    ordered = guess.depth.flatten().sort().values
    last = len(ordered) - 1
    low, high = ordered[round(0.005 * last)], ordered[round(0.995 * last)]
    values = guess.depth.clamp(low, high) + ((high - RANGE * low) / (RANGE - 1)).clamp_min(0)
    z = inverse(values) if guess.kind == "inverse" else values
    return z / z.median()


def sharp_edges(depth: Float[Tensor, "h w"], segments: Int[Tensor, "h w"] | None, radius: int) -> Float[Tensor, "h w"]:
    """Depth without the ramps that networks draw between foreground and background, which would become rubber sheets.

    An edge is where inverse depth changes by more than a jump within `radius` pixels and hardly more within twice that;
    a slope goes on. A pixel between the two sides of an edge takes the value of the nearer side, or, with segments,
    of the nearest pixel of its own segment that is not on a ramp (if one is within four radii).

    Args:
        depth: z-depth, > 0. [H, W]
        segments: Number of each pixel's segment. [H, W]
        radius: Pixels, ≥ 1.
    """
    q = inverse(depth)
    radius = min(radius, (min(q.shape) - 1) // 2)
    pad, inner = [2 * radius] * 4, slice(2 * radius, -2 * radius)
    # Slopes go on beyond the frame, where windows would be cut.
    around = 2 * F.pad(q[None], pad, mode="replicate") - F.pad(q[None], pad, mode="reflect")
    span, wide = ((_largest(around, r) + _largest(-around, r))[0, inner, inner] for r in (radius, 2 * radius))
    near, far = _largest(q[None], radius)[0], -_largest(-q[None], radius)[0]
    edge = (span > JUMP * far) & (wide < 1.6 * span)
    ramp = edge & (torch.minimum(near - q, q - far) > 0.05 * (near - far))
    settled = torch.where(ramp, torch.where(near - q < q - far, near, far), q)
    if segments is not None:
        settled = _of_own_segment(q, ramp, segments, 4 * radius, settled)
    return inverse(settled)


def background_depth(depth: Float[Tensor, "h w"], view: Cameras, origin: Float[Tensor, 3]) -> Float[Tensor, "h w"]:
    """Depth of what a moved camera sees for the first time: the background goes on.

    What one place hides from another lies along lines through the epipole (the picture of the first place in the
    second). Of the two known pixels that end a hole along such a line the farther one gives its depth; beyond the
    frame of the first place there is only one. Lines without any take the depth of other neighbours (`fill_holes`).

    Args:
        depth: z-depth of the view, world units, 0 where unknown. [H, W]
        view: The moved camera, one.
        origin: First place, world frame. [3]
    """
    rotation, shift = view.world_to_cam[0, :3, :3], view.world_to_cam[0, :3, 3]
    epipole = view.K[0] @ (rotation @ origin.to(rotation) + shift)
    rows, columns = torch.nonzero(depth == 0, as_tuple=True)
    start = torch.stack([columns, rows], dim=-1).to(epipole) + 0.5
    line = epipole[:2] - epipole[2] * start
    step = line / line.abs().amax(dim=-1, keepdim=True).clamp_min(1e-12)
    ends = torch.stack([_first_known(depth, start, step), _first_known(depth, start, -step)])
    out = depth.clone()
    out[rows, columns] = ends.amax(dim=0)
    return fill_holes(out[None], torch.zeros_like(out)[None, ..., None].expand(-1, -1, -1, 3))[0]


def hidden_depth(
    depth: Float[Tensor, "h w"], where: Bool[Tensor, "h w"], view: Cameras, seen: Scene
) -> Float[Tensor, "h w"]:
    """Move pixels of a view away along their rays until no view has seen a surface behind them.

    A photograph sees through everything in front of its surfaces, so nothing can be there. The farthest of the 3×3
    pixels around counts, and up to two pixels outside its frame the nearest ones inside: surfels reach that far.

    Args:
        depth: z-depth of the view. [H, W]
        where: Pixels that may move; those that find no place become 0 (unknown). [H, W]
        view: One camera.
        seen: Views with depths, 0 where they show nothing.
    """
    assert seen.depths is not None
    cameras, surfaces = seen.posed(), _largest(seen.depths, 1) * (seen.depths > 0)
    to_world = view.cam_to_world[0]
    rays = (view.pixel_rays()[0][where] @ to_world[:3, :3].T).to(depth)
    z = depth[where]
    moving = torch.arange(len(z), device=z.device)
    for _ in range(_PUSHES):
        points = to_world[:3, 3] + rays[moving] * z[moving, None]
        moving = moving[_in_front(points, cameras, surfaces)]
        if not len(moving):
            break
        z[moving] *= _PUSH
    z[moving] = 0
    out = depth.clone()
    out[where] = z
    return out


def _check_arguments(fov_degrees: float, views: int, degrees: float) -> None:
    if not 1 <= fov_degrees <= 170:
        raise Sr3dError(_WHERE, "fov_degrees", fov_degrees, "1 to 170")
    if views < 1:
        raise Sr3dError(_WHERE, "views", views, "1 or more")
    if not 0 < degrees <= 45:
        raise Sr3dError(_WHERE, "degrees", degrees, "over 0 and up to 45")


def _check_image(name: str, image: Tensor) -> None:
    if image.ndim != 3 or image.shape[-1] != 3 or min(image.shape[:2]) < 8:
        raise Sr3dError(name, "image", f"shape {tuple(image.shape)}", "[H, W, 3] of 8 x 8 pixels or more")
    if not bool(((image >= 0) & (image <= 1)).all()):
        raise Sr3dError(name, "image", "NaN or values outside 0..1", "colours in 0..1")


def _camera_at_origin(image: Tensor, focal: float | None, fov_degrees: float) -> Cameras:
    """One camera with a centred principal point."""
    height, width = image.shape[:2]
    f = focal or max(width, height) / 2 / math.tan(math.radians(fov_degrees) / 2)
    K = torch.tensor([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1]]).to(image)
    return Cameras(world_to_cam=torch.eye(4).to(image)[None], K=K[None], width=width, height=height)


def _photograph_depth(
    image: Tensor, focal: float, provider: MonocularDepth, segmenter: Segmenter | None
) -> tuple[Tensor, str]:
    """z-depth with sharp edges, and a note about it."""
    height, width = image.shape[:2]
    guess = check_depth(provider, ask(provider, "depth", lambda: provider.guess(image, focal)), (height, width))
    segments = None
    if segmenter is not None:
        segments = ask(segmenter, "segments", lambda: segmenter.segments(image)).to(image.device)
        if tuple(segments.shape) != (height, width):
            found = tuple(segments.shape)
            raise Sr3dError(f"segmenter provider {segmenter.name}", "size", found, (height, width))
    z = sharp_edges(world_depth(guess).to(image), segments, max(1, round(max(height, width) / 320)))
    units = "metres" if guess.kind == "metric" else f"median 1, far / near {float(z.max() / z.min()):.2f}"
    return z, f"depth: {guess.kind} by {provider.name}, {units}"


def _with_auxiliary_views(
    scene: Scene, path: Cameras, provider: AuxiliaryViews, prompt: str, seed: int
) -> tuple[Gaussians, Scene, list[str]]:
    """All surfels, the filled views, and a note on each of these."""
    config = CoarseConfig()
    photograph = scene.posed()
    assert scene.depths is not None
    gaussians = pixel_gaussians(scene.images, photograph, scene.depths, config.sigma, config.opacity, config)
    drawn = render(gaussians, path, median_depth=True)
    assert drawn.median_depth is not None
    covered = drawn.alpha > COVERED_ALPHA
    seen = Scene(
        images=torch.cat([scene.images, drawn.rgb]),
        cameras=Cameras.cat([photograph, path]),
        depths=torch.cat([scene.depths, drawn.median_depth * covered]),
    )
    known = ~_grown(drawn.alpha < KNOWN_ALPHA)
    images = _opaque(drawn)
    filled = ask(provider, "views", lambda: provider.fill(images, known, path, prompt, seed))
    filled = check_images(provider, filled, tuple(images.shape)).to(images)
    colors, depths, notes = [], [], []
    for k in range(len(path)):
        view = path.index([k])
        now = render(gaussians, view, median_depth=True)
        assert now.median_depth is not None
        unknown = _grown(now.alpha < KNOWN_ALPHA)[0]
        color = torch.where(unknown[..., None], filled[k], _opaque(now)[0])
        z = background_depth(torch.where(unknown, 0, now.median_depth[0]), view, photograph.positions[0])
        thin = now.alpha[0] < SOLID_ALPHA
        z = hidden_depth(z, unknown | thin, view, seen)
        surfels = pixel_gaussians(color[None], view, z[None], config.sigma, config.opacity, config)
        added = (thin & (z > 0)).flatten()
        gaussians = Gaussians.cat([gaussians, surfels.index(added)])
        colors.append(color)
        depths.append(z)
        share = float(covered[k].float().mean())
        notes.append(f"view {k + 1}: the photograph covers {share:.1%}, {int(added.sum())} surfels added")
    found = Scene(images=torch.stack(colors), cameras=path, depths=torch.stack(depths), name=f"{scene.name} orbit")
    return gaussians, found, notes


def _opaque(drawn: Rendering) -> Float[Tensor, "v h w 3"]:
    """Colours without the black that shines through between surfels."""
    return (drawn.rgb / drawn.alpha[..., None].clamp_min(KNOWN_ALPHA)).clamp(0, 1)


def _largest(x: Float[Tensor, "v h w"], radius: int) -> Float[Tensor, "v h w"]:
    """Largest value of the square window around every pixel."""
    return F.max_pool2d(x[:, None], 2 * radius + 1, stride=1, padding=radius)[:, 0]


def _grown(mask: Bool[Tensor, "v h w"]) -> Bool[Tensor, "v h w"]:
    """The mask and one pixel around it."""
    return F.max_pool2d(mask[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0


def _of_own_segment(q: Tensor, ramp: Tensor, segments: Tensor, steps: int, otherwise: Tensor) -> Tensor:
    """On ramps, values of the same segment's nearest other pixels, by steps to the four neighbours."""
    value, open_ = torch.where(ramp, 0, q), ramp
    for _ in range(steps):
        new = torch.zeros_like(value)
        for axis, shift in ((0, 1), (0, -1), (1, 1), (1, -1)):
            # Rolled over the border a neighbour would come from the other side of the image.
            ours, theirs = (slice(1, None), slice(None, -1)) if shift == 1 else (slice(None, -1), slice(1, None))
            to = (ours, slice(None)) if axis == 0 else (slice(None), ours)
            of = (theirs, slice(None)) if axis == 0 else (slice(None), theirs)
            takes = open_[to] & ~open_[of] & (segments[to] == segments[of]) & (new[to] == 0)
            new[to] = torch.where(takes, value[of], new[to])
        value, open_ = torch.where(new > 0, new, value), open_ & (new == 0)
    return torch.where(open_, otherwise, value)


def _first_known(depth: Tensor, start: Tensor, step: Tensor) -> Tensor:
    """First depth > 0 along lines through the image, from pixels [N, 2] in steps [N, 2]; 0 where there is none. [N]"""
    height, width = depth.shape
    found = torch.zeros_like(start[:, 0])
    going = torch.arange(len(start), device=start.device)
    for i in range(1, max(height, width)):
        column, row = (start[going] + i * step[going]).floor().long().unbind(-1)
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        going, column, row = going[inside], column[inside], row[inside]
        value = depth[row, column]
        found[going] = value.to(found)
        going = going[value == 0]
        if not len(going):
            break
    return found.to(depth)


def _in_front(points: Tensor, cameras: Cameras, surfaces: Tensor) -> Tensor:
    """Whether world points [N, 3] show in any view, nearer than its surface [V, H, W]. [N]"""
    pixels, z = cameras.project(points)
    column, row = pixels.floor().long().unbind(-1)
    # What is centred just outside the frame reaches into it.
    outside = torch.stack([-column, column - cameras.width + 1, -row, row - cameras.height + 1]).amax(dim=0)
    inside = (z > 0) & (outside <= _REACH)
    views = torch.arange(len(cameras), device=points.device)[:, None]
    there = surfaces[views, row.clamp(0, cameras.height - 1), column.clamp(0, cameras.width - 1)]
    return (inside & (z < there)).any(dim=0)
