"""`sr3d inspect` of a scene folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from sr3d.inspection.checks import (
    check_depth_maps,
    check_files,
    check_images,
    check_intrinsics,
    check_labels,
    check_path,
    check_poses,
)
from sr3d.inspection.diagnose import DepthCheck, check_depth
from sr3d.inspection.epipolar import MatchCheck, check_matches
from sr3d.inspection.listing import Listing, list_scene, take_shots
from sr3d.inspection.mistakes import Convention
from sr3d.inspection.pictures import contact_sheet, top_view
from sr3d.inspection.report import Report, some
from sr3d.inspection.shots import Shot, small_scene, spread
from sr3d.scene import Scene

MOST_VIEWS = 50
_CLOUD = 2  # every how many pixels of a small depth map becomes a point of the top view


def inspect_scene(path: Path, output: Path) -> Report:
    """Inspect a folder that `sr3d.load_scene` reads; pictures go to `output`.

    Raises:
        Sr3dError: Nothing usable is there, no image can be decoded, or a picture cannot be written.
    """
    listing = list_scene(path)
    report = Report(path=path, kind=f"scene folder, {listing.kind}")
    chosen = spread(len(listing), MOST_VIEWS)
    report.facts["views"] = f"{len(listing)}" + (f", {len(chosen)} inspected" if len(chosen) < len(listing) else "")
    _tell_dropped(report, listing)
    if listing.frames:
        poses = np.stack([f.world_to_cam for f in listing.frames])
        names = [f.image.name for f in listing.frames]
        comparable = check_poses(report, names, poses, listing.convention.field)
        chosen = [comparable[i] for i in spread(len(comparable), MOST_VIEWS)] or chosen
        check_files(report, [listing.frames[i] for i in chosen])
    shots = take_shots(listing, chosen, report)
    if not shots:
        raise listing.unreadable(report)
    check_images(report, shots)
    if listing.images:
        fix = "estimate poses first, for instance with COLMAP, and give the folder of its model"
        report.error("poses", "none: plain images", fix)
        bad: list[int] = []
    else:
        bad = check_views(report, shots, listing.convention, _unit(listing), listing.points, output)
    contact_sheet(shots, output / "views.png", bad)
    report.pictures.insert(0, output / "views.png")
    return report


def check_views(
    report: Report,
    shots: Sequence[Shot],
    convention: Convention,
    unit: float | None,
    points: Float[Tensor, "p 3"] | None,
    output: Path,
    stem: str | None = "cameras",
) -> list[int]:
    """All checks of posed views of one place, and their top view; returns the views that are wrong.

    Args:
        report: Extended.
        shots: The views.
        convention: Of the files, for the wording of fixes.
        unit: World units per count of integer depth files; None for other ones.
        points: Sparse points, world frame. [P, 3]
        output: Folder of the top view.
        stem: Name of the top view; none is drawn if None.
    """
    check_intrinsics(report, shots)
    with_depth = any(s.depths is not None for s in shots)
    if with_depth:
        check_depth_maps(report, shots, unit)
    check_labels(report, shots)
    size = Counter(s.size for s in shots).most_common(1)[0][0]
    index = [i for i, s in enumerate(shots) if s.size == size and _posed(s)]
    if not index:
        return []
    same = [shots[i] for i in index]
    scene = small_scene(same, points, report.path.name)
    median = None
    if scene.depths is not None and bool((scene.depths > 0).any()):
        median = float(scene.depths[scene.depths > 0].median())
    poses = scene.posed().world_to_cam.numpy()
    check_path(report, poses, [s.name for s in same], median)
    check: DepthCheck | MatchCheck
    check = check_depth(scene, convention) if median else check_matches(scene, [s.grey for s in same], convention)
    check.tell(report, [s.name for s in same], convention)
    if stem is not None:
        kept = scene.posed()
        title = f"{report.path.name}: {len(same)} cameras from above"
        picture = output / f"{stem}.png"
        K, cloud = kept.K.numpy(), _points(scene)
        top_view(poses, K, kept.width, picture, title=title, points=cloud, depth=median, bad=check.wrong)
        report.pictures.append(picture)
    return [index[i] for i in check.wrong]


def _posed(shot: Shot) -> bool:
    """Whether a view has a camera that can be computed with."""
    if shot.world_to_cam is None or shot.K is None or not np.isfinite(shot.K).all():
        return False
    return bool(shot.K[0, 0] > 0 and shot.K[1, 1] > 0)


def _points(scene: Scene) -> Float[Tensor, "p 3"] | None:
    """Points for the top view: sparse ones, else those of the depth maps."""
    if scene.points is not None or scene.depths is None:
        return scene.points
    points = scene.posed().unproject(scene.depths.double())[:, ::_CLOUD, ::_CLOUD]
    known = scene.depths[:, ::_CLOUD, ::_CLOUD] > 0
    return points[known].float()


def _unit(listing: Listing) -> float | None:
    """World units per count, where depth files hold integers."""
    frames = [f for f in listing.frames if f.depth is not None and f.depth.suffix != ".npy"]
    return frames[0].depth_unit if frames else None


def _tell_dropped(report: Report, listing: Listing) -> None:
    """Frames that the reader leaves out: harmless where only their image is missing."""
    for note in listing.notes:
        report.warn(listing.kind, note, "correct the name, or remove it")
    absent = [name for name, error in listing.dropped if error.found == "no such file"]
    if absent:
        fix = "add the images or remove the entries; they are left out when the scene is loaded"
        report.warn(some(absent), f"no image file ({len(absent)} of {len(listing) + len(listing.dropped)} frames)", fix)
    reasons: dict[tuple[str, str], list[str]] = {}
    for _, error in listing.dropped:
        if error.found != "no such file":
            reasons.setdefault((error.found, error.expected), []).append(f"{error.field}")
    for (found, expected), fields in reasons.items():
        report.error(some(fields), f"{found} ({len(fields)} frames)", f"expected {expected}")
    if listing.dropped:
        report.facts["left out"] = f"{len(listing.dropped)} frames that cannot be used"
