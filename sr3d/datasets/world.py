"""The procedural world: seeded scenes with exact depth, labels and normals, at any resolution and distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.datasets.layout import Layout, make_room, make_table
from sr3d.datasets.raycast import (
    AXES,
    BODY_COLUMNS,
    BOX,
    CENTER,
    CYLINDER,
    HALF,
    RADIUS,
    ROOM,
    SPHERE,
    cast_geometry,
    cast_images,
)
from sr3d.datasets.textures import glyphs, photographs
from sr3d.errors import Sr3dError
from sr3d.scene import Scene
from sr3d.threads import share

Kind = Literal["room", "table"]
_PROBE = 32


@dataclass(kw_only=True)
class World:
    """A closed room with things in it; lit by lamps that cast shadows, the same colour from every side.

    World frame: metres, z up, the floor at z = 0, the room's middle at x = y = 0.

    Attributes:
        kind: A furnished room (3-6 m), or a table-top (1-2 m) in a small one.
        seed: What it was made from.
        bodies: Kind, centre (3), axes (9), half sizes (3), bounding radius of every body; the room first. [P, 17]
        materials: First texture of every body. [P]
        textures: Rows of `sr3d.datasets.textures.Column`. [S, 15]
        classes: Label of every texture, an index into `sr3d.datasets.layout.CLASSES`. [S]
        lights: Position, colour, distance at which the strength halves. [L, 7]
        ambient: Light that comes from everywhere.
        focus: Points worth looking at. [F, 3]
    """

    kind: Kind
    seed: int
    bodies: npt.NDArray[np.float64]
    materials: npt.NDArray[np.int64]
    textures: npt.NDArray[np.float64]
    classes: npt.NDArray[np.int64]
    lights: npt.NDArray[np.float64]
    ambient: float
    focus: npt.NDArray[np.float64]

    @staticmethod
    def generate(seed: int, kind: Kind | None = None) -> World:
        """The world of a seed.

        Args:
            seed: ≥ 0; the same seed and kind give the same world.
            kind: "room" or "table"; drawn from the seed if None.

        Raises:
            Sr3dError: Negative seed or unknown kind.
        """
        if seed < 0:
            raise Sr3dError("sr3d.datasets.World.generate", "seed", seed, "an integer of 0 or more")
        if kind not in (None, "room", "table"):
            raise Sr3dError("sr3d.datasets.World.generate", "kind", repr(kind), "'room', 'table' or None")
        rng = np.random.default_rng([seed, 7])
        drawn: Kind = "room" if rng.random() < 0.6 else "table"
        chosen = kind or drawn
        layout, focus = make_room(rng) if chosen == "room" else make_table(rng)
        return World(
            kind=chosen,
            seed=seed,
            bodies=_bodies(layout),
            materials=np.array(layout.materials, np.int64),
            textures=np.stack(layout.textures),
            classes=np.array(layout.classes, np.int64),
            lights=np.array(layout.lights, np.float64),
            ambient=float(rng.uniform(0.45, 0.6)),
            focus=np.array(focus, np.float64),
        )

    def render(self, cameras: Cameras, samples: int = 4, seed: int = 0) -> Scene:
        """Photograph the world.

        Args:
            cameras: V views inside the room; any image size and any zoom.
            samples: Rays per pixel; colours are their mean.
            seed: Of the rays' jitter inside pixels.

        Returns:
            Images [V, H, W, 3], exact z-depths at pixel centres in metres [V, H, W], labels [V, H, W].

        Raises:
            Sr3dError: A camera is outside the room or inside a body, or `samples` is below 1.
        """
        if samples < 1:
            raise Sr3dError("sr3d.datasets.World.render", "samples", samples, "1 or more")
        to_world, lens = self._rays(cameras)
        fields, shares = glyphs()
        shape = (len(to_world), cameras.height, cameras.width)
        images = np.empty((*shape, 3), np.float32)
        share(
            cast_images,
            shape[0] * shape[1],
            to_world,
            lens,
            samples,
            seed,
            self.bodies,
            self.materials,
            self.textures,
            self.lights,
            self.ambient,
            (photographs(), fields, shares),
            images,
        )
        depths, labels, _, _ = self._geometry(cameras)
        return Scene(
            images=torch.from_numpy(images),
            cameras=cameras,
            depths=torch.from_numpy(depths).float(),
            labels=torch.from_numpy(labels),
            name=f"procedural-{self.kind}-{self.seed}",
        )

    def geometry(self, cameras: Cameras) -> tuple[Float[Tensor, "v h w"], Float[Tensor, "v h w 3"]]:
        """Exact z-depths at pixel centres in metres [V, H, W] and outward normals, world frame, both float64."""
        depths, _, _, normals = self._geometry(cameras)
        return torch.from_numpy(depths).double(), torch.from_numpy(normals).double()

    def normals(self, cameras: Cameras) -> Float[Tensor, "v h w 3"]:
        """Unit outward surface normals at pixel centres, world frame. [V, H, W, 3]"""
        return torch.from_numpy(self._geometry(cameras)[3])

    def sample_cameras(
        self, views: int, width: int, height: int, *, baseline: float | None = None, seed: int = 0
    ) -> Cameras:
        """A short smooth path of cameras that look at the same things; the first and the last see most of it all.

        Args:
            views: Cameras on the path, in order.
            width: Pixels.
            height: Pixels.
            baseline: Distance of the first from the last camera, as a share of the mean depth that they see; drawn
                from 0.05-0.12 if None.
            seed: Which path.

        Returns:
            V cameras with about 60 degrees of view (along the longer side) and a centred principal point.

        Raises:
            Sr3dError: Fewer than one view, or a baseline that is not positive.
        """
        if views < 1:
            raise Sr3dError("sr3d.datasets.World.sample_cameras", "views", views, "1 or more")
        if baseline is not None and not baseline > 0:
            raise Sr3dError("sr3d.datasets.World.sample_cameras", "baseline", baseline, "a positive share of the depth")
        rng = np.random.default_rng([self.seed, 11, seed])
        focal = 0.5 * max(width, height) / np.tan(np.radians(rng.uniform(55, 65)) / 2)
        K = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
        share = baseline or rng.uniform(0.05, 0.12)
        best, best_score = None, -np.inf
        for _ in range(40):
            eye, target = self._viewpoint(rng)
            path = self._path(rng, views, eye, target, share, K, width, height)
            score = self._score(path)
            if score > best_score:
                best, best_score = path, score
            if score >= 1:
                break
        return cast(Cameras, best)

    def _viewpoint(self, rng: np.random.Generator) -> tuple[npt.NDArray, npt.NDArray]:
        """A place to stand and a point to look at."""
        room = self.bodies[0, HALF:RADIUS]
        target = self.focus[rng.integers(len(self.focus))] + rng.normal(0, 0.05, 3)
        near, far = (1.3, 3.2) if self.kind == "room" else (0.7, 1.25)
        for _ in range(60):
            azimuth, distance = rng.uniform(0, 2 * np.pi), rng.uniform(near, far)
            elevation = rng.uniform(0.1, 0.55) if self.kind == "room" else rng.uniform(0.3, 0.9)
            flat = np.cos(elevation)
            eye = target + distance * np.array([np.cos(azimuth) * flat, np.sin(azimuth) * flat, np.sin(elevation)])
            if (np.abs(eye[:2]) < room[:2] - 0.25).all() and 0.4 < eye[2] < 2 * room[2] - 0.25 and self._free(eye):
                return eye, target
            near *= 0.95
        # Above all furniture.
        return np.array([0.0, 0.0, 2 * room[2] - 0.25]), target

    def _path(
        self,
        rng: np.random.Generator,
        views: int,
        eye: npt.NDArray,
        target: npt.NDArray,
        share: float,
        K: npt.NDArray,
        width: int,
        height: int,
    ) -> Cameras:
        """Cameras along a line through `eye`, across the line of sight, slightly bent and jittered between its ends."""
        middle = _cameras(_look_at(eye[None], target[None]), K, width, height)
        depth = float(self._geometry(_small(middle))[0].mean())
        right, down, forward = middle.world_to_cam[0, :3, :3].double().numpy()
        across = right + rng.normal(0, 0.25) * down + rng.normal(0, 0.15) * forward
        across *= share * depth / np.linalg.norm(across)
        t = np.linspace(-0.5, 0.5, views) if views > 1 else np.zeros(1)
        inner = (np.abs(t) < 0.5)[:, None]
        places = eye + t[:, None] * across + inner * rng.normal(0, 0.06 * share * depth, (views, 3))
        swing = rng.normal(0, 0.03 * depth, 3) * t[:, None] + inner * rng.normal(0, 0.004 * depth, (views, 3))
        return _cameras(_look_at(places, target + swing), K, width, height)

    def _score(self, cameras: Cameras) -> float:
        """1 or more for a good view: several things, nothing too close, not mostly walls; less for a worse one."""
        small = _small(cameras.index([0, len(cameras) - 1]))
        try:
            depths, labels, numbers, _ = self._geometry(small)
        except Sr3dError:
            return -10.0
        bare = float((labels <= 3).mean())
        things = min(len(np.unique(n)) for n in numbers)
        closest = float(np.quantile(depths, 0.02) / np.median(depths))
        return min(1.0, 1.6 - bare) + min(0.0, things - 6) + min(0.0, 4 * (closest - 0.25))

    def _geometry(self, cameras: Cameras) -> tuple[npt.NDArray, npt.NDArray, npt.NDArray, npt.NDArray]:
        """Depths, labels, body numbers and normals at pixel centres."""
        to_world, lens = self._rays(cameras)
        shape = (len(to_world), cameras.height, cameras.width)
        depths, normals = np.empty(shape), np.empty((*shape, 3), np.float32)
        labels, numbers = np.empty(shape, np.int64), np.empty(shape, np.int64)
        scene = (self.bodies, self.materials, self.classes)
        share(cast_geometry, shape[0] * shape[1], to_world, lens, *scene, depths, labels, numbers, normals)
        return depths, labels, numbers, normals

    def _rays(self, cameras: Cameras) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Float64 camera-to-world poses [V, 4, 4] and inverse intrinsics [V, 3, 3]; all cameras stand in free air."""
        double = cameras.to("cpu").to(torch.float64)
        to_world = double.cam_to_world.numpy()
        for i, eye in enumerate(to_world[:, :3, 3]):
            if not self._free(eye):
                expected = "a place inside the room and outside every body"
                raise Sr3dError("sr3d.datasets.World", f"position of camera {i}", eye.round(3).tolist(), expected)
        return np.ascontiguousarray(to_world), np.ascontiguousarray(torch.linalg.inv(double.K).numpy())

    def _free(self, point: npt.NDArray) -> bool:
        """Whether a point is in the room and in no body (bounded by its box)."""
        axes, halves = self.bodies[:, AXES:HALF].reshape(-1, 3, 3), self.bodies[:, HALF:RADIUS]
        local = np.einsum("pij,pi->pj", axes, point - self.bodies[:, CENTER:AXES])
        inside = (np.abs(local) < halves + 1e-3 * np.where(np.arange(len(halves)) > 0, 1, -1)[:, None]).all(axis=1)
        return bool(inside[0] and not inside[1:].any())


def _bodies(layout: Layout) -> npt.NDArray[np.float64]:
    out = np.zeros((len(layout.kinds), BODY_COLUMNS))
    out[:, 0], out[:, CENTER:AXES], out[:, HALF:RADIUS] = layout.kinds, layout.centers, layout.halves
    out[:, AXES:HALF] = np.stack(layout.rotations).reshape(-1, 9)
    spread = {ROOM: (1, 1, 1), BOX: (1, 1, 1), SPHERE: (1, 0, 0), CYLINDER: (1, 0, 1)}
    out[:, RADIUS] = [np.linalg.norm(np.multiply(h, spread[k])) for k, h in zip(layout.kinds, layout.halves)]
    return out


def _look_at(eyes: npt.NDArray, targets: npt.NDArray) -> npt.NDArray[np.float64]:
    """World-to-camera matrices, OpenCV axes, z up in the picture. [V, 4, 4]"""
    forward = targets - eyes
    forward = forward / np.linalg.norm(forward, axis=-1, keepdims=True)
    right = np.cross(forward, np.array([0.0, 0.0, 1.0]))
    right = right / np.linalg.norm(right, axis=-1, keepdims=True)
    rotation = np.stack([right, np.cross(forward, right), forward], axis=-2)
    out = np.tile(np.eye(4), (len(eyes), 1, 1))
    out[:, :3, :3] = rotation
    out[:, :3, 3] = -np.einsum("vij,vj->vi", rotation, eyes)
    return out


def _cameras(world_to_cam: npt.NDArray, K: npt.NDArray, width: int, height: int) -> Cameras:
    return Cameras(
        world_to_cam=torch.from_numpy(world_to_cam).float(),
        K=torch.from_numpy(np.tile(K, (len(world_to_cam), 1, 1))).float(),
        width=width,
        height=height,
    )


def _small(cameras: Cameras) -> Cameras:
    return cameras.resized(_PROBE, _PROBE)
