"""The usual mistakes in poses, intrinsics and depth: what the data would be if each had been made."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from sr3d.scene import Scene

# Direction of each camera axis of a convention, in OpenCV's camera.
_WORDS = (("right", "left"), ("down", "up"), ("forward", "backward"))
_NAMES = {
    "right, down, forward": "OpenCV's",
    "right, up, backward": "OpenGL's",
    "right, up, forward": "Unity's",
    "left, up, forward": "PyTorch3D's",
    "forward, left, up": "ROS's body frame",
    "forward, right, up": "Unreal's",
    "forward, right, down": "aircraft's (north-east-down)",
}
_DEPTH_SCALES = (1000.0, 100.0, 10.0, 5.0, 4.0, 2.0, 3.90625)
SCALED = "depths are multiplied by"
_K_SCALES = (2.0, 3.0, 4.0, 1.5, 1296 / 640)


@dataclass(kw_only=True, frozen=True)
class Convention:
    """How a format writes cameras and depth, for the wording of a fix.

    Attributes:
        field: Name of a pose in the file.
        cam_to_world: Whether poses are camera-to-world.
        opengl: Whether camera axes are right, up, backward; else right, down, forward.
        unit: Name of the depth unit in the file.
    """

    field: str
    cam_to_world: bool
    opengl: bool
    unit: str


@dataclass(kw_only=True, frozen=True)
class Mistake:
    """A mistake that may have been made.

    Attributes:
        reading: How the data would have to be read, after "if".
        fix: What to change in the files.
        correct: Undoes the mistake.
    """

    reading: str
    fix: str
    correct: Callable[[Scene], Scene]


def usual_mistakes(scene: Scene, convention: Convention) -> list[Mistake]:
    """All mistakes that are tried, the more common of equivalent ones first.

    A mirrored or turned world moves no view against another one, so only camera axes are tried.
    """
    sign = float(torch.linalg.det(scene.posed().world_to_cam[:, :3, :3].double()).median())
    found = [*_pose_mistakes(convention, sign), *_position_mistakes(convention), *_lens_mistakes(scene)]
    if scene.depths is not None:
        found += [*_depth_mistakes(convention), ray_mistake()]
    return found


def _pose_mistakes(convention: Convention, sign: float) -> Iterator[Mistake]:
    """Inverse poses, and every assignment of camera axes; `sign` is the determinant of the rotations."""
    file_axes = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64)) if convention.opengl else torch.eye(4)
    file_axes = file_axes.double()
    # The file's own axes come first: of readings that agree equally, the simpler one is named.
    matrices = sorted(_signed_permutations(), key=lambda m: (not torch.equal(m, torch.eye(4).double()), -m.trace()))
    for axes in matrices:
        if not torch.equal(axes, torch.eye(4).double()):
            change = file_axes @ axes.T @ file_axes
            reading = f"{convention.field} has camera axes {directions(axes @ file_axes)}"
            # Camera-to-world has camera axes in columns, world-to-camera in rows.
            fix = f"change its {'columns' if convention.cam_to_world else 'rows'} to {_columns(change)}"
            yield Mistake(reading=reading, fix=fix + _handedness(axes, sign), correct=_posed(axes, False))
    for axes in matrices:
        change = axes.T @ file_axes
        other = "world-to-camera" if convention.cam_to_world else "camera-to-world"
        reading = f"{convention.field} is {other} with camera axes {directions(axes)}"
        fix = f"invert {convention.field}"
        if not torch.equal(change, torch.eye(4).double()):
            fix += f", then change its {'columns' if convention.cam_to_world else 'rows'} to {_columns(change)}"
        yield Mistake(reading=reading, fix=fix + _handedness(axes, sign), correct=_posed(axes, True))


def _posed(axes: Float64[Tensor, "4 4"], inverse: bool) -> Callable[[Scene], Scene]:
    def correct(scene: Scene) -> Scene:
        pose = scene.posed().world_to_cam.double()
        return _with_poses(scene, axes @ (torch.linalg.inv(pose) if inverse else pose))

    return correct


def _with_poses(scene: Scene, world_to_cam: Float64[Tensor, "v 4 4"]) -> Scene:
    return replace(scene, cameras=replace(scene.posed().to(torch.float64), world_to_cam=world_to_cam))


def _signed_permutations() -> list[Float64[Tensor, "4 4"]]:
    """The 48 matrices that exchange and turn round the camera's axes."""
    out = []
    for order, signs in itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)):
        matrix = torch.zeros(4, 4, dtype=torch.float64)
        matrix[3, 3] = 1
        for column, (row, sign) in enumerate(zip(order, signs)):
            matrix[row, column] = sign
        out.append(matrix)
    return out


def directions(axes: Float64[Tensor, "4 4"]) -> str:
    """Where x, y and z of a convention point, in words; `axes` takes its coordinates to OpenCV's."""
    rows = axes[:3, :3].abs().argmax(dim=0).tolist()
    text = ", ".join(_WORDS[row][int(axes[row, column] < 0)] for column, row in enumerate(rows))
    return f"{text} ({_NAMES[text]})" if text in _NAMES else text


def _columns(change: Float64[Tensor, "4 4"]) -> str:
    """The new columns (rows) of a matrix multiplied by a signed permutation, e.g. "1, -2, -3"."""
    rows = change[:3, :3].abs().argmax(dim=0).tolist()
    return ", ".join(f"{'-' if change[row, column] < 0 else ''}{row + 1}" for column, row in enumerate(rows))


def _handedness(axes: Float64[Tensor, "4 4"], sign: float) -> str:
    """Rotations that would mirror are right only if the world is turned into its mirror image as well."""
    return ", and mirror the world, for instance by negating every x in it" if torch.det(axes) * sign < 0 else ""


def _position_mistakes(convention: Convention) -> Iterator[Mistake]:
    """One coordinate of the position, or of the translation, with the wrong sign."""
    for k, axis in enumerate("xyz"):

        def position(scene: Scene, k: int = k) -> Scene:
            pose = torch.linalg.inv(scene.posed().world_to_cam.double())
            pose[:, k, 3] *= -1
            return _with_poses(scene, torch.linalg.inv(pose))

        def translation(scene: Scene, k: int = k) -> Scene:
            pose = scene.posed().world_to_cam.double().clone()
            pose[:, k, 3] *= -1
            return _with_poses(scene, pose)

        place, shift = f"{axis} of the camera position", f"{axis} of the world-to-camera translation"
        yield Mistake(reading=f"{place} has the other sign", fix=f"negate {place}", correct=position)
        yield Mistake(reading=f"{shift} has the other sign", fix=f"negate {shift}", correct=translation)


def _lens_mistakes(scene: Scene) -> Iterator[Mistake]:
    """K of another resolution, or of the image turned by 90 degrees."""
    cameras = scene.posed()
    K = cameras.K.double().median(dim=0).values
    factors = sorted(
        {*_K_SCALES, *(1 / f for f in _K_SCALES)}, key=lambda f: abs(f - cameras.width / float(2 * K[0, 2]))
    )
    for factor in factors:
        scale = torch.tensor([factor, factor, 1.0], dtype=torch.float64)
        text = f"K is multiplied by {factor:.4g}"
        yield Mistake(reading=text, fix=f"K belongs to another resolution: {text[5:]}", correct=_lens(scale[:, None]))
    # Scales that put the principal point into the middle.
    middle = torch.tensor([cameras.width / (2 * K[0, 2]), cameras.height / (2 * K[1, 2]), 1.0], dtype=torch.float64)
    if (middle - 1).abs().max() > 0.1 and (middle > 0).all() and middle.isfinite().all():
        text = f"K is scaled by {middle[0]:.4g} (fx, cx) and {middle[1]:.4g} (fy, cy)"
        yield Mistake(reading=text, fix=f"K belongs to another resolution: {text[5:]}", correct=_lens(middle[:, None]))
    turned = K[[1, 0, 2]][:, [1, 0, 2]]
    if (turned - K).abs().max() > 0.02 * K[0, 0]:
        fix = "exchange fx with fy and cx with cy"
        text = "K belongs to the image turned by 90 degrees"
        yield Mistake(reading=text, fix=fix, correct=_lens_turned)


def _lens(scale: Float64[Tensor, "3 1"]) -> Callable[[Scene], Scene]:
    def correct(scene: Scene) -> Scene:
        cameras = scene.posed().to(torch.float64)
        return replace(scene, cameras=replace(cameras, K=cameras.K * scale))

    return correct


def _lens_turned(scene: Scene) -> Scene:
    cameras = scene.posed()
    return replace(scene, cameras=replace(cameras, K=cameras.K[:, [1, 0, 2]][:, :, [1, 0, 2]]))


def _depth_mistakes(convention: Convention) -> Iterator[Mistake]:
    for factor in (*_DEPTH_SCALES, *(1 / f for f in _DEPTH_SCALES)):
        yield depth_mistake(factor, convention)


def depth_mistake(factor: float, convention: Convention) -> Mistake:
    """Depth in another unit than the positions: right if multiplied by `factor`."""

    def correct(scene: Scene) -> Scene:
        assert scene.depths is not None
        return replace(scene, depths=scene.depths * factor)

    text = f"{factor:.4g}" if factor >= 1 else f"1/{1 / factor:.4g}"
    fix = f"multiply {convention.unit} by {factor:.4g}, or divide all camera positions by it"
    return Mistake(reading=f"{SCALED} {text}", fix=fix, correct=correct)


def ray_mistake() -> Mistake:
    """Distance along the ray stored in place of z-depth."""

    def correct(scene: Scene) -> Scene:
        assert scene.depths is not None
        return replace(scene, depths=scene.depths / scene.posed().pixel_rays().norm(dim=-1))

    fix = "divide every depth by the length of its ray, sqrt(x² + y² + 1) with x = (u - cx) / fx, y = (v - cy) / fy"
    return Mistake(reading="depths are distances along the ray, not z-depths", fix=fix, correct=correct)
