"""`sr3d VERB ...`: every verb is one typed function of `sr3d.verbs`; its signature and docstring make the options."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from inspect import Parameter, signature

from jsonargparse import ArgumentParser

from sr3d import verbs
from sr3d.errors import Sr3dError
from sr3d.zoom_verb import zoom

VERBS: dict[str, Callable[..., int | None]] = {
    "doctor": verbs.doctor,
    "models": verbs.models,
    "pack": verbs.pack,
    "inspect": verbs.inspect,
    "train": verbs.train,
    "freeze": verbs.freeze,
    "eval": verbs.evaluate,
    "compare": verbs.compare,
    "upscale": verbs.upscale,
    "zoom": zoom,
    "convert": verbs.convert,
    "demo": verbs.demo,
}


def main(args: Sequence[str] | None = None) -> int:
    """Run one verb; None takes the command line.

    Returns:
        Exit status: 0; 1 if `inspect` finds that training would go wrong; 2 for wrong input (one line `error: ...` on
        standard error). Unknown options exit with 2 too.
    """
    words = list(sys.argv[1:] if args is None else args)
    try:
        # What follows belongs to Lightning's own command line, and to the converters'.
        if words[:1] == ["train"] and words[1:] not in (["-h"], ["--help"]):
            verbs.train(*words[1:])
        elif words[:1] == ["pack"]:
            verbs.pack(*words[1:])
        else:
            parsed = build_parser().parse_args(_spelt_out(words))
            return VERBS[parsed.verb](**parsed[parsed.verb].as_dict()) or 0
    except Sr3dError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def build_parser() -> ArgumentParser:
    """The parser of all verbs."""
    summary = "Feed-forward 3D super-resolution of Gaussian-splatting scenes."
    parser = ArgumentParser(prog="sr3d", description=summary, allow_abbrev=False)
    commands = parser.add_subcommands(dest="verb")
    for name, function in VERBS.items():
        commands.add_subcommand(name, _verb_parser(function), help=_summary(function))
    return parser


def _spelt_out(words: Sequence[str]) -> list[str]:
    """-o in full, dashes inside the names of options as underscores, and a switch without a value as true."""
    verb = VERBS.get(words[0]) if words else None
    kinds = {} if verb is None else {f"--{name}": p.annotation for name, p in signature(verb).parameters.items()}
    out: list[str] = []
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
        out.append("--output" if word == "-o" else name + equals + value)
        if kinds.get(name) == "bool" and not equals and words[i + 1 : i + 2] not in (["true"], ["false"]):
            out.append("true")
    return out


def _summary(function: Callable[..., int | None]) -> str:
    return (function.__doc__ or "").splitlines()[0]


def _verb_parser(function: Callable[..., int | None]) -> ArgumentParser:
    """Positional parameters become arguments, keyword-only ones options."""
    parser = ArgumentParser(description=_summary(function))
    parameters = [p for p in signature(function).parameters.values() if p.kind != Parameter.VAR_POSITIONAL]
    positional = set[str | int](p.name for p in parameters if p.kind == Parameter.POSITIONAL_OR_KEYWORD)
    options = set[str | int](p.name for p in parameters) - positional
    parser.add_function_arguments(function, as_positional=True, as_group=False, skip=options)
    parser.add_function_arguments(function, as_group=False, skip=positional)
    return parser


if __name__ == "__main__":
    sys.exit(main())
