from __future__ import annotations

from pathlib import Path

import pytest

from sr3d.datasets.procedural import pack_procedural


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of six worlds to train on and three to validate on, 32 x 32 pixels."""
    folder = tmp_path_factory.mktemp("worlds")
    pack_procedural(folder / "train", scenes=6, views=5, size=32, seed=0, progress=False)
    pack_procedural(folder / "val", scenes=3, views=5, size=32, seed=0, split="validation", progress=False)
    return folder
