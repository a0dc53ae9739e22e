"""Inertial recordings: CSV with or without a header, made SI, even in time, free of spikes and of NaN."""

from __future__ import annotations

import csv
import io
import re
from array import array
from collections.abc import Iterator
from itertools import chain
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.quality import FOREVER, Deadline, Quality, Unfit
from store.types import Hertz, Seconds

AXES = ("acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z")
MAX_NAN_SHARE = 0.1
MAX_SPAN: Seconds = 24 * 3600.0
MAX_ROWS = 4_000_000
MAX_LINE = 1 << 16
PART = 1 << 16
SPIKE = 5.0  # robust standard deviations off the local median
_TIME = re.compile(r"^(time|timestamp|t|ts|date)(_?[a-z]*)$")
_AXIS = re.compile(r"^(?P<sensor>acc|gyr)[a-z]*[^a-z0-9]*(?P<axis>[xyz])\b|^(?P<short>[ag])[_ ]?(?P<axis2>[xyz])\b")


def read(
    file: BinaryIO,
    *,
    hz: Hertz,
    rate_hz: Hertz | None = None,
    acc_factor: float = 1.0,
    gyro_factor: float = 1.0,
    centre: bool | Literal["gyro"] = False,
    kernel: int = 5,
    deadline: Deadline = FOREVER,
) -> tuple[NDArray[np.float32], Quality]:
    """A CSV as ``[T, 6]`` at `hz` from the recording's start: acceleration m/s^2, angular rate rad/s.

    Args:
        file: the table; columns by name, or six (acc, gyro) or seven (time first) without a header.
        hz: the rate of the result.
        rate_hz: the rate it was recorded at, for files without a time column.
        acc_factor: what one unit of the acceleration columns is in m/s^2.
        gyro_factor: what one unit of the gyroscope columns is in rad/s.
        centre: subtract the recording's mean from every axis, or from those of the gyroscope alone.
        kernel: samples of the median filter that judges spikes; 1 turns it off.
        deadline: when to give up.

    Raises:
        Unfit: the file is empty or no such table, has no time nor rate, too many rows or NaN, or spans over a day.
    """
    times, values = _columns(file, rate_hz, deadline)
    quality: Quality = {"imu_rows": len(values), "imu_nan": int(np.isnan(values).sum())}
    for axis, column in zip(AXES, values.T, strict=True):
        absent = int((~np.isfinite(column)).sum())
        if absent > MAX_NAN_SHARE * len(column):
            raise Unfit(f"IMU column {axis} is NaN in {absent} of {len(column)} rows")
    forward = np.concatenate([[True], np.diff(np.maximum.accumulate(times)) > 0])
    if not forward.all():
        times, values = times[forward], values[forward]
    if len(times) < 2:
        raise Unfit("the IMU recording has fewer than 2 rows in order of time")
    quality["imu_gap_s"] = round(float(np.diff(times).max()), 4)
    span = float(times[-1] - times[0])
    if span * hz < 1:
        raise Unfit(f"the IMU recording lasts {span:g} s: is its rate wrong?")
    if span > MAX_SPAN:
        raise Unfit(f"IMU time spans {span / 3600:,.0f} h, more than {MAX_SPAN / 3600:g} h: is one of its times wrong?")
    quality["imu_s"] = round(span, 3)
    grid = np.arange(int(round(span * hz)) + 1) / hz + times[0]
    even = np.empty((len(grid), 6), np.float32)
    for place, factor in enumerate((acc_factor,) * 3 + (gyro_factor,) * 3):
        known = np.isfinite(values[:, place])
        axis = np.interp(grid, times[known], _despike(values[known, place] * factor, kernel))
        even[:, place] = axis - axis.mean() if centre is True or (centre and place >= 3) else axis
    return even, quality


def _columns(
    file: BinaryIO, rate_hz: Hertz | None, deadline: Deadline
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows = _rows(file, deadline)
    head = next(rows, None)
    if head is None:
        raise Unfit("the file is empty")
    header = [] if _number(head[0]) is not None else [name.strip().lower() for name in head]
    width = len(head)
    if header:
        places = {_axis(name): place for place, name in reversed(list(enumerate(header)))}
        if missing := [axis for axis in AXES if axis not in places]:
            raise Unfit(f"no IMU column {', '.join(missing)}; the file has {', '.join(header)[:120]}")
    elif width in (6, 7):
        places = dict(zip((["time"] if width == 7 else []) + list(AXES), range(width), strict=True))
    else:
        raise Unfit(f"not an IMU table: {width} columns and no header, expected 6 (acc, gyro) or 7 (time first)")
    wanted = [places[name] for name in ("time", *AXES) if name in places]
    cells, ragged = array("d"), False
    for row in rows if header else chain([head], rows):
        ragged = len(row) != width
        if not ragged:
            cells.extend([_value(row[place]) for place in wanted])
            if len(cells) > MAX_ROWS * len(wanted):
                raise Unfit(f"the IMU table has more than {MAX_ROWS // 10**6} million rows: cut it into parts")
    if ragged:
        raise Unfit("the IMU table is cut off in its last row")
    table = np.frombuffer(cells).reshape(-1, len(wanted))
    if not len(table):
        raise Unfit("the IMU table has no row")
    if rate_hz:
        times = np.arange(len(table)) / rate_hz
    elif "time" in places:
        times = table[:, 0]
        step = float(np.nanmedian(np.diff(times))) if len(times) > 1 else 0.0
        # Nothing moves faster than 1 kHz or slower than 1 Hz here, so the step's size tells the clock's unit.
        times = (times - times[0]) * (1.0 if step < 1 else 1e-3 if step < 1e3 else 1e-6 if step < 1e6 else 1e-9)
        if not np.isfinite(times).all():
            raise Unfit(f"IMU time is NaN in {int((~np.isfinite(times)).sum())} of {len(times)} rows")
    else:
        raise Unfit("the IMU file has no time column: give its rate (imu_rate_hz)")
    return times, table[:, -6:]


def _rows(file: BinaryIO, deadline: Deadline) -> Iterator[list[str]]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="")
    try:
        # In pieces, or a file without a line's end would be read whole.
        lines: Iterator[str] = iter(lambda: text.readline(MAX_LINE), "")
        first = next((line for line in lines if line.strip()), "")
        comma = max(",;\t", key=first.count)
        lines = chain([first], lines)
        if comma != ",":  # then a comma is a decimal point
            lines = (line.replace(",", ".") for line in lines)
        for row in csv.reader(lines, delimiter=comma):
            deadline.check()
            if row:
                yield row
    except csv.Error as error:
        raise Unfit(f"not an IMU table: {error}") from error


def _axis(name: str) -> str:
    if found := _AXIS.match(name):
        sensor = (found["sensor"] or found["short"])[0]
        return f"{'acc' if sensor == 'a' else 'gyro'}_{found['axis'] or found['axis2']}"
    return "time" if _TIME.match(name) else name


def _number(cell: str | None) -> float | None:
    try:
        return float(cell) if cell and cell.strip() else float("nan")
    except ValueError:
        return None


def _value(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def _despike(values: NDArray[np.float64], kernel: int) -> NDArray[np.float64]:
    """Replace what stands far off the local median by it; all else stays as measured."""
    if kernel < 3 or len(values) < kernel:
        return values
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, kernel // 2, mode="edge"), kernel)
    parts = np.array_split(windows, len(windows) // PART + 1)  # each is copied
    median = np.concatenate([np.median(part, axis=1) for part in parts])
    off = np.abs(values - median)
    return np.where(off > SPIKE * 1.4826 * max(float(np.median(off)), 1e-9) + 1e-9, median, values)
