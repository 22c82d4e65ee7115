"""Evaluation protocols: which data, which views, which metrics, and what papers have printed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sr3d.coarse import DepthSource
from sr3d.errors import Sr3dError
from sr3d.evaluation.data_config import Data, DataKind, HoldoutData, ProceduralData, ShardsData, data_from_dict
from sr3d.evaluation.metrics import METRICS
from sr3d.typed import from_dict

_SHIPPED = Path(__file__).parent / "protocols"


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

    def __post_init__(self) -> None:
        if not self.columns or len(set(self.columns)) < len(self.columns):
            raise Sr3dError("sr3d.evaluation.Published", "columns", self.columns, "one or more different names")
        if not self.rows:
            raise Sr3dError("sr3d.evaluation.Published", "rows", "none", "one or more")
        for method, values in self.rows.items():
            if len(values) != len(self.columns):
                found, expected = f"{len(values)} values", f"{len(self.columns)}: one for each column"
                raise Sr3dError("sr3d.evaluation.Published", f"rows.{method}", found, expected)


@dataclass(kw_only=True)
class Protocol:
    """How scores are made, so that others can make them again.

    Attributes:
        name: Of the file, without ".yaml".
        title: One line for tables.
        kind: Where cases come from: "procedural" worlds, "folder"s of captures, "shards" by a frozen index, "holdout"
            (captures of which every nth view is tested), "generated" Gaussian scenes without truth.
        data: Options of that kind, its frozen index among them; `sr3d.evaluation.data_config.data_from_dict` makes
            them typed.
        factor: Ratio of the resolutions, per side.
        metrics: Keys of `sr3d.evaluation.metrics.METRICS`, in the order of the tables. Seconds, FPS, memory and numbers
            of Gaussians are always there.
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

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise Sr3dError("sr3d.evaluation.Protocol", "factor", self.factor, "1 or more")
        for i, name in enumerate(self.metrics):
            if name not in METRICS or name in self.metrics[:i]:
                expected = f"each at most once: {', '.join(METRICS)}"
                raise Sr3dError("sr3d.evaluation.Protocol", f"metrics[{i}]", name, expected)


def protocol_names() -> list[str]:
    """Protocols that come with sr3d, in alphabetical order."""
    return sorted(path.stem for path in _SHIPPED.glob("*.yaml"))


def read_protocol(name_or_path: str | Path) -> Protocol:
    """Read a protocol; its `data` is complete, defaults included.

    Args:
        name_or_path: A shipped name such as "procedural", or the path of a YAML file.

    Raises:
        Sr3dError: No such protocol or file, no YAML, an unknown or missing key, a wrong type, an unknown metric, or
            a published row with more or fewer values than columns; names file and key.
    """
    names = protocol_names()
    path = _SHIPPED / f"{name_or_path}.yaml" if str(name_or_path) in names else Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        expected = f"a YAML file, or one of {', '.join(names)}"
        raise Sr3dError("sr3d eval", "--protocol", repr(str(name_or_path)), expected)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        found = " ".join(f"{type(error).__name__}: {error}".split())
        raise Sr3dError(path, "content", found, "a protocol (YAML)") from None
    if not isinstance(content, dict):
        raise Sr3dError(path, "content", type(content).__name__, "keys and values (YAML)")
    if "name" in content:
        raise Sr3dError(path, "name", repr(content["name"]), "no such key: a protocol is called as its file")
    protocol: Protocol = from_dict(Protocol, {**content, "name": path.stem}, str(path), "")
    protocol.data = asdict(typed_data(protocol, str(path)))
    return protocol


def typed_data(protocol: Protocol, source: str) -> Data:
    """The options of a protocol's kind, checked.

    Args:
        protocol: Its `data` and factor.
        source: File, for errors.

    Raises:
        Sr3dError: An unknown or missing key, a value of the wrong type or out of range, or sizes that do not fit the
            factor; names the key.
    """
    data = data_from_dict(protocol.kind, protocol.data, source)
    _check_sizes(source, data, protocol.factor)
    return data


def _check_sizes(path: str, data: Data, factor: int) -> None:
    """Sizes of inputs and targets have the ratio that is asked for."""
    if isinstance(data, ProceduralData):
        if data.size % factor:
            raise Sr3dError(path, "data.size", data.size, f"a multiple of the factor {factor}")
        low = data.size / factor
        for i, (u, v) in enumerate(data.centers):
            if max(u, v) > low:
                raise Sr3dError(path, f"data.centers[{i}]", [u, v], f"a pixel of the {low:g}x{low:g} input")
    if isinstance(data, ShardsData) and data.image_size is not None and any(s % factor for s in data.image_size):
        raise Sr3dError(path, "data.image_size", data.image_size, f"multiples of the factor {factor}")
    if isinstance(data, HoldoutData) and data.input_divisor != factor * data.target_divisor:
        expected = f"target_divisor times the factor: {data.target_divisor} x {factor}"
        raise Sr3dError(path, "data.input_divisor", data.input_divisor, expected)
