from __future__ import annotations

import math

import pytest
import torch
from observed import looking, observed
from torch import Tensor

from sr3d import Cameras
from sr3d.evaluation.metrics.depth import DepthError
from sr3d.evaluation.metrics.pose import PoseAuc, auc, pose_errors
from sr3d.evaluation.metrics.warp import WarpError


def _depth(drawn: list[float], true: list[float], covered: list[bool]) -> dict[str, float]:
    """Of one view of 2 x 2 pixels."""
    depth, truth, mask = (torch.tensor(x).reshape(1, 2, 2) for x in (drawn, true, covered))
    rgb = torch.zeros(1, 2, 2, 3)
    values = DepthError().measure(observed(rgb, rgb, depths=truth, depth=depth, covered=mask))
    return {name: value.item() for name, value in values.items()}


def test_rel_and_tau_by_hand() -> None:
    # Medians 2.5 and 5: ratios d / d* of 1, 1.02, 0.9 and 1 after scaling, whatever the units.
    true = [4.0, 5.0, 5.0, 8.0]
    drawn = [2.0, 2.55, 2.25, 4.0]
    median = (2.25 + 2.55) / 2
    ratios = [d / median * 5 / t for d, t in zip(drawn, true)]
    assert ratios == pytest.approx([1.041666667, 1.0625, 0.9375, 1.041666667])
    values = _depth(drawn, true, [True] * 4)
    assert values["rel"] == pytest.approx(100 * (0.041666667 * 2 + 0.0625 * 2) / 4)
    assert values["tau"] == 0
    # Exact up to scale; one pixel 2.9 % off, one 3.1 %: that is what the threshold of 1.03 is between.
    values = _depth([3.0, 3.0 * 1.029, 3.0 / 1.031, 3.0], [1.0, 1.0, 1.0, 1.0], [True, True, False, False])
    assert values["tau"] == 75 and values["rel"] == pytest.approx(100 * (0.029 + 1 - 1 / 1.031) / 4, rel=1e-5)
    # Covered pixels alone: median of 1 and 1.029 is 1.0145.
    expected = 100 * ((1.0145 - 1) / 1.0145 + (1.029 - 1.0145) / 1.0145) / 2
    assert values["tau_covered"] == 100 and values["rel_covered"] == pytest.approx(expected, rel=1e-4)


def test_depth_that_is_unknown_or_not_drawn() -> None:
    # Without truth a pixel does not count; with truth and nothing drawn it is 100 % off.
    values = _depth([7.0, 2.0, 2.0, 0.0], [math.inf, 1.0, 1.0, 1.0], [False, True, True, False])
    assert values == {
        "rel": pytest.approx(100 / 3),
        "tau": pytest.approx(200 / 3),
        "rel_covered": 0,
        "tau_covered": 100,
    }
    nothing = _depth([0.0] * 4, [1.0, 1.0, 0.0, 0.0], [True] * 4)
    assert all(math.isnan(value) for value in nothing.values())


def test_auc_in_closed_form() -> None:
    # Errors on a uniform grid up to 10°: recall is the line e / 10.
    errors = torch.arange(1, 101, dtype=torch.float64) / 10
    assert auc(errors, 20) == pytest.approx(0.75)
    # Below 10 it is the line up to the last error under the threshold, then level: the error of 10 itself is out.
    assert auc(errors, 10) == pytest.approx(0.5 - 0.5 * 0.01 * 0.01)
    assert auc(errors.flip(0), 5) == pytest.approx(0.25 - 0.5 * 0.01 * 0.02)
    assert auc(torch.zeros(3), 5) == 1 and auc(torch.full((3,), 30.0), 20) == 0
    assert math.isnan(auc(torch.zeros(0), 5))
    # One error e of one pair: a line from (0, 0) to (e, 1), then 1.
    assert auc(torch.tensor([4.0]), 10) == pytest.approx((2 + 6) / 10)


def _turned(cameras: Cameras, degrees: float) -> Cameras:
    """The second camera turned about its y axis, in place."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[c, 0, s, 0], [0, 1, 0, 0], [-s, 0, c, 0], [0, 0, 0, 1]])
    poses = cameras.world_to_cam.clone()
    poses[1] = turn @ poses[1]
    return Cameras(world_to_cam=poses, K=cameras.K, width=cameras.width, height=cameras.height)


def test_pose_errors() -> None:
    given = looking(torch.tensor([[0.0, 0, 0], [1.0, 0, 0]]), 8, 8)
    # The direction of a translation in the second camera's frame turns with the camera.
    assert pose_errors(_turned(given, 7.0), given).item() == pytest.approx(7, abs=1e-3)
    angle = math.radians(12)
    aside = looking(torch.tensor([[0.0, 0, 0], [5 * math.cos(angle), 5 * math.sin(angle), 0]]), 8, 8)
    assert pose_errors(aside, given).item() == pytest.approx(12, abs=1e-3)
    back = looking(torch.tensor([[0.0, 0, 0], [-1.0, 0, 0]]), 8, 8)
    assert pose_errors(back, given).item() == pytest.approx(0, abs=1e-3)
    still = looking(torch.zeros(2, 3), 8, 8)
    assert pose_errors(still, given).item() == 90
    # Without a true translation the estimated one does not matter.
    assert pose_errors(_turned(aside, 3.0), still).item() == pytest.approx(3, abs=1e-3)
    lost = looking(torch.tensor([[0.0, 0, 0], [math.nan, 0, 0]]), 8, 8)
    assert pose_errors(lost, given).item() == 180
    three = looking(torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [0.0, 1, 0]]), 8, 8)
    torch.testing.assert_close(pose_errors(three, three), torch.zeros(3, dtype=torch.float64), atol=1e-3, rtol=0)


def test_pose_auc_of_all_cases() -> None:
    given = looking(torch.tensor([[0.0, 0, 0], [1.0, 0, 0]]), 8, 8)
    rgb = torch.zeros(1, 8, 8, 3)
    metric = PoseAuc()
    states = [metric.state(observed(rgb, estimated=_turned(given, e), given=given)) for e in (4.0, 8.0)]
    states.append(metric.state(observed(rgb, estimated=given[:1], given=given[:1])))  # no pair
    values = metric.finish(states)
    assert list(values) == [column.name for column in metric.columns]
    # Recall: (4, ½), (8, 1).
    assert values["pose_auc_5"] == pytest.approx((4 * 0.25 + 0.5) / 5, abs=1e-3)
    assert values["pose_auc_10"] == pytest.approx((4 * 0.25 + 4 * 0.75 + 2) / 10, abs=1e-3)
    assert values["pose_auc_20"] == pytest.approx((4 * 0.25 + 4 * 0.75 + 12) / 20, abs=1e-3)
    assert all(math.isnan(value) for value in metric.finish(states[2:]).values())


_HEIGHT, _WIDTH, _FAR = 40, 60, 4.0


def _plane(cameras: Cameras, shade: float = 0.0) -> tuple[Tensor, Tensor]:
    """A slanted plane z = 4 + 0.2 x with a smooth texture, drawn exactly: colours and depth."""
    origins, _ = cameras.world_rays()
    directions = cameras.pixel_rays()  # the cameras are not turned: z of the ray is depth
    x0, z0 = (origins[:, i, None, None] for i in (0, 2))
    depth = (_FAR + 0.2 * x0 - z0) / (1 - 0.2 * directions[..., 0])
    points = origins[:, None, None] + directions * depth[..., None]
    waves = torch.stack([torch.sin(3 * points[..., i] + i) for i in (0, 1, 0)], dim=-1)
    return 0.5 + 0.3 * waves + shade, depth


def _cameras(*x: float) -> Cameras:
    return looking(torch.tensor([[value, 0.1 * value, 0.05 * value] for value in x]), _HEIGHT, _WIDTH)


def test_a_plane_is_consistent() -> None:
    cameras = _cameras(0.0, 0.3, 0.7)
    rgb, depth = _plane(cameras)
    values = WarpError().measure(observed(rgb, cameras=cameras, depth=depth))
    error, overlap = values["warp_error"], values["warp_overlap"]
    # Bilinear interpolation of a wave of 3 / unit, a pixel being 0.08 units, is off by (3 · 0.08)² / 8 · 0.3 at most.
    assert (error[:2] < 0.3 * (3 * _FAR / 50) ** 2 / 8).all() and error[2].isnan()
    # Moved by 0.3 and 0.03 units at a depth of 4, focal length 50: 3.75 of 60 columns and 0.375 of 40 rows leave.
    assert overlap[0].item() == pytest.approx(56 / 60 * 39 / 40, abs=0.02) and overlap[2].isnan()
    # Views in one place see the same pixels.
    same = _cameras(0.0, 0.0)
    values = WarpError().measure(observed(rgb[[0, 0]], cameras=same, depth=depth[[0, 0]]))
    assert values["warp_error"][0].item() < 1e-5 and values["warp_overlap"][0].item() > 0.9


def test_views_that_differ_are_not_consistent() -> None:
    cameras = _cameras(0.0, 0.3)
    rgb, depth = _plane(cameras)
    before = WarpError().measure(observed(rgb, cameras=cameras, depth=depth))
    shaded = torch.stack([rgb[0], rgb[1] + 0.1])
    values = WarpError().measure(observed(shaded, cameras=cameras, depth=depth))
    assert values["warp_error"][0].item() == pytest.approx(0.1, abs=2e-3)
    assert torch.equal(values["warp_overlap"][:1], before["warp_overlap"][:1])


def test_an_occluder_does_not_count() -> None:
    """A white pole in front of the plane hides other parts of it in each view."""
    cameras = _cameras(0.0, 0.3)
    rgb, depth = _plane(cameras)
    plane = WarpError().measure(observed(rgb, cameras=cameras, depth=depth))
    # The pole at depth 2, from x = -0.2 to 0.2: it moves by 7.5 pixels between the views, the plane by 3.75.
    x = cameras.pixel_rays()[..., 0] * 2 + cameras.positions[:, 0, None, None]
    pole = x.abs() < 0.2
    seen = observed(torch.where(pole[..., None], 1.0, rgb), cameras=cameras, depth=torch.where(pole, 2.0, depth))
    values = WarpError().measure(seen)
    assert values["warp_error"][0] <= plane["warp_error"][0] * 1.2
    assert values["warp_overlap"][0] < plane["warp_overlap"][0] - 0.05
    # Without the test of depth the pole would stand against the plane: as it does if both have one depth.
    painted = WarpError().measure(observed(seen.rgb, cameras=cameras, depth=depth))
    assert painted["warp_error"][0] > 10 * values["warp_error"][0]


def test_views_without_overlap() -> None:
    cameras = _cameras(0.0, 50.0)
    rgb, depth = _plane(cameras)
    apart = WarpError().measure(observed(rgb, cameras=cameras, depth=depth))
    assert apart["warp_error"].isnan().all() and apart["warp_overlap"][0] == 0
    # Depth of what is hardly there means nothing.
    near = _cameras(0.0, 0.3)
    rgb, depth = _plane(near)
    faint = WarpError().measure(observed(rgb, cameras=near, depth=depth, alpha=torch.full_like(depth, 0.4)))
    assert faint["warp_error"].isnan().all() and faint["warp_overlap"][0] == 0
