"""Pinhole cameras in the OpenCV frame: +x right, +y down, +z forward, pixel centres at +0.5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.errors import Sr3dError


@dataclass(kw_only=True)
class Cameras:
    """C pinhole cameras that share one image size.

    Attributes:
        world_to_cam: Rigid world-to-camera matrices, OpenCV axes, translation in world units. [..., C, 4, 4]
        K: Intrinsics in pixels of `width` × `height`; the principal point may be off-centre. [..., C, 3, 3]
        width: Image width in pixels.
        height: Image height in pixels.
    """

    world_to_cam: Float[Tensor, "*batch c 4 4"]
    K: Float[Tensor, "*batch c 3 3"]
    width: int
    height: int

    def __len__(self) -> int:
        return self.K.shape[-3]

    def to(self, device: torch.device | str | torch.dtype) -> Cameras:
        """Copy to a device, or to a floating-point type."""
        return replace(self, world_to_cam=self.world_to_cam.to(device), K=self.K.to(device))

    def index(self, index: Tensor | slice | Sequence[int]) -> Cameras:
        """Select along the camera axis; the axis stays (use a list or a slice, not an int)."""
        chosen = index if isinstance(index, slice | Tensor) else list(index)
        return replace(self, world_to_cam=self.world_to_cam[..., chosen, :, :], K=self.K[..., chosen, :, :])

    def __getitem__(self, index: int | slice | Sequence[int]) -> Cameras:
        """Select along the first axis: a batch element where there is a batch axis, else cameras.

        An int drops a batch axis, but keeps the camera axis (length 1) where there is no batch.
        """
        if self.K.ndim == 3:
            return self.index([index] if isinstance(index, int) else index)
        return replace(self, world_to_cam=self.world_to_cam[index], K=self.K[index])

    @staticmethod
    def cat(parts: Sequence[Cameras]) -> Cameras:
        """Join along the camera axis.

        Raises:
            Sr3dError: The image sizes differ.
        """
        sizes = sorted({(p.width, p.height) for p in parts})
        if len(sizes) != 1:
            raise Sr3dError("sr3d.Cameras.cat", "width, height", sizes, "one image size")
        return replace(
            parts[0],
            world_to_cam=torch.cat([p.world_to_cam for p in parts], dim=-3),
            K=torch.cat([p.K for p in parts], dim=-3),
        )

    @property
    def cam_to_world(self) -> Float[Tensor, "*batch c 4 4"]:
        """Inverse of the rigid `world_to_cam`, OpenCV axes. [..., C, 4, 4]"""
        rotation = self.world_to_cam[..., :3, :3].transpose(-1, -2)
        out = torch.zeros_like(self.world_to_cam)
        out[..., :3, :3] = rotation
        out[..., :3, 3] = -(rotation @ self.world_to_cam[..., :3, 3:])[..., 0]
        out[..., 3, 3] = 1
        return out

    @property
    def positions(self) -> Float[Tensor, "*batch c 3"]:
        """Camera centres in the world frame. [..., C, 3]"""
        return self.cam_to_world[..., :3, 3]

    @property
    def focal(self) -> Float[Tensor, "*batch c"]:
        """sqrt(fx·fy) in pixels. [..., C]"""
        return (self.K[..., 0, 0] * self.K[..., 1, 1]).sqrt()

    def zoomed(self, factor: float, center: tuple[float, float] | Float[Tensor, "c 2"] | None = None) -> Cameras:
        """Longer focal length, same image size: K scaled by `factor` about a pixel that keeps its place.

        Args:
            factor: > 0; 2 shows the half of the frame around `center` at twice the size.
            center: Fixed pixel (u, v), one for all cameras or [C, 2]; the middle of the image if None.

        Raises:
            Sr3dError: `factor` is not positive and finite.
        """
        if not 0 < factor < float("inf"):
            raise Sr3dError("sr3d.Cameras.zoomed", "factor", factor, "a positive finite number")
        middle = (self.width / 2, self.height / 2) if center is None else center
        fixed = torch.as_tensor(middle, dtype=self.K.dtype, device=self.K.device)
        K = self.K.clone()
        K[..., :2, :2] = K[..., :2, :2] * factor
        K[..., :2, 2] = fixed + factor * (self.K[..., :2, 2] - fixed)
        return replace(self, K=K)

    def resized(self, width: int, height: int) -> Cameras:
        """The same frustum sampled by `width` × `height` pixels: K scaled per axis."""
        scale = torch.tensor([width / self.width, height / self.height, 1.0], dtype=self.K.dtype, device=self.K.device)
        return replace(self, K=self.K * scale[:, None], width=width, height=height)

    def cropped(self, left: int, top: int, width: int, height: int) -> Cameras:
        """The window of `width` × `height` pixels whose first pixel is (left, top)."""
        shift = torch.zeros_like(self.K)
        shift[..., 0, 2], shift[..., 1, 2] = left, top
        return replace(self, K=self.K - shift, width=width, height=height)

    def project(
        self, points: Float[Tensor, "*batch n 3"]
    ) -> tuple[Float[Tensor, "*batch c n 2"], Float[Tensor, "*batch c n"]]:
        """Project world points.

        Args:
            points: World frame. [..., N, 3]

        Returns:
            Pixel positions (pixel centres at +0.5) [..., C, N, 2] and z-depths in world units [..., C, N]. Pixels of
            points on or behind the camera plane are meaningless: test depth > 0.
        """
        rotation, shift = self.world_to_cam[..., :3, :3], self.world_to_cam[..., :3, 3]
        cam = torch.einsum("...cij,...nj->...cni", rotation, points) + shift[..., None, :]
        depth = cam[..., 2]
        safe = torch.where(depth.abs() < 1e-12, torch.full_like(depth, 1e-12), depth)
        homogeneous = torch.einsum("...cij,...cnj->...cni", self.K[..., :2, :], cam / safe[..., None])
        return homogeneous, depth

    def pixel_rays(self) -> Float[Tensor, "*batch c h w 3"]:
        """Directions in the camera frame, with z = 1, through every pixel centre. [..., C, H, W, 3]"""
        dtype, device = self.K.dtype, self.K.device
        v, u = torch.meshgrid(
            torch.arange(self.height, dtype=dtype, device=device) + 0.5,
            torch.arange(self.width, dtype=dtype, device=device) + 0.5,
            indexing="ij",
        )
        pixels = torch.stack([u, v, torch.ones_like(u)], dim=-1)
        return torch.einsum("...cij,hwj->...chwi", torch.linalg.inv(self.K), pixels)

    def world_rays(self) -> tuple[Float[Tensor, "*batch c 3"], Float[Tensor, "*batch c h w 3"]]:
        """Origins [..., C, 3] and unit directions [..., C, H, W, 3] of every pixel's ray, world frame."""
        to_world = self.cam_to_world
        rays = torch.einsum("...cij,...chwj->...chwi", to_world[..., :3, :3], self.pixel_rays())
        return to_world[..., :3, 3], torch.nn.functional.normalize(rays, dim=-1)

    def unproject(self, depth: Float[Tensor, "*batch c h w"]) -> Float[Tensor, "*batch c h w 3"]:
        """World points of a z-depth map given at every pixel centre. [..., C, H, W] → [..., C, H, W, 3]

        Raises:
            Sr3dError: The map's size is not `height` × `width`.
        """
        if tuple(depth.shape[-2:]) != (self.height, self.width):
            raise Sr3dError("sr3d.Cameras.unproject", "depth", tuple(depth.shape[-2:]), (self.height, self.width))
        cam = self.pixel_rays() * depth[..., None]
        to_world = self.cam_to_world
        return torch.einsum("...cij,...chwj->...chwi", to_world[..., :3, :3], cam) + to_world[..., None, None, :3, 3]

    def footprint(self, depth: Float[Tensor, "*batch c n"]) -> Float[Tensor, "*batch c n"]:
        """World units that one pixel covers at z-depth: depth / sqrt(fx·fy) (WonderZoom Eq. 1). [..., C, N]"""
        return depth / self.focal[..., None]

    def check(self, source: str | Path, names: Sequence[str] | None = None) -> None:
        """Raise for the first camera that cannot be right.

        Args:
            source: File or folder named in the error.
            names: One name per camera (file names), used in the error instead of an index.

        Raises:
            Sr3dError: A pose is not finite or not a rotation, or K is not finite, not in pixels, or has fx, fy ≤ 0.
        """
        poses, Ks = self.world_to_cam.reshape(-1, 4, 4), self.K.reshape(-1, 3, 3)
        for i in _suspects(poses, Ks, self.width, self.height):
            name = names[i] if names else f"camera {i}"
            _check_pose(poses[i], source, name)
            _check_intrinsics(Ks[i], self.width, self.height, source, name)


def _suspects(poses: Float[Tensor, "c 4 4"], Ks: Float[Tensor, "c 3 3"], width: int, height: int) -> list[int]:
    """Cameras that may fail a check; all are tested at once, since clips of hundreds are read again and again."""
    # In numpy: its calls on small arrays cost a fifth of torch's.
    pose, K = poses.detach().cpu().double().numpy(), Ks.detach().cpu().double().numpy()
    R = pose[:, :3, :3]
    off = np.abs(R @ R.transpose(0, 2, 1) - np.eye(3)).max((1, 2))
    turned = (np.cross(R[:, 0], R[:, 1]) * R[:, 2]).sum(1)
    last = np.abs(pose[:, 3] - [0, 0, 0, 1]).max(1)
    # Written so that NaN fails.
    good = (off <= 1e-3) & (turned > 0) & (last <= 1e-5) & np.isfinite(pose).all((1, 2)) & np.isfinite(K).all((1, 2))
    good &= (K[:, 0, 0] >= 0.1 * width) & (K[:, 1, 1] >= 0.1 * height)
    return np.flatnonzero(~good).tolist()


def _check_pose(pose: Tensor, source: str | Path, name: str) -> None:
    if not torch.isfinite(pose).all():
        raise Sr3dError(source, f"pose of {name}", "NaN or inf", "a finite 4x4 matrix")
    rotation = pose[:3, :3].double()
    error = (rotation @ rotation.T - torch.eye(3, dtype=torch.float64, device=pose.device)).abs().max().item()
    if error > 1e-3 or torch.linalg.det(rotation) < 0:
        found = f"R·Rᵀ off identity by {error:.3g}, det {torch.linalg.det(rotation).item():.3g}"
        raise Sr3dError(source, f"pose of {name}", found, "a rotation (orthonormal, determinant +1)")
    last = pose[3].tolist()
    if max(abs(a - b) for a, b in zip(last, [0, 0, 0, 1])) > 1e-5:
        raise Sr3dError(source, f"pose of {name}", f"last row {last}", "0 0 0 1")


def _check_intrinsics(K: Tensor, width: int, height: int, source: str | Path, name: str) -> None:
    fx, fy, cx, cy = K[0, 0].item(), K[1, 1].item(), K[0, 2].item(), K[1, 2].item()
    if not torch.isfinite(K).all() or fx <= 0 or fy <= 0:
        raise Sr3dError(source, f"K of {name}", f"fx {fx:g}, fy {fy:g}, cx {cx:g}, cy {cy:g}", "finite, fx and fy > 0")
    # A lens with a focal length under a tenth of the image width sees 157 degrees: K was divided by the image size.
    if fx < 0.1 * width and fy < 0.1 * height and abs(cx) <= 2 and abs(cy) <= 2:
        expected = f"pixels of a {width}x{height} image (multiply fx, cx by {width} and fy, cy by {height})"
        raise Sr3dError(source, f"K of {name}", f"normalised units (fx {fx:g}, cx {cx:g})", expected)
