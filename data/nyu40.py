"""The eight classes of LSM, by way of NYU40's, from the label ids of ScanNet."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from jaxtyping import Int16
from numpy.typing import NDArray

from sr3d.errors import Sr3dError

# In the order of LSM's code (arXiv 2410.18956); 0 is "unknown" and is ignored by its metric.
CLASSES = ["wall", "floor", "ceiling", "chair", "table", "sofa", "bed", "other"]
# Their ids among NYU40's; every other id but 0 is "other".
_NYU40 = {"wall": 1, "floor": 2, "bed": 4, "chair": 5, "sofa": 6, "table": 7, "ceiling": 22}
_COUNT = 65536
_MOST_BYTES = 10_000_000


def nyu40_classes() -> Int16[np.ndarray, " n"]:
    """Index into `CLASSES`, from 1 on, of every NYU40 id; 0 of id 0, -1 of ids that NYU40 has not. [65536]"""
    table = np.full(_COUNT, -1, np.int16)
    table[0] = 0
    table[1:41] = CLASSES.index("other") + 1
    for name, number in _NYU40.items():
        table[number] = CLASSES.index(name) + 1
    return table


def scannet_classes(path: Path) -> Int16[np.ndarray, " n"]:
    """Index into `CLASSES`, from 1 on, of every label id of ScanNet; 0 of id 0, -1 of ids outside the table. [65536]

    Args:
        path: `scannetv2-labels.combined.tsv`; its columns `id` and `nyu40id` are used.

    Raises:
        Sr3dError: The file is missing or damaged, lacks a column, or has ids that are no ids.
    """
    table: NDArray[np.int16] = np.full(_COUNT, -1, np.int16)
    table[0] = 0
    classes = nyu40_classes()
    for number, row in enumerate(_rows(path), start=2):
        try:
            raw, nyu = int(row["id"]), int(row["nyu40id"] or 0)
        except (KeyError, TypeError, ValueError) as error:
            expected = "tab-separated columns id and nyu40id, whole numbers"
            raise Sr3dError(path, f"line {number}", f"{type(error).__name__}: {error}", expected) from error
        if not (0 < raw < _COUNT and 0 <= nyu <= 40):
            raise Sr3dError(path, f"line {number}", f"id {raw}, nyu40id {nyu}", f"1 to {_COUNT - 1}, 0 to 40")
        table[raw] = classes[nyu]
    if not (table > 0).any():
        raise Sr3dError(path, "lines", "none", "one line per label id")
    return table


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise Sr3dError(path, "size", f"{path.stat().st_size} bytes", f"at most {_MOST_BYTES}")
        text = path.read_text(encoding="utf-8")
        return list(csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Sr3dError(path, "file", f"{type(error).__name__}: {error}", "a readable table of labels") from error
