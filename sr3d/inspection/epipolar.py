"""Do the poses explain what images show? Matches between near views must lie on each other's epipolar lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float64, Int, UInt8
from torch import Tensor

from sr3d.inspection.diagnose import find_mistake, odd_views
from sr3d.inspection.mistakes import Convention, Mistake, usual_mistakes
from sr3d.inspection.report import Report, some
from sr3d.scene import Scene

_FEATURES, _RATIO, _LEAST_MATCHES, _LEAST_PAIRS = 1200, 0.8, 20, 3
_GAPS, _FEW, _TRIED = (1, 2, 4), 8, 40
# In shares of the image's longer side: what counts as explained, and the width of the score.
_CLOSE, _SHARP = 0.01, 0.003
# A small error of rotation puts far points beyond infinity: so much of that is forgiven.
_SLACK = 0.03
_LEAST_SHARE, _GOOD_SHARE = 0.6, 0.85


@dataclass(kw_only=True)
class Matches:
    """Points that pairs of images have in common, found without poses.

    Attributes:
        pairs: Views. [P, 2]
        row: Pair of each match. [M]
        first, second: The point in both images, in pixels of the scene's cameras. [M, 2]
    """

    pairs: Int[Tensor, "p 2"]
    row: Int[Tensor, " m"]
    first: Float64[Tensor, "m 2"]
    second: Float64[Tensor, "m 2"]

    def thinned(self, most: int) -> Matches:
        """About `most` matches of every pair, spread over all of them."""
        counts = torch.bincount(self.row, minlength=len(self.pairs))
        number = torch.arange(len(self.row)) - (counts.cumsum(0) - counts)[self.row]
        kept = number % (counts // most).clamp_min(1)[self.row] == 0
        return replace(self, row=self.row[kept], first=self.first[kept], second=self.second[kept])


@dataclass(kw_only=True)
class MatchCheck:
    """How well poses explain the matches.

    Attributes:
        matches: Number of matches.
        pairs: Number of pairs of views with matches.
        error: Median distance to the epipolar line in pixels of the full images.
        share: Share of the matches within 1 % of the image's longer side.
        under_two: Share of the matches within 2 pixels.
        mistake: The usual mistake without which the poses explain more, if there is one.
        corrected: Error and share without it.
        wrong, doubtful, alone: As in `DepthCheck`.
    """

    matches: int
    pairs: int
    error: float
    share: float
    under_two: float
    mistake: Mistake | None = None
    corrected: tuple[float, float] | None = None
    wrong: list[int] = field(default_factory=list)
    doubtful: list[int] = field(default_factory=list)
    alone: list[int] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the poses explain the matches, and no view is wrong."""
        return not self.pairs or (self.share >= _LEAST_SHARE and self.mistake is None and not self.wrong)

    def tell(self, report: Report, names: Sequence[str], convention: Convention) -> None:
        """Add facts and violations to a report; `names` are those of the views."""
        if not self.pairs:
            report.facts["epipolar check"] = "not possible: no matches between near views"
            report.warn("poses", "no matches between near views: nothing confirms the poses", "look at the pictures")
            return
        verdict = "passes" if self.passed else "FAILS"
        text = f"median {self.error:.2g} px, {100 * self.under_two:.0f} % within 2 px"
        seen = f"{self.matches} matches in {self.pairs} pairs of views"
        seen += f"; {len(self.alone)} views without any" if self.alone else ""
        report.facts["epipolar check"] = f"{verdict}: {text} ({seen})"
        if self.mistake is not None and self.corrected is not None:
            rises = f"{100 * self.share:.0f} % of the matches are explained, {100 * self.corrected[1]:.0f} % (median "
            rises += f"{self.error:.3g} px, then {self.corrected[0]:.2g} px) if {self.mistake.reading}"
            report.error("cameras", rises, self.mistake.fix)
        elif self.share < _LEAST_SHARE:
            fix = "none of the usual mistakes explains it: check the order of the frames, poses and K"
            report.error("cameras", f"the poses do not explain the images: {text}", fix)
        elif self.share < _GOOD_SHARE:
            report.warn("cameras", f"the poses are not exact: {text}", "refine them, for instance with COLMAP")
        for views, found, add in (
            (self.wrong, "pose disagrees with the neighbouring views, which agree with each other", report.error),
            (self.doubtful, "pose fits the matches clearly worse than elsewhere", report.warn),
        ):
            if views:
                add(some([names[i] for i in views]), found, "leave these frames out, or repair their poses")


def check_matches(scene: Scene, grey: Sequence[UInt8[np.ndarray, "h w"]], convention: Convention) -> MatchCheck:
    """Match near views and measure how well the given poses explain the matches.

    Args:
        scene: V posed views, small.
        grey: The same views, larger, for matching.
        convention: Of the files, for the wording of a fix.
    """
    matches = find_matches(scene, grey)
    if not len(matches.pairs):
        return MatchCheck(matches=0, pairs=0, error=0.0, share=0.0, under_two=0.0)
    longer = max(scene.posed().width, scene.posed().height)
    full = max(grey[0].shape) / longer
    distance = distances(scene, matches)

    thin = matches.thinned(_TRIED)

    def score(other: Scene, pairs: Int[Tensor, "p 2"], columns: int) -> Float64[Tensor, " p"]:
        return _means(torch.exp(-distances(other, thin) / (_SHARP * longer)), thin)

    out = MatchCheck(
        matches=len(matches.row),
        pairs=len(matches.pairs),
        error=float(distance.median()) * full,
        share=float((distance < _CLOSE * longer).double().mean()),
        under_two=float((distance * full < 2).double().mean()),
    )
    out.mistake = find_mistake(scene, usual_mistakes(scene, convention), score, matches.pairs)
    if out.mistake is not None:
        undone = distances(out.mistake.correct(scene), matches)
        share, error = float((undone < _CLOSE * longer).double().mean()), float(undone.median()) * full
        clear = error < 0.6 * out.error and len(matches.pairs) >= _LEAST_PAIRS
        if share >= out.share and (out.share < _LEAST_SHARE or clear):
            out.corrected, distance = (error, share), undone
        else:
            out.mistake = None
    if float((distance < _CLOSE * longer).double().mean()) >= _LEAST_SHARE:
        same = _means((distance < _CLOSE * longer).double(), matches)
        error = torch.stack([distance[matches.row == i].median() for i in range(len(matches.pairs))])
        shares, limits = (0.5, 0.75), (_CLOSE * longer, _CLOSE * longer / 2)
        out.wrong, out.doubtful, out.alone = odd_views(matches.pairs, same, error, len(scene), shares, limits)
    return out


def _means(values: Float64[Tensor, " m"], matches: Matches) -> Float64[Tensor, " p"]:
    """Mean over the matches of each pair."""
    sums = values.new_zeros(len(matches.pairs)).index_add_(0, matches.row, values)
    return sums / torch.bincount(matches.row, minlength=len(matches.pairs))


def distances(scene: Scene, matches: Matches) -> Float64[Tensor, " m"]:
    """Distance of every match from its epipolar line, mean of both images.

    A match that can only be behind a camera gets the distance along the line as well, past 3 % of the image.
    In pixels of the scene's cameras, at most the longer side of the image.
    """
    cameras = scene.posed().to(torch.float64)
    longer = max(cameras.width, cameras.height)
    a, b = matches.pairs[matches.row].T
    slack = _SLACK * longer
    forth = _one_way(cameras.world_to_cam, cameras.K, a, b, matches.first, matches.second, slack)
    back = _one_way(cameras.world_to_cam, cameras.K, b, a, matches.second, matches.first, slack)
    return ((forth + back) / 2).nan_to_num(torch.inf).clamp_max(longer)


def _one_way(
    poses: Float64[Tensor, "v 4 4"],
    K: Float64[Tensor, "v 3 3"],
    a: Int[Tensor, " m"],
    b: Int[Tensor, " m"],
    first: Float64[Tensor, "m 2"],
    second: Float64[Tensor, "m 2"],
    slack: float,
) -> Float64[Tensor, " m"]:
    """Distance in image b from what the ray through a point of image a looks like there."""
    ones = torch.ones_like(first[:, :1])
    rays = torch.einsum("mij,mj->mi", torch.linalg.inv(K)[a], torch.cat([first, ones], dim=1))
    relative = poses[b] @ torch.linalg.inv(poses)[a]
    far = torch.einsum("mij,mjk,mk->mi", K[b], relative[:, :3, :3], rays)
    near = torch.einsum("mij,mj->mi", K[b], relative[:, :3, 3])
    there = torch.cat([second, ones], dim=1)
    line = torch.linalg.cross(far, near)
    slope = line[:, :2].norm(dim=-1)
    from_line = (line * there).sum(-1).abs() / slope
    # far + s · near is the point at depth 1/s; the s that comes closest to the match.
    across = torch.linalg.cross(there, near)
    s = -(torch.linalg.cross(there, far) * across).sum(-1) / (across**2).sum(-1)
    found = far + s[:, None] * near
    infinity = far[:, :2] / far[:, 2:]
    beyond = (found[:, :2] / found[:, 2:] - infinity).norm(dim=-1)
    beyond = torch.where(s < 0, (beyond - slack).clamp_min(0), 0)
    possible = (found[:, 2] > 0) & ((s >= 0) | (far[:, 2] > 0))
    distance = torch.where(possible, from_line.hypot(beyond), torch.inf)
    # Without a baseline there is no line, but one point.
    turned = slope < 1e-9 * far.norm(dim=-1).square()
    return torch.where(turned, torch.where(far[:, 2] > 0, (infinity - second).norm(dim=-1), torch.inf), distance)


def find_matches(scene: Scene, grey: Sequence[UInt8[np.ndarray, "h w"]]) -> Matches:
    """SIFT matches of near views that agree with some epipolar geometry, whatever the poses are."""
    sift = cv2.SIFT.create(nfeatures=_FEATURES, contrastThreshold=0.01)
    features = [_features(sift, image) for image in grey]
    count, gaps = len(grey), range(1, len(grey)) if len(grey) <= _FEW else _GAPS
    scale = np.array([scene.posed().width / grey[0].shape[1], scene.posed().height / grey[0].shape[0]])
    pairs = list[tuple[int, int]]()
    rows, first, second = list[npt.NDArray](), list[npt.NDArray](), list[npt.NDArray]()
    for i, j in ((i, i + gap) for gap in gaps for i in range(count - gap)):
        common = _match(*features[i], *features[j])
        if len(common):
            rows.append(np.full(len(common), len(pairs)))
            pairs.append((i, j))
            first.append((common[:, :2] + 0.5) * scale)
            second.append((common[:, 2:] + 0.5) * scale)

    def joined(parts: list[npt.NDArray], shape: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts)) if parts else torch.zeros(shape, dtype=torch.float64)

    return Matches(
        pairs=torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2),
        row=joined(rows, (0,)).long(),
        first=joined(first, (0, 2)),
        second=joined(second, (0, 2)),
    )


def _features(sift: cv2.SIFT, image: UInt8[np.ndarray, "h w"]) -> tuple[npt.NDArray, npt.NDArray]:
    points, descriptors = sift.detectAndCompute(image, None)
    if descriptors is None:
        return np.zeros((0, 2)), np.zeros((0, 128), np.float32)
    # Square roots of normalised histograms ("RootSIFT") tell patches apart better.
    descriptors = np.sqrt(descriptors / np.maximum(descriptors.sum(1, keepdims=True), 1e-9))
    return np.array([p.pt for p in points], dtype=np.float64).reshape(-1, 2), descriptors


def _match(
    points: npt.NDArray, descriptors: npt.NDArray, others: npt.NDArray, other_descriptors: npt.NDArray
) -> npt.NDArray[np.float64]:
    """Mutual nearest neighbours, clearly nearer than the second, that one fundamental matrix explains. [M, 4]"""
    if min(len(points), len(others)) < _LEAST_MATCHES:
        return np.zeros((0, 4))
    likeness = descriptors @ other_descriptors.T
    two = np.sort(np.partition(likeness, -2, axis=1)[:, -2:], axis=1)
    best = likeness.argmax(1)
    mutual = likeness.argmax(0)[best] == np.arange(len(points))
    # Unit vectors: squared distance is 2 - 2 · likeness.
    clear = (1 - two[:, 1]) < _RATIO**2 * (1 - two[:, 0])
    keep = np.flatnonzero(mutual & clear)
    if len(keep) < _LEAST_MATCHES:
        return np.zeros((0, 4))
    cv2.setRNGSeed(0)
    a, b = points[keep], others[best[keep]]
    _, mask = cv2.findFundamentalMat(a, b, cv2.USAC_MAGSAC, 1.5, 0.999, 2000)
    if mask is None or mask.sum() < _LEAST_MATCHES:
        return np.zeros((0, 4))
    return np.hstack([a, b])[mask.ravel() > 0]
