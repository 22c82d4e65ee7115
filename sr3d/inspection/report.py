"""What an inspection found: facts, violations with their fixes, pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

Severity = Literal["error", "warning"]
_SHOWN = 4


@dataclass(kw_only=True, frozen=True)
class Violation:
    """Something that is not as it should be.

    Attributes:
        severity: "error" where training on the data would go wrong, else "warning".
        where: File, frame or field.
        found: What is there.
        fix: What to do about it.
    """

    severity: Severity
    where: str
    found: str
    fix: str


@dataclass(kw_only=True)
class Report:
    """What is in a file or folder.

    Attributes:
        path: What was inspected.
        kind: What it is, e.g. "scene folder (transforms.json)".
        facts: Names and texts, in the order shown.
        violations: Everything that is wrong.
        pictures: PNG files that were written.
    """

    path: Path
    kind: str
    facts: dict[str, str] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether nothing was found that would make training on it wrong."""
        return all(v.severity != "error" for v in self.violations)

    def error(self, where: str, found: str, fix: str) -> None:
        """Add a violation that makes training wrong."""
        self.violations.append(Violation(severity="error", where=where, found=found, fix=fix))

    def warn(self, where: str, found: str, fix: str) -> None:
        """Add a violation that training survives."""
        self.violations.append(Violation(severity="warning", where=where, found=found, fix=fix))

    def show(self, console: Console) -> None:
        """Print facts, violations (errors first) and pictures."""
        table = Table(title=f"{escape(str(self.path))}: {escape(self.kind)}", title_justify="left", show_header=False)
        table.add_column(no_wrap=True, style="dim")
        table.add_column(overflow="fold")
        for name, value in self.facts.items():
            table.add_row(name, escape(value))
        console.print(table, highlight=False)
        for violation in sorted(self.violations, key=lambda v: v.severity != "error"):
            color = "red" if violation.severity == "error" else "yellow"
            head = f"[bold {color}]{violation.severity}[/] {escape(violation.where)}: {escape(violation.found)}"
            console.print(head, highlight=False, soft_wrap=True)
            console.print(f"  fix: {escape(violation.fix)}", highlight=False, soft_wrap=True)
        for picture in self.pictures:
            console.print(f"picture: {escape(str(picture))}", highlight=False, soft_wrap=True)
        errors = sum(v.severity == "error" for v in self.violations)
        warnings = len(self.violations) - errors
        verdict = "[bold red]do not train on it[/]" if errors else "[bold green]fit to train on[/]"
        counts = ", ".join(f"{n} {word}{'s' * (n != 1)}" for n, word in ((errors, "error"), (warnings, "warning")))
        console.print(f"{counts}: {verdict}", highlight=False)


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def span(low: float, high: float, unit: str = "") -> str:
    """A range in three digits; one number where both ends are the same."""
    a, b = f"{low:.3g}", f"{high:.3g}"
    return (a if a == b else f"{a} to {b}") + unit
