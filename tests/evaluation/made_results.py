"""Results of an evaluation that never ran, for tests of what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sr3d.evaluation.results import Results, Scored

COLUMNS: dict[str, dict[str, Any]] = {
    "psnr": {"title": "PSNR", "better": "higher", "digits": 2, "unit": "dB"},
    "psnr_covered": {"title": "PSNR covered", "better": "higher", "digits": 2, "unit": "dB"},
    "ssim": {"title": "SSIM", "better": "higher", "digits": 3, "unit": ""},
    "lpips": {"title": "LPIPS", "better": "lower", "digits": 3, "unit": ""},
}
_BEST, _SPREAD, _STEP, _NOISE = [22.0, 24.0, 0.80, 0.25], [3.0, 3.0, 0.06, -0.05], [0.7, 0.8, 0.03, -0.03], 0.2
PUBLISHED = {
    "source": "Somebody et al. 2025, Table 1",
    "columns": ["psnr", "ssim", "Time (s)"],
    "rows": {"Theirs_A": [23.10, 0.799, None], "Theirs & more": [24.05, 0.812, "1.5 h"]},
    "note": "Trained on 100 % of the data, which we do not have.",
}


def made_results(
    scenes: int = 6,
    methods: Sequence[str] = ("bicubic", "coarse", "upsampled", "sr3d"),
    levels: Sequence[int] = (1,),
    seed: int = 0,
) -> Results:
    """Random, plausible scores: two cases per scene, two or three target views per level; later methods are better."""
    rng = np.random.default_rng(seed)
    cases = []
    for number in range(scenes):
        scene = rng.normal() * np.array(_SPREAD)
        cases += [_case(rng, f"scene_{number}", part, scene, methods, levels) for part in range(2)]
    return Results(
        protocol={
            "name": "procedural", "title": "Rooms that were never seen", "kind": "procedural", "factor": 4,
            "data": {"seed": 7}, "metrics": list(COLUMNS), "baseline": "upsampled", "source": "sweep",
            "published": [PUBLISHED], "notes": [], "sha256": "ab" * 32,
        },
        methods={name: {"method": name, "steps": 10 + i} for i, name in enumerate(methods)},
        columns=COLUMNS,
        unavailable={"musiq": "package pyiqa is missing"},
        cases=cases,
        pooled={},
        missing=[],
        expected=sum(len(case.frames) for case in cases),
        provenance={"git": {"commit": "cd" * 20, "dirty": False}, "versions": {"torch": "2.15"}, "hardware": "1 CPU"},
        timing={"started": "2026-01-01T00:00:00+00:00", "seconds": 12.5, "processes": 1},
    )  # fmt: skip


def _case(
    rng: np.random.Generator, name: str, part: int, scene: np.ndarray, methods: Sequence[str], levels: Sequence[int]
) -> Scored:
    count = 2 + part
    at = [level for level in levels for _ in range(count)]
    values: dict[str, dict[str, list[float | None]]] = {}
    for i, method in enumerate(methods):
        center = np.array(_BEST) + scene + (i - len(methods) + 1) * np.array(_STEP)
        drawn = center + rng.normal(size=(len(at), 4)) * np.abs(_STEP) * _NOISE - np.log2(at)[:, None] * np.array(_STEP)
        values[method] = {column: drawn[:, j].tolist() for j, column in enumerate(COLUMNS)}
    return Scored(
        case=f"{name}/{part}",
        scene=name,
        frames=[f"{part}_{i:03d}" for i in range(len(at))],
        levels=at,
        coverage=rng.uniform(0.85, 1, len(at)).tolist(),
        values=values,
        gaussians={name: None if name == "bicubic" else 4608 * 4**i for i, name in enumerate(methods)},
        notes={name: {"part": part} for name in methods},
        seconds={name: float(rng.uniform(0.1, 0.3) * 2**i) for i, name in enumerate(methods)},
        fps={name: float(rng.uniform(20, 40) / (i + 1)) for i, name in enumerate(methods)},
        peak_bytes={name: int(rng.integers(10**8, 10**9)) for name in methods},
    )
