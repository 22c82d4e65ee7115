"""What this machine offers to sr3d: versions, devices, the renderer that `auto` takes, optional parts."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil

import numba
import torch
from rich.console import Console
from rich.table import Table

from sr3d.rendering import choose_backend

_PACKAGES = (
    "sr3d", "torch", "torchvision", "lightning", "numba", "numpy", "gsplat", "timm", "webdataset", "wandb",
    "opencv-python-headless", "pycolmap", "plyfile", "safetensors",
)  # fmt: skip
_EXTRAS = {"viser": "viewer", "ray": "cluster"}


def doctor() -> str:
    """Print a table of the installation to standard output, and return the same as plain text."""
    table = Table(title="sr3d doctor", title_justify="left")
    table.add_column()
    table.add_column("item", no_wrap=True)
    table.add_column("found", overflow="fold")
    sections = {
        "versions": versions,
        "devices": devices,
        "numba": _threads,
        "renderer": _renderer,
        "extras": _extras,
        "tools": _tools,
    }
    for name, rows in sections.items():
        for i, (item, found) in enumerate(rows()):
            table.add_row(name if i == 0 else "", item, found)
        table.add_section()
    console = Console(record=True)
    console.print(table, markup=False, highlight=False)
    return console.export_text()


def versions() -> list[tuple[str, str]]:
    """Python and the packages that matter: name and version."""
    return [("python", platform.python_version())] + [(name, _version(name)) for name in _PACKAGES]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def devices() -> list[tuple[str, str]]:
    """CPU, GPUs and the CUDA compiler: name and description."""
    rows = [("cpu", f"{_cpu_model()}, {_usable_cores()} of {os.cpu_count()} cores usable")]
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        capability = f"{properties.major}.{properties.minor}"
        rows.append((f"cuda:{i}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, sm {capability}"))
    if len(rows) == 1:
        built = f"PyTorch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "PyTorch is built without"
        rows.append(("cuda", f"no device ({built})"))
    # gsplat compiles its kernels on first use where its wheel brings none.
    rows.append(("nvcc", shutil.which("nvcc") or "not found (gsplat compiles its CUDA kernels with it)"))
    return rows


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            names = [line.split(":", 1)[1].strip() for line in stream if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _usable_cores() -> int:
    """Cores this process may run on, which schedulers cut down; not known on every system."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads() -> list[tuple[str, str]]:
    # `numba.get_num_threads` would start the threads, and a later fork could then hang.
    return [("threads", str(numba.config.NUMBA_NUM_THREADS)), ("threading layer", _threading_layer())]


def _threading_layer() -> str:
    """The layer Numba has started, or the one it is asked for."""
    try:
        return numba.threading_layer()
    except ValueError:
        return f"{numba.config.THREADING_LAYER} (not started yet)"


def _renderer() -> list[tuple[str, str]]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backend, reason = choose_backend(device)
    return [("backend='auto'", f"{backend}: {reason}")]


def _extras() -> list[tuple[str, str]]:
    def found(module: str, extra: str) -> str:
        present = importlib.util.find_spec(module) is not None
        return "installed" if present else f"not installed (pip install 'sr3d[{extra}]')"

    return [(module, found(module, extra)) for module, extra in _EXTRAS.items()]


def _tools() -> list[tuple[str, str]]:
    return [("ffmpeg", _ffmpeg())]


def _ffmpeg() -> str:
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return "not found (needed to write videos: pip install 'imageio[ffmpeg]')"
