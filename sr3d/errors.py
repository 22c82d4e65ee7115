"""The one exception that wrong input raises."""

from __future__ import annotations

from pathlib import Path


class Sr3dError(ValueError):
    """Wrong input: says where it came from, which field is wrong, what was found and what was expected.

    Args:
        source: File, folder, function or object that holds the bad value.
        field: Name of the bad value inside `source`.
        found: What is there.
        expected: What should be there.
    """

    def __init__(self, source: str | Path, field: str, found: object, expected: object) -> None:
        self.source, self.field, self.found, self.expected = str(source), field, str(found), str(expected)
        super().__init__(f"{source}: {field}: found {found}; expected {expected}")

    def __reduce__(self) -> tuple[type[Sr3dError], tuple[str, str, str, str]]:
        """Let the error cross process borders (data-loading workers) unchanged."""
        return Sr3dError, (self.source, self.field, self.found, self.expected)
