"""Where the tasks of `sr3d.datasets.pack` run: in this process, in several, or on a Ray cluster.

Each engine gives the results of the tasks as they come, and tells the name of every entry that is through.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

import cv2
import torch

from sr3d.errors import Sr3dError

Note = Callable[[str], None]
# Does task `number`, and calls the second argument with the name of every entry that is through.
Task = Callable[[int, Note], Any]


@dataclass(kw_only=True)
class Done:
    """A task is done.

    Attributes:
        number: Of the task.
        result: What it returned.
    """

    number: int
    result: Any


def local(task: Task, numbers: Sequence[int], workers: int, note: Note) -> Iterator[Done]:
    """Run tasks on this machine.

    Args:
        task: Picklable where there are several workers.
        numbers: Of the tasks.
        workers: Processes; 0 takes one per core that this process may use. With one everything happens in this process.
        note: Called with the name of every entry that is through.

    Raises:
        Sr3dError: What a task raises, or a process that dies.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(workers or cores, len(numbers))
    if workers > 1:
        return _processes(task, numbers, workers, note)
    return (Done(number=number, result=task(number, note)) for number in numbers)


def _processes(task: Task, numbers: Sequence[int], workers: int, note: Note) -> Iterator[Done]:
    # Spawned, not forked: the parent has threads (OpenMP, the progress bar) that a fork would not survive.
    context = multiprocessing.get_context("spawn")
    waiting, events = context.Queue(), context.Queue()
    for number in [*numbers, *[None] * workers]:
        waiting.put(number)
    processes = [context.Process(target=_work, args=(task, waiting, events), daemon=True) for _ in range(workers)]
    for process in processes:
        process.start()
    try:
        left = len(numbers)
        while left:
            event = _next(events, processes)
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Done):
                left -= 1
                yield event
            else:
                note(event)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _next(events: Any, processes: Sequence[Any]) -> Any:
    """The next event; an error if nobody is left who could send one."""
    while True:
        dead = [p.exitcode for p in processes if p.exitcode]
        try:
            return events.get(timeout=0.2)
        except queue.Empty:
            if dead:
                expected = "to work on (was it killed for want of memory?); start again to go on where it stopped"
                raise Sr3dError("sr3d pack", "worker process", f"exit status {dead[0]}", expected) from None


def _work(task: Task, waiting: Any, events: Any) -> None:
    """Loop of a worker process."""
    threading.Thread(target=_follow_parent, daemon=True).start()
    # One process per core: threads of their own would only be in each other's way.
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    while (number := waiting.get()) is not None:
        try:
            events.put(Done(number=number, result=task(number, events.put)))
        except Sr3dError as error:
            events.put(error)
            return


def _follow_parent() -> None:
    """End this process when its parent is gone, however that died: nobody would take its results."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def ray(task: Task, numbers: Sequence[int], workers: int, note: Note) -> Iterator[Done]:
    """Run tasks on the Ray cluster that `RAY_ADDRESS` names, or on the one that this machine belongs to.

    Args:
        task: Picklable.
        numbers: Of the tasks.
        workers: Most tasks at a time; 0 leaves it to Ray.
        note: Called with the names of all entries of a task when it is done.

    Raises:
        Sr3dError: Ray is not installed, there is no cluster, or what a task raises.
    """
    try:
        cluster: Any = importlib.import_module("ray")
    except ModuleNotFoundError:
        raise Sr3dError("sr3d pack", "--engine", "ray, which is not installed", "pip install 'sr3d[cluster]'") from None
    try:
        if not cluster.is_initialized():
            cluster.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        found = f"no cluster: {str(error).splitlines()[0]}"
        raise Sr3dError("sr3d pack", "--engine", found, "a running one (ray start --head), or RAY_ADDRESS") from None
    remote = cluster.remote(max_retries=2)(_collected)
    limit = workers or len(numbers)
    running: dict[Any, int] = {}
    left = list(numbers)[::-1]
    while left or running:
        while left and len(running) < limit:
            number = left.pop()
            running[remote.remote(task, number)] = number
        ready, _ = cluster.wait(list(running), num_returns=1)
        number = running.pop(ready[0])
        names, result = cluster.get(ready[0])
        if isinstance(result, Sr3dError):
            raise result
        for name in names:
            note(name)
        yield Done(number=number, result=result)


def _collected(task: Task, number: int) -> tuple[list[str], Any]:
    """A task's result, or the error that it raised, and the entries that are through."""
    names: list[str] = []
    try:
        return names, task(number, names.append)
    except Sr3dError as error:
        return names, error
