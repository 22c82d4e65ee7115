"""A zoom on disk: killed, gone on with, branched, undone, damaged, without room."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import small_capture

from sr3d.errors import Sr3dError
from sr3d.io import check_forest
from sr3d.lod import Forest
from sr3d.models import SuperResolver
from sr3d.scene import Scene
from sr3d.zoom.guides import Guides
from sr3d.zoom.loop import ZoomConfig, plant
from sr3d.zoom.makers import Predictor
from sr3d.zoom.run import ZoomRun, run_zoom
from sr3d.zoom.run import undo as take_back
from sr3d.zoom.session import FOREST, INPUTS, PICTURES, STATE, Session
from sr3d.zoom.target import Pixel
from sr3d.zoom.tree import draw_tree

THERE, ELSEWHERE, CORNER = Pixel(u=10.5, v=13.5), Pixel(u=19.5, v=6.5), Pixel(u=4.5, v=19.5)
LEVELS = [f"level-{i:03d}.safetensors" for i in range(4)]


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def stats(folder: Path) -> list[tuple[str, int, int, int]]:
    """Name, identity and time of every file in a folder."""
    infos = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    return [(name, info.st_ino, info.st_size, info.st_mtime_ns) for name, info in infos]


def untimed(folder: Path) -> dict[str, Any]:
    """What `zoom.json` says, without wall times."""
    state = json.loads((folder / STATE).read_text())
    for level in state["levels"]:
        del level["seconds"], level["check_seconds"]
    return state


@pytest.fixture(scope="module")
def begun(table: Scene, doubler: SuperResolver, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session without any level above 0."""
    folder = tmp_path_factory.mktemp("begun") / "zoom"
    views, forest = plant(table, None, None, doubler)
    assert len(views) == 2
    Session.create(folder, "a table", {"seed": 0}, table, forest)
    return folder


@pytest.fixture(scope="module")
def finished(begun: Path, doubler: SuperResolver) -> Path:
    """Three levels, made in one go."""
    folder = begun.with_name("finished")
    shutil.copytree(begun, folder)
    grow(Session.open(folder), doubler, THERE, 8)
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of the three levels."""
    return Path(shutil.copytree(finished, tmp_path / "zoom"))


def grow(session: Session, network: SuperResolver, target: Pixel, factor: int) -> Session:
    """With what the contact sheet needs."""
    session.extend(target, factor, Predictor(network), Guides(pictures=True), ZoomConfig())
    return session


@pytest.fixture(scope="module")
def fates(begun: Path, doubler: SuperResolver, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folders of runs that ended badly, and what was printed."""
    folder = tmp_path_factory.mktemp("fates")
    names = ["making", "writing", "between", "full"]
    for name in names:
        shutil.copytree(begun, folder / name)
    doubler.save_pretrained(folder / "network.safetensors")
    program = Path(__file__).with_name("fates.py")
    command = [sys.executable, str(program), str(folder), str(torch.get_num_threads()), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return folder, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("fate", "levels", "noted"), [("making", 2, 2), ("writing", 2, 2), ("between", 3, 2)])
def test_a_killed_run_goes_on_to_the_same_bytes(fates, finished, doubler, fate, levels, noted):
    folder, said = fates[0] / fate, fates[1]
    assert f"{fate}: -9\n" in said
    stored = json.loads((folder / FOREST / "forest.json").read_text())["levels"]
    assert (len(stored), len(untimed(folder)["levels"])) == (levels + 1, noted)
    if fate == "writing":
        assert any(path.name.startswith(".level-003") for path in (folder / FOREST).iterdir())

    session = grow(Session.open(folder), doubler, THERE, 8)
    assert digests(folder / FOREST) == digests(finished / FOREST) and sorted(digests(folder / FOREST)) == [
        "forest.json",
        *LEVELS,
    ]
    assert untimed(folder) == untimed(finished)
    assert digests(folder / PICTURES) == digests(finished / PICTURES)
    check_forest(session.forest)


@pytest.mark.slow
def test_no_room_for_a_level(fates, finished, doubler):
    """Files of at most 500 kB: level 2 has 669 kB."""
    folder, said = fates[0] / "full", fates[1]
    assert "full: 0\n" in said and f"full: {folder / FOREST}" in said and "a place that can be written" in said
    assert sorted(digests(folder / FOREST)) == ["forest.json", *LEVELS[:2]]
    session = Session.open(folder)
    assert [level.level for level in session.state.levels] == [1] and len(session.forest.levels) == 2
    check_forest(session.forest)
    grow(session, doubler, THERE, 8)
    assert digests(folder / FOREST) == digests(finished / FOREST)


@pytest.mark.parametrize(
    "where", ["sr3d.io.forest_write.save_file", "sr3d.zoom.session.save_file", "pathlib.Path.write_text"]
)
def test_no_space_left_in_mid_level(begun, finished, doubler, tmp_path, monkeypatch, where):
    """A full disk while the Gaussians, the pictures or the notes of level 2 are written."""
    folder = Path(shutil.copytree(begun, tmp_path / "zoom"))
    session = grow(Session.open(folder), doubler, THERE, 2)
    before = digests(folder)

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(where, full)
        with pytest.raises(Sr3dError, match=r"No space left on device.*a place that can be written"):
            grow(session, doubler, THERE, 8)
    after = digests(folder)
    assert {name: after[name] for name in before if "forest.json" not in name}.items() <= before.items()
    again = Session.open(folder)
    assert [level.level for level in again.state.levels] == [1] and len(again.forest.levels) == 2
    assert digests(folder / FOREST) == {name: before[f"{FOREST}/{name}"] for name in ("forest.json", *LEVELS[:2])}
    grow(again, doubler, THERE, 8)
    assert digests(folder / FOREST) == digests(finished / FOREST)


def test_stopping_after_every_level_changes_nothing(begun, finished, doubler, tmp_path):
    folder = Path(shutil.copytree(begun, tmp_path / "zoom"))
    for factor in (2, 4, 8, 8):
        grow(Session.open(folder), doubler, THERE, factor)
    assert digests(folder / FOREST) == digests(finished / FOREST) and untimed(folder) == untimed(finished)


def test_a_session_goes_on_with_exactly_what_it_began_with(table, doubler, tmp_path):
    """Cameras in double precision stay so; the name too."""
    exact = Scene(images=table.images, cameras=table.cameras.to(torch.float64), name="a name")
    made = Session.create(tmp_path / "zoom", "a table", {}, exact, plant(table, None, None, doubler)[1])
    read = Session.open(tmp_path / "zoom")
    for views in (made.views, read.views):
        assert views.name == "a name" and torch.equal(views.images, table.images)
        assert torch.equal(views.cameras.K, exact.cameras.K) and views.cameras.K.dtype == torch.float64
        assert torch.equal(views.cameras.world_to_cam, exact.cameras.world_to_cam)


def test_branches_leave_what_is_there(folder, doubler):
    before = digests(folder / FOREST)
    for target in (ELSEWHERE, CORNER):
        grow(Session.open(folder), doubler, target, 4)
    after = digests(folder / FOREST)
    assert all(after[name] == before[name] for name in LEVELS)
    assert sorted(after) == ["forest.json", *LEVELS, "level-004.safetensors", "level-005.safetensors"]
    session = Session.open(folder)
    assert [(level.branch, level.level) for level in session.state.levels] == [(0, 1), (0, 2), (0, 3), (1, 2), (2, 2)]
    counts = [f"{level.gaussians:,}" for level in session.state.levels]
    assert draw_tree(session.state).splitlines() == [
        "a table",
        "+- Pixel(u=10.5, v=13.5)",
        *(f"|  +- level {i}, {2**i}x: {counts[i - 1]} Gaussians" for i in (1, 2, 3)),
        "+- Pixel(u=19.5, v=6.5)",
        "|  +- levels 1 to 1: made before",
        f"|  +- level 2, 4x: {counts[3]} Gaussians",
        "+- Pixel(u=4.5, v=19.5)",
        "|  +- levels 1 to 1: made before",
        f"|  +- level 2, 4x: {counts[4]} Gaussians",
    ]
    check_forest(session.forest)
    # The first branch goes on where it ended, whatever came after.
    grow(session, doubler, THERE, 16)
    assert [(level.branch, level.level) for level in Session.open(folder).state.levels][5:] == [(0, 4)]


def test_undone_levels_come_back_as_they_were(folder, finished, doubler):
    session = Session.open(folder)
    session.undo(2)
    assert sorted(digests(folder / FOREST)) == ["forest.json", *LEVELS[:2]]
    assert list(digests(folder / PICTURES)) == ["001.safetensors"]
    assert [level.level for level in Session.open(folder).state.levels] == [1]
    assert len(session.pictures()) == 1 and session.state.branches[0].done == 1
    grow(session, doubler, THERE, 8)
    assert digests(folder / FOREST) == digests(finished / FOREST) and untimed(folder) == untimed(finished)
    assert digests(folder / PICTURES) == digests(finished / PICTURES)


def test_a_killed_undo_is_finished(folder, finished):
    """Killed between notes and forest: what the forest has more is taken back when it is opened."""
    session = Session.open(folder)
    session.undo(1)
    shutil.rmtree(folder / FOREST)
    shutil.copytree(finished / FOREST, folder / FOREST)
    assert len(Session.open(folder).forest.levels) == 3
    assert sorted(digests(folder / FOREST)) == ["forest.json", *LEVELS[:3]]


@pytest.mark.parametrize("count", [0, -1, 4])
def test_undo_of_more_than_there_is(folder, count):
    before = digests(folder)
    with pytest.raises(Sr3dError, match=rf"--undo: found {count}; expected 1 to 3, the levels above level 0"):
        Session.open(folder).undo(count)
    assert digests(folder) == before


def test_a_branch_forgets_the_levels_of_others_that_were_undone(folder, finished, doubler):
    """The second branch made nothing of its own, and the third only level 2."""
    session = Session.open(folder)
    near = Pixel(u=THERE.u + 0.01, v=THERE.v)
    grow(session, doubler, near, 4)
    grow(session, doubler, ELSEWHERE, 4)
    assert [level.branch for level in session.state.levels] == [0, 0, 0, 2]
    assert [branch.done for branch in session.state.branches] == [3, 2, 2]
    session.undo(2)
    # Nobody knows whether the second came through level 2 before or after the third made its part: it looks again.
    assert [branch.done for branch in session.state.branches] == [2, 1, 1]
    assert "|  +- levels 1 to 1: made before" in draw_tree(session.state)
    grow(session, doubler, near, 4)
    assert [branch.done for branch in session.state.branches] == [2, 2, 1] and len(session.state.levels) == 2
    session.undo(2)
    assert session.state.branches == [] and len(session.forest.levels) == 1
    assert draw_tree(session.state) == "a table"
    grow(Session.open(folder), doubler, THERE, 8)
    assert digests(folder / FOREST) == digests(finished / FOREST) and untimed(folder) == untimed(finished)


def damaged(document: Any, values: list[Any]) -> Iterator[tuple[str, Any]]:
    """Copies of a JSON document in which one value, wherever it is, is another one or missing."""

    def places(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        for key in keys:
            yield (*path, key)
            yield from places(value[key], (*path, key))

    for path in places(document, ()):
        for value in [*values, None]:
            if path == ("levels", 2) and value is None:
                continue  # as a killed run leaves it: the level is taken back
            if len(path) > 2 and path[:2] in (("levels", 0), ("levels", 1)):
                continue  # like the third
            copy = json.loads(json.dumps(document))
            holder = copy
            for key in path[:-1]:
                holder = holder[key]
            if value is None:
                del holder[path[-1]]
            else:
                holder[path[-1]] = value
            yield f"{path} {value}", copy


def test_damaged_notes_are_one_error_and_change_nothing(folder):
    """Whatever is wrong: an error that names the file, or (where a value is as good as another) the same forest."""
    text, before = (folder / STATE).read_text(), stats(folder / FOREST)
    values = [float("nan"), float("inf"), -1, 1.5, 10**30, "x", [], True]
    texts = [json.dumps(copy) for _, copy in damaged(json.loads(text), values)]
    texts += [text[:length] for length in range(0, len(text) - 2, 97)] + ["[]", "null", "NaN", "[" * 100_000]
    refused = 0
    for damage in texts:
        (folder / STATE).write_text(damage)
        try:
            Session.open(folder)
        except Sr3dError as error:
            assert error.source.startswith(str(folder))
            refused += 1
        assert stats(folder / FOREST) == before, damage
    assert 0.7 * len(texts) < refused < len(texts)


DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "no notes": (STATE, Path.unlink),
    "no inputs": (INPUTS, Path.unlink),
    "no forest": (FOREST, shutil.rmtree),
    "no level": (f"{FOREST}/{LEVELS[2]}", Path.unlink),
    "notes in another encoding": (STATE, lambda path: path.write_bytes(b"\xff\xfe{}")),
    "empty inputs": (INPUTS, lambda path: path.write_bytes(b"")),
    "cut inputs": (INPUTS, lambda path: path.write_bytes(path.read_bytes()[:-100])),
    "cut header": (INPUTS, lambda path: path.write_bytes(path.read_bytes()[:20])),
    "a header that is none": (INPUTS, lambda path: path.write_bytes(b"\xff" * 500)),
    "inputs that are a level": (INPUTS, lambda path: shutil.copy(path.parent / FOREST / LEVELS[0], path)),
    "cut level": (
        f"{FOREST}/{LEVELS[3]}",
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
    ),
    "level of another": (f"{FOREST}/{LEVELS[3]}", lambda path: shutil.copy(path.with_name(LEVELS[1]), path)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_missing_and_damaged_files(folder, damage):
    name, spoil = DAMAGES[damage]
    spoil(folder / name)
    before = digests(folder)
    with pytest.raises(Sr3dError, match=str(folder)):
        Session.open(folder)
    assert digests(folder) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("images", torch.zeros(())),
        ("images", torch.zeros(2, 24, 24)),
        ("images", torch.zeros(2, 24, 24, 3, dtype=torch.uint8)),
        ("images", torch.full((2, 24, 24, 3), torch.nan)),
        ("images", torch.zeros(2, 0, 24, 3)),
        ("images", torch.zeros(1, 24, 24, 3)),
        ("K", torch.eye(3).expand(2, 3, 3) * torch.nan),
        ("K", torch.eye(3).expand(2, 3, 3).int()),
        ("world_to_cam", torch.zeros(2, 4, 4)),
    ],
)
def test_inputs_that_cannot_be(folder, name, value):
    save_file({**load_file(folder / INPUTS), name: value.contiguous()}, folder / INPUTS)
    before = digests(folder)
    with pytest.raises(Sr3dError, match=str(folder / INPUTS)):
        Session.open(folder)
    assert digests(folder) == before


def test_a_forest_of_another_zoom(folder, begun, doubler, tmp_path):
    """With as many levels, and with fewer."""
    other = Path(shutil.copytree(begun, tmp_path / "other"))
    for factor in (4, 8):
        grow(Session.open(other), doubler, CORNER, factor)
        shutil.rmtree(folder / FOREST)
        shutil.copytree(other / FOREST, folder / FOREST)
        before = digests(folder)
        with pytest.raises(Sr3dError, match=r"scene\.sr3d: levels: found \[1152, 4608, .*as zoom\.json says"):
            Session.open(folder)
        assert digests(folder) == before
    assert len(Forest.load(folder / FOREST).levels) == 4


def test_a_folder_of_another_zoom_is_left_alone(doubler, tmp_path, monkeypatch):
    """Of photographs, as the command line asks for it."""
    monkeypatch.setattr("sr3d.zoom.run.report", lambda session, *_: {"tree": draw_tree(session.state)})
    doubler.save_pretrained(tmp_path / "network.safetensors")
    asked = ZoomRun(
        scene=small_capture(tmp_path / "scene", views=2), target=Pixel(u=40.5, v=30.5), output=tmp_path / "zoom",
        checkpoint=str(tmp_path / "network.safetensors"), factor=2, width=20,
    )  # fmt: skip
    made = run_zoom(asked)
    before = digests(asked.output)
    other = tmp_path / "other.safetensors"
    SuperResolver(doubler.config).save_pretrained(other)
    others: dict[str, Any] = {
        "seed": 1, "width": 16, "neighbours": 2, "reject": False, "views": [0], "method": "scaffold",
        "checkpoint": str(other), "scene": asked.scene / "images",
    }  # fmt: skip
    for name, value in others.items():
        with pytest.raises(Sr3dError, match=rf"zoom\.json: {name}: found .*, or another output folder"):
            run_zoom(replace(asked, **{name: value}))
        assert digests(asked.output) == before
    for text, message in (("", "file: found JSONDecodeError"), ('{"format": "sr3d.zoom", "version": 2}', "version")):
        broken = Path(shutil.copytree(asked.output, asked.output.with_name("broken"), dirs_exist_ok=True))
        (broken / STATE).write_text(text)
        with pytest.raises(Sr3dError, match=message):
            run_zoom(replace(asked, output=broken))
        with pytest.raises(Sr3dError, match=message):
            take_back(broken, 1)
    # The same again finds everything done, by the name of the scene or of the folder.
    assert run_zoom(asked) == run_zoom(replace(asked, scene=asked.output)) == made
    assert digests(asked.output) == before
    assert take_back(asked.output, 1) == str(asked.scene)
