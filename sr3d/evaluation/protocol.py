"""Evaluation protocols: which data, which views, which metrics, and what papers have printed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from sr3d.coarse import DepthSource

DataKind = Literal["procedural", "folder", "shards", "holdout", "generated"]


@dataclass(kw_only=True)
class Published:
    """Rows of one table of a paper, quoted.

    Attributes:
        source: Paper and table.
        columns: Names of our metrics where they are the same quantity, else the paper's own words.
        rows: Method → one value per column; None where the paper has none or we could not read it.
        note: What keeps them from being compared with ours directly.
    """

    source: str
    columns: list[str]
    rows: dict[str, list[float | str | None]]
    note: str = ""


@dataclass(kw_only=True)
class Protocol:
    """How scores are made, so that others can make them again.

    Attributes:
        name: Of the file, without ".yaml".
        title: One line for tables.
        kind: Where cases come from: "procedural" worlds, "folder"s of captures, "shards" by a frozen index, "holdout"
            (captures of which every nth view is tested), "generated" Gaussian scenes without truth.
        data: Options of that kind, its frozen index among them.
        factor: Ratio of the resolutions, per side.
        metrics: Names, in the order of the tables.
        baseline: Method that differences are taken to.
        source: Where the coarse stage gets depth.
        published: Rows to print beside ours.
        notes: What the paper says, and what it leaves open.
    """

    name: str
    title: str
    kind: DataKind
    data: dict[str, Any]
    factor: int
    metrics: list[str]
    baseline: str = "upsampled"
    source: DepthSource = "sweep"
    published: list[Published] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
