"""`sr3d zoom`: from photographs, one photograph or Gaussians to a zoomable scene on disk."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from sr3d.cameras import Cameras
from sr3d.datasets.batch import crop_scene, reduce_scene
from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.io import load_scene
from sr3d.io.images import read_image
from sr3d.lod import Forest
from sr3d.models import SuperResolver
from sr3d.scene import Scene
from sr3d.training.clip_model import TextEncoder
from sr3d.zoom.frontier import photograph_forest, visible
from sr3d.zoom.guides import Guides
from sr3d.zoom.level import ZoomLevel
from sr3d.zoom.loop import ZoomConfig, count_levels, plant
from sr3d.zoom.makers import Method, level_maker
from sr3d.zoom.measure import Truth, photograph
from sr3d.zoom.path import zoom_centers
from sr3d.zoom.providers import load_provider
from sr3d.zoom.results import check_output, write_report
from sr3d.zoom.session import STATE, Session
from sr3d.zoom.single_image import exif_focal, start_from_image
from sr3d.zoom.target import Pixel, Target
from sr3d.zoom.tree import draw_tree
from sr3d.zoom.viewpoints import default_camera, orbit

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_SPLATS = (".ply", ".sr3d")
_LEAST_WIDTH = 8
_ORBIT_DEGREES = 6.0  # of the neighbours of a view that has none


@dataclass(kw_only=True)
class Choices:
    """Providers, as `NAME` or `NAME:ARGUMENT`; the defaults need no download.

    Attributes:
        vlm: Looks at the coarse and the zoomed view, and says what is there.
        sr: Enlarges the frames of every level; None leaves it to the network.
        editor: Changes the frame of the last level as `ZoomRun.edit` says.
        auxiliary: Fills what a single photograph does not show.
        depth: Of a single photograph, and of what an editor inserts.
        segmenter: Finds what words name; parts whose depth is registered together.
        text_model: CLIP model that reads a query, for scenes with semantic features.
    """

    vlm: str = "none"
    sr: str | None = None
    editor: str = "none"
    auxiliary: str = "inpaint"
    depth: str = "prior"
    segmenter: str = "regions"
    text_model: str | None = None


@dataclass(kw_only=True)
class ZoomRun:
    """What is asked for.

    Attributes:
        scene: Folder of posed photographs, one photograph, Gaussians (.ply, .sr3d), or the folder of a zoom.
        target: Pixels are those of the first photograph (of Gaussians: of their frame, `width` wide).
        checkpoint: Trained network.
        output: Folder of the zoom; goes on with one that is there.
        factor: Final magnification, a power of the network's factor.
        views: Views to use, the first is the one shown; all if None.
        method: What makes the levels.
        width: Largest width of the network's input, pixels.
        neighbours: Most frames of a level.
        frames: Of the video.
        video_width: Longer side of the video, pixels.
        prompt: Words about the target.
        edit: Words for the editor.
        choices: Providers.
        reject: Leave out children that other views contradict.
        seed: Of providers.
    """

    scene: Path
    target: Target
    checkpoint: str
    output: Path
    factor: int = 16
    views: Sequence[int] | None = None
    method: Method = "sr3d"
    width: int = 160
    neighbours: int = 4
    frames: int = 120
    video_width: int = 512
    prompt: str | None = None
    edit: str | None = None
    choices: Choices = field(default_factory=Choices)
    reject: bool = True
    seed: int = 0


def run_zoom(run: ZoomRun) -> dict[str, object]:
    """Zoom, level by level, into a folder that can be gone on with, and write what came out (see `write_report`).

    Photographs are reduced by a whole factor until they are at most `width` wide; what they showed before is the truth
    for magnifications up to that factor. Depth is the folder's own where it has it, else plane-sweep stereo.

    Returns:
        What `metrics.json` says.

    Raises:
        Sr3dError: The scene, checkpoint, target or a provider cannot be used, `output` is a file, or holds a zoom of
            another scene or with other settings. Levels that are there stay as they are.
    """
    check_output(run.output)
    network = SuperResolver.from_pretrained(run.checkpoint).to("cuda" if torch.cuda.is_available() else "cpu")
    maker = level_maker(run.method, network)
    levels = count_levels(run.factor, maker.factor)
    if run.width < _LEAST_WIDTH:
        raise Sr3dError("sr3d zoom", "width", run.width, f"{_LEAST_WIDTH} pixels or more")
    settings = _settings(run)
    if (run.output / STATE).is_file():
        session = Session.open(run.output)
        _same(session, run, settings)
    else:
        session = _begin(run, network, settings)
    target = run.target
    if isinstance(target, Pixel):
        reduction = _reduction(session)
        _check_pixel(target, session.views.posed(), reduction)
        target = Pixel(u=target.u / reduction, v=target.v / reduction)
    guides = _guides(run)
    config = ZoomConfig(views=run.neighbours, seed=run.seed)
    if not run.reject:
        config = replace(config, reject=None)
    with _progress() as progress:
        task = progress.add_task("levels", total=levels)
        video = progress.add_task("video frames", total=run.frames)

        def on_level(level: ZoomLevel) -> None:
            said = f"level {level.level}: {level.gaussians:,} Gaussians"
            progress.update(task, description=said, completed=level.level)

        branch = session.extend(target, run.factor, maker, guides, config, on_level)
        point = torch.tensor(branch.point, dtype=torch.float64)
        center, _ = zoom_centers(point, session.views.posed().index([0]))
        return report(session, maker.factor, (float(center[0, 0]), float(center[0, 1])), run, progress, video)


def report(
    session: Session, step: int, center: tuple[float, float], run: ZoomRun, progress: Progress, task: TaskID
) -> dict[str, object]:
    """Write video, contact sheets, page and numbers of a session.

    Args:
        session: With at least one level.
        step: Factor of a level.
        center: Pixel of the first view that stays in place.
        run: Sizes and words.
        progress: Shows the frames of the video.
        task: To advance.
    """
    first = session.forest.levels[0]
    zero = {
        "level": 0, "magnification": 1.0, "parents": 0, "gaussians": len(first), "rejected": 0,
        "footprint": float(first.lod.native.median()), "scores": {}, "words": "", "views": len(session.views),
        "seconds": 0.0,
    }  # fmt: skip
    rows = [zero]
    for level in session.state.levels:
        row = asdict(level)
        rows.append({**row, "views": row.pop("frames")})
    metric = session.state.settings.get("metric") is True
    return write_report(
        session.folder,
        session.forest.gaussians(),
        session.forest,
        session.views,
        center,
        rows,
        factor=run.factor,
        step=step,
        truth=_truth(run, session),
        prompt=run.prompt,
        frames=run.frames,
        video_width=run.video_width,
        pictures=session.pictures(),
        tree=draw_tree(session.state),
        unit="m" if metric else None,
        on_frame=lambda: progress.advance(task),
    )


def undo(folder: Path, count: int) -> str:
    """Take back the levels of a zoom that were made last; returns a drawing of what is left.

    Raises:
        Sr3dError: No zoom there, or fewer levels.
    """
    session = Session.open(folder)
    session.undo(count)
    return draw_tree(session.state)


def _settings(run: ZoomRun) -> dict[str, Any]:
    """What all levels of a zoom share, JSON values."""
    path = Path(run.checkpoint)
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
    return {
        "checkpoint": digest or run.checkpoint,
        "method": run.method,
        "width": run.width,
        "neighbours": run.neighbours,
        "reject": run.reject,
        "seed": run.seed,
        "views": None if run.views is None else list(run.views),
    }


def _same(session: Session, run: ZoomRun, settings: dict[str, Any]) -> None:
    """Raise if a folder holds another zoom."""
    found = session.state.settings
    if run.scene.resolve() != run.output.resolve():
        found = {**found, "scene": session.state.source}
        settings = {**settings, "scene": str(run.scene)}
    else:
        settings = {**settings, "views": found.get("views")}
    for name, value in settings.items():
        if found.get(name) != value:
            raise Sr3dError(run.output / STATE, name, f"{found.get(name)!r}", f"{value!r}, or another output folder")


def _reduction(session: Session) -> int:
    """By how much the photographs were reduced."""
    found = session.state.settings.get("reduction")
    if not isinstance(found, int) or found < 1:
        raise Sr3dError(session.folder / STATE, "settings.reduction", repr(found), "1 or more")
    return found


def _begin(run: ZoomRun, network: SuperResolver, settings: dict[str, Any]) -> Session:
    """A new session: inputs and level 0."""
    suffix = run.scene.suffix.lower()
    if suffix in _SPLATS:
        views, forest, reduction, metric = *_from_gaussians(run, network), 1, False
    elif suffix in _IMAGES and not run.scene.is_dir():
        views, forest, reduction = _from_photograph(run, network)
        metric = False
    else:
        photographs, reduction = _photographs(run)
        views, metric = reduce_scene(photographs, reduction), photographs.depths is not None
        _, forest = plant(views, None, None, network)
    if isinstance(run.target, Pixel):
        _check_pixel(run.target, views.posed(), reduction)
    settings = {**settings, "reduction": reduction, "metric": metric}
    return Session.create(run.output, str(run.scene), settings, views, forest)


def _photographs(run: ZoomRun) -> tuple[Scene, int]:
    """Posed photographs, cropped to a multiple of what they will be reduced by."""
    scene = load_scene(run.scene, run.views)
    reduction = max(1, -(-scene.images.shape[-2] // run.width))
    width, height = (side - side % reduction for side in (scene.images.shape[-2], scene.images.shape[-3]))
    return crop_scene(scene, 0, 0, width, height), reduction


def _truth(run: ZoomRun, session: Session) -> Truth | None:
    """What the first photograph shows, where it is still at hand."""
    if not run.scene.is_dir() or (run.scene / STATE).is_file():
        return None
    photographs, _ = _photographs(replace(run, views=session.state.settings.get("views")))
    return photograph(photographs.images[0], photographs.posed().index([0]))


def _from_gaussians(run: ZoomRun, network: SuperResolver) -> tuple[Scene, Forest]:
    """Gaussians without cameras: one that shows most of them, and neighbours on a circle."""
    given = Forest.load(run.scene) if run.scene.suffix.lower() == ".sr3d" else None
    gaussians = Gaussians.load(run.scene) if given is None else given.gaussians()
    first = default_camera(gaussians, run.width, run.width * 3 // 4)
    middle = gaussians.means[gaussians.opacities > 0].median(dim=0).values
    cameras = Cameras.cat([first, orbit(first, middle, max(run.neighbours - 1, 0), _ORBIT_DEGREES)])
    views, forest = plant(gaussians if given is None else given, cameras, None, network)
    images = photograph_forest(visible(forest, views, views.positions[0].double()), views)
    return Scene(images=images.float(), cameras=views, name=run.scene.name), forest


def _from_photograph(run: ZoomRun, network: SuperResolver) -> tuple[Scene, Forest, int]:
    """One photograph, with auxiliary views around it."""
    pixels = torch.from_numpy(read_image(run.scene, upright=True))
    reduction = max(1, -(-pixels.shape[1] // run.width))
    height, width = (side - side % reduction for side in pixels.shape[:2])
    small = torch.nn.functional.avg_pool2d(pixels[:height, :width].movedim(-1, 0), reduction).movedim(0, -1)
    focal = exif_focal(run.scene)
    view = 50.0 if focal is None else math.degrees(2 * math.atan(max(pixels.shape[:2]) / 2 / focal))
    choices = run.choices
    begun = start_from_image(
        small.contiguous(),
        depth=load_provider("depth", choices.depth, _device()),
        auxiliary=load_provider("auxiliary", choices.auxiliary, _device()),
        segmenter=load_provider("segmenter", choices.segmenter, _device()),
        fov_degrees=view,
        views=max(run.neighbours - 1, 1),
        prompt=run.prompt or "",
        seed=run.seed,
    )
    images = torch.cat([begun.scene.images, begun.auxiliary.images])
    cameras = Cameras.cat([begun.scene.posed(), begun.auxiliary.posed()])
    views = Scene(images=images, cameras=cameras, name=run.scene.stem)
    return views, plant(begun.gaussians, cameras, None, network)[1], reduction


def _check_pixel(target: Pixel, views: Cameras, reduction: int) -> None:
    """Raise unless a pixel is one of the first photograph."""
    width, height = views.width * reduction, views.height * reduction
    if not (0 <= target.u <= width and 0 <= target.v <= height):
        expected = f"a pixel of the first view, {width:g} x {height:g}"
        raise Sr3dError("sr3d zoom", "target", (target.u, target.v), expected)


def _guides(run: ZoomRun) -> Guides:
    """The providers that were chosen."""
    c, device = run.choices, _device()
    return Guides(
        prompt=run.prompt,
        edit=run.edit,
        vlm=load_provider("vlm", c.vlm, device),
        sr=None if c.sr is None else load_provider("sr", c.sr, device),
        editor=load_provider("editor", c.editor, device),
        depth=load_provider("depth", c.depth, device) if run.edit else None,
        segmenter=load_provider("segmenter", c.segmenter, device),
        encoder=None if c.text_model is None else TextEncoder(c.text_model),
        pictures=True,
    )


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


class _MemoryColumn(ProgressColumn):
    """Memory in use by the process."""

    def render(self, task: Task) -> Text:
        """The same for every task."""
        return Text(f"{psutil.Process().memory_info().rss / 2**20:,.0f} MiB")


def _progress() -> Progress:
    """Bars with the time left and the memory in use."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), _MemoryColumn())
