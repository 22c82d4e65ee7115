"""Checks of single values: poses, intrinsics, images, depth maps, labels."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64
from PIL import Image

from sr3d.inspection.report import Report, some, span
from sr3d.inspection.shots import Depth, Shot
from sr3d.io.frames import Frame
from sr3d.io.images import image_size

_ORIENTATION = 274  # EXIF
_MOST_COUNTS = 65535
_FARTHEST = 1e6  # world units; what is packed must be nearer


def check_poses(report: Report, names: Sequence[str], poses: Float64[np.ndarray, "v 4 4"], field: str) -> list[int]:
    """Report poses that are no rigid motions, and return the indices of those that can be compared.

    A pose that mirrors (determinant -1) can be: the comparison tells which axis is turned.
    """
    finite = np.isfinite(poses).all((1, 2))
    if not finite.all():
        lost = [n for n, ok in zip(names, finite) if not ok]
        report.error(some(lost), f"{field} is NaN or infinite ({len(lost)} frames)", "leave these frames out")
    poses = np.where(finite[:, None, None], poses, np.eye(4))
    last, far = np.abs(poses[:, 3] - [0, 0, 0, 1]).max(1) > 1e-5, np.abs(poses[:, :3, 3]).max(1) > _FARTHEST
    for wrong, found, fix in (
        (last, f"the last row of {field} is not 0 0 0 1", "write rigid 4x4 matrices"),
        (far, f"{field} is more than {_FARTHEST:g} units away", "use other units, or leave these frames out"),
    ):
        if wrong.any():
            report.error(some([n for n, w in zip(names, wrong) if w]), f"{found} ({wrong.sum()} frames)", fix)
    rotation = poses[:, :3, :3]
    gram = rotation @ rotation.transpose(0, 2, 1)
    scale = np.sqrt(np.abs(gram.trace(axis1=1, axis2=2)) / 3)
    off = np.abs(gram - np.eye(3)).max((1, 2))
    scaled = (
        finite
        & (off > 1e-3)
        & (np.abs(gram / np.maximum(scale, 1e-12)[:, None, None] ** 2 - np.eye(3)).max((1, 2)) < 1e-3)
    )
    bent = finite & (off > 1e-3) & ~scaled
    if scaled.any():
        factors = span(scale[scaled].min(), scale[scaled].max())
        found = f"the rotation of {field} is scaled by {factors} ({scaled.sum()} frames)"
        fix = "divide the upper left 3x3 block by the scale; positions may need the same scale, the check below tells"
        report.error(some([n for n, s in zip(names, scaled) if s]), found, fix)
    if bent.any():
        found = f"{field} holds no rotation ({bent.sum()} frames; R Rᵀ off by up to {off[bent].max():.2g})"
        fix = "write 4x4 rigid matrices: three orthonormal columns and a position; check row against column order"
        report.error(some([n for n, b in zip(names, bent) if b]), found, fix)
    mirrored = finite & ~bent & (np.linalg.det(rotation) < 0)
    if mirrored.any():
        fix = "turn one axis round: of the camera (a column of a camera-to-world matrix), or of the world (a row)"
        found = f"{field} mirrors: determinant -1 ({mirrored.sum()} frames)"
        report.error(some([n for n, m in zip(names, mirrored) if m]), found, fix)
    return np.flatnonzero(finite & ~last & ~far & ~bent & ~scaled).tolist()


def check_path(report: Report, poses: Float64[np.ndarray, "v 4 4"], names: Sequence[str], depth: float | None) -> None:
    """Facts about the positions of the cameras, and cameras that do not move."""
    to_world = np.linalg.inv(poses)
    centres = to_world[:, :3, 3]
    up = -to_world[:, :3, 1].mean(0)
    up = up / max(float(np.linalg.norm(up)), 1e-12)
    extent = float(np.linalg.norm(centres.max(0) - centres.min(0)))
    steps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    report.facts["camera positions"] = (
        f"{extent:.3g} units across (diagonal), {span(*_ends(centres @ up))} along their up"
    )
    if len(steps):
        report.facts["steps"] = f"{span(*_ends(steps))} units between successive views, median {np.median(steps):.3g}"
    if len(centres) > 1 and extent <= 1e-6 * max(1.0, float(np.abs(centres).max())):
        fix = "write the position into the poses: there is no depth to learn from cameras that only turn"
        report.error("poses", "all cameras are at one place", fix)
    elif depth and extent < 0.002 * depth:
        report.warn(
            "poses", f"all cameras within {extent / depth:.2g} of the depth", "give views that are farther apart"
        )
    turned = poses.reshape(len(poses), -1).round(6)
    groups = defaultdict(list)
    for name, key in zip(names, map(bytes, turned)):
        groups[key].append(name)
    same = [g for g in groups.values() if len(g) > 1]
    if same and len(groups) > 1:
        fix = "tracking stood still or poses were copied: leave out all but one"
        report.warn(some(same[0]), f"exactly one pose for several frames ({sum(map(len, same))} frames)", fix)


def _ends(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def check_intrinsics(report: Report, shots: Sequence[Shot]) -> None:
    """Facts about K, and K that cannot belong to its image."""
    K = np.stack([s.K for s in shots if s.K is not None])
    sizes = np.array([s.size for s in shots], dtype=np.float64)
    names = [s.name for s in shots]
    angle = np.degrees(2 * np.arctan(sizes[:, 0] / (2 * np.abs(K[:, 0, 0]).clip(1e-9))))
    lens = f"fx {span(*_ends(K[:, 0, 0]))}, fy {span(*_ends(K[:, 1, 1]))}"
    lens += f", cx {span(*_ends(K[:, 0, 2]))}, cy {span(*_ends(K[:, 1, 2]))} px; {span(*_ends(angle))}° wide"
    report.facts["K"] = lens
    broken = ~np.isfinite(K).all((1, 2)) | (K[:, 0, 0] <= 0) | (K[:, 1, 1] <= 0)
    unit = (K[:, [0, 1], [0, 1]] < 0.1 * sizes).all(1) & (np.abs(K[:, :2, 2]) <= 2).all(1) & ~broken
    centre = K[:, :2, 2] / sizes
    off = (np.abs(centre - 0.5) > 0.3).any(1) & ~broken & ~unit
    uneven = np.abs(np.log(np.abs(K[:, 0, 0] / np.where(K[:, 1, 1] == 0, 1, K[:, 1, 1])).clip(1e-9))) > math.log(1.25)
    width, height = (int(n) for n in sizes[0])

    def tell(mask: npt.NDArray[np.bool_], found: str, fix: str, add: Callable[[str, str, str], None]) -> None:
        if mask.any():
            add("K of " + some([n for n, m in zip(names, mask) if m]), found, fix)

    first = K[int(off.argmax())]
    ratio = width / max(2 * first[0, 2], 1e-9)
    tell(broken, "not finite, or fx or fy not positive", "write fx, fy > 0 in pixels", report.error)
    tell(
        unit,
        f"normalised units, not pixels of {width}x{height}",
        f"multiply fx, cx by {width} and fy, cy by {height}",
        report.error,
    )
    found = f"the principal point {first[0, 2]:.0f}, {first[1, 2]:.0f} is far from the middle of {width}x{height}"
    tell(off, found, f"K of another resolution? {ratio:.3g} times K would put it into the middle", report.error)
    fix = "pixels are square in nearly all cameras: was one side of the image scaled or cropped without K?"
    tell(uneven & ~broken & ~unit, "fx and fy differ by more than a quarter", fix, report.warn)


def check_images(report: Report, shots: Sequence[Shot]) -> None:
    """Facts about the images; blank, over-exposed, repeated and framed ones."""
    sizes = Counter(s.size for s in shots)
    report.facts["image size"] = ", ".join(
        f"{w}x{h}" + (f" ({n})" if len(sizes) > 1 else "") for (w, h), n in sizes.most_common()
    )
    if len(sizes) > 1:
        odd = [s.name for s in shots if s.size != sizes.most_common(1)[0][0]]
        report.error(
            some(odd), f"{len(sizes)} image sizes in one scene", "resize these frames (and K), or split the scene"
        )
    blank = [s.name for s in shots if s.contrast < 0.01]
    if blank:
        report.warn(some(blank), f"blank images ({len(blank)})", "leave these frames out")
    white = [s.name for s in shots if s.white > 0.3 and s.name not in blank]
    if white:
        report.warn(
            some(white), f"over-exposed: over 30 % of the pixels are white ({len(white)} frames)", "expose less"
        )
    dark = [s.name for s in shots if s.black > 0.5 and s.name not in blank]
    if dark:
        fix = "expose more; or, if a mask was painted black, keep the background or train with the mask"
        report.warn(some(dark), f"over 50 % of the pixels are black ({len(dark)} frames)", fix)
    groups = defaultdict(list)
    for shot in shots:
        groups[shot.digest].append(shot)
    for group in groups.values():
        if len(group) > 1:
            _tell_repeated(report, group)
    framed = np.array([s.frame for s in shots]).min(0)
    if framed.max() >= 2 and len(blank) < len(shots):
        sides = ", ".join(f"{n} px {side}" for n, side in zip(framed, ("left", "top", "right", "bottom")) if n)
        fix = "crop it (and shift cx, cy), or undistort without an empty border"
        report.warn("images", f"a black border in every view: {sides}", fix)


def _tell_repeated(report: Report, group: Sequence[Shot]) -> None:
    """One image under several names: wrong where the poses differ."""
    names = some([s.name for s in group])
    poses = [s.world_to_cam for s in group if s.world_to_cam is not None]
    if any(np.abs(p - poses[0]).max() > 1e-4 for p in poses[1:]):
        report.error(
            names, "one and the same image with different poses", "at most one pose is right: leave the others out"
        )
    else:
        report.warn(names, "one and the same image several times", "keep one of them")


def check_depth_maps(report: Report, shots: Sequence[Shot], unit: float | None) -> None:
    """Facts about depth maps; missing, empty, saturated and coarse ones, implausible units.

    Args:
        report: Extended.
        shots: Views; at least one has a depth map.
        unit: World units per count of integer depth files; None where depth is stored as floats.
    """
    known = [(s.name, s.depths) for s in shots if s.depths is not None]
    some_depth = [d for _, d in known if d.coverage > 0]
    coverage = [d.coverage for _, d in known]
    missing = [s.name for s in shots if s.depths is None]
    if missing:
        report.warn(
            some(missing), f"no depth map ({len(missing)} of {len(shots)} views)", "add it, or leave the frames out"
        )
    if not some_depth:
        report.error("depth", "every inspected map is empty", "check the files and depth_unit_scale_factor")
        return
    low, high = min(d.low for d in some_depth), max(d.high for d in some_depth)
    median = float(np.median([d.median for d in some_depth]))
    report.facts["depth"] = f"{span(low, high)} units (2 % to 98 %), median {median:.3g}" + (
        f"; {unit:g} per count" if unit else ""
    )
    shares = span(100 * min(coverage), 100 * max(coverage))
    report.facts["depth coverage"] = f"{shares} % of the pixels, median {100 * float(np.median(coverage)):.0f} %"
    thin = [name for name, d in known if d.coverage < 0.1]
    if thin:
        report.warn(
            some(thin), f"depth for less than 10 % of the pixels ({len(thin)} frames)", "check these depth files"
        )
    if not 0.05 <= median <= 200:
        fix = "write the unit of the files: 0.001 for millimetres, 0.0002 for TUM's 1/5000 m, 1/256 for KITTI; "
        fix += "ignore this where world units are not metres"
        report.warn("depth", f"a median of {median:.3g}, if units are metres", fix)
    _check_counts(report, known, unit)


def _check_counts(report: Report, known: Sequence[tuple[str, Depth]], unit: float | None) -> None:
    """Depth maps that hold the sensor's largest number, or too few numbers."""
    if unit is not None:
        full = [n for n, d in known if d.coverage and round(d.top / unit) >= _MOST_COUNTS and d.at_top > 1e-4]
        if full:
            fix = "it means 'unknown' in many recordings: write 0 there"
            report.error(some(full), f"depth of 65535 counts ({len(full)} frames)", fix)
    flat = [n for n, d in known if d.coverage and d.values == 1]
    if flat:
        report.error(some(flat), f"depth is the same everywhere ({len(flat)} frames)", "check these depth files")
    coarse = [n for n, d in known if unit is not None and d.values > 1 and d.top < 255.5 * unit]
    if coarse:
        fix = "store depth in 16 bits: 8-bit pictures of depth are not depth"
        report.warn(some(coarse), f"no depth above 255 counts ({len(coarse)} frames)", fix)


def check_labels(report: Report, shots: Sequence[Shot]) -> None:
    """Facts about labels; frames without."""
    total = sum((s.labels for s in shots if s.labels is not None), Counter[int]())
    if not total:
        return
    pixels = sum(total.values())
    shares = ", ".join(f"{label} {100 * n / pixels:.2g} %" for label, n in total.most_common(8))
    report.facts["labels"] = f"{len(total)} ids, {min(total)} to {max(total)}; largest {shares}"
    missing = [s.name for s in shots if s.labels is None]
    if missing:
        fix = "add them, or leave these frames out: all frames have labels, or none"
        report.error(some(missing), f"no labels ({len(missing)} of {len(shots)} views)", fix)
    if len(total) == 1:
        report.warn("labels", f"only the id {next(iter(total))}", "check the label files")


def check_files(report: Report, frames: Sequence[Frame]) -> None:
    """EXIF orientations: viewers turn such images, readers of K do not."""
    turned = [f for f in frames if _orientation(f.image) not in (0, 1)]
    sideways = [f for f in turned if _orientation(f.image) >= 5 and _suits_turned(f)]
    if sideways:
        found = f"EXIF says turned by 90 degrees, and K is that of the turned image ({len(sideways)} frames)"
        report.error(some([f.image.name for f in sideways]), found, "turn the pixels and remove the EXIF orientation")
    elif turned:
        values = sorted({_orientation(f.image) for f in turned})
        found = f"EXIF orientation {values} is not applied: K and poses belong to the stored pixels"
        fix = "remove the EXIF orientation if the check of the poses passes"
        report.warn(some([f.image.name for f in turned]), found, fix)


def _orientation(path: Path) -> int:
    try:
        with Image.open(path) as image:
            return int(image.getexif().get(_ORIENTATION, 0))
    except (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError):
        return 0


def _suits_turned(frame: Frame) -> bool:
    """Whether the principal point is nearer to the middle of the turned image than to that of the stored one."""
    width, height = frame.size or image_size(frame.image)
    centre = frame.K[:2, 2]
    stored, turned = (np.abs(centre / size - 0.5).max() for size in ((width, height), (height, width)))
    return bool(turned < stored)
