"""Random changes of files, for hypothesis: bytes, numbers, words and lines."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SPECIAL = [0.0, -0.0, -1.0, 1e-45, 1e-30, 0.5, 1.0, 1e9, 3e38, -3e38, float("inf"), -float("inf"), float("nan")]
WHOLE = [0, 1, -1, -2, 63, 64, 65, 1023, 1024, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, -(2**63)]
LIES = [*map(str, WHOLE), str(2**64), "1e400", "-0", "3.5", "true", "null", '"7"', "[]", "{}", "9" * 5000, "NaN", "nan"]

Change = Callable[[bytes], bytes]


def examples(count: int) -> Callable:
    return settings(
        max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )


def _at(data: bytes, place: float, size: int = 1, step: int = 1) -> int:
    return int(place * max(len(data) - size + 1, 1)) // step * step


def flip(place: float, bit: int) -> Change:
    def change(data: bytes) -> bytes:
        at = _at(data, place)
        return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :] if data else data

    return change


def cut(place: float) -> Change:
    return lambda data: data[: _at(data, place)]


def insert(place: float, new: bytes) -> Change:
    return lambda data: data[: _at(data, place)] + new + data[_at(data, place) :]


def drop(place: float, count: int) -> Change:
    return lambda data: data[: _at(data, place)] + data[_at(data, place) + count :]


def number(place: float, value: float, layout: str) -> Change:
    """Another number at a multiple of its size."""
    size = struct.calcsize(layout)

    def change(data: bytes) -> bytes:
        at = _at(data, place, size, size)
        return data[:at] + struct.pack(layout, value) + data[at + size :]

    return change


def lie(place: float, value: str) -> Change:
    """Another value in place of a number that is written out."""

    def change(data: bytes) -> bytes:
        found = list(re.finditer(rb"-?\d+(\.\d+)?(e-?\d+)?", data))
        if not found:
            return data
        number = found[int(place * len(found))]
        return data[: number.start()] + value.encode() + data[number.end() :]

    return change


def word(place: float, other: float) -> Change:
    """Another word of the text in place of one: names, types and keys get mixed up."""

    def change(data: bytes) -> bytes:
        found = list(re.finditer(rb"\w+", data))
        if not found:
            return data
        old, new = found[int(place * len(found))], found[int(other * len(found))][0]
        return data[: old.start()] + new + data[old.end() :]

    return change


def line(place: float, times: int) -> Change:
    """Leave a line out, or repeat it."""

    def change(data: bytes) -> bytes:
        lines = data.split(b"\n")
        at = int(place * len(lines))
        return b"\n".join(lines[:at] + [lines[at]] * times + lines[at + 1 :])

    return change


places = st.floats(0, 1, exclude_max=True)
raw = [
    st.builds(flip, places, st.integers(0, 7)),
    st.builds(cut, places),
    st.builds(insert, places, st.binary(min_size=1, max_size=9)),
    st.builds(drop, places, st.integers(1, 9)),
]
text = st.one_of(
    *raw,
    st.builds(lie, places, st.sampled_from(LIES)),
    st.builds(lie, places, st.integers(0, 70).map(str)),
    st.builds(word, places, places),
    st.builds(line, places, st.integers(0, 3)),
)
values = st.one_of(
    st.builds(flip, places, st.integers(0, 7)),
    st.builds(number, places, st.sampled_from(SPECIAL), st.just("<f")),
    st.builds(number, places, st.sampled_from(WHOLE), st.just("<q")),
)


def several(kind: st.SearchStrategy, most: int) -> st.SearchStrategy:
    def chained(changes: list[Change]) -> Change:
        def change(data: bytes) -> bytes:
            for step in changes:
                data = step(data)
            return data

        return change

    return st.lists(kind, min_size=1, max_size=most).map(chained)
