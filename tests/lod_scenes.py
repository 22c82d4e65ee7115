"""Forests of random surfels for tests: every level densifies what a zoom on one point shows."""

from __future__ import annotations

import torch

from sr3d.cameras import Cameras
from sr3d.gaussians import Gaussians, Lod
from sr3d.lod import Forest
from sr3d.rendering import rgb_to_sh

SIZE = 32  # pixels per side of the frames that the forests are made for


def camera(
    factor: float = 1, *, size: int = SIZE, target: tuple[float, float, float] = (0.3, -0.2, 4.0), dolly: bool = False
) -> Cameras:
    """View from the origin along +z, magnified about the target by focal length or by moving towards it; float64."""
    K = torch.tensor([[[size, 0, size / 2], [0, size, size / 2], [0, 0, 1]]], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)[None]
    view = Cameras(world_to_cam=pose, K=K, width=size, height=size)
    point = torch.tensor(target, dtype=torch.float64)
    if dolly:
        pose[0, :3, 3] = -point * (1 - 1 / factor)
        return view
    u, v = view.project(point[None])[0][0, 0].tolist()
    return view.zoomed(float(factor), (u, v))


def surfels(
    centers: torch.Tensor, native: torch.Tensor, generator: torch.Generator, *, flat: bool = False, features: int = 0
) -> Gaussians:
    """Surfels about one footprint wide, facing the camera roughly; float64."""
    n = len(centers)

    def noise(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    scales = native[:, None] * (0.4 + 0.4 * noise(n, 3))
    scales[:, 2] = 0 if flat else scales[:, 2] * 0.1
    tilt = 0.0 if flat else 0.2
    quats = torch.cat([torch.ones(n, 1, dtype=torch.float64), tilt * (noise(n, 3) - 0.5)], dim=-1)
    return Gaussians(
        means=centers,
        quats=quats,
        scales=scales,
        opacities=0.5 + 0.5 * noise(n),
        sh=rgb_to_sh(noise(n, 3)),
        features=noise(n, features) if features else None,
        lod=Lod.roots(native),
    )


def plane_forest(
    levels: int,
    factor: int = 2,
    *,
    size: int = SIZE,
    features: int = 0,
    flat: bool = False,
    bumps: float = 0.0,
    seed: int = 0,
    target: tuple[float, float, float] = (0.3, -0.2, 4.0),
) -> Forest:
    """A wall at z = 4 with `levels` levels; level l densifies what the frame at magnification factorˡ⁻¹ shows.

    `bumps` moves centres along z, in footprints.
    """
    g = torch.Generator().manual_seed(seed)
    base = camera(size=size, target=target)
    rays = base.pixel_rays()[0].reshape(-1, 3) * target[2]
    native = torch.full((len(rays),), target[2] / size, dtype=torch.float64)

    def rough(centers: torch.Tensor, native: torch.Tensor) -> torch.Tensor:
        offset = bumps * native * (torch.rand(len(native), generator=g, dtype=torch.float64) - 0.5)
        return centers + offset[:, None] * torch.tensor([0.0, 0, 1], dtype=torch.float64)

    forest = Forest.from_gaussians(surfels(rough(rays, native), native, g, flat=flat, features=features))
    steps = (torch.arange(factor, dtype=torch.float64) + 0.5) / factor - 0.5
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2)
    for number in range(1, levels):
        level = forest.levels[-1]
        centers = level.gaussians.means.double() + level.origin
        pixels, _ = camera(factor ** (number - 1), size=size, target=target).project(centers)
        inside = ((pixels[0] > -2) & (pixels[0] < size + 2)).all(dim=-1).nonzero()[:, 0]
        made = level.lod.native[inside].double()
        offsets = torch.cat([grid, torch.zeros(len(grid), 1, dtype=torch.float64)], -1)
        new = (centers[inside][:, None] + made[:, None, None] * offsets).reshape(-1, 3)
        new[:, 2] = target[2]
        native = (made / factor).repeat_interleave(len(grid))
        children = surfels(rough(new, native), native, g, flat=flat, features=features)
        forest = forest.append(children, (forest.starts[-2] + inside).repeat_interleave(len(grid)))
    return forest
