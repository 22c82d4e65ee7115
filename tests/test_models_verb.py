from __future__ import annotations

from functools import partial

import pytest

from sr3d.cli import main
from sr3d.models import model_config
from sr3d.models.estimate import estimate


def test_sizes_are_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    light = partial(model_config, points=None, geometry=None)  # of the size only the parts that are quickly estimated
    monkeypatch.setattr("sr3d.models.estimate.list_models", lambda: ["tiny"])
    monkeypatch.setattr("sr3d.models.estimate.model_config", light)
    monkeypatch.setenv("COLUMNS", "120")
    assert (
        main(
            [
                "models",
                "--width",
                "10",
                "--height",
                "8",
                "--views",
                "3",
                "--batch",
                "2",
                "--factor",
                "2",
                "--precision",
                "bf16",
                "--checkpointing",
                "true",
            ]
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert "2 x 3 views of 10x8 to 2x, bf16, checkpointing" in shown
    (row,) = [line for line in shown.splitlines() if "tiny" in line]
    found = estimate(light("tiny", factor=2), 10, 8, 3, 2, precision="bf16", checkpointing=True)
    assert found.gaussians == 2 * 3 * 10 * 8 * 4 // 2
    for value in (
        f"{found.gaussians:,}",
        f"{found.inference_bytes / 1e6:.0f} MB",
        f"{found.training_bytes / 1e6:.0f} MB",
    ):
        assert value in row


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--width", "0"], "width: found 0; expected 1 or more"),
        (["--factor", "5"], "factor: found 5; expected 2, 4, 8"),
    ],
)
def test_wrong_numbers_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
