"""What an evaluation found, and its file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class Scored:
    """Scores of one case.

    Attributes:
        case: Name.
        scene: Scene that it belongs to.
        frames: Name of every target view. [T]
        levels: Magnification of every target view. [T]
        coverage: Share of covered pixels of every target view. [T]
        values: Method → column → one value per target view; None where a view has none. [T]
        gaussians: Method → number of Gaussians with opacity > 0; None for methods in two dimensions.
        notes: Method → plain values about how it was made.
        seconds: Method → wall time from input views to Gaussians, the coarse stage included, device synchronised.
        fps: Method → target views drawn per second.
        peak_bytes: Method → most memory in use while it was made.
        pictures: Paths of pictures of the middle target view, relative to the folder of the results: "truth",
            "input", "covered", and one per method.
    """

    case: str
    scene: str
    frames: list[str]
    levels: list[int]
    coverage: list[float]
    values: dict[str, dict[str, list[float | None]]]
    gaussians: dict[str, int | None]
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    fps: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class Results:
    """Everything that one run of a protocol found.

    Attributes:
        protocol: The whole protocol as plain values, with the SHA-256 of its frozen index.
        methods: Label → what its results depend on (settings, SHA-256 of the checkpoint, ...), in the order asked for.
        columns: Name → {"title", "better", "digits", "unit"} of every metric that was measured, in order.
        unavailable: Metric → why there is no value.
        cases: One entry per case, in the order of the protocol.
        pooled: Method → column → value, of metrics of all views together; None where it is undefined.
        missing: Cases without a value: {"case", "reason"}.
        expected: Number of target views that the index names.
        provenance: Git state, versions, hardware.
        timing: When, how long, on how many processes: all that may differ between two runs, besides `Scored.seconds`,
            `.fps` and `.peak_bytes`.
    """

    protocol: dict[str, Any]
    methods: dict[str, dict[str, Any]]
    columns: dict[str, dict[str, Any]]
    unavailable: dict[str, str]
    cases: list[Scored]
    pooled: dict[str, dict[str, float | None]]
    missing: list[dict[str, str]]
    expected: int
    provenance: dict[str, Any]
    timing: dict[str, Any] = field(default_factory=dict)
