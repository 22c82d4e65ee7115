"""Program: zooms to level 3 that end badly. One process for all, since imports are slow: each is a child of it."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import sr3d.io.forest_write as forest_write
from sr3d.errors import Sr3dError
from sr3d.models import SuperResolver
from sr3d.zoom.guides import Guides
from sr3d.zoom.loop import ZoomConfig
from sr3d.zoom.makers import Made, Predictor
from sr3d.zoom.session import Session
from sr3d.zoom.target import Pixel

LIMIT = 500_000  # bytes of a file: less than level 2 needs


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DiesInLevelThree(Predictor):
    """Makes two levels."""

    calls = 0

    def make(self, *arguments: Any) -> Made:
        self.calls += 1
        if self.calls == 3:
            die()
        return super().make(*arguments)


def before_notes(whole: Callable[[Session], None]) -> Callable[[Session], None]:
    """`write_state` that dies when it has to note down level 3, which is stored."""

    def write_state(session: Session) -> None:
        if len(session.state.levels) == 3:
            die()
        whole(session)

    return write_state


def half_way(whole: Callable[..., None]) -> Callable[..., None]:
    """`save_file` that dies when half of level 3 is written."""

    def save_file(tensors: dict[str, torch.Tensor], path: Path) -> None:
        whole(tensors, path)
        if "level-003" in path.name:
            os.truncate(path, path.stat().st_size // 2)
            die()

    return save_file


def run(fate: str, folder: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    network = SuperResolver.from_pretrained(folder / "network.safetensors")
    maker = DiesInLevelThree(network) if fate == "making" else Predictor(network)
    if fate == "between":
        Session.write_state = before_notes(Session.write_state)
    if fate == "writing":
        forest_write.save_file = half_way(forest_write.save_file)
    if fate == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
    session = Session.open(folder / fate)
    session.extend(Pixel(u=10.5, v=13.5), 8, maker, Guides(pictures=True), ZoomConfig())


def main(folder: str, threads: str, *fates: str) -> None:
    for fate in fates:
        # Nothing has run yet that a fork could break: no thread of torch, no kernel.
        child = os.fork()
        if child == 0:
            try:
                run(fate, Path(folder), int(threads))
            except Sr3dError as error:
                print(f"{fate}: {error}", flush=True)
            os._exit(0)
        print(f"{fate}: {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
