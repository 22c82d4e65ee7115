"""What every method has: a name, settings that its results depend on, and one function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from sr3d.evaluation.case import Made, Task


@dataclass(kw_only=True)
class MethodOptions:
    """What the command line gives to every method.

    Attributes:
        argument: What follows the colon in `NAME:ARGUMENT`; None without.
        checkpoint: Trained network, a file, a folder or a name on the Hugging Face hub; None where none was named.
        factor: Ratio of the resolutions that the protocol asks for.
        device: Where Gaussians are made and drawn.
        condition: What networks with conditioning are told about a scene.
        text_model: CLIP model that reads the names of classes; None: no labels are predicted.
    """

    argument: str | None = None
    checkpoint: str | None = None
    factor: int = 4
    device: str = "cpu"
    condition: Literal["image", "text"] | None = None
    text_model: str | None = None


class Method(ABC):
    """One file of `sr3d.evaluation.methods` each: a subclass with a `name` is all that it takes.

    Attributes:
        name: On the command line.
        two_dimensional: Enlarges the target views themselves, reduced: a yardstick, not a competitor.
        uses_coarse: Starts from `Task.coarse`, whose seconds are counted with its own.
    """

    name: ClassVar[str]
    two_dimensional: ClassVar[bool] = False
    uses_coarse: ClassVar[bool] = True

    def __init__(self, options: MethodOptions) -> None:
        """Read what is needed.

        Raises:
            Sr3dError: The argument or the checkpoint cannot be used.
        """
        self.options = options

    def identity(self) -> dict[str, Any]:
        """Settings and hashes of files that the results depend on, plain values."""
        return {"method": self.name}

    @abstractmethod
    def make(self, task: Task) -> Made:
        """Gaussians (or images) of one scene, on the device of `options`.

        Raises:
            Sr3dError: The task does not suit the method.
        """
