"""What is in a file or folder, and what is wrong with it: `sr3d inspect`."""

from sr3d.inspection.api import inspect
from sr3d.inspection.report import Report, Violation

__all__ = ["Report", "Violation", "inspect"]
