"""The converter that data/README.md shows."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from captures import convert, file_of, picture, poses, to_world, write

from sr3d import Sr3dError
from sr3d.datasets.converter import Converter

README = Path(__file__).parents[2] / "data/README.md"
K = np.array([[44.0, 0, 19.2], [0, 43.0, 15.7], [0, 0, 1]])


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The module that the README's Python block is."""
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    spec = importlib.util.spec_from_file_location("readme_converter", write(tmp_path / "readme_converter.py", code))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_converter_of_the_readme(tmp_path: Path, mine) -> None:
    truth = poses(4)
    for i, pose in enumerate(truth):
        write(tmp_path / f"src/a/{i}.jpg", file_of(picture(40, 30, i), "JPEG"))
        if i != 2:
            write(tmp_path / f"src/a/{i}.txt", " ".join(str(v) for v in [*K.flat, *pose.flat]))
    converter = mine.Mine(unit=0.5)
    assert isinstance(converter, Converter)
    (clip,), drops = convert(converter, tmp_path / "src")
    truth[:, :3, 3] *= 0.5
    np.testing.assert_allclose(to_world(clip), truth[[0, 1, 3]], atol=1e-12)
    assert np.array_equal(clip.views[0].K, K) and dict(drops.frames) == {"pose missing": 1}
    with pytest.raises(Sr3dError, match="one folder for each recording"):
        converter.entries(tmp_path / "src/a", "all")
