"""Inertial recordings: CSV with or without a header, made SI, even in time, free of spikes and of NaN."""

from __future__ import annotations

import csv
import io
import re

import numpy as np
from numpy.typing import NDArray

from pipelines.quality import Quality, Unfit
from store.types import Hertz, Seconds

AXES = ("acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z")
MAX_NAN_SHARE = 0.1
MAX_SPAN: Seconds = 24 * 3600.0
SPIKE = 5.0  # robust standard deviations off the local median
_TIME = re.compile(r"^(time|timestamp|t|ts|date)(_?[a-z]*)$")
_AXIS = re.compile(r"^(?P<sensor>acc|gyr)[a-z]*[^a-z0-9]*(?P<axis>[xyz])\b|^(?P<short>[ag])[_ ]?(?P<axis2>[xyz])\b")


def read(
    data: bytes,
    *,
    hz: Hertz,
    rate_hz: Hertz | None = None,
    acc_factor: float = 1.0,
    gyro_factor: float = 1.0,
    centre: bool = False,
    kernel: int = 5,
) -> tuple[NDArray[np.float32], Quality]:
    """A CSV as ``[T, 6]`` at `hz` from the recording's start: acceleration m/s^2, angular rate rad/s.

    Args:
        data: the file; columns by name, or six (acc, gyro) or seven (time first) without a header.
        hz: the rate of the result.
        rate_hz: the rate it was recorded at, for files without a time column.
        acc_factor: what one unit of the acceleration columns is in m/s^2.
        gyro_factor: what one unit of the gyroscope columns is in rad/s.
        centre: subtract the recording's mean from every axis.
        kernel: samples of the median filter that judges spikes; 1 turns it off.

    Raises:
        Unfit: the file is empty, is no such table, has no time nor rate, too many NaN, or spans more than a day.
    """
    times, values = _columns(data, rate_hz)
    quality: Quality = {"imu_rows": len(values), "imu_nan": int(np.isnan(values).sum())}
    for axis, column in zip(AXES, values.T, strict=True):
        absent = int((~np.isfinite(column)).sum())
        if absent > MAX_NAN_SHARE * len(column):
            raise Unfit(f"IMU column {axis} is NaN in {absent} of {len(column)} rows")
    forward = np.concatenate([[True], np.diff(np.maximum.accumulate(times)) > 0])
    times, values = times[forward], values[forward]
    if len(times) < 2:
        raise Unfit("the IMU recording has fewer than 2 rows in order of time")
    quality["imu_gap_s"] = round(float(np.diff(times).max()), 4)
    span = float(times[-1] - times[0])
    if span > MAX_SPAN:
        raise Unfit(f"IMU time spans {span / 3600:,.0f} h, more than {MAX_SPAN / 3600:g} h: is one of its times wrong?")
    grid = np.arange(int(round(span * hz)) + 1) / hz + times[0]
    even = np.empty((len(grid), 6))
    for place, factor in enumerate((acc_factor,) * 3 + (gyro_factor,) * 3):
        known = np.isfinite(values[:, place])
        even[:, place] = np.interp(grid, times[known], _despike(values[known, place] * factor, kernel))
    if centre:
        even -= even.mean(axis=0)
    return even.astype(np.float32), quality


def _columns(data: bytes, rate_hz: Hertz | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows = [row for row in csv.reader(io.StringIO(data.decode(errors="replace"))) if row]
    if not rows:
        raise Unfit("the file is empty")
    header = [] if _number(rows[0][0]) is not None else [name.strip().lower() for name in rows.pop(0)]
    if not rows:
        raise Unfit("the IMU table has no row")
    width = len(header or rows[0])
    table = np.array([[_number(cell) for cell in row] for row in rows if len(row) == width], float).reshape(-1, width)
    if header:
        places = {_axis(name): place for place, name in reversed(list(enumerate(header)))}
        if missing := [axis for axis in AXES if axis not in places]:
            raise Unfit(f"no IMU column {', '.join(missing)}; the file has {', '.join(header)[:120]}")
    elif width in (6, 7):
        places = dict(zip((["time"] if width == 7 else []) + list(AXES), range(width), strict=True))
    else:
        raise Unfit(f"not an IMU table: {width} columns and no header, expected 6 (acc, gyro) or 7 (time first)")
    if not len(table):
        raise Unfit("the IMU table has no row")
    if rate_hz:
        times = np.arange(len(table)) / rate_hz
    elif "time" in places:
        times = table[:, places["time"]]
        step = float(np.nanmedian(np.diff(times))) if len(times) > 1 else 0.0
        # Nothing moves faster than 1 kHz or slower than 1 Hz here, so the step's size tells the clock's unit.
        times = (times - times[0]) * (1.0 if step < 1 else 1e-3 if step < 1e3 else 1e-6 if step < 1e6 else 1e-9)
        if not np.isfinite(times).all():
            raise Unfit(f"IMU time is NaN in {int((~np.isfinite(times)).sum())} of {len(times)} rows")
    else:
        raise Unfit("the IMU file has no time column: give its rate (imu_rate_hz)")
    return times, table[:, [places[axis] for axis in AXES]]


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


def _despike(values: NDArray[np.float64], kernel: int) -> NDArray[np.float64]:
    """Replace what stands far off the local median by it; all else stays as measured."""
    if kernel < 3 or len(values) < kernel:
        return values
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(values, kernel // 2, mode="edge"), kernel)
    median = np.median(windows, axis=1)
    off = np.abs(values - median)
    return np.where(off > SPIKE * 1.4826 * max(float(np.median(off)), 1e-9) + 1e-9, median, values)
