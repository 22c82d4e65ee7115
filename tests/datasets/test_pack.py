from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from converters import Toy

from sr3d import Sr3dError
from sr3d.datasets import ShardDataset
from sr3d.datasets.converter import ClipOptions
from sr3d.datasets.index import FILE
from sr3d.datasets.pack import PackConfig, Packed, pack
from sr3d.datasets.shards import read_index

ONE = PackConfig(shard_mb=1, workers=1)
USABLE = {f"scene {i}" for i in range(12)} - {"scene 3", "scene 6"}


def _pack(src: Path, dst: Path, config: PackConfig = ONE, **fields: object) -> Packed:
    return pack(Toy(**fields), src, dst, config=config, progress=False)


def _content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("pack")
    _pack(folder, folder / "out")
    return folder / "out"


def test_everything_is_in_the_index(whole: Path) -> None:
    index = read_index(whole)
    assert (index.source, index.converter_version, index.split, index.licence) == ("toy", 7, "all", "public domain")
    assert index.options["converter"] == {"scenes": 12, "seconds": 0.0, "empty": False, "listed": None}
    assert index.options["clips"]["views"] == 64 and index.options["shard_bytes"] == 1_000_000
    assert index.scenes == USABLE and index.clips == 19 and index.views == 57
    assert len(index.shards) == 4  # three scenes of about 0.4 MB fill a megabyte; the plan says so, not the result
    assert index.dropped["frames"] == {"pose not finite": 24, "rest of a damaged scene": 1}
    assert index.dropped["scenes"] == {"damaged": 1, "fewer than 3 usable frames": 1}
    assert any("scene 3" in e and "frame 7: found cut off" in e for e in index.dropped["examples"])
    assert len(list(ShardDataset(whole))) == 19


def test_any_number_of_processes_gives_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    _pack(whole.parent, tmp_path / "out", PackConfig(shard_mb=1, workers=3))
    assert _content(tmp_path / "out") == _content(whole)


def test_parts_of_a_job_array(whole: Path, tmp_path: Path) -> None:
    results = [
        _pack(whole.parent, tmp_path / "out", PackConfig(shard_mb=1, workers=1, part=f"{i}/3")) for i in (2, 3, 1)
    ]
    assert [r.index is None for r in results] == [True, True, False]
    assert [r.done for r in results] == [1, 2, 4]
    assert _content(tmp_path / "out") == _content(whole)


def test_a_second_run_keeps_what_is_whole_and_replaces_what_is_not(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _pack(whole.parent, out)
    kept, damaged, missing = (out / f"shard-{i:06d}-00.tar" for i in range(3))
    before = kept.stat().st_mtime_ns
    data = bytearray(damaged.read_bytes())
    data[5000] ^= 1  # same size: only the checksum tells
    damaged.write_bytes(data)
    missing.unlink()
    (out / ".shard-000002-00.tar.abc.part").write_bytes(b"half")
    result = _pack(whole.parent, out)
    assert result.reused == 2 and kept.stat().st_mtime_ns == before
    assert _content(out) == _content(whole)


KILL = """
import os, random, signal, sys, time
from pathlib import Path
from converters import Toy
from sr3d.datasets.pack import PackConfig, pack

src, out, whole = map(Path, sys.argv[1:])
rng = random.Random(0)
for _ in range(10):
    child = os.fork()
    if not child:
        pack(Toy(), src, out, config=PackConfig(shard_mb=1, workers=1), progress=False)
        os._exit(0)
    time.sleep(rng.uniform(0.002, 0.06))
    os.kill(child, signal.SIGKILL)
    print("killed" if os.WIFSIGNALED(os.waitpid(child, 0)[1]) else "finished")
    for path in out.glob("*.tar"):
        assert path.read_bytes() == (whole / path.name).read_bytes(), "a half-written shard"
"""


def test_killed_at_random_moments(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "run.py").write_text(KILL)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, tmp_path / "run.py", whole.parent, out, whole]
    ended = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()
    assert len(ended) == 10 and ended.count("killed") >= 3
    _pack(whole.parent, out)
    assert _content(out) == _content(whole)


def test_workers_end_with_their_parent(whole: Path, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from converters import Toy\n"
        "from sr3d.datasets.pack import PackConfig, pack\n"
        "if __name__ == '__main__':\n"
        f"    pack(Toy(seconds=30.0), Path({str(whole.parent)!r}), Path({str(tmp_path / 'out')!r}),\n"
        "         config=PackConfig(shard_mb=1, workers=2), progress=False)\n"
    )
    (tmp_path / "run.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.Popen([sys.executable, tmp_path / "run.py"], env=environment)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    if not children.exists():
        run.kill()
        pytest.skip("needs /proc")
    deadline = time.monotonic() + 60
    while len(children.read_text().split()) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    workers = [int(p) for p in children.read_text().split()]
    run.kill()
    run.wait()
    deadline = time.monotonic() + 60
    while any(_alive(p) for p in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(workers) >= 2 and not any(_alive(p) for p in workers)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (ONE, {"scenes": 5}, r"plan\.json: plan: found converter: .*\"scenes\": 12.*; tasks"),
        (PackConfig(shard_mb=2, workers=1), {}, "plan: found shard_bytes: 1000000"),
    ],
)
def test_a_folder_is_completed_with_the_options_it_was_begun_with(
    whole: Path, config: PackConfig, fields: dict[str, object], message: str
) -> None:
    before = _content(whole)
    with pytest.raises(Sr3dError, match=message):
        _pack(whole.parent, whole, config, **fields)
    assert _content(whole) == before


@pytest.mark.parametrize("part", ["0/3", "4/3", "1", "1/0", "-1/3", "a/b", "1/3/5"])
def test_wrong_parts(whole: Path, tmp_path: Path, part: str) -> None:
    with pytest.raises(Sr3dError, match=r"--part.*1/8"):
        _pack(whole.parent, tmp_path / "out", PackConfig(part=part))
    assert not (tmp_path / "out").exists()


def test_wrong_options_and_sources(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(Sr3dError, match="folder: found missing"):
        _pack(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(Sr3dError, match="options"):
        pack(Toy(), whole.parent, tmp_path / "out", options=ClipOptions(stride=0))
    assert not (tmp_path / "out").exists()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / FILE).write_text("{}")
    with pytest.raises(Sr3dError, match="there already"):
        _pack(whole.parent, tmp_path / "old")


def test_nothing_usable_is_an_error_that_says_why(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(Sr3dError, match=r"usable clips: found none; dropped: .*fewer than 3 usable frames\": 12"):
        _pack(whole.parent, tmp_path / "out", empty=True)
    assert not (tmp_path / "out" / FILE).exists()


def test_two_runs_on_one_folder(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one takes the first one's unfinished file for a leftover; the first one must say what happened."""
    source, out = Toy.clips, tmp_path / "out"

    def clips(self, entry, options, drops):
        if entry.name == "scene 1" and not list(out.glob("*.tar")):
            monkeypatch.setattr(Toy, "clips", source)
            _pack(whole.parent, out)
        yield from source(self, entry, options, drops)

    monkeypatch.setattr(Toy, "clips", clips)
    with pytest.raises(Sr3dError, match="does another one pack here"):
        _pack(whole.parent, out)
    assert _content(out) == _content(whole)


def test_an_unforeseen_failure_is_one_dropped_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Toy.clips
    monkeypatch.setattr(Toy, "clips", lambda *a: (1 / 0 for _ in "x") if a[1].name == "scene 0" else source(*a))
    index = _pack(tmp_path, tmp_path / "out").index
    assert index is not None and index.dropped["scenes"]["failed: ZeroDivisionError"] == 1
    assert index.scenes == USABLE - {"scene 0"}


def test_options_that_are_files_are_named_by_what_is_in_them(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "list.txt").write_text("the same")
        _pack(tmp_path, tmp_path / name / "out", scenes=1, listed=tmp_path / name / "list.txt")
    assert _content(tmp_path / "a" / "out") == _content(tmp_path / "b" / "out")
    option = read_index(tmp_path / "a" / "out").options["converter"]["listed"]
    assert option["file"] == "list.txt" and len(option["sha256"]) == 64


def test_disk_full(whole: Path, tmp_path: Path) -> None:
    """A limit on the size of files fails as a full disk does: in the middle of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        with pytest.raises(Sr3dError, match=r"shard-000000-00\.tar: tar file: found File too large"):
            _pack(whole.parent, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(os.listdir(tmp_path / "out")) == ["parts", "plan.json"]
    _pack(whole.parent, tmp_path / "out")
    assert _content(tmp_path / "out") == _content(whole)


def test_a_worker_that_dies_is_an_error_not_a_hang(tmp_path: Path) -> None:
    with pytest.raises(Sr3dError, match="worker process: found exit status 3"):
        pack(Deadly(), tmp_path, tmp_path / "out", config=PackConfig(shard_mb=1, workers=2), progress=False)


class Deadly(Toy):
    """Ends the process, as the kernel does when memory runs out."""

    def clips(self, *arguments: object) -> None:
        os._exit(3)


@pytest.mark.slow
def test_ray_gives_the_same_bytes(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    path = {"PYTHONPATH": str(Path(__file__).parents[1])}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": path})
    try:
        _pack(whole.parent, tmp_path / "out", PackConfig(shard_mb=1, workers=2, engine="ray"))
    finally:
        ray.shutdown()
    assert _content(tmp_path / "out") == _content(whole)
    assert json.loads((whole / FILE).read_text())["clips"] == 19
