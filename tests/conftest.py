from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def scenes() -> Path:
    """Folder of real captures; tests that need it skip elsewhere."""
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("SR3D_SCENES", root.parent / "shared" / "scenes"))
    if not (folder / "redkitchen-clip" / "transforms.json").is_file():
        pytest.skip(f"no real captures: {folder} is missing (set SR3D_SCENES)")
    return folder
