from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import sr3d
from sr3d import Cameras, Gaussians, Sr3dError
from sr3d.coarse import CoarseConfig, coarse_gaussians
from sr3d.datasets.raycast import AXES, BOX, CENTER, HALF, RADIUS
from sr3d.datasets.world import World
from sr3d.lod import Lod
from sr3d.zoom.viewpoints import default_camera, inside_surface, neighbours, orbit


def cloud(means: torch.Tensor, colors: torch.Tensor, size: float = 0.03, opacity: float = 0.9) -> Gaussians:
    n = len(means)
    return Gaussians(
        means=means,
        quats=torch.tensor([1.0, 0, 0, 0]).expand(n, 4).clone(),
        scales=torch.full((n, 3), size),
        opacities=torch.full((n,), opacity),
        sh=((colors - 0.5) / 0.28209479)[:, None],
    )


def panel() -> Gaussians:
    """An upright board at (5, -1, 2), 2 wide and 1 high: black and white squares face +x, its back is plain grey."""
    v, u = torch.meshgrid(torch.linspace(-0.5, 0.5, 20), torch.linspace(-1, 1, 40), indexing="ij")
    flat = torch.stack([torch.zeros_like(u), v, u], dim=-1).flatten(0, 1) + torch.tensor([5.0, -1, 2])
    squares = ((torch.arange(20)[:, None] // 5 + torch.arange(40) // 5) % 2).flatten()[:, None].expand(-1, 3).float()
    back = flat - torch.tensor([0.2, 0, 0])
    return Gaussians.cat([cloud(flat, squares), cloud(back, torch.full_like(squares, 0.5))])


def test_default_camera_shows_the_best_side_upright():
    camera = default_camera(panel(), 96, 64)
    drawn = sr3d.render(panel(), camera)
    eye = camera.positions[0]
    assert len(camera) == 1 and (camera.width, camera.height) == (96, 64)
    assert eye[0] > 6 and abs(eye[2] - 2) < 0.6 * (eye[0] - 5)  # in front of the squares
    pixel, _ = camera.project(torch.tensor([[4.9, -1, 2], [4.9, -1.4, 2]]))
    torch.testing.assert_close(pixel[0, 0], torch.tensor([48.0, 32.0]), atol=1.0, rtol=0)
    assert pixel[0, 1, 1] < pixel[0, 0, 1] - 3  # -y is up
    assert pixel[0, 1, 0].item() == pytest.approx(pixel[0, 0, 0].item(), abs=0.5)  # and not tilted
    border = torch.ones(64, 96, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert drawn.alpha[0][border].max() < 0.05 and drawn.alpha.mean() > 0.15
    assert drawn.rgb[0][drawn.alpha[0] > 0.9].std() > 0.3
    camera.check("default camera")


def test_default_camera_is_deterministic_and_follows_the_scene():
    a, b = default_camera(panel(), 64, 64), default_camera(panel(), 64, 64)
    assert torch.equal(a.world_to_cam, b.world_to_cam)
    move = torch.eye(4)
    move[:3] *= 3
    move[:3, 3] = torch.tensor([10.0, -4, 7])
    far = default_camera(panel().transform(move), 64, 64)
    torch.testing.assert_close(far.positions, 3 * a.positions + move[:3, 3], rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("fov", [30, 80.0])
def test_default_camera_has_the_field_of_view(fov):
    camera = default_camera(panel(), 96, 64, fov_degrees=fov)
    assert math.degrees(2 * math.atan(48 / camera.K[0, 0, 0].item())) == pytest.approx(fov, rel=1e-5)


def test_default_camera_ignores_outliers_transparency_and_finer_levels():
    board = panel()
    expected = default_camera(board, 64, 64).positions
    generator = torch.Generator().manual_seed(0)
    stray = cloud(torch.randn(100, 3, generator=generator) * 100, torch.ones(100, 3))
    ghosts = cloud(torch.tensor([[0.0, 50, 0]]).expand(2000, 3).clone(), torch.ones(2000, 3), opacity=0.0)
    torch.testing.assert_close(
        default_camera(Gaussians.cat([board, stray]), 64, 64).positions, expected, rtol=0.1, atol=0.4
    )
    torch.testing.assert_close(default_camera(Gaussians.cat([board, ghosts]), 64, 64).positions, expected)
    corner = cloud(torch.tensor([[5.0, -0.5, 3]]).expand(5000, 3).clone(), torch.ones(5000, 3), size=0.001)
    native = torch.cat([torch.full((len(board),), 0.1), torch.full((5000,), 0.01)])
    lod = Lod.roots(native)
    lod.level[len(board) :] = 1
    forest = replace(Gaussians.cat([board, corner]), lod=lod)
    torch.testing.assert_close(default_camera(forest, 64, 64).positions, expected)


def test_default_camera_keeps_out_of_what_blocks_its_view():
    """A small dense ball where the camera would stand."""
    board = panel()
    before = default_camera(board, 64, 64)
    ball = torch.nn.functional.normalize(torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    wall = cloud(before.positions + 0.4 * ball, torch.rand(40, 3, generator=torch.Generator().manual_seed(1)), size=0.2)
    after = default_camera(Gaussians.cat([board, wall]), 64, 64)
    assert (after.positions - before.positions).norm() > 1
    assert not inside_surface(Gaussians.cat([board, wall]), after).any()


def test_default_camera_of_a_single_gaussian_and_of_a_real_file(scenes):
    one = cloud(torch.tensor([[1.0, 2, 3]]), torch.ones(1, 3), size=0.5)
    assert sr3d.render(one, default_camera(one, 32, 32)).alpha[0, 16, 16] > 0.8
    guitar = Gaussians.load(scenes / "splats" / "guitar.compressed.ply")
    camera = default_camera(guitar, 64, 64)
    drawn = sr3d.render(guitar, camera)
    # Its front, which faces +x: a yellow body in the lower half, the neck straight above it.
    assert camera.positions[0, 0] > 4 and abs(camera.positions[0, 1] + 2.1) < 1.5
    rows = (drawn.alpha[0] > 0.5).float().mean(1)
    assert rows[36:56].mean() > 2 * rows[10:30].mean() > 0.05
    body = drawn.rgb[0, 40:52][drawn.alpha[0, 40:52] > 0.9].mean(0)
    assert body[0] > 1.2 * body[2] and body.mean() > 0.4


BAD_DEFAULT = {
    "nothing": (lambda g: (g.index(slice(0, 0)), 64, 64, 50), "gaussians"),
    "transparent": (lambda g: (replace(g, opacities=0 * g.opacities), 64, 64, 50), "gaussians"),
    "a batch": (lambda g: (g.unsqueezed(), 64, 64, 50), "gaussians"),
    "no pixels": (lambda g: (g, 64, 0, 50), "width, height"),
    "no view": (lambda g: (g, 64, 64, 0), "fov_degrees"),
    "all directions": (lambda g: (g, 64, 64, 180), "fov_degrees"),
}


@pytest.mark.parametrize("case", BAD_DEFAULT)
def test_impossible_default_cameras(case):
    arguments, field = BAD_DEFAULT[case]
    gaussians, width, height, fov = arguments(panel())
    with pytest.raises(Sr3dError, match=r"sr3d\.zoom\.default_camera") as caught:
        default_camera(gaussians, width, height, fov_degrees=fov)
    assert caught.value.field == field


# --- orbit and neighbours


def views(seed: int = 0, count: int = 1) -> Cameras:
    """Rolled, off-centre cameras near the origin that look roughly along +z."""
    g = torch.Generator().manual_seed(seed)
    skew = 0.2 * torch.randn(count, 3, 3, generator=g, dtype=torch.float64)
    poses = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    poses[:, :3, :3] = torch.linalg.matrix_exp(skew - skew.transpose(-1, -2))
    poses[:, :3, 3] = 0.5 * torch.randn(count, 3, generator=g)
    K = torch.tensor([[50.0, 0, 20], [0, 55, 30], [0, 0, 1]], dtype=torch.float64)
    return Cameras(world_to_cam=poses, K=K.repeat(count, 1, 1), width=64, height=48)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_orbit(count):
    camera, point = views(1), torch.tensor([0.7, -0.4, 5.0], dtype=torch.float64)
    around = orbit(camera, point, count, 10)
    assert len(around) == count and (around.width, around.height) == (64, 48)
    around.check("orbit")
    assert torch.equal(around.K, camera.K.expand(count, 3, 3))
    pixel, depth = camera.project(point[None])
    pixels, depths = around.project(point[None])
    torch.testing.assert_close(pixels, pixel.expand(count, 1, 2))
    torch.testing.assert_close(depths, depth.expand(count, 1))
    ray = torch.nn.functional.normalize(camera.positions - point, dim=-1)
    rays = torch.nn.functional.normalize(around.positions - point, dim=-1)
    angles = torch.rad2deg(torch.acos((ray * rays).sum(-1)))
    torch.testing.assert_close(angles, torch.full((count,), 10.0, dtype=torch.float64))
    # In the given camera's frame: a regular polygon that starts at the right and goes on downwards.
    turn = camera.world_to_cam[0, :3, :3]
    shift = (around.positions - camera.positions) @ turn.T
    assert shift[0, 0] > 0 and abs(shift[0, 1]) < 0.1 * shift[0, 0]
    if count > 2:
        assert shift[1, 1] > 0 and abs(shift[:, :2].mean(0)).max() < 0.15 * shift[0, 0]
        sides = (around.positions - around.positions.roll(1, dims=0)).norm(dim=-1)
        torch.testing.assert_close(sides, sides[:1].expand(count))
    # No roll about the line of sight: the turn's axis is perpendicular to it.
    sight = turn @ ray[0]
    for pose in around.world_to_cam:
        relative = pose[:3, :3] @ turn.T
        axis = torch.stack(
            [relative[2, 1] - relative[1, 2], relative[0, 2] - relative[2, 0], relative[1, 0] - relative[0, 1]]
        )
        assert abs(axis @ sight) < 1e-9
    assert torch.equal(orbit(camera, point, count, 10).world_to_cam, around.world_to_cam)


def test_orbit_keeps_the_type_of_the_camera():
    camera = views().to(torch.float32)
    assert orbit(camera, torch.tensor([0.0, 0, 4]), 2, 5.0).world_to_cam.dtype == torch.float32


@pytest.mark.parametrize(
    ("camera", "z", "count", "degrees", "field"),
    [
        (views(0, 2), 4.0, 3, 5, "camera"),
        (views(), -4.0, 3, 5, "point"),
        (views(), 4.0, 0, 5, "count"),
        (views(), 4.0, 3, 0, "degrees"),
        (views(), 4.0, 3, 90, "degrees"),
        (views(), 4.0, 3, math.nan, "degrees"),
    ],
)
def test_impossible_orbits(camera, z, count, degrees, field):
    with pytest.raises(Sr3dError, match=r"sr3d\.zoom\.orbit") as caught:
        orbit(camera, torch.tensor([0.0, 0, z]), count, degrees)
    assert caught.value.field == field


def test_neighbours():
    """Cameras on a line; the third has turned its back, the last one has the point outside its frame."""
    poses = torch.eye(4).repeat(6, 1, 1)
    poses[:, 0, 3] = -torch.tensor([0.0, 0.9, 0.1, -0.2, 0.4, 20.0])
    poses[2, :3, :3] = torch.diag(torch.tensor([-1.0, 1, -1]))
    cameras = Cameras(world_to_cam=poses, K=views().K.float().repeat(6, 1, 1), width=64, height=48)
    point = torch.tensor([0.0, 0, 5])
    assert neighbours(cameras, point, 9) == [0, 3, 4, 1]
    assert neighbours(cameras, point, 2) == [0, 3] and neighbours(cameras, point, 1) == [0]
    assert neighbours(cameras, torch.tensor([0.0, 0, -5]), 3) == [0, 2]  # the first one always
    for bad, count in ((cameras, 0), (cameras.index([]), 2)):
        with pytest.raises(Sr3dError, match=r"neighbours: cameras, count"):
            neighbours(bad, point, count)


# --- inside a surface


@pytest.fixture(scope="module")
def worlds() -> list[tuple[World, Cameras, sr3d.Scene, Gaussians]]:
    """Six procedural worlds as coarse Gaussians of two views."""
    out = []
    for seed in range(6):
        world = World.generate(seed)
        cameras = world.sample_cameras(2, 32, 32)
        scene = world.render(cameras, samples=1)
        out.append((world, cameras, scene, coarse_gaussians(scene, CoarseConfig())))
    return out


def at(positions: torch.Tensor, like: Cameras) -> Cameras:
    """The first camera, moved to other places."""
    poses = like.world_to_cam[:1].repeat(len(positions), 1, 1)
    poses[:, :3, 3] = -torch.einsum("cij,cj->ci", poses[:, :3, :3], positions)
    return replace(like, world_to_cam=poses, K=like.K[:1].repeat(len(positions), 1, 1))


def test_good_cameras_are_not_inside(worlds):
    for world, cameras, _, coarse in worlds:
        assert not inside_surface(coarse, cameras).any()
        others = Cameras.cat([world.sample_cameras(1, 32, 32, seed=seed) for seed in range(1, 5)])
        assert not inside_surface(coarse, others).any()


def test_cameras_in_walls_are_inside(worlds):
    """On the wall, and two centimetres before and behind it."""
    for world, cameras, scene, coarse in worlds:
        normals, points = world.normals(cameras.index([0]))[0], cameras.index([0]).unproject(scene.depths[:1])[0]
        bare = torch.nn.functional.avg_pool2d((scene.labels[:1] <= 3).float(), 5, stride=1)[0] == 1
        row, column = (bare.nonzero()[int(bare.sum()) // 2] + 2).tolist()
        places = points[row, column] + torch.tensor([[-0.02], [0.0], [0.02]]) * normals[row, column]
        assert inside_surface(coarse, at(places, cameras)).all(), world.seed


def test_cameras_in_boxes_are_inside(worlds):
    """In the middle of every small box that the first view sees, not at its border."""
    found = 0
    for world, cameras, scene, coarse in worlds:
        small = (world.bodies[:, 0] == BOX) & (world.bodies[:, HALF:RADIUS].max(1) < 0.12)
        middles = torch.from_numpy(world.bodies[small, CENTER:AXES]).float()
        pixels, depth = cameras.index([0]).project(middles)
        columns, rows = pixels[0].long().clamp(0, 31).unbind(-1)
        seen = ((pixels[0] - 16).abs() < 12).all(-1) & ((depth[0] - scene.depths[0, rows, columns]).abs() < 0.12)
        found += int(seen.sum())
        assert inside_surface(coarse, at(middles[seen], cameras)).all(), world.seed
    assert found >= 5


def test_inside_depends_on_the_place_alone():
    board = panel()
    places = torch.tensor([[5.0, -1, 2], [4.97, -1, 2.3], [6.0, -1, 2], [5.0, -3, 2]])
    expected = [True, True, False, False]
    looks = views(3, 4).to(torch.float32)
    turned = replace(looks, world_to_cam=looks.world_to_cam.clone())
    turned.world_to_cam[:, :3, 3] = -torch.einsum("cij,cj->ci", looks.world_to_cam[:, :3, :3], places)
    assert inside_surface(board, at(places, looks)).tolist() == expected
    assert inside_surface(board, turned).tolist() == expected
    # The same at any scale; and what cannot stop light is no surface.
    shrink = torch.diag(torch.tensor([1e-3, 1e-3, 1e-3, 1.0]))
    assert inside_surface(board.transform(shrink), at(1e-3 * places, looks)).tolist() == expected
    assert not inside_surface(replace(board, opacities=0.001 * board.opacities), at(places, looks)).any()
    assert not inside_surface(board.index(slice(0, 0)), at(places, looks)).any()
