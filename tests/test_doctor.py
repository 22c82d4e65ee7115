from __future__ import annotations

import os

import numba
import torch

from sr3d import doctor
from sr3d.rendering import choose_backend


def test_report(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = doctor.doctor()
    assert capsys.readouterr().out.strip() == text.strip()
    for expected in (
        torch.__version__.split("+")[0],
        numba.__version__,
        "gsplat",
        "timm",
        "lightning",
        "nvcc",
        "ffmpeg",
    ):
        assert expected in text
    backend, reason = choose_backend("cuda" if torch.cuda.is_available() else "cpu")
    assert f"{backend}: {reason}" in text
    assert f"of {os.cpu_count()} cores usable" in text


def test_missing_parts_are_named(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor, "_PACKAGES", ("no-such-package",))
    text = doctor.doctor()
    assert "no-such-package" in text and "not installed" in text
    assert "pip install 'sr3d[viewer]'" in text and "pip install 'sr3d[cluster]'" in text
    assert "not found (gsplat compiles" in text
