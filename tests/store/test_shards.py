from __future__ import annotations

import dataclasses
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from store.shards import ShardWriter, read_sample, write_shard
from store.types import DamagedSampleError, Modality, PalimpsestError, Sample


def picture(value: int, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 8), (value, value, value)).save(buffer, kind)
    return buffer.getvalue()


def samples() -> list[Sample]:
    rng = np.random.default_rng(0)
    meta = {"labels": ["grün"], "tracks": {"audio": {"rate_hz": 16000}, "imu": {"rate_hz": 50.0}}}
    whole = Sample(
        key="0123456789abcdef-0000000-0001500",
        meta=meta | {"key": "0123456789abcdef-0000000-0001500"},
        frames=[picture(40 * i) for i in range(3)],
        audio=rng.integers(-(2**15), 2**15, 1000, dtype=np.int16),
        imu=rng.normal(size=(50, 6)).astype(np.float32),
        image=picture(9, "PNG"),
        depth=rng.integers(0, 2**16, (4, 5), dtype=np.uint16),
        text="Größe: 5 µm ✓",
    )
    spare = Sample(key="0123456789abcdef-0001500-0003000", meta=meta | {"key": "x"}, image=picture(7), text="")
    return [whole, spare]


def test_every_modality_comes_back_as_it_went_in(tmp_path: Path) -> None:
    shard = write_shard(str(tmp_path / "a.tar"), samples())
    for written, entry in zip(samples(), shard.entries, strict=True):
        read = read_sample(shard.url, entry)
        assert read.modalities == written.modalities
        for field in dataclasses.fields(Sample):
            one, other = getattr(written, field.name), getattr(read, field.name)
            assert type(one) is type(other)
            np.testing.assert_array_equal(one, other)
            assert getattr(one, "dtype", None) == getattr(other, "dtype", None)
    assert samples()[0].modalities == tuple(Modality)


def test_shards_are_byte_identical_and_named_in_their_index(tmp_path: Path) -> None:
    one, two = (write_shard(str(tmp_path / name), samples()) for name in ("a.tar", "b.tar"))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert (one.sha256, one.entries) == (two.sha256, two.entries)
    assert one.bytes == (tmp_path / "a.tar").stat().st_size


def test_members_are_ustar_without_times_or_owners(tmp_path: Path) -> None:
    write_shard(str(tmp_path / "a.tar"), samples())
    with tarfile.open(tmp_path / "a.tar") as tar:
        members = tar.getmembers()
        assert tar.pax_headers == {}
    assert len(members) == 12
    assert {(m.mtime, m.uid, m.gid, m.uname, m.type) for m in members} == {(0, 0, 0, "", tarfile.REGTYPE)}
    assert (tmp_path / "a.tar").read_bytes()[257:265] == b"ustar\x0000"


def test_stock_webdataset_reads_a_shard_without_our_code(tmp_path: Path) -> None:
    shard = write_shard(str(tmp_path / "a.tar"), samples())
    whole, spare = wds.WebDataset(shard.url, shardshuffle=False).decode("pil")
    written = samples()[0]
    assert whole["__key__"] == written.key
    assert whole["json"] == written.meta
    assert [whole[f"frame{i:03d}.jpg"].size for i in range(3)] == [(16, 8)] * 3
    np.testing.assert_array_equal(whole["imu.npy"], written.imu)
    np.testing.assert_array_equal(whole["depth.npy"], written.depth)
    assert whole["text.txt"] == written.text
    assert spare["image.jpg"].size == (16, 8)


@pytest.mark.parametrize("position", [600, 5000, -1])
def test_a_damaged_byte_is_named_with_its_sample(tmp_path: Path, position: int) -> None:
    shard = write_shard(str(tmp_path / "a.tar"), samples())
    entry = shard.entries[0]
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[position % entry.size] ^= 1
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(PalimpsestError, match=f"{entry.key}.*damaged"):
        read_sample(shard.url, entry)
    assert read_sample(shard.url, shard.entries[1]).text == ""


def test_a_truncated_or_absent_shard_is_named(tmp_path: Path) -> None:
    shard = write_shard(str(tmp_path / "a.tar"), samples())
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[: shard.entries[1].offset + 100])
    with pytest.raises(PalimpsestError, match=shard.entries[1].key):
        read_sample(shard.url, shard.entries[1])
    (tmp_path / "a.tar").unlink()
    with pytest.raises(PalimpsestError, match="absent"):
        read_sample(shard.url, shard.entries[0])


def test_damage_is_found_in_a_shard_that_was_read_before(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    shard = write_shard(str(path), samples())
    whole, entry = path.read_bytes(), shard.entries[0]
    for damaged in (whole[:700] + b"?" + whole[701:], whole[:700], b""):
        read_sample(shard.url, entry)
        path.write_bytes(damaged)
        with pytest.raises(DamagedSampleError, match="damaged"):
            read_sample(shard.url, entry)
        path.write_bytes(whole)


def test_a_sample_keeps_what_was_checked_whatever_becomes_of_its_shard(tmp_path: Path) -> None:
    shard = write_shard(str(tmp_path / "a.tar"), samples())
    read = read_sample(shard.url, shard.entries[0])
    (tmp_path / "a.tar").write_bytes(bytes(shard.bytes))
    for field in dataclasses.fields(Sample):
        np.testing.assert_array_equal(getattr(read, field.name), getattr(samples()[0], field.name))


def test_what_is_taken_back_leaves_no_trace(tmp_path: Path) -> None:
    one, two = samples()
    plain = write_shard(str(tmp_path / "plain.tar"), [one])
    with ShardWriter(str(tmp_path / "a.tar")) as writer:
        start = writer.mark()
        writer.add(two)
        writer.take_back(start)
        writer.add(one)
        after = writer.mark()
        writer.add(two)
        writer.take_back(after)
    assert writer.shard is not None
    assert (writer.shard.sha256, writer.shard.entries) == (plain.sha256, plain.entries)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "plain.tar").read_bytes()


def test_a_shard_without_samples_or_of_an_error_is_no_file(tmp_path: Path) -> None:
    with ShardWriter(str(tmp_path / "a.tar")) as writer:
        start = writer.mark()
        writer.add(samples()[0])
        writer.take_back(start)
    assert writer.shard is None
    with pytest.raises(KeyboardInterrupt), ShardWriter(str(tmp_path / "b.tar")) as writer:
        writer.add(samples()[0])
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
