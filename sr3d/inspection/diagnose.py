"""Whether views agree, which of them do not, and which usual mistake would explain it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from sr3d.inspection.mistakes import SCALED, Convention, Mistake, depth_mistake, usual_mistakes
from sr3d.inspection.report import Report, some
from sr3d.inspection.reproject import Agreement, all_pairs, compare, near_pairs, score
from sr3d.scene import Scene

Score = Callable[[Scene, Int[Tensor, "p 2"], int], Float64[Tensor, " p"]]

# From measurements (docs/inspect.md): views in order 0.93 to 0.997, the worst mistake that moves things 0.75.
LEAST_SAME, GOOD_SAME = 0.75, 0.85
_LEAST_COLOR, _GOOD_COLOR = 0.3, 0.6
_LEAST_GAIN, _LEAST_WINS = 1.02, 0.7
_NEAR = 6  # views: those a single view is judged by
_TRIED, _COARSE, _FINE = 80, 16, 30


@dataclass(kw_only=True)
class DepthCheck:
    """Agreement of the views of a scene.

    Attributes:
        given: With cameras and depths as they are.
        mistake: The usual mistake without which the views agree better, if there is one.
        corrected: Agreement without that mistake.
        wrong: Views that disagree with their neighbours, though these agree with each other.
        doubtful: Views that agree clearly less than the others.
        alone: Views that share too little with all others to be judged.
        still: The cameras move too little for the check to tell right from wrong.
    """

    given: Agreement
    mistake: Mistake | None = None
    corrected: Agreement | None = None
    wrong: list[int] = field(default_factory=list)
    doubtful: list[int] = field(default_factory=list)
    alone: list[int] = field(default_factory=list)
    still: bool = False

    @property
    def passed(self) -> bool:
        """Whether the views agree, no view is wrong and no usual mistake explains the data better."""
        same, _, color, _ = self.given.typical()
        return same >= LEAST_SAME and color >= _LEAST_COLOR and self.mistake is None and not self.wrong

    def tell(self, report: Report, names: Sequence[str], convention: Convention) -> None:
        """Add facts and violations to a report; `names` are those of the views."""
        same, error, color, chance = self.given.typical()
        pairs = int(self.given.seen.sum())
        verdict = "passes" if self.passed else "FAILS"
        text = f"{_percent(same)} of the depth agrees within 5 %, median difference {_percent(error)}"
        report.facts["reprojection"] = (
            f"{verdict}: {text} ({pairs} pairs of views)" if pairs else f"{verdict}: no overlap"
        )
        report.facts["colour"] = f"correlation {color:.2f} between views of one surface, {chance:.2f} by chance"
        if self.mistake is not None and self.corrected is not None:
            better, smaller, closer, _ = self.corrected.typical()
            rises = f"agreement changes from {_percent(same)} to {_percent(better)}"
            rises += f", the median difference of depth from {_percent(error)} to {_percent(smaller)}"
            rises += f", the correlation of colours from {color:.2f} to {closer:.2f}, if {self.mistake.reading}"
            report.error("cameras and depth", rises, self.mistake.fix)
        elif same < LEAST_SAME or color < _LEAST_COLOR:
            found = (
                f"only {text}; correlation of colours {color:.2f}" if pairs else "no view shows what another one shows"
            )
            fix = (
                "none of the usual mistakes explains it: check the order of the frames, poses, K and the unit of depth"
            )
            report.error("cameras and depth", found, fix)
        elif same < GOOD_SAME or color < _GOOD_COLOR:
            fix = "look at the contact sheet and at the poses: training survives this, at a loss of sharpness"
            report.warn("cameras and depth", f"{text}; correlation of colours {color:.2f}", fix)
        if self.still:
            fix = "give frames that are farther apart"
            report.warn("cameras", "they move too little for a check of poses and depth", fix)
        self._tell_views(report, names)

    def _tell_views(self, report: Report, names: Sequence[str]) -> None:
        if self.wrong:
            found = "pose or depth disagrees with the neighbouring views, which agree with each other"
            report.error(some([names[i] for i in self.wrong]), found, "leave these frames out, or repair their poses")
        if self.doubtful:
            found = "pose or depth agrees clearly less with the neighbouring views than elsewhere"
            report.warn(some([names[i] for i in self.doubtful]), found, "look at them in the contact sheet")
        if self.alone and len(self.alone) < len(names):
            found = "shows nothing that another inspected view shows"
            report.warn(some([names[i] for i in self.alone]), found, "check their poses: nothing confirms them")


def check_depth(scene: Scene, convention: Convention) -> DepthCheck:
    """Compare the depth maps and colours of all pairs of views, and look for the mistake if they disagree.

    Args:
        scene: V views of about 160 pixels with cameras and depths.
        convention: Of the files, for the wording of a fix.
    """
    if len(scene) < 2:
        return DepthCheck(given=compare(scene, all_pairs(len(scene)), _FINE), still=True)
    given = compare(scene, all_pairs(len(scene)), _FINE)
    out = DepthCheck(given=given)
    out.mistake = find_mistake(scene, usual_mistakes(scene, convention), score)
    scaled = out.mistake is not None and out.mistake.reading.startswith(SCALED)
    if scaled or (out.mistake is None and given.typical()[0] < LEAST_SAME):
        out.mistake = _other_scale(scene, convention, out.mistake)
    judged, after = scene, given
    if out.mistake is not None:
        judged = out.mistake.correct(scene)
        after = out.corrected = compare(judged, given.pairs, _FINE)
        if given.typical()[0] >= LEAST_SAME and not _as_good(after, given):
            # More is seen by both, but not better: views that agree keep their poses.
            out.mistake, out.corrected, judged, after = None, None, scene, given
    # What a common mistake spoils says nothing of single views.
    if after.typical()[0] >= LEAST_SAME:
        shares, limits = (0.8, 0.9), (0.02, 0.01)
        out.wrong, out.doubtful, out.alone = odd_views(after.pairs, after.same, after.error, len(scene), shares, limits)
    out.still = bool(score(_held(judged), given.pairs, _COARSE).mean() > 0.95 * after.score.mean() > 0)
    return out


def _as_good(after: Agreement, before: Agreement) -> bool:
    """Whether depth and colours agree no worse than before in those pairs that share enough."""
    (same, error, color, _), (old_same, old_error, old_color, _) = after.typical(), before.typical()
    return same >= old_same - 0.005 and error <= 1.02 * old_error and color >= old_color - 0.01


def find_mistake(
    scene: Scene, mistakes: Sequence[Mistake], measure: Score, pairs: Int[Tensor, "p 2"] | None = None
) -> Mistake | None:
    """The mistake without which the views agree best, where that is clearly better than what is given.

    Clearly: the mean score is higher, and so is the score of most pairs.

    Args:
        scene: Posed views.
        mistakes: Candidates.
        measure: Agreement of pairs of views; the last argument is how closely to look.
        pairs: Views to compare; near ones, the same every time, if None.
    """
    some_pairs = near_pairs(len(scene), _TRIED) if pairs is None else pairs
    means = torch.stack([measure(m.correct(scene), some_pairs, _COARSE).mean() for m in mistakes])
    finalists = [mistakes[i] for i in means.argsort(descending=True, stable=True)[:3].tolist()]
    more_pairs = near_pairs(len(scene), 3 * _TRIED) if pairs is None else pairs
    given = measure(scene, more_pairs, _FINE)
    best, best_mean = None, _LEAST_GAIN * float(given.mean()) + 1e-3
    for mistake in finalists:
        found = measure(mistake.correct(scene), more_pairs, _FINE)
        differs = (found - given).abs() > 1e-3
        wins = float((found > given)[differs].double().mean()) if differs.any() else 0.0
        if float(found.mean()) > best_mean and wins > _LEAST_WINS:
            best, best_mean = mistake, float(found.mean())
    return best


def _other_scale(scene: Scene, convention: Convention, known: Mistake | None) -> Mistake | None:
    """Any factor between depth and positions, to about one percent; `known` where that explains the data as well."""
    factors = torch.logspace(-3.5, 3.5, 85).tolist()
    pairs = near_pairs(len(scene), _TRIED)
    for spread in (0.16, 0.04, 0.0):
        tried = [depth_mistake(f, convention).correct(scene) for f in factors]
        scores = [float(score(other, pairs, _COARSE).mean()) for other in tried]
        best = factors[max(range(len(factors)), key=scores.__getitem__)]
        factors = [best * (1 + spread * k / 4) for k in range(-4, 5)]
    found = [depth_mistake(best, convention)] + ([] if known is None else [known])
    if known is not None and max(scores) < 1.02 * float(score(known.correct(scene), pairs, _COARSE).mean()):
        return known
    return find_mistake(scene, found, score)


def _held(scene: Scene) -> Scene:
    """All cameras where the first one is."""
    cameras = scene.posed()
    return replace(
        scene, cameras=replace(cameras, world_to_cam=cameras.world_to_cam[:1].expand_as(cameras.world_to_cam))
    )


def odd_views(
    pairs: Int[Tensor, "p 2"],
    same: Float64[Tensor, " p"],
    error: Float64[Tensor, " p"],
    views: int,
    shares: tuple[float, float],
    limits: tuple[float, float],
) -> tuple[list[int], list[int], list[int]]:
    """Views that disagree with the others (wrong), that agree less than the others (doubtful), that cannot be judged.

    Args:
        pairs: Pairs of views.
        same: Share on which a pair agrees; NaN where it cannot be judged.
        error: Median error of a pair.
        views: Number of views.
        shares: A view is wrong, doubtful, where its `same` is less than these shares of the usual one.
        limits: Errors up to which a view is neither wrong, nor doubtful, by its error.
    """
    near = (pairs[:, 0] - pairs[:, 1]).abs() <= _NEAR
    usual_same, usual_error = torch.full((2, views), torch.nan, dtype=torch.float64)
    for i in range(views):
        mine = (pairs == i).any(dim=1) & ~same.isnan()
        mine = mine & near if (mine & near).any() else mine
        if mine.any():
            usual_same[i], usual_error[i] = same[mine].nanmedian(), error[mine].nanmedian()
    low, high = usual_same / usual_same.nanmedian(), usual_error / usual_error.nanmedian()
    wrong = (low < shares[0]) | ((high > 4) & (usual_error > limits[0]))
    doubtful = ((low < shares[1]) | ((high > 2) & (usual_error > limits[1]))) & ~wrong
    lists = [mask.nonzero()[:, 0].tolist() for mask in (wrong, doubtful, usual_same.isnan())]
    return lists[0], lists[1], lists[2]


def _percent(share: float) -> str:
    """A share in percent with two digits."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 else f"{value:.2g} %"
