"""One level of a zoom: look, be told, predict, check, append."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sr3d.cameras import Cameras
from sr3d.gaussians import Gaussians
from sr3d.lod import Forest, Lod
from sr3d.models import SuperResolver
from sr3d.rendering import Rendering
from sr3d.scene import Scene
from sr3d.training.metrics import psnr
from sr3d.zoom.agreement import RejectConfig, agreement, reject
from sr3d.zoom.coverage import without_gaps
from sr3d.zoom.frontier import Visible, around, in_frames, photograph_forest, visible
from sr3d.zoom.guidance import inherit_features
from sr3d.zoom.guides import Guides, Told, look
from sr3d.zoom.level_sheet import LevelPictures
from sr3d.zoom.makers import LevelMaker, Made
from sr3d.zoom.objects import Inserted, insert
from sr3d.zoom.opacity import as_opaque
from sr3d.zoom.target import SOLID

_SHARED = 0.2  # of the surfaces that a neighbour shows, that have to be in the first frame
_COVER = 0.8  # least in-plane standard deviation of a new level, in its own pixels


@dataclass(kw_only=True)
class ZoomLevel:
    """What one step of the loop did.

    Attributes:
        level: 0 for the coarse scene.
        magnification: Up to which this level has detail.
        parents: Gaussians that the frames of this level contain, of which those without children were split.
        gaussians: Gaussians that this level added; 0 where all parents had children from an earlier branch.
        rejected: Children that other views contradicted, and that were left out.
        footprint: Median native footprint of what was added, world units per pixel.
        cameras: Frames that were refined; for level 0 the input cameras.
        links: Row, in the result of `zoom_into`, of each added Gaussian's parent, −1 where it has none. [gaussians]
        seconds: Wall time of what makes the level.
        check_seconds: Wall time of drawing and comparing the result, for scores and pictures.
        scores: Agreement of the views after this level (see `sr3d.zoom.agreement.Agreement`), and `low_psnr` (dB): the
            level, reduced to its inputs' size, against these. None where unknown.
        words: What the level was told.
        pictures: For the contact sheet, where they were asked for.
    """

    level: int
    magnification: float
    parents: int
    gaussians: int
    rejected: int
    footprint: float
    cameras: Cameras
    links: Int[Tensor, " n"]
    seconds: float
    check_seconds: float = 0.0
    scores: dict[str, float | None] = field(default_factory=dict)
    words: str = ""
    pictures: LevelPictures | None = None


@dataclass(kw_only=True)
class Step:
    """What a level will be made from.

    Attributes:
        level: To be made, from 1 on.
        magnification: Of the frames.
        frames: World frame, float64; the first one is that of the first view. [K]
        images: Photographs of the frames; None: what the forest shows there. [K, h, w, 3]
        seen: Gaussians in view.
        point: Target, world frame, float64.
        last: Whether no further level is asked for.
        trust: Share of what the network adds that counts.
    """

    level: int
    magnification: float
    frames: Cameras
    images: Float[Tensor, "k h w 3"] | None
    seen: Visible
    point: Float[Tensor, 3]
    last: bool
    trust: float = 1.0

    @cached_property
    def parents(self) -> Int[Tensor, " p"]:
        """Which of those in view are of the level before, and reach into a frame."""
        return ((_lod(self.seen.gaussians).level == self.level - 1) & in_frames(self.seen, self.frames)).nonzero()[:, 0]

    @cached_property
    def fresh(self) -> Bool[Tensor, " p"]:
        """Which of the parents have no children yet."""
        return _lod(self.seen.gaussians).finer[self.parents] == 0


def grow(
    forest: Forest,
    step: Step,
    maker: LevelMaker,
    config: RejectConfig | None,
    guides: Guides | None,
    embedding: Float[Tensor, " e"] | None,
    seed: int,
) -> tuple[Forest, ZoomLevel]:
    """The forest with one more level, and what was done.

    Args:
        forest: So far; shared, not changed.
        step: What the level is made from.
        maker: Splits the parents.
        config: When children fade that other views contradict; None: never.
        guides: Words, and networks that propose pixels.
        embedding: What a network with conditioning is told where there are no guides.
        seed: Of providers.

    Raises:
        Sr3dError: The maker cannot use the views (see `LevelMaker.make`), or a provider fails.
    """
    start = time.perf_counter()
    before = step.seen.draw(step.frames)
    sharing = _sharing(around(step.frames, step.point), before)
    if len(sharing) < len(step.frames):
        images = None if step.images is None else step.images[sharing]
        step = replace(step, frames=step.frames.index(sharing), images=images)
        before = step.seen.draw(step.frames)
    local = around(step.frames, step.point).to(torch.float32)
    images = photograph_forest(step.seen, step.frames) if step.images is None else step.images
    views = Scene(images=images, cameras=local, name=f"level {step.level}")
    told = look(guides, forest, step.seen, step.frames, views, maker, embedding, step.last, seed)
    grown, rejected, links = forest, 0, torch.empty(0, dtype=torch.int64)
    if bool(step.fresh.any()):
        parents = step.seen.gaussians.index(step.parents)
        inputs = _for_network(parents, maker.network)
        made = maker.make(inputs, views, told.embedding, told.enlarged, step.trust)
        objects = None
        if guides is not None and told.inserted is not None:
            objects = insert(guides, told, step.seen, step.frames, step.level - 1)
        grown, rejected = _append(forest, step, maker, made, objects, views, before, config)
        links = grown.levels[-1].parents if grown is not forest else links
    seconds = time.perf_counter() - start
    record = ZoomLevel(
        level=step.level,
        magnification=step.magnification * maker.factor,
        parents=len(step.parents),
        gaussians=len(links),
        rejected=rejected,
        footprint=float(grown.levels[-1].lod.native.median()) if len(links) else float("nan"),
        cameras=step.frames,
        links=links,
        seconds=seconds,
        words=told.words,
    )
    return grown, _measured(record, grown, step, views, before, told, guides is not None and guides.pictures)


def _sharing(frames: Cameras, drawn: Rendering) -> list[int]:
    """The first frame, and those that show some of what it shows.

    Surfaces that two views describe differ a little: beyond some magnification by more than a frame, and what the
    neighbour sees around the target is another place.
    """
    points = frames.unproject(drawn.depth.double())
    first = frames.index([0])
    kept = [0]
    for i in range(1, len(frames)):
        solid = drawn.alpha[i] > SOLID
        pixels, depth = first.project(points[i][solid])
        size = torch.tensor([frames.width, frames.height], dtype=pixels.dtype)
        inside = (depth[0] > 0) & (pixels[0] >= 0).all(dim=-1) & (pixels[0] <= size).all(dim=-1)
        if int(inside.sum()) > _SHARED * max(int(solid.sum()), 1):
            kept.append(i)
    return kept


def level_zero_record(forest: Forest, views: Cameras) -> ZoomLevel:
    """What is there before the first step."""
    first = forest.levels[0]
    solid = first.lod.native[first.gaussians.opacities > 0]
    return ZoomLevel(
        level=0,
        magnification=1.0,
        parents=0,
        gaussians=len(first),
        rejected=0,
        footprint=float(solid.median()) if len(solid) else float("nan"),
        cameras=views,
        links=first.parents,
        seconds=0.0,
    )


def padded_to(gaussians: Gaussians, network: SuperResolver) -> Gaussians:
    """Gaussians with room for the colours and semantic features of a network: zeros where they have none."""
    config = network.config
    missing = (config.sh_degree + 1) ** 2 - gaussians.sh.shape[-2]
    if missing > 0:
        gaussians = replace(gaussians, sh=torch.nn.functional.pad(gaussians.sh, (0, 0, 0, missing)))
    if config.semantics is not None and gaussians.features is None:
        gaussians = replace(gaussians, features=gaussians.means.new_zeros(len(gaussians), config.semantics.width))
    return gaussians


def _for_network(parents: Gaussians, network: SuperResolver) -> Gaussians:
    """Parents with no more colour coefficients than a network reads: it takes the colours from the views."""
    return replace(parents, sh=parents.sh[:, : (network.config.sh_degree + 1) ** 2])


def _append(
    forest: Forest,
    step: Step,
    maker: LevelMaker,
    made: Made,
    objects: Inserted | None,
    views: Scene,
    before: Rendering,
    config: RejectConfig | None,
) -> tuple[Forest, int]:
    """The forest with those children whose parents have none yet and that no other view contradicts."""
    parents = step.seen.gaussians.index(step.parents)
    new = step.fresh[made.parents.cpu()]
    links = made.parents.cpu()[new]
    children = _covering(made.gaussians.to("cpu").index(new), made.scaffold.to("cpu").index(new))
    children = replace(children, opacities=as_opaque(children, views.posed(), before.alpha, step.seen.near))
    children = _like(inherit_features(children, parents, links), parents)
    childless = step.fresh.clone()
    childless[links] = False
    kept = torch.ones(len(children), dtype=torch.bool)
    if config is not None:
        weights = reject(children, views.posed(), views.images, before.depth, before.alpha, config)
        kept = weights > 0
        children = replace(children, opacities=children.opacities * weights)
    children, rows = children.index(kept), step.seen.rows[step.parents][links[kept]]
    others = step.seen.gaussians.index(_lod(step.seen.gaussians).level >= step.level)
    children = without_gaps(children, others, views.posed(), before.alpha, maker.factor, step.seen.near)
    children = maker.corrected(children, others, views)
    if objects is not None:
        children = Gaussians.cat([children, _like(objects.gaussians, parents)])
        rows = torch.cat([rows, objects.rows])
    if len(children) == 0:
        return forest, int((~kept).sum())
    world = replace(children, means=children.means.double() + step.point)
    covered = step.seen.rows[step.parents][childless]
    covered = covered[~torch.isin(covered, rows)]
    return forest.append(world, rows, covered), int((~kept).sum())


def _like(children: Gaussians, parents: Gaussians) -> Gaussians:
    """Children with the colour coefficients and the feature width of the forest."""
    missing = parents.sh.shape[-2] - children.sh.shape[-2]
    features = None
    if parents.features is not None:
        width = parents.features.shape[-1]
        features = children.means.new_zeros(len(children), width) if children.features is None else children.features
    return replace(children, sh=torch.nn.functional.pad(children.sh, (0, 0, 0, missing)), features=features)


def _covering(children: Gaussians, scaffold: Gaussians) -> Gaussians:
    """Children at least `_COVER` pixels wide in their plane, and at least as wide as those of the scaffold.

    A network learns Gaussians that are sharp at their own magnification, where the renderer's low-pass closes the gaps
    between them. A zoom goes on from there: what is thinner falls apart into a lattice with holes.
    """
    scales = children.scales
    wide = torch.maximum(scales, torch.maximum(scaffold.scales, _COVER * _lod(children).native[..., None]))
    thin = scales.argmin(dim=-1, keepdim=True)
    return replace(children, scales=wide.scatter(-1, thin, scales.gather(-1, thin)))


def _measured(
    record: ZoomLevel, forest: Forest, step: Step, views: Scene, before: Rendering, told: Told, pictures: bool
) -> ZoomLevel:
    """The record with what the views show now, and how well they agree."""
    start = time.perf_counter()
    factor = round(record.magnification / step.magnification)
    fine = step.frames.resized(factor * step.frames.width, factor * step.frames.height)
    drawn = visible(forest, fine, step.point).draw(fine)
    local = around(fine, step.point).to(torch.float32)
    # What shines through thin coverage must not count as a darker surface.
    solid = (drawn.rgb / drawn.alpha.clamp_min(1e-3)[..., None]).clamp(0, 1)
    found = agreement(solid, drawn.depth, drawn.alpha, local)
    low = torch.nn.functional.avg_pool2d(solid.movedim(-1, 1), factor).movedim(1, -1)
    scores = {**found.to_dict(), "low_psnr": float(psnr(low, views.images).mean())}
    shown = None
    if pictures:
        shown = LevelPictures(
            level=record.level,
            magnification=record.magnification,
            rendered=before.rgb[0].clamp(0, 1),
            guidance=told.picture,
            words=told.words,
            new=drawn.rgb[0].clamp(0, 1),
            depth=drawn.depth[0],
            error=found.error[0],
            seen=found.seen[0],
            gaussians=record.gaussians,
            seconds=record.seconds,
            scores=scores,
        )
    return replace(record, scores=scores, pictures=shown, check_seconds=time.perf_counter() - start)


def _lod(gaussians: Gaussians) -> Lod:
    assert gaussians.lod is not None
    return gaussians.lod
