from __future__ import annotations

import csv
import json
import os
import pty
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import wandb

from sr3d import Sr3dError
from sr3d.training.loggers import CSVLogger, WandbLogger, wandb_mode
from sr3d.training.provenance import git_state

ROOT = Path(__file__).resolve().parents[2]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_number_is_on_disk_at_once_and_late_names_get_a_column(tmp_path: Path) -> None:
    logger = CSVLogger(str(tmp_path / "run"))
    logger.log_metrics({"train/loss": torch.tensor(0.1), "epoch": 0}, 0)
    logger.log_metrics({"val/psnr": 1 / 3}, 0)
    logger.log_metrics({"train/loss": float("nan"), 'odd, "name"': 2}, 1)
    found = rows(tmp_path / "run")
    assert [r["step"] for r in found] == ["0", "0", "1"] and found[0]["epoch"] == "0"
    assert float(found[0]["train/loss"]) == float(torch.tensor(0.1)) and float(found[1]["val/psnr"]) == 1 / 3
    assert found[2]["train/loss"] == "nan" and found[2]['odd, "name"'] == "2.0"
    assert found[1]["train/loss"] == found[0]["val/psnr"] == ""


def test_known_names_are_appended_without_writing_the_file_again(tmp_path: Path) -> None:
    logger = CSVLogger(str(tmp_path))
    logger.log_metrics({"a": 1, "b": 2}, 0)
    before = logger.path.stat().st_ino
    for step in range(1, 50):
        logger.log_metrics({"b": step}, step)
    assert logger.path.stat().st_ino == before and len(rows(tmp_path)) == 50
    logger.log_metrics({"c": 1}, 50)
    assert logger.path.stat().st_ino != before and len(rows(tmp_path)) == 51


def test_a_resumed_run_continues_the_file_of_the_killed_one(tmp_path: Path) -> None:
    first = CSVLogger(str(tmp_path))
    for step in range(7):
        first.log_metrics({"loss": 10 + step}, step)
    with first.path.open("a") as stream:
        stream.write("7,17.12")
    again = CSVLogger(str(tmp_path))
    again.start(5)
    for step in range(5, 9):
        again.log_metrics({"loss": 10 + step, "late": 1}, step)
    found = rows(tmp_path)
    assert [int(r["step"]) for r in found] == list(range(9))
    assert [float(r["loss"]) for r in found] == [10.0 + s for s in range(9)]
    assert [r["late"] for r in found] == [""] * 5 + ["1.0"] * 4


def test_without_start_a_line_cut_short_does_not_spoil_the_next(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,loss\n0,1.0\n1,2.")
    CSVLogger(str(tmp_path)).log_metrics({"loss": 3.0}, 1)
    assert [(r["step"], r["loss"]) for r in rows(tmp_path)] == [("0", "1.0"), ("1", "3.0")]


def test_a_new_run_in_an_old_folder_begins_with_an_empty_file(tmp_path: Path) -> None:
    CSVLogger(str(tmp_path)).log_metrics({"loss": 1}, 3)
    again = CSVLogger(str(tmp_path))
    again.start(0)
    assert rows(tmp_path) == []
    again.log_metrics({"loss": 2}, 0)
    assert [r["loss"] for r in rows(tmp_path)] == ["2.0"]


@pytest.mark.parametrize("content", ["time,loss\n0,1\n", "step,loss\n0,1,2\n3,4\n"])
def test_a_foreign_file_is_an_error_and_stays_as_it_is(tmp_path: Path, content: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(content)
    with pytest.raises(Sr3dError, match=r"metrics\.csv"):
        CSVLogger(str(tmp_path)).start(1)
    assert path.read_text() == content


@pytest.mark.parametrize(
    ("environment", "netrc", "mode"),
    [
        ({}, "", "offline"),
        ({"WANDB_API_KEY": ""}, "", "offline"),
        ({"WANDB_MODE": "online"}, "", "offline"),
        ({"WANDB_API_KEY": "k" * 40}, "", "online"),
        ({"WANDB_API_KEY": "k" * 40, "WANDB_MODE": "offline"}, "", "offline"),
        ({"WANDB_API_KEY": "k" * 40, "WANDB_MODE": "disabled"}, "", "disabled"),
        ({}, "machine api.wandb.ai login user password {key}", "online"),
        ({}, "machine github.com login user password {key}", "offline"),
        ({"WANDB_BASE_URL": "https://wandb.example.org"}, "machine api.wandb.ai login user password {key}", "offline"),
        ({"WANDB_BASE_URL": "https://wandb.example.org:8080"},
         "machine wandb.example.org:8080 login user password {key}", "online"),
        ({}, "machine api.wandb.ai login", "offline"),
    ],
)  # fmt: skip
def test_online_only_with_an_account(tmp_path: Path, environment: dict[str, str], netrc: str, mode: str) -> None:
    (tmp_path / ".netrc").write_text(netrc.format(key="k" * 40))
    assert wandb_mode({"HOME": str(tmp_path), **environment}) == mode
    if netrc:
        moved = (tmp_path / ".netrc").rename(tmp_path / "elsewhere")
        assert wandb_mode({"HOME": str(tmp_path), **environment}) == "offline"
        assert wandb_mode({"HOME": str(tmp_path), "NETRC": str(moved), **environment}) == mode


RUN = """
import wandb
from sr3d.training.loggers import WandbLogger
logger = WandbLogger(save_dir="run", name="test")
logger.log_metrics({"loss": 1.0, "histogram": wandb.Histogram([1, 2, 3])}, 0)
assert logger.run.offline
logger.finalize("success")
"""


@pytest.mark.slow
def test_without_an_account_nothing_is_asked_and_nothing_leaves_the_machine(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB") and k != "NETRC"}
    master, slave = pty.openpty()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # Whoever wants to reach another machine is sent to this listener instead.
        proxy = f"http://127.0.0.1:{listener.getsockname()[1]}"
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
        environment |= {name: proxy for name in names} | {"HOME": str(tmp_path), "TERM": "xterm"}
        # With a terminal, wandb would ask.
        process = subprocess.Popen(
            [sys.executable, "-c", RUN], cwd=tmp_path, env=environment, stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)
        output, limit = b"", threading.Timer(300, process.kill)
        limit.start()
        try:
            while piece := _read(master):
                output += piece
            assert process.wait() == 0, output.decode(errors="replace")
        finally:
            limit.cancel()
            process.kill()
            os.close(master)
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


def _read(terminal: int) -> bytes:
    """Next output; empty when the last process has closed the terminal."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


def test_a_refused_account_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: object) -> None:
        assert options["mode"] == "online" and options["resume"] == "allow" and options["id"] == "abc"
        raise wandb.Error("API key is wrong")

    monkeypatch.setattr(wandb, "init", refuse)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    logger = WandbLogger(save_dir=str(tmp_path))
    logger.resume("abc")
    with pytest.raises(Sr3dError, match=r"wandb: account.*API key is wrong.*WANDB_MODE=offline"):
        logger.log_metrics({"a": 1}, 0)


def _git(folder: Path, *arguments: str) -> str:
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", "-C", str(folder), *author, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_git_state_follows_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) is None
    _git(tmp_path, "init", "--quiet", "--initial-branch", "experiment")
    (tmp_path / "code.py").write_text("a = 1\n")
    assert git_state(tmp_path) is None
    _git(tmp_path, "add", "code.py")
    _git(tmp_path, "commit", "--quiet", "-m", "first")
    clean = git_state(tmp_path)
    assert clean is not None and clean.commit == _git(tmp_path, "rev-parse", "HEAD")
    assert clean.branch == "experiment" and not clean.dirty and clean.diff_stat == ""
    (tmp_path / "code.py").write_text("a = 2\nb = 3\n")
    dirty = git_state(tmp_path)
    assert dirty is not None and dirty.commit == clean.commit and dirty.dirty
    assert "code.py | 3 ++-" in dirty.diff_stat and json.dumps(dirty.diff_stat)
    (tmp_path / "ignored").mkdir()
    assert git_state(tmp_path / "ignored") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) is None
