"""Generated scenes without truth: views around them, and a whole run that measures what can be measured."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console

from sr3d import Cameras, Gaussians, Sr3dError
from sr3d.evaluation.cases import Sources, open_cases
from sr3d.evaluation.cases.base import CaseSet
from sr3d.evaluation.cases.generated import orbit
from sr3d.evaluation.output import write_output
from sr3d.evaluation.protocol import Protocol
from sr3d.evaluation.results import Results
from sr3d.evaluation.results_file import read_results
from sr3d.evaluation.run import RunConfig, run_protocol
from sr3d.zoom.cameras import CAMERAS, ZoomCameras, write_cameras

SIZE, DEPTH, SIDE = 20, 2.0, 12
CENTER = (8.5, 11.5)
SWING = math.radians(6)


def front() -> Cameras:
    """One camera off the axes, whose frame the wall fills."""
    turn = torch.tensor([[0.8, 0, 0.6], [0, 1, 0], [-0.6, 0, 0.8]])
    pose = torch.eye(4)[None].clone()
    pose[0, :3, :3], pose[0, :3, 3] = turn, torch.tensor([0.3, -0.2, 0.5])
    K = torch.tensor([[[24.0, 0, 9.5], [0, 25, 10.5], [0, 0, 1]]])
    return Cameras(world_to_cam=pose, K=K, width=SIZE, height=SIZE)


def wall() -> Gaussians:
    """A solid wall of Gaussians at depth 2 in front of the camera, wider than its frame."""
    generator = torch.Generator().manual_seed(0)
    steps = (torch.arange(SIDE) + 0.5) / SIDE * 4 - 2
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    points = torch.stack([x, y, torch.full_like(x, DEPTH)], dim=-1).reshape(-1, 3)
    camera, count = front(), SIDE * SIDE
    rotation, shift = camera.world_to_cam[0, :3, :3], camera.world_to_cam[0, :3, 3]
    quats = torch.tensor([1.0, 0, 0, 0]).repeat(count, 1)
    wide = torch.tensor([0.3, 0.3, 0.3])
    return Gaussians(
        means=(points - shift) @ rotation, quats=quats, scales=wide.repeat(count, 1),
        opacities=torch.full((count,), 0.95), sh=torch.rand(count, 1, 3, generator=generator) - 0.5,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folders as a zoom leaves them: one with levels 1x, 4x, 16x, one with 1x and 4x."""
    out = []
    for name, levels in (("attic", 2), ("hall", 1)):
        folder = tmp_path_factory.mktemp("made") / name
        folder.mkdir()
        wall().save(folder / "scene.ply")
        shown = {level: front().zoomed(4.0**level, CENTER) for level in range(levels + 1)}
        write_cameras(folder / CAMERAS, ZoomCameras(levels=shown, center=CENTER, prompt=f"the {name}"))
        out.append(folder)
    return out


def protocol(views: int = 9) -> Protocol:
    title = "Around generated scenes"
    return Protocol(
        name="around", title=title, kind="generated", data={"views": views}, factor=1, metrics=["psnr"], baseline="ply"
    )


def opened(paths: list[Path], views: int = 9) -> CaseSet:
    return open_cases(protocol(views), Sources(paths=paths))


def test_the_target_keeps_its_pixel_and_its_depth_in_every_view() -> None:
    around = orbit(wall(), front(), CENTER, 9)
    assert len(around) == 9 and (around.width, around.height) == (SIZE, SIZE)
    camera = front().to(torch.float64)
    point = camera.unproject(torch.full((1, SIZE, SIZE), DEPTH, dtype=torch.float64))[0, 11, 8]
    pixels, depth = around.project(point[None])
    # The pixel's middle, at the depth that the Gaussians are drawn at.
    torch.testing.assert_close(pixels[:, 0], torch.tensor(CENTER).double().expand(9, 2), rtol=0, atol=1e-5)
    torch.testing.assert_close(depth, torch.full((9, 1), DEPTH).double(), rtol=0, atol=1e-6)


def test_nine_views_are_a_grid_of_six_degrees_around_the_camera_itself() -> None:
    around, camera = orbit(wall(), front(), CENTER, 9), front().to(torch.float64)
    torch.testing.assert_close(around.world_to_cam[4], camera.world_to_cam[0], rtol=0, atol=1e-12)
    assert torch.equal(around.K, camera.K.expand(9, 3, 3))
    relative = around.world_to_cam[:, :3, :3] @ camera.world_to_cam[0, :3, :3].T
    eye = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(relative @ relative.mT, eye.expand(9, 3, 3), rtol=0, atol=1e-6)
    assert torch.allclose(torch.linalg.det(relative), torch.ones(9).double())
    # x about y by the yaw, then about x by the pitch: R = Rx(pitch) Ry(yaw).
    yaw = torch.atan2(relative[:, 0, 2], relative[:, 0, 0]).reshape(3, 3)
    pitch = torch.atan2(relative[:, 2, 1], relative[:, 1, 1]).reshape(3, 3)
    steps = torch.tensor([-SWING, 0, SWING], dtype=torch.float64)
    torch.testing.assert_close(yaw, steps.expand(3, 3), rtol=0, atol=1e-7)
    torch.testing.assert_close(pitch, steps[:, None].expand(3, 3), rtol=0, atol=1e-7)
    # Seen from 2 away, 6 degrees to the side are a chord of 2 * 2 * sin(3 degrees).
    moved = (around.positions - around.positions[4]).norm(dim=-1)
    target = camera.cam_to_world[0] @ torch.tensor([0, 0, DEPTH, 1], dtype=torch.float64)
    reach = (around.positions - target[:3]).norm(dim=-1)
    assert float(moved[3]) == pytest.approx(float(moved[5])) and 0.18 < float(moved[3]) < 0.22
    assert float((reach / reach[4] - 1).abs().max()) < 0.02


@pytest.mark.parametrize(("count", "distinct"), [(1, 1), (4, 4), (5, 5), (16, 16)])
def test_any_number_of_views(count: int, distinct: int) -> None:
    around = orbit(wall(), front(), CENTER, count)
    poses = {tuple((p * 1e6).round().flatten().tolist()) for p in around.world_to_cam}
    assert len(around) == count and len(poses) == distinct
    around.check("orbit")
    if count == 1:
        torch.testing.assert_close(around.world_to_cam, front().world_to_cam.double(), rtol=0, atol=1e-12)


def test_a_pixel_that_shows_nothing_is_refused() -> None:
    off = wall()
    off.means[:, 0] += 50
    with pytest.raises(Sr3dError, match="target: found nothing at pixel"):
        orbit(off, front(), CENTER, 9)


def test_every_level_that_was_made_is_a_case(made: list[Path]) -> None:
    cases = opened(made, 4)
    assert cases.names == ["attic/level 1", "attic/level 2", "hall/level 1"] and cases.views == 12
    assert cases.scenes == ["attic", "attic", "hall"]
    case = cases.load(1)
    assert case.levels == [16] * 4 and case.frames == ["view 1", "view 2", "view 3", "view 4"]
    assert case.text == "the attic" and case.folder == str(made[0]) and case.center is None
    assert case.context is None and case.truth is None and case.reduced is None
    torch.testing.assert_close(case.cameras.focal, front().focal.double().expand(4) * 16)


@pytest.mark.parametrize("levels", [[0], [1, 2]])
def test_a_zoom_without_its_start_or_its_levels(levels: list[int], tmp_path: Path) -> None:
    shown = {level: front() for level in levels}
    write_cameras(tmp_path / CAMERAS, ZoomCameras(levels=shown, center=CENTER))
    with pytest.raises(Sr3dError, match=r"cameras\.json: levels: found .*; expected level 0 and others"):
        opened([tmp_path])


def test_folders_that_hold_nothing(made: list[Path], tmp_path: Path) -> None:
    with pytest.raises(Sr3dError, match=r"cameras\.json: file: found FileNotFoundError"):
        opened([tmp_path])
    (tmp_path / CAMERAS).write_bytes((made[1] / CAMERAS).read_bytes())
    with pytest.raises(Sr3dError, match=r"Gaussians: found no .*scene\.sr3d or .*scene\.ply"):
        opened([tmp_path]).load(0)


@pytest.fixture(scope="module")
def whole(made: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path, str]:
    """A run of method `ply`: results, folder, what the terminal says."""
    folder, said = tmp_path_factory.mktemp("run"), io.StringIO()
    found = run_protocol(protocol(), config_of(folder, made, ["ply"]))
    assert found is not None
    write_output(found, folder, Console(file=said, width=200))
    return found, folder, said.getvalue()


def config_of(folder: Path, made: list[Path], methods: list[str]) -> RunConfig:
    return RunConfig(output=folder, methods=methods, sources=Sources(paths=made), accelerator="cpu")


def test_a_run_has_costs_and_pictures_but_no_scores(whole: tuple[Results, Path, str]) -> None:
    found, folder, said = whole
    assert len(found.cases) == 3 and found.expected == 27 and not found.missing
    assert found.columns == {} and "psnr" in found.unavailable and "needs truth" in found.unavailable["psnr"]
    for case in found.cases:
        assert case.gaussians == {"ply": SIDE * SIDE} and case.fps["ply"] > 0 and case.seconds["ply"] > 0
        assert case.peak_bytes["ply"] > 1e7 and case.coverage == [1.0] * 9
        assert set(case.pictures) == {"covered", "ply"} and all((folder / p).is_file() for p in case.pictures.values())
        assert len(str(case.notes["ply"]["sha256"])) == 64
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "Around generated scenes" in report and "144" in report and "144" in said and "FPS" in said
    assert read_results(folder / "results.json").cases[2].fps == found.cases[2].fps
    # Pictures of all three cases, and no word about a coarse scene that there is none of.
    assert report.count("<img class=pixelated") == 3 and "coarse scene" not in report


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (
            "coarse",
            "hall/level 1: input views: found none: the protocol is about given Gaussians; expected method ply",
        ),
        ("upsampled", "expected method ply"),
        ("optimise:1", "expected method ply"),
        ("bicubic", "hall/level 1: input views: found none; expected views that can be enlarged: leave bicubic out"),
    ],
)
def test_methods_that_need_views_say_so(method: str, expected: str, made: list[Path], tmp_path: Path) -> None:
    with pytest.raises(Sr3dError, match="cases evaluated: found 0 of 1") as error:
        run_protocol(protocol(1), config_of(tmp_path / "run", made[1:], [method]))
    assert expected in str(error.value)
