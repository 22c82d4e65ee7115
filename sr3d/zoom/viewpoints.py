"""Cameras for Gaussians that come without any, cameras around a camera, and whether one stands in free space."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.rendering import render
from sr3d.zoom.path import zoom_centers

_OUTLIER = 6.0  # times the median distance from the median: what is beyond is background or a floater
_SHARE = 0.98  # of the opacity that a middle and a radius account for
_AZIMUTHS, _ELEVATIONS = 12, (0.0, 15.0, 30.0, 50.0)  # degrees; 48 directions
_PROBE = 64  # pixels along the longer side of the drawings that are compared
_PROBE_GAUSSIANS = 40_000
_MARGIN = 1.05  # around the bounding sphere
_PLAIN = 0.02  # contrast that a covered pixel counts as, however plain
_CLOSE = 0.25  # share of the camera's distance before which a surface is in the way
_SOLID = 0.5  # alpha from which light counts as stopped
_NEARBY = 0.1  # share of the scene's median distance that counts as touching the camera
_ENCLOSED = 0.15  # share of all directions
_FACE = 16  # pixels along a side of a cube of drawings


@torch.no_grad()
def default_camera(gaussians: Gaussians, width: int, height: int, fov_degrees: int | float = 50) -> Cameras:
    """One camera that shows the scene from outside.

    It looks at the opacity-weighted middle of the scene without outliers, from where the bounding sphere of what is
    left fills the frame. Of 48 directions the one is taken whose small drawing covers most and shows most contrast.
    World up is taken to be −y, as COLMAP leaves it in most 3DGS files: pictures are upright in that sense, and of views
    level with it or from above, steep ones count less, by the cosine of their elevation.

    Args:
        gaussians: World frame. [N]
        width: Pixels.
        height: Pixels.
        fov_degrees: Field of view along the longer side, more than 0 and less than 180.

    Returns:
        One camera with a centred principal point, on the Gaussians' device.

    Raises:
        Sr3dError: Nothing to see, batch axes, no pixels, or a field of view out of range.
    """
    where = "sr3d.zoom.default_camera"
    if gaussians.means.ndim != 2 or not bool((gaussians.opacities > 0).any()):
        raise Sr3dError(where, "gaussians", f"opacities {tuple(gaussians.opacities.shape)}", "[N], some of them > 0")
    if width < 1 or height < 1:
        raise Sr3dError(where, "width, height", (width, height), "1 or more pixels")
    if not 0 < fov_degrees < 180:
        raise Sr3dError(where, "fov_degrees", fov_degrees, "more than 0 and less than 180")
    roots = gaussians
    if gaussians.lod is not None:
        roots = gaussians.index(gaussians.lod.level == gaussians.lod.level.min())
    middle, radius = _bounding_sphere(roots)
    focal = max(width, height) / 2 / math.tan(math.radians(fov_degrees) / 2)
    distance = _MARGIN * float(radius) / math.sin(math.atan(min(width, height) / 2 / focal))
    directions, upright = _directions(middle)
    poses = _look_at(middle + distance * directions, middle)
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]).to(poses)
    candidates = Cameras(world_to_cam=poses, K=K.expand(len(poses), 3, 3).clone(), width=width, height=height)
    scores = _appeal(_thinned(roots), candidates, distance) * upright
    return candidates.index([int(scores.argmax())])


def orbit(camera: Cameras, point: Float[Tensor, 3], count: int, degrees: int | float) -> Cameras:
    """Cameras in equal steps on a circle around the line of sight to a point: the first to the right, then downwards.

    Each is the given camera turned about the point by `degrees`, without roll about that line: the point keeps its
    pixel and its depth.

    Args:
        camera: One view, which is not among the result.
        point: World frame, in front of the camera. [3]
        count: Number of cameras, ≥ 1.
        degrees: Angle at the point between the given camera and each of the others, more than 0, less than 90.

    Returns:
        `count` cameras with the same K and size.

    Raises:
        Sr3dError: Not exactly one camera, a point behind it, or a number out of range.
    """
    where = "sr3d.zoom.orbit"
    if len(camera) != 1:
        raise Sr3dError(where, "camera", f"{len(camera)} cameras", "one")
    if count < 1:
        raise Sr3dError(where, "count", count, "1 or more")
    if not 0 < degrees < 90:
        raise Sr3dError(where, "degrees", degrees, "more than 0 and less than 90")
    pose = camera.world_to_cam[0].double()
    center = pose[:3, :3] @ point.to(pose) + pose[:3, 3]
    if not float(center[2]) > 0:
        raise Sr3dError(where, "point", f"z-depth {float(center[2]):g}", "a point in front of the camera")
    sight = center / center.norm()
    right = torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]).to(pose), sight)
    right = right / right.norm() if float(right.norm()) > 0 else torch.tensor([1.0, 0.0, 0.0]).to(pose)
    down = torch.linalg.cross(sight, right)
    poses = []
    for i in range(count):
        around = 2 * math.pi * i / count
        axis = math.cos(around) * down - math.sin(around) * right
        turn = torch.eye(4).to(pose)
        turn[:3, :3] = _rotation(axis, math.radians(degrees))
        turn[:3, 3] = center - turn[:3, :3] @ center
        poses.append(turn @ pose)
    K = camera.K.expand(count, 3, 3).clone()
    return replace(camera, world_to_cam=torch.stack(poses).to(camera.world_to_cam), K=K)


def neighbours(cameras: Cameras, point: Float[Tensor, 3], count: int) -> list[int]:
    """The first camera and those nearest to it that have a point in their frame.

    Args:
        cameras: C views.
        point: World frame. [3]
        count: At most this many, the first one included; ≥ 1.

    Returns:
        Indices: 0, then the others in the order of their distance from the first one; fewer than `count` where fewer
        have the point.

    Raises:
        Sr3dError: No cameras, or `count` below 1.
    """
    if len(cameras) < 1 or count < 1:
        found = f"{len(cameras)} cameras, count {count}"
        raise Sr3dError("sr3d.zoom.neighbours", "cameras, count", found, "1 or more of each")
    _, inside = zoom_centers(point, cameras)
    away = (cameras.positions - cameras.positions[:1]).norm(dim=-1)
    order = torch.argsort(away, stable=True).tolist()
    return [0, *(i for i in order if i > 0 and bool(inside[i]))][:count]


@torch.no_grad()
def inside_surface(gaussians: Gaussians, cameras: Cameras) -> Bool[Tensor, " c"]:
    """Whether a camera stands in an object or a wall, wherever it looks.

    It does if more than 15 % of all directions are blocked (alpha of at least ½) by Gaussians nearer to it than a tenth
    of the median distance of all Gaussians from it. No near plane hides them. The hollow inside of large furniture is
    not told from a small room.

    Args:
        gaussians: World frame. [N]
        cameras: C views; only their positions matter.

    Returns:
        One answer per camera, on the Gaussians' device. [C]
    """
    answers = []
    for position in cameras.to(gaussians.means.device).positions.to(gaussians.means):
        away = (gaussians.means - position).norm(dim=-1)
        limit = _NEARBY * float(away.median()) if len(gaussians) else 0.0
        nearby = gaussians.index(away < limit)
        answers.append(len(nearby) > 0 and _blocked_share(nearby, position, limit) > _ENCLOSED)
    return torch.tensor(answers, dtype=torch.bool, device=gaussians.means.device)


def _blocked_share(gaussians: Gaussians, position: Float[Tensor, 3], reach: float) -> float:
    """Share of the solid angle around a position in which light is stopped."""
    cube = _cube(position)
    alpha = render(gaussians, cube, near=1e-3 * reach).alpha
    solid_angle = cube.pixel_rays().norm(dim=-1) ** -3
    return float((solid_angle * (alpha >= _SOLID)).sum() / solid_angle.sum())


def _cube(position: Float[Tensor, 3]) -> Cameras:
    """Six views that show all directions."""
    eye = torch.eye(3).to(position)
    forward = torch.cat([eye, -eye])
    down = forward.roll(1, dims=-1)
    rotations = torch.stack([torch.linalg.cross(down, forward), down, forward], dim=-2)
    half = _FACE / 2
    K = torch.tensor([[half, 0, half], [0, half, half], [0, 0, 1]]).to(position)
    return Cameras(world_to_cam=_poses(rotations, position), K=K.expand(6, 3, 3).clone(), width=_FACE, height=_FACE)


def _poses(rotations: Float[Tensor, "c 3 3"], positions: Float[Tensor, "*c 3"]) -> Float[Tensor, "c 4 4"]:
    """World-to-camera matrices."""
    out = torch.eye(4).to(rotations).repeat(len(rotations), 1, 1)
    out[:, :3, :3] = rotations
    out[:, :3, 3] = -torch.einsum("cij,cj->ci", rotations, positions.expand(len(rotations), 3))
    return out


def _look_at(positions: Float[Tensor, "c 3"], target: Float[Tensor, 3]) -> Float[Tensor, "c 4 4"]:
    """World-to-camera matrices whose pictures have -y up."""
    forward = torch.nn.functional.normalize(target - positions, dim=-1)
    down = torch.tensor([0.0, 1.0, 0.0]).to(forward).expand_as(forward)
    right = torch.nn.functional.normalize(torch.linalg.cross(down, forward), dim=-1)
    return _poses(torch.stack([right, torch.linalg.cross(forward, right), forward], dim=-2), positions)


def _directions(like: Tensor) -> tuple[Float[Tensor, "c 3"], Float[Tensor, " c"]]:
    """From the middle towards the candidates; and the cosine of their elevation above the x-z plane."""
    azimuth = torch.arange(_AZIMUTHS).to(like) * (2 * math.pi / _AZIMUTHS)
    elevation = torch.deg2rad(torch.tensor(_ELEVATIONS).to(like))
    flat, e = elevation.cos()[:, None], elevation[:, None]
    grid = torch.stack([flat * azimuth.sin(), -e.sin().expand(-1, _AZIMUTHS), -flat * azimuth.cos()], dim=-1)
    return grid.flatten(0, 1), flat.expand(-1, _AZIMUTHS).flatten()


def _bounding_sphere(gaussians: Gaussians) -> tuple[Float[Tensor, 3], Float[Tensor, ""]]:
    """Middle and radius of what is left without outliers."""
    means, weights = gaussians.means, gaussians.opacities
    median = torch.stack([_quantile(means[:, a], weights, 0.5) for a in range(3)])
    away = (means - median).norm(dim=-1)
    weights = weights * (away <= _OUTLIER * _quantile(away, weights, 0.5))
    low, high = (torch.stack([_quantile(means[:, a], weights, q) for a in range(3)]) for q in (1 - _SHARE, _SHARE))
    middle = (low + high) / 2
    reach = (means - middle).norm(dim=-1) + gaussians.scales.amax(dim=-1)
    return middle, _quantile(reach, weights, _SHARE).clamp_min(1e-6)


def _quantile(values: Float[Tensor, " n"], weights: Float[Tensor, " n"], share: float) -> Float[Tensor, ""]:
    """The value below which this share of the weights lies."""
    values, order = values.sort()
    total = weights[order].double().cumsum(0)
    return values[int(torch.searchsorted(total, share * total[-1]).clamp_max(len(values) - 1))]


def _thinned(gaussians: Gaussians) -> Gaussians:
    """Evenly chosen Gaussians, larger in proportion, so that a drawing of a large scene costs no more."""
    stride = -(-len(gaussians) // _PROBE_GAUSSIANS)
    few = gaussians.index(slice(None, None, stride))
    return replace(few, scales=few.scales * math.sqrt(stride), lod=None)


def _appeal(gaussians: Gaussians, cameras: Cameras, distance: float) -> Float[Tensor, " c"]:
    """Coverage times contrast of small drawings, less where something close blocks the view."""
    shrink = _PROBE / max(cameras.width, cameras.height)
    width, height = (max(2, round(side * shrink)) for side in (cameras.width, cameras.height))
    small = cameras.resized(width, height)
    scores = []
    for group in torch.arange(len(cameras)).split(_AZIMUTHS):
        drawn = render(gaussians, small.index(group), median_depth=True, near=1e-3 * distance)
        rgb, alpha, depth = drawn.rgb, drawn.alpha, drawn.median_depth
        assert depth is not None
        across = (rgb[:, :, 1:] - rgb[:, :, :-1]).abs().mean(-1) * torch.minimum(alpha[:, :, 1:], alpha[:, :, :-1])
        along = (rgb[:, 1:] - rgb[:, :-1]).abs().mean(-1) * torch.minimum(alpha[:, 1:], alpha[:, :-1])
        blocked = ((depth > 0) & (depth < _CLOSE * distance)).to(alpha).mean((1, 2))
        scores.append((across.mean((1, 2)) + along.mean((1, 2)) + _PLAIN * alpha.mean((1, 2))) * (1 - blocked))
    return torch.cat(scores)


def _rotation(axis: Float[Tensor, 3], angle: float) -> Float[Tensor, "3 3"]:
    """About a unit axis, right-handed; radians."""
    x, y, z = axis.tolist()
    generator = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=axis.dtype, device=axis.device)
    return torch.linalg.matrix_exp(angle * generator)
