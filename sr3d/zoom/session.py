"""A zoom on disk: its inputs, its forest, and what was done; it can be stopped, gone on with, branched and undone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.errors import Sr3dError
from sr3d.io.atomic import atomic
from sr3d.io.transforms import read_json
from sr3d.lod import Forest
from sr3d.scene import Scene
from sr3d.typed import from_dict
from sr3d.zoom.aim import aim
from sr3d.zoom.guides import Guides
from sr3d.zoom.level import ZoomLevel, grow, level_zero_record
from sr3d.zoom.level_sheet import LevelPictures
from sr3d.zoom.loop import ZoomConfig, check_reach, count_levels, next_step
from sr3d.zoom.makers import LevelMaker
from sr3d.zoom.target import Target

STATE, FOREST, INPUTS, PICTURES = "zoom.json", "scene.sr3d", "inputs.safetensors", "pictures"
_FORMAT, _VERSION = "sr3d.zoom", 1


@dataclass(kw_only=True)
class LevelState:
    """A level of the forest, as `zoom.json` has it; the fields are those of `ZoomLevel`.

    Attributes:
        branch: Index of the branch that it was made for.
        frames: Number of frames.
    """

    level: int
    branch: int
    magnification: float
    parents: int
    gaussians: int
    rejected: int
    footprint: float
    frames: int
    seconds: float
    check_seconds: float
    scores: dict[str, float | None]
    words: str


@dataclass(kw_only=True)
class Branch:
    """A target, and how far towards it.

    Attributes:
        target: In words, as it was given.
        point: World frame.
        done: Levels that were gone through, those included that an earlier branch had made.
    """

    target: str
    point: list[float]
    done: int = 0


@dataclass(kw_only=True)
class State:
    """What `zoom.json` says.

    Attributes:
        source: What was zoomed into.
        settings: Of every level; a run with others is another zoom.
        roots: Levels of the forest that the zoom began with.
        branches: In the order in which they were begun.
        levels: Of the forest, without level 0, in its order.
    """

    source: str
    settings: dict[str, Any]
    roots: int = 1
    branches: list[Branch] = field(default_factory=list)
    levels: list[LevelState] = field(default_factory=list)


@dataclass(kw_only=True)
class Session:
    """A folder that holds a zoom.

    Attributes:
        folder: Where.
        state: What was done.
        views: Input views at low resolution. [V]
        forest: Mapped from the folder.
    """

    folder: Path
    state: State
    views: Scene
    forest: Forest

    @staticmethod
    def create(folder: Path, source: str, settings: dict[str, Any], views: Scene, forest: Forest) -> Session:
        """Begin in a folder that has no zoom yet.

        Args:
            folder: Made if missing.
            source: Named in reports.
            settings: JSON values.
            views: Posed. [V]
            forest: Level 0, or all levels that there are.

        Raises:
            Sr3dError: A file is in the way, or cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Sr3dError(folder, "output", error.strerror or error, "a folder that can be written") from error
        _write_views(folder / INPUTS, views)
        session = Session(
            folder=folder,
            state=State(source=source, settings=settings, roots=len(forest.levels)),
            # As they will be read when the folder is opened again.
            views=_read_views(folder / INPUTS),
            forest=forest.save(folder / FOREST),
        )
        session.write_state()
        return session

    @staticmethod
    def open(folder: Path) -> Session:
        """Go on with what is there. A level that was stored but not noted down in `zoom.json` is taken back.

        Raises:
            Sr3dError: Files are missing, damaged, or do not belong together.
        """
        state, views = _read_state(folder / STATE), _read_views(folder / INPUTS)
        forest = Forest.load(folder / FOREST)
        noted = [level.gaussians for level in state.levels]
        stored = [len(level) for level in forest.levels[state.roots :]]
        extra = len(stored) - len(noted)
        if len(forest.levels) < state.roots or extra not in (0, 1) or stored[: len(noted)] != noted:
            expected = f"{state.roots} to begin with, then {noted} Gaussians, as {STATE} says"
            raise Sr3dError(folder / FOREST, "levels", [len(level) for level in forest.levels], expected)
        if extra:
            forest = forest.undo(1).save(folder / FOREST)
        return Session(folder=folder, state=state, views=views, forest=forest)

    def undo(self, count: int) -> None:
        """Take back the levels that were made last.

        Raises:
            Sr3dError: There are not so many.
        """
        if not 1 <= count <= len(self.state.levels):
            raise Sr3dError(self.folder, "--undo", count, f"1 to {len(self.state.levels)}, the levels above level 0")
        for _ in range(count):
            self._undo_last()

    def extend(
        self,
        target: Target,
        factor: int,
        maker: LevelMaker,
        guides: Guides | None,
        config: ZoomConfig,
        on_level: Callable[[ZoomLevel], None] | None = None,
    ) -> Branch:
        """Zoom towards a target, level by level; each is on disk before the next one begins.

        Args:
            target: Where to; one that an earlier call had goes on where that one ended.
            factor: Magnification up to which detail is added.
            maker: Of the levels.
            guides: Words and providers.
            config: Frames, checks and limits.
            on_level: Called after every level that was made here.

        Raises:
            Sr3dError: See `zoom_into`. Levels that were made before stay.
        """
        levels = count_levels(factor, maker.factor)
        views = self.views.posed()
        branch = self._branch(target, views, maker, guides)
        index = self.state.branches.index(branch)
        point = torch.tensor(branch.point, dtype=torch.float64)
        check_reach(views, point, factor)
        if guides is not None and guides.edit and branch.done >= levels:
            found = f"all {levels} levels towards {branch.target} are there"
            raise Sr3dError("sr3d zoom", "--edit", found, "a level to be made: a higher --factor, or --undo first")
        if on_level is not None:
            on_level(level_zero_record(self.forest, views))
        for level in range(branch.done + 1, levels + 1):
            images = self.views.images if level == 1 else None
            step = next_step(self.forest, level, views, images, point, maker, config, level == levels)
            grown, record = grow(self.forest, step, maker, config.reject, guides, None, config.seed)
            if grown is not self.forest:
                self.forest = grown.save(self.folder / FOREST)
                self.state.levels.append(_state_of(record, index))
                self._keep(record)
            branch.done = level
            self.write_state()
            if on_level is not None:
                on_level(record)
        return branch

    def write_state(self) -> None:
        """Replace `zoom.json` in one step."""
        document = {"format": _FORMAT, "version": _VERSION, **asdict(self.state)}
        with atomic(self.folder / STATE) as temporary:
            temporary.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def pictures(self) -> list[LevelPictures]:
        """What the contact sheet shows, of those levels that were made with pictures."""
        out = []
        for i, level in enumerate(self.state.levels):
            path = self._picture(i)
            if path.is_file():
                out.append(_read_pictures(path, level))
        return out

    def _undo_last(self) -> None:
        """Take back the level that was made last."""
        gone = self.state.levels.pop()
        for i, branch in enumerate(self.state.branches):
            # Who came through this level, and made nothing beyond it before, has to look again.
            own = max((level.level for level in self.state.levels if level.branch == i), default=0)
            branch.done = max(own, min(branch.done, gone.level - 1))
        while self.state.branches and self.state.branches[-1].done == 0:
            self.state.branches.pop()
        # Noted down first: the one level that the forest has more is taken back when the folder is opened.
        self.write_state()
        self.forest = self.forest.undo(1).save(self.folder / FOREST)
        self._picture(len(self.state.levels)).unlink(missing_ok=True)

    def _picture(self, index: int) -> Path:
        """File of the pictures of a level."""
        return self.folder / PICTURES / f"{index + 1:03d}.safetensors"

    def _branch(self, target: Target, views: Cameras, maker: LevelMaker, guides: Guides | None) -> Branch:
        """The branch of a target, a new one where there is none."""
        words = str(target)
        for branch in self.state.branches:
            if branch.target == words:
                return branch
        point = aim(target, self.forest, views, maker.network, guides)
        self.state.branches.append(Branch(target=words, point=point.tolist()))
        return self.state.branches[-1]

    def _keep(self, record: ZoomLevel) -> None:
        """Store the pictures of a level."""
        if record.pictures is None:
            return
        shown = record.pictures
        parts = {name: getattr(shown, name) for name in ("rendered", "new", "depth", "error")}
        tensors = {name: value.half().contiguous() for name, value in parts.items()}
        tensors["depth"] = shown.depth.float().contiguous()
        tensors["seen"] = shown.seen.to(torch.uint8).contiguous()
        if shown.guidance is not None:
            tensors["guidance"] = shown.guidance.half().contiguous()
        path = self._picture(len(self.state.levels) - 1)
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise Sr3dError(path.parent, "folder", error.strerror or error, "a folder that can be written") from error
        _save(path, tensors)


def _state_of(record: ZoomLevel, branch: int) -> LevelState:
    names = ("level", "magnification", "parents", "gaussians", "rejected", "footprint", "scores", "words")
    return LevelState(
        branch=branch,
        frames=len(record.cameras),
        seconds=round(record.seconds, 3),
        check_seconds=round(record.check_seconds, 3),
        **{name: getattr(record, name) for name in names},
    )


def _read_state(path: Path) -> State:
    document = read_json(path)
    if document.pop("format", None) != _FORMAT or document.pop("version", None) != _VERSION:
        raise Sr3dError(path, "format, version", "others", f"{_FORMAT}, {_VERSION}")
    state: State = from_dict(State, document, path)
    for i, level in enumerate(state.levels):
        if not 0 <= level.branch < len(state.branches):
            raise Sr3dError(path, f"levels[{i}].branch", level.branch, f"0 to {len(state.branches) - 1}")
        if level.level < 1:
            raise Sr3dError(path, f"levels[{i}].level", level.level, "1 or more")
    for i, branch in enumerate(state.branches):
        if len(branch.point) != 3 or not all(map(math.isfinite, branch.point)) or branch.done < 0:
            expected = "3 finite numbers, 0 or more"
            raise Sr3dError(path, f"branches[{i}]", f"point {branch.point}, done {branch.done}", expected)
    if state.roots < 1:
        raise Sr3dError(path, "roots", state.roots, "1 or more")
    return state


def _write_views(path: Path, views: Scene) -> None:
    cameras = views.posed()
    tensors = {
        "images": views.images.contiguous(),
        "world_to_cam": cameras.world_to_cam.contiguous(),
        "K": cameras.K.contiguous(),
    }
    _save(path, tensors, {"name": views.name})


def _read_views(path: Path) -> Scene:
    tensors, metadata = _load(path)
    shapes = {name: tuple(tensors[name].shape) for name in ("images", "world_to_cam", "K") if name in tensors}
    v, h, w, *_ = (*shapes.get("images", ()), 0, 0, 0)
    expected = {"images": (v, h, w, 3), "world_to_cam": (v, 4, 4), "K": (v, 3, 3)}
    if shapes != expected or v * h * w == 0:
        raise Sr3dError(path, "tensors", shapes, "images [V, h, w, 3], world_to_cam [V, 4, 4], K [V, 3, 3]")
    for name in expected:
        if not (tensors[name].is_floating_point() and bool(torch.isfinite(tensors[name]).all())):
            raise Sr3dError(path, name, f"{tensors[name].dtype}, or not finite", "finite floating-point numbers")
    cameras = Cameras(world_to_cam=tensors["world_to_cam"], K=tensors["K"], width=w, height=h)
    cameras.check(path)
    return Scene(images=tensors["images"], cameras=cameras, name=metadata.get("name", path.parent.name))


def _read_pictures(path: Path, level: LevelState) -> LevelPictures:
    tensors, _ = _load(path)
    needed = ("rendered", "new", "depth", "error", "seen")
    if any(name not in tensors for name in needed):
        raise Sr3dError(path, "tensors", sorted(tensors), ", ".join(needed))
    rendered, new, depth, error, seen = (tensors[name].float() for name in needed)
    guidance = tensors.get("guidance")
    return LevelPictures(
        level=level.level,
        magnification=level.magnification,
        rendered=rendered,
        guidance=None if guidance is None else guidance.float(),
        words=level.words,
        new=new,
        depth=depth,
        error=error,
        seen=seen > 0,
        gaussians=level.gaussians,
        seconds=level.seconds,
        scores=level.scores,
    )


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    try:
        with atomic(path) as temporary:
            save_file(tensors, temporary, metadata)
    except (OSError, SafetensorError) as error:
        raise Sr3dError(path, "file", error, "a place that can be written") from error


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file."""
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (OSError, SafetensorError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Sr3dError(path, "file", reason, "a file that `sr3d zoom` has written") from None
