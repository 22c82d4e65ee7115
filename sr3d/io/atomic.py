"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sr3d.errors import Sr3dError


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name in the folder of `path`, with its extension; on success it takes the place of `path`.

    If the block raises, `path` stays as it was and nothing is left behind.

    Raises:
        Sr3dError: The folder does not exist, `path` is a folder, or the file cannot be written.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise Sr3dError(path, "folder", f"no folder {path.parent}", "an existing folder to write into")
    if path.is_dir():
        raise Sr3dError(path, "path", "a folder", "a file name")
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise Sr3dError(path, "file", error.strerror or error, "a place that can be written") from error
    finally:
        temporary.unlink(missing_ok=True)
