"""Inertial tables: any header, any clock, SI units, no spike, no NaN."""

from __future__ import annotations

import io

import numpy as np
import pytest

from pipelines.media import imu
from pipelines.quality import Unfit


def read(data: bytes, **settings):
    return imu.read(io.BytesIO(data), **settings)


def table(rows: np.ndarray, header: str = "") -> bytes:
    lines = [
        "" if not header else header,
        *(",".join("nan" if np.isnan(v) else repr(float(v)) for v in r) for r in rows),
    ]
    return "\n".join(line for line in lines if line).encode()


SLOPE = np.linspace(0, 1, 61)[:, None] * np.arange(1, 7)
HEADER = "acc_x,acc_y,acc_z,gyro_x,gyro_y,gyro_z"


@pytest.mark.parametrize(
    "header",
    [
        "timestamp,accelerometer_x,accelerometer_y,accelerometer_z,gyroscope_x,gyroscope_y,gyroscope_z",
        "time,acc_x,acc_y,acc_z,gyro_x,gyro_y,gyro_z",
        "timestamp_ms,accX,accY,accZ,gyroX,gyroY,gyroZ",
        "t,ax,ay,az,gx,gy,gz",
        "",
    ],
)
@pytest.mark.parametrize("unit", [1.0, 1e3, 1e6, 1e9])
def test_columns_and_clock_are_understood(header, unit):
    times = (5.0 + np.arange(61) / 20) * unit
    values, quality = read(table(np.column_stack([times, SLOPE]), header), hz=50)
    assert values.shape == (151, 6)
    np.testing.assert_allclose(values[:, 2], np.linspace(0, 3, 151), atol=1e-5)
    assert quality["imu_rows"] == 61


def test_counts_become_si_at_the_given_rate():
    values, _ = read(table(np.tile([[16384.0, 0, 0, 164, 0, 0]], (50, 1))), hz=50, rate_hz=25, acc_factor=9.81 / 16384)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values[:, 0], 9.81, rtol=1e-5)
    np.testing.assert_allclose(values[:, 3], 164)
    assert len(values) == 99


def test_jitter_and_gaps_are_laid_on_an_even_grid():
    times = np.delete(np.arange(61) / 20 + np.tile([0, 0.01], 31)[:61], slice(20, 26))
    values, quality = read(table(np.column_stack([times, np.tile(times[:, None], 6)]), "t," + HEADER), hz=20)
    np.testing.assert_allclose(values[:, 0], np.arange(len(values)) / 20, atol=1e-5)
    assert quality["imu_gap_s"] == pytest.approx(0.34)


def test_a_spike_goes_and_the_rest_stays():
    rows = SLOPE + 0.01 * np.random.default_rng(0).standard_normal(SLOPE.shape)
    hit = rows.copy()
    hit[30, 1] = 500
    clean, _ = read(table(rows, HEADER), hz=20, rate_hz=20)
    mended, _ = read(table(hit, HEADER), hz=20, rate_hz=20)
    assert abs(mended[30, 1] - clean[30, 1]) < 0.1
    np.testing.assert_array_equal(np.delete(mended, range(28, 33), axis=0), np.delete(clean, range(28, 33), axis=0))


def test_few_nan_are_filled_and_many_refused():
    rows = SLOPE[:60].copy()
    rows[10:13, 1] = np.nan
    values, quality = read(table(rows, HEADER), hz=20, rate_hz=20)
    assert np.isfinite(values).all()
    assert quality["imu_nan"] == 3
    rows[10:22, 1] = np.nan
    with pytest.raises(Unfit, match="IMU column acc_y is NaN in 12 of 60 rows"):
        read(table(rows, HEADER), hz=20, rate_hz=20)


def test_a_byte_order_mark_and_ragged_rows_are_passed_over():
    rows = table(SLOPE, HEADER).splitlines()
    rows.insert(9, b"1,2")
    rows.insert(20, b"x" * 200_000)
    values, quality = read(b"\xef\xbb\xbf" + b"\n".join(rows), hz=20, rate_hz=20)
    np.testing.assert_allclose(values, SLOPE, atol=1e-6)
    assert quality["imu_rows"] == 61


def test_a_table_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(imu, "MAX_ROWS", 50)
    with pytest.raises(Unfit, match="cut it into parts"):
        read(table(SLOPE, HEADER), hz=20, rate_hz=20)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello,world\n1,2\n", "no IMU column acc_x"),
        (b"1,2,3\n4,5,6\n", "3 columns and no header"),
        (HEADER.encode(), "no row"),
        (b"1,2,3,4,5,6\n1,2,3,4,5,6\n", "imu_rate_hz"),
    ],
)
def test_what_is_no_inertial_table_says_so(data, reason):
    with pytest.raises(Unfit, match=reason):
        read(data, hz=50)


def test_a_first_time_of_another_clock_is_refused():
    times = 1.7e9 + np.arange(61) / 20
    times[0] = 0
    with pytest.raises(Unfit, match="IMU time spans 472,222 h, more than 24 h"):
        read(table(np.column_stack([times, SLOPE]), "t," + HEADER), hz=1e-3)


def test_centring_takes_the_mean_away():
    values, _ = read(table(SLOPE + 9.8, HEADER), hz=20, rate_hz=20, centre=True)
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-5)


def test_centring_the_gyroscope_leaves_gravity():
    values, _ = read(table(SLOPE + 9.8, HEADER), hz=20, rate_hz=20, centre="gyro")
    kept, _ = read(table(SLOPE + 9.8, HEADER), hz=20, rate_hz=20)
    np.testing.assert_array_equal(values[:, :3], kept[:, :3])
    np.testing.assert_allclose(values[:, 3:].mean(axis=0), 0, atol=1e-5)
