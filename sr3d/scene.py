"""Posed (or unposed) views of one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError


@dataclass(kw_only=True)
class Scene:
    """V views of one place, all of one image size; leading axes [...] are a batch of such scenes (see `stack`).

    Attributes:
        images: RGB in [0, 1]. [..., V, H, W, 3] Inside the data loader also uint8, 0 to 255: see `unpacked`.
        cameras: V cameras [..., V], or None where poses are unknown.
        depths: z-depth in world units, 0 where unknown. [..., V, H, W]
        labels: Class or instance id of every pixel. [..., V, H, W]
        points: Sparse points, world frame. [P, 3]
        paths: Source file of every view; empty for synthetic scenes.
        name: Name shown in reports.
    """

    images: Float[Tensor, "*batch v h w 3"] | UInt8[Tensor, "*batch v h w 3"]
    cameras: Cameras | None = None
    depths: Float[Tensor, "*batch v h w"] | None = None
    labels: Int[Tensor, "*batch v h w"] | None = None
    points: Float[Tensor, "p 3"] | None = None
    paths: list[Path] = field(default_factory=list)
    name: str = "scene"

    def __len__(self) -> int:
        return self.images.shape[-4]

    def views(self, indices: Sequence[int]) -> Scene:
        """The scene with the chosen views only, in the given order.

        Raises:
            Sr3dError: An index is out of range.
        """
        chosen = list(indices)
        for i in chosen:
            if not -len(self) <= i < len(self):
                raise Sr3dError(self.name, "view index", i, f"0 to {len(self) - 1} ({len(self)} views)")
        return replace(
            self,
            images=self.images[..., chosen, :, :, :],
            cameras=None if self.cameras is None else self.cameras.index(chosen),
            depths=None if self.depths is None else self.depths[..., chosen, :, :],
            labels=None if self.labels is None else self.labels[..., chosen, :, :],
            paths=[self.paths[i] for i in chosen] if self.paths else [],
        )

    def to(self, device: torch.device | str) -> Scene:
        """Copy to `device`."""
        return replace(
            self,
            images=self.images.to(device),
            cameras=None if self.cameras is None else self.cameras.to(device),
            depths=None if self.depths is None else self.depths.to(device),
            labels=None if self.labels is None else self.labels.to(device),
            points=None if self.points is None else self.points.to(device),
        )

    def unpacked(self) -> Scene:
        """The scene with floating-point images; 8-bit ones take a quarter of the way from loader to device."""
        return self if self.images.is_floating_point() else replace(self, images=self.images.float().div_(255))

    @staticmethod
    def stack(scenes: Sequence[Scene]) -> Scene:
        """A batch [B, V, ...] of posed scenes of equal view count and size; sparse points are left out.

        Depths and labels are kept where every scene has them.

        Raises:
            Sr3dError: No scenes, or their image tensors differ in shape.
        """
        shapes = sorted({tuple(s.images.shape) for s in scenes})
        if len(shapes) != 1:
            raise Sr3dError("sr3d.Scene.stack", "images", f"shapes {shapes}", "one shape")
        cameras = [s.posed() for s in scenes]
        depths = [s.depths for s in scenes if s.depths is not None]
        labels = [s.labels for s in scenes if s.labels is not None]
        return Scene(
            images=_stacked([s.images for s in scenes]),
            cameras=replace(
                cameras[0],
                world_to_cam=_stacked([c.world_to_cam for c in cameras]),
                K=_stacked([c.K for c in cameras]),
            ),
            depths=_stacked(depths) if len(depths) == len(scenes) else None,
            labels=_stacked(labels) if len(labels) == len(scenes) else None,
            name=", ".join(s.name for s in scenes),
        )

    def posed(self) -> Cameras:
        """The cameras.

        Raises:
            Sr3dError: The scene has no poses.
        """
        if self.cameras is None:
            raise Sr3dError(self.name, "cameras", "images without poses", "poses (transforms.json or a COLMAP model)")
        return self.cameras


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """A new first axis; one tensor is not copied for it."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(list(tensors))
