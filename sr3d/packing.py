"""`sr3d pack SOURCE SRC DST`: one subcommand per converter; the fields of the converter's class are its options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from inspect import getdoc
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from sr3d.datasets.converter import ClipOptions, Converter, Split, converters, find_converter
from sr3d.datasets.pack import PackConfig, Packed, pack


def build_parser() -> ArgumentParser:
    """The parser of `sr3d pack`."""
    summary = "Convert a data set into training shards: SOURCE SRC DST (docs/shards.md, data/README.md)."
    parser = ArgumentParser(prog="sr3d pack", description=summary, allow_abbrev=False)
    commands = parser.add_subcommands(dest="source")
    for name in converters():
        cls = find_converter(name)
        text = (getdoc(cls) or "").splitlines()[0]
        commands.add_subcommand(name, _source_parser(cls, text), help=text)
    return parser


def _source_parser(cls: type[Any], text: str) -> ArgumentParser:
    own = {f.name for f in fields(cls)}
    parser = ArgumentParser(description=f"{text} Licence of the data: {cls.licence}")
    if cls.needs_src:
        parser.add_argument("src", type=Path, help="where the data set lies")
    parser.add_argument("dst", type=Path, help="folder of the shards of one split; completed if it was begun before")
    parser.add_argument("--split", type=Split, default="train", help="what to pack")
    # A converter's own option of the same name takes the place of the common one.
    for part, skip in ((cls, set[str]()), (ClipOptions, own), (PackConfig, own)):
        parser.add_class_arguments(part, None, as_group=False, skip=set[str | int](skip))
    return parser


def main(words: Sequence[str]) -> None:
    """Run `sr3d pack` with these arguments, and print what was packed and what was left out.

    Raises:
        Sr3dError: See `sr3d.datasets.pack.pack`.
    """
    parsed = build_parser().parse_args(list(words))
    given = parsed[parsed.source].as_dict()
    cls = find_converter(parsed.source)
    converter = _pick(cls, given)
    own = {f.name for f in fields(cls)}
    rest = {k: v for k, v in given.items() if k not in own}
    result = pack(
        converter,
        given.get("src", "."),
        given["dst"],
        split=given["split"],
        options=_pick(ClipOptions, rest),
        config=_pick(PackConfig, rest),
    )
    report(converter, result)


def report(converter: Converter, result: Packed) -> None:
    """Print a summary: counts, sizes, and what was left out by reason."""
    console = Console()
    if result.index is None:
        console.print(
            f"{result.done} of {result.tasks} tasks are done; the part that finishes last writes {result.path}"
        )
        return
    index = result.index
    table = Table(title=f"{converter.source} · {index.split}", show_header=False)
    table.add_row("clips, views, scenes", f"{index.clips:,}, {index.views:,}, {len(index.scenes):,}")
    table.add_row("shards", f"{len(index.shards):,}, {sum(s.bytes for s in index.shards) / 1e6:,.1f} MB")
    if result.reused:
        table.add_row("found whole from an earlier run", f"{result.reused} of {result.tasks} tasks")
    for kind in ("frames", "scenes"):
        for reason, count in index.dropped[kind].items():
            table.add_row(f"dropped {kind}: {reason}", f"{count:,}")
    table.add_row("licence of the data", index.licence)
    console.print(table)
    for example in index.dropped["examples"][:5]:
        console.print(f"  e.g. {example}", highlight=False, soft_wrap=True)
    console.print(f"written: {result.path}", highlight=False, soft_wrap=True)


def _pick(cls: type[Any], values: dict[str, Any]) -> Any:
    """An object from those of the values that are its fields."""
    return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})
