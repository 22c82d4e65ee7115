"""Gaussians to pairs (view, Gaussian that it sees), on the device: gsplat's projection, and one in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sr3d.gaussians import Gaussians, Lod, quat_to_matrix
from sr3d.lod import fade, visibility
from sr3d.rendering import constants as const
from sr3d.rendering.job import Splats, Views
from sr3d.rendering.sh import sh_basis

_FAR_PIXELS = 1 << 30  # radii are int32


@dataclass(kw_only=True, frozen=True)
class Pairs:
    """P splats, each in one view; float32, ready for gsplat.

    Attributes:
        view: View of each, counted through all scenes. [P]
        row: Row of its Gaussian. [P]
        means2d: Pixels. [P, 2]
        conics: A, B, C of the density exp(−(½A·dx² + B·dx·dy + ½C·dy²)), 1/px². [P, 3]
        radii: Half-widths of its box, pixels, int32. [P, 2]
        opacity: Faded and compensated. [P]
        depth: z-depth, world units. [P]
        key: Sorts like the depth, by its bits. [P]
        rgb: Colour seen from the view. [P, 3]
    """

    view: Int[Tensor, " p"]
    row: Int[Tensor, " p"]
    means2d: Float[Tensor, "p 2"]
    conics: Float[Tensor, "p 3"]
    radii: Int[Tensor, "p 2"]
    opacity: Float[Tensor, " p"]
    depth: Float[Tensor, " p"]
    key: Float[Tensor, " p"]
    rgb: Float[Tensor, "p 3"]


@dataclass(kw_only=True, frozen=True)
class Poses:
    """V views in float64; the means that they look at are relative to some origin.

    Attributes:
        rotation: World to camera axes. [V, 3, 3]
        shift: The origin in the camera frame. [V, 3]
        eye: The origin minus the camera's position, world axes. [V, 3]
        K: Pixels. [V, 3, 3]
    """

    rotation: Float[Tensor, "v 3 3"]
    shift: Float[Tensor, "v 3"]
    eye: Float[Tensor, "v 3"]
    K: Float[Tensor, "v 3 3"]

    @property
    def focal(self) -> Float[Tensor, "v 2"]:
        """Focal lengths along x and y, pixels. [V, 2]"""
        return self.K.diagonal(dim1=1, dim2=2)[:, :2]

    @staticmethod
    def of(
        world_to_cam: Float[Tensor, "v 4 4"], K: Float[Tensor, "v 3 3"], origin: Float[Tensor, 3] | None = None
    ) -> Poses:
        """Views of means that are relative to `origin`, the world's if None."""
        pose = world_to_cam.double()
        rotation, shift = pose[:, :3, :3], pose[:, :3, 3]
        eye = (rotation * shift[:, :, None]).sum(dim=1)
        if origin is not None:
            shift, eye = shift + (rotation * origin).sum(dim=-1), eye + origin
        return Poses(rotation=rotation, shift=shift, eye=eye, K=K.double())


def project(splats: Splats, views: Views) -> Pairs:
    """Pairs of all scenes and views by gsplat's kernel, float32; differentiable.

    Scene by scene: gsplat 1.5's backward kernels sum gradients over a warp by camera and by Gaussian index only, so
    with batch axes a warp that spans two scenes credits the second one's pose and Gaussians to the first. The pairs of
    all scenes together are safe in the later stages, which know pairs only.
    """
    import gsplat

    means, quats, scales, opacities = (t.float() for t in (splats.means, splats.quats, splats.scales, splats.opacities))
    poses, K, count = views.world_to_cam.float(), views.K.float(), views.K.shape[1]
    scenes: list[tuple[Tensor, ...]] = []
    for b, (first, last) in enumerate(zip(splats.offsets, splats.offsets[1:])):
        if first == last:  # gsplat divides by N
            continue
        _, view, row, radii, means2d, depths, conics, compensations = gsplat.fully_fused_projection(
            means[first:last],
            None,
            quats[first:last],
            scales[first:last],
            poses[b].contiguous(),
            K[b].contiguous(),
            views.width,
            views.height,
            eps2d=const.EPS2D,
            near_plane=views.near,
            far_plane=const.FAR,
            packed=True,
            calc_compensations=views.antialias,
            opacities=opacities.detach()[first:last],  # the cross-fade only lowers them
        )
        scale = torch.ones_like(depths) if compensations is None else compensations.clamp_min(const.RATIO_MIN**0.5)
        scenes.append((view + b * count, row + first, radii, means2d, depths, conics, scale))
    if not scenes:
        return _none(means)
    view, row, radii, means2d, depths, conics, scale = (torch.cat(t) for t in zip(*scenes))
    opacity = opacities.index_select(0, row)
    if splats.lod is not None and views.fade is not None:
        focal = (K[..., 0, 0] * K[..., 1, 1]).sqrt().flatten()
        opacity = fade(opacity, visibility(splats.lod.index(row), depths / focal[view]), views.fade) * scale
        at = (opacity >= const.ALPHA_MIN).nonzero()[:, 0]
        view, row, radii = view[at], row[at], radii[at]
        means2d, depths, conics, opacity = (t.index_select(0, at) for t in (means2d, depths, conics, opacity))
    else:
        opacity = opacity * scale
    pose = poses.flatten(0, 1)
    eye = (pose[:, :3, :3] * pose[:, :3, 3:]).sum(dim=1)
    direction = means.index_select(0, row) + eye.index_select(0, view)
    return Pairs(
        view=view, row=row, means2d=means2d, conics=conics, radii=radii, opacity=opacity, depth=depths, key=depths,
        rgb=_colors(splats, row, direction),
    )  # fmt: skip


def project_deep(splats: Splats, views: Views) -> Pairs:
    """Pairs of all scenes and views, positions in float64: for poses, K or means that are; differentiable."""
    device, count = splats.means.device, views.K.shape[1]
    poses = Poses.of(views.world_to_cam.flatten(0, 1), views.K.flatten(0, 1))
    view, row = [], []
    for b, (first, last) in enumerate(zip(splats.offsets, splats.offsets[1:])):
        here = torch.arange(b * count, (b + 1) * count, device=device)
        view.append(here.repeat_interleave(last - first, output_size=count * (last - first)))
        row.append(torch.arange(first, last, device=device).repeat(count))
    rows = torch.cat(row)
    lod = None if splats.lod is None else splats.lod.index(rows)
    pairs, depths = project_exactly(splats, lod, torch.cat(view), rows, poses, views)
    return ranked([pairs], depths)


def project_exactly(
    gaussians: Splats | Gaussians,
    lod: Lod | None,
    view: Int[Tensor, " q"],
    row: Int[Tensor, " q"],
    poses: Poses,
    views: Views,
) -> tuple[Pairs, Float[Tensor, " p"]]:
    """Project candidate pairs with the formulas of `sr3d.rendering.reference.project`; differentiable.

    A position reaches the image in float64: a pixel of a focal length of 10⁹ is far below what float32 resolves at
    the Gaussian's distance. All that is relative to a Gaussian is float32.

    Args:
        gaussians: Means relative to the origin of `poses`. [N]
        lod: Footprints of the candidates. [Q]
        view: Index into `poses`. [Q]
        row: Index into `gaussians`. [Q]
        poses: V views.
        views: How to draw.

    Returns:
        The candidates that leave a mark, keys not set yet, and their z-depths in float64. [P]
    """
    g = gaussians
    # Most candidates end here: nothing but mean, opacity and footprints has been read of them.
    with torch.no_grad():
        z = (poses.rotation[view, 2] * g.means[row].double()).sum(dim=-1) + poses.shift[view, 2]
        opacity = _faded(g.opacities[row].float(), z, view, lod, poses, views)
        at = ((z > views.near) & (z < const.FAR) & (opacity >= const.ALPHA_MIN)).nonzero()[:, 0]
        view, row, lod = view[at], row[at], None if lod is None else lod.index(at)
        *splats, variances, det = _splat(g, lod, view, row, poses, views)
        means2d, opacity = splats[0], splats[2]
        extent = (2 * (opacity / const.ALPHA_MIN).log()).clamp_min(0).sqrt().clamp_max(const.SIGMA_EXTENT)
        reach = extent[:, None] * variances.sqrt()
        # Pixel centres lie at +0.5.
        begin, end = (means2d - reach - 0.5).ceil().clamp_min(0), (means2d + reach + 0.5).floor()
        inside = (begin[:, 0] < end[:, 0].clamp_max(views.width)) & (begin[:, 1] < end[:, 1].clamp_max(views.height))
        at = (inside & (opacity >= const.ALPHA_MIN) & (det < torch.inf)).nonzero()[:, 0]
        view, row, radii = view[at], row[at], reach[at].ceil().clamp(1, _FAR_PIXELS).int()
    if torch.is_grad_enabled():
        # Once more, for those that remain: the others neither take memory nor put infinities into gradients.
        means2d, conics, opacity, z = _splat(g, None if lod is None else lod.index(at), view, row, poses, views)[:4]
    else:
        means2d, conics, opacity, z = (t[at] for t in splats)
    direction = g.means.index_select(0, row).double() + poses.eye.index_select(0, view)
    depth = z.float()
    pairs = Pairs(
        view=view, row=row, means2d=means2d, conics=conics, radii=radii, opacity=opacity, depth=depth, key=depth,
        rgb=_colors(g, row, direction),
    )  # fmt: skip
    return pairs, z.detach()


def _splat(
    g: Splats | Gaussians, lod: Lod | None, view: Tensor, row: Tensor, poses: Poses, views: Views
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Centres, conics, opacities, float64 z-depths, variances along x and y [P, 2], determinants of pairs."""
    focal, center = poses.focal, poses.K[:, :2, 2]
    size = torch.tensor([views.width, views.height], dtype=torch.float64).to(focal.device, non_blocking=True)
    margin = const.EWA_MARGIN * 0.5 * size
    low, high = -(center + margin) / focal, (size - center + margin) / focal
    rotation = poses.rotation.index_select(0, view)
    cam = (rotation * g.means.index_select(0, row).double()[:, None]).sum(dim=-1) + poses.shift.index_select(0, view)
    z = cam[:, 2]
    slope, scale = cam[:, :2] / z[:, None], (focal[view] / z[:, None]).float()
    means2d = (focal[view] * slope + center[view]).float()
    bent = torch.minimum(torch.maximum(slope, low[view]), high[view]).float()
    axes = quat_to_matrix(g.quats.index_select(0, row).float()) * g.scales.index_select(0, row).float()[:, None]
    axes = (rotation.float()[..., None] * axes[:, None]).sum(dim=2)
    # Rows of U = J·R·Rq·S, so that the 2D covariance is U·Uᵀ and its determinant |U₀ × U₁|², free of cancellation.
    u0, u1 = (scale[..., None] * (axes[:, :2] - bent[..., None] * axes[:, 2:])).unbind(dim=1)
    sharp = torch.linalg.cross(u0, u1).square().sum(dim=-1)
    xx, xy, yy = (u0 * u0).sum(dim=-1), (u0 * u1).sum(dim=-1), (u1 * u1).sum(dim=-1)
    det = sharp + const.EPS2D * (xx + yy) + const.EPS2D**2
    xx, yy = xx + const.EPS2D, yy + const.EPS2D
    opacity = _faded(g.opacities.index_select(0, row).float(), z, view, lod, poses, views)
    if views.antialias:
        opacity = opacity * (sharp / det).clamp_min(const.RATIO_MIN).sqrt()
    conics = torch.stack([yy, -xy, xx], dim=-1) / det[:, None]
    return means2d, conics, opacity, z, torch.stack([xx, yy], dim=-1), det


def _faded(opacity: Tensor, z: Tensor, view: Tensor, lod: Lod | None, poses: Poses, views: Views) -> Tensor:
    """Opacity of pairs at z-depths z after the cross-fade. [P]"""
    if lod is None or views.fade is None:
        return opacity
    one_pixel = 1 / poses.focal.prod(dim=-1).sqrt().float()
    return fade(opacity, visibility(lod, z.float() * one_pixel[view]), views.fade)


def ranked(parts: list[Pairs], depths: Float[Tensor, " p"]) -> Pairs:
    """The parts end to end, sorted by float64 depths [P], which float32 keys would not tell apart.

    gsplat sorts keys by their bits: the ranks, as int32, read as float32.
    """
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])}
    rank = torch.empty(len(depths), dtype=torch.int32, device=depths.device)
    rank[depths.argsort(stable=True)] = torch.arange(len(depths), dtype=torch.int32, device=depths.device)
    return Pairs(**{**joined, "key": rank.view(torch.float32)})


def _colors(gaussians: Splats | Gaussians, row: Tensor, direction: Tensor) -> Tensor:
    """Colour of Gaussians seen along directions of any length. [P, 3]"""
    sh = gaussians.sh.index_select(0, row).float()
    basis = sh_basis(torch.nn.functional.normalize(direction, dim=-1).float(), int(sh.shape[1] ** 0.5) - 1)
    # No matrix products here or above: training may have allowed TF32 or bfloat16 for them.
    return (0.5 + (basis[..., None] * sh).sum(dim=1)).clamp_min(0)


def _none(like: Tensor) -> Pairs:
    """No pairs."""
    rows, empty = torch.empty(0, dtype=torch.int64, device=like.device), like.new_empty(0)
    return Pairs(
        view=rows, row=rows, means2d=empty.reshape(0, 2), conics=empty.reshape(0, 3), radii=rows.int().reshape(0, 2),
        opacity=empty, depth=empty, key=empty, rgb=empty.reshape(0, 3),
    )  # fmt: skip
