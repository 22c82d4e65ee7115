"""Gaussians ↔ the `.ply` of 3D Gaussian Splatting (Kerbl et al. 2023).

In the file opacity is a logit, scales are natural logarithms and `f_rest` is channel-major (all of red, then green,
then blue). Values that have no finite logit or logarithm are clamped: opacity to within 2e-9 of 0 and 1, scale to at
least 1e-20. Level of detail and features are further float properties behind the standard ones, which other
programs ignore.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.lib.recfunctions import structured_to_unstructured
from plyfile import PlyData, PlyElement, PlyParseError
from torch import Tensor

from sr3d.errors import Sr3dError
from sr3d.gaussians import Gaussians
from sr3d.io.atomic import atomic
from sr3d.io.compressed_ply import is_compressed, unpack
from sr3d.lod import Lod

_MAX_LOGIT = 20.0
_MIN_SCALE = 1e-20
_MAX_HEADER = 1 << 16
_LOD = ["lod_native", "lod_coarser", "lod_finer", "lod_level"]


def read_ply(path: str | Path) -> Gaussians:
    """Read a 3DGS `.ply`: binary of either byte order, or text; or PlayCanvas's compressed one (`compressed_ply`).

    Returns:
        Gaussians with activated values, float32. Quaternions (wxyz) are as stored, not normalised.

    Raises:
        Sr3dError: The file is missing, truncated or no Gaussian ply, or a value is NaN or impossible.
    """
    path = Path(path)
    elements = _read_elements(path)
    if is_compressed(elements):
        return unpack(path, elements)
    columns = elements["vertex"]
    names = columns.dtype.names or ()
    rest = _numbered(path, columns, "f_rest_")
    if len(rest) not in (0, 9, 24, 45):
        raise Sr3dError(path, "f_rest", f"{len(rest)} properties", "0, 9, 24 or 45 (SH degree 0 to 3)")
    dc = _stack(path, columns, ["f_dc_0", "f_dc_1", "f_dc_2"])
    higher = _stack(path, columns, rest).unflatten(-1, (3, len(rest) // 3)).transpose(-1, -2)
    quats = _stack(path, columns, ["rot_0", "rot_1", "rot_2", "rot_3"])
    _forbid(path, "rot", (quats == 0).all(-1), "a quaternion of norm > 0")
    scales = _stack(path, columns, ["scale_0", "scale_1", "scale_2"], finite=False).double().exp().float()
    _forbid(path, "scale", ~torch.isfinite(scales).all(-1), "finite scales (logarithms in the file)")
    opacity = _stack(path, columns, ["opacity"], finite=False)[:, 0]
    features = _numbered(path, columns, "feature_")
    return Gaussians(
        means=_stack(path, columns, ["x", "y", "z"]),
        quats=quats,
        scales=scales,
        opacities=torch.sigmoid(opacity.double()).float(),
        sh=torch.cat([dc[:, None], higher], dim=1).contiguous(),
        features=_stack(path, columns, features) if features else None,
        lod=_lod(path, columns) if any(name in names for name in _LOD) else None,
    )


def write_ply(gaussians: Gaussians, path: str | Path) -> None:
    """Write a binary little-endian 3DGS `.ply` with the property order of the original implementation.

    Args:
        gaussians: Without batch axes; [N, ...].
        path: File to make or replace.

    Raises:
        Sr3dError: Batch axes, NaN or infinite values, opacities outside [0, 1], negative scales, zero quaternions, or
            the file cannot be written. `path` is then as it was.
    """
    if gaussians.means.ndim != 2:
        found = f"means {tuple(gaussians.means.shape)}"
        raise Sr3dError(path, "batch axes", found, "one scene, means [N, 3]: save each batch element on its own")
    g = gaussians.detach().to("cpu").to(torch.float32)
    finite = {"means": g.means, "quats": g.quats, "scales": g.scales, "opacities": g.opacities[:, None]}
    finite |= {"sh": g.sh.flatten(1)} | ({} if g.features is None else {"features": g.features})
    for field, values in finite.items():
        _forbid(path, field, ~torch.isfinite(values).all(-1), "finite values")
    _forbid(path, "opacities", (g.opacities < 0) | (g.opacities > 1), "opacities in [0, 1]")
    _forbid(path, "scales", (g.scales < 0).any(-1), "scales ≥ 0")
    _forbid(path, "quats", (g.quats == 0).all(-1), "quaternions of norm > 0")

    higher = g.sh[:, 1:].transpose(-1, -2).flatten(1)
    blocks: list[tuple[list[str], Tensor]] = [
        (["x", "y", "z"], g.means),
        (["nx", "ny", "nz"], torch.zeros_like(g.means)),
        ([f"f_dc_{i}" for i in range(3)], g.sh[:, 0]),
        ([f"f_rest_{i}" for i in range(higher.shape[1])], higher),
        (["opacity"], torch.logit(g.opacities.double()).clamp(-_MAX_LOGIT, _MAX_LOGIT)[:, None]),
        ([f"scale_{i}" for i in range(3)], g.scales.double().clamp_min(_MIN_SCALE).log()),
        ([f"rot_{i}" for i in range(4)], g.quats),
    ]
    if g.lod is not None:
        blocks.append((_LOD, torch.stack([g.lod.native, g.lod.coarser, g.lod.finer, g.lod.level], dim=-1)))
    if g.features is not None:
        blocks.append(([f"feature_{i}" for i in range(g.features.shape[1])], g.features))
    names = [name for block, _ in blocks for name in block]
    table = torch.cat([values.float() for _, values in blocks], dim=1).numpy().astype("<f4", copy=False)
    rows = table.view([(name, "<f4") for name in names])[:, 0]
    with atomic(path) as temporary:
        PlyData([PlyElement.describe(rows, "vertex")], byte_order="<").write(str(temporary))


def read_points(path: str | Path) -> Float[Tensor, "p 3"]:
    """Positions of a point-cloud `.ply`, in the file's frame and units. [P, 3]

    Raises:
        Sr3dError: The file is missing, damaged, or has no x, y, z.
    """
    return _stack(Path(path), _read_elements(Path(path))["vertex"], ["x", "y", "z"])


def _read_elements(path: Path) -> dict[str, np.ndarray]:
    """All elements as structured arrays; one of them is `vertex`."""
    _check_header(path)
    try:
        with warnings.catch_warnings():
            # NumPy only warns where a text file ends before its rows.
            warnings.filterwarnings("error", "loadtxt: input contained no data")
            ply = PlyData.read(str(path), mmap=True)
            return {element.name: element.data for element in ply} | {"vertex": ply["vertex"].data}
    except (UserWarning, PlyParseError, ValueError, KeyError, IndexError, OSError, MemoryError, OverflowError) as error:
        raise Sr3dError(path, "data", f"{type(error).__name__}: {error}", "as many rows as the header says") from error


def _check_header(path: Path) -> None:
    """Refuse, before anything is allocated, what the header says and the file cannot hold."""
    if not path.is_file():
        raise Sr3dError(path, "file", "no such file", "a .ply file")
    with path.open("rb") as stream:
        head = stream.read(_MAX_HEADER)
    header, end, _ = head.partition(b"end_header")
    if not head.startswith(b"ply") or not end:
        raise Sr3dError(path, "header", repr(head[:20]), "'ply' ... 'end_header'")
    rows: dict[str, int] = {}
    size, element = path.stat().st_size, ""
    for words in (line.split() for line in re.split(r"\r\n|\r|\n", header.decode("ascii", errors="replace"))):
        if words[:1] == ["element"] and len(words) == 3 and re.fullmatch("[0-9]+", words[2]):
            # The first digits are enough to see that it is too much; Python refuses to convert thousands of them.
            element, rows[words[1]] = words[1], int(words[2].lstrip("0")[:30] or "0")
            if rows[element] > size:
                raise Sr3dError(path, f"element {element}", f"{rows[element]} rows in {size} bytes", "a whole file")
        if words[:2] == ["property", "list"] and element == "vertex":
            raise Sr3dError(path, f"property {words[-1]}", "a list", "one number per vertex")
    if "vertex" not in rows:
        raise Sr3dError(path, "elements", sorted(rows) or "none", "an element 'vertex'")


def _stack(path: Path, columns: np.ndarray, names: list[str], finite: bool = True) -> Float[Tensor, "n c"]:
    """Properties side by side, float32; NaN never passes, infinity only where `finite` is False."""
    missing = [name for name in names if name not in (columns.dtype.names or ())]
    if missing:
        raise Sr3dError(path, "vertex", f"no property {', '.join(missing)}", "the properties of a 3DGS ply")
    if not names:
        return torch.empty(len(columns), 0)
    table = torch.from_numpy(np.ascontiguousarray(structured_to_unstructured(columns[names], dtype=np.float32)))
    bad = ~torch.isfinite(table) if finite else torch.isnan(table)
    if bad.any():
        worst = int(bad.any(0).nonzero()[0, 0])
        _forbid(path, names[worst], bad[:, worst], "finite values")
    return table


def _forbid(path: str | Path, field: str, bad: Tensor, expected: str) -> None:
    """Raise if any Gaussian is bad, naming the first."""
    if bad.any():
        first = int(bad.nonzero()[0, 0])
        raise Sr3dError(path, field, f"{int(bad.sum())} bad of {len(bad)}, first is number {first}", expected)


def _numbered(path: Path, columns: np.ndarray, prefix: str) -> list[str]:
    """The properties prefix0, prefix1, ... without gaps."""
    found = {name for name in columns.dtype.names or () if re.fullmatch(re.escape(prefix) + r"\d+", name)}
    names = [f"{prefix}{i}" for i in range(len(found))]
    if found != set(names):
        missing = sorted(set(names) - found)
        raise Sr3dError(path, prefix.rstrip("_"), f"no property {', '.join(missing)}", f"{prefix}0, {prefix}1, ...")
    return names


def _lod(path: Path, columns: np.ndarray) -> Lod:
    native, coarser, finer, level = _stack(path, columns, _LOD, finite=False).unbind(-1)
    _forbid(path, "lod_native", ~((native > 0) & torch.isfinite(native)), "finite footprints > 0")
    _forbid(path, "lod_coarser", coarser < native, "footprints ≥ lod_native")
    _forbid(path, "lod_finer", (finer > native) | (finer < 0), "footprints from 0 to lod_native")
    _forbid(path, "lod_level", ~((level >= 0) & (level <= 1 << 24) & (level == level.floor())), "whole levels >= 0")
    return Lod(
        native=native.contiguous(),
        coarser=coarser.contiguous(),
        finer=finer.contiguous(),
        level=level.to(torch.int32),
    )
