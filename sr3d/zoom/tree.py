"""The branches of a zoom as text."""

from __future__ import annotations

from sr3d.zoom.session import State


def draw_tree(state: State) -> str:
    """One line for every branch and every level that was made for it; levels shared with an earlier one are named."""
    lines = [state.source]
    for i, branch in enumerate(state.branches):
        own = [level for level in state.levels if level.branch == i]
        lines.append(f"+- {branch.target}")
        shared = branch.done - len({level.level for level in own})
        if shared:
            lines.append(f"|  +- levels 1 to {shared}: made before")
        for level in own:
            lines.append(f"|  +- level {level.level}, {level.magnification:g}x: {level.gaussians:,} Gaussians")
    return "\n".join(lines)
