from __future__ import annotations

import multiprocessing
import multiprocessing.queues
import multiprocessing.synchronize
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from store.lake import MAPS, Lake, get, lock, new_folder, present, put, sweep, view

FORK = multiprocessing.get_context("fork")


@pytest.mark.parametrize("name", ["plain.bin", "it's [1] -x *.bin", "a::b#c.bin"])
def test_what_is_put_can_be_got(tmp_path: Path, name: str) -> None:
    put(tmp_path / "new" / name, b"0123456789")
    assert get(tmp_path / "new" / name) == get(str(tmp_path / "new" / name)) == b"0123456789"
    assert get(tmp_path / "new" / name, 3, 4) == b"3456"


def test_an_object_store_is_reached_by_url() -> None:
    put("memory://bucket/shard.tar", b"0123456789")
    assert get("memory://bucket/shard.tar", 3, 4) == b"3456"
    with pytest.raises(FileNotFoundError):
        get("memory://bucket/none.tar")


@pytest.mark.parametrize("folder", ["memory://viewed", "{tmp_path}", "file://{tmp_path}"])
def test_a_view_is_of_what_lies_there_now(tmp_path: Path, folder: str) -> None:
    url = f"{folder.format(tmp_path=tmp_path)}/shard.tar"
    with pytest.raises(FileNotFoundError):
        view(url, 0, 1)
    for content in (b"0123456789", b"abcdefghij", b"A", b"", b"0123456789ab"):
        put(url, content)
        assert bytes(view(url, 3, 4)) == content[3:7]
        assert bytes(view(url, 0, 2)) == content[:2]


def test_a_view_outlives_its_file_and_many_others(tmp_path: Path) -> None:
    put(tmp_path / "first", b"first")
    first = view(tmp_path / "first", 0, 5)
    (tmp_path / "first").unlink()
    for i in range(2 * MAPS):
        put(tmp_path / str(i), b"other")
        assert bytes(view(tmp_path / str(i), 0, 5)) == b"other"
    assert bytes(first) == b"first"
    assert len(os.listdir("/proc/self/fd")) < 2 * MAPS


@pytest.mark.parametrize("folder", ["memory://exists", "{tmp_path}"])
def test_what_lies_there_is_known(tmp_path: Path, folder: str) -> None:
    url = f"{folder.format(tmp_path=tmp_path)}/shard.tar"
    assert not present([str(url)])
    put(url, b"0123456789")
    assert present([str(url), f"{url}.other"]) == {str(url)}


def test_only_what_lies_in_the_lake_moves_with_it(tmp_path: Path) -> None:
    here, there = Lake(tmp_path / "here"), Lake(tmp_path / "there")
    own = here.shard_url("d", "x.tar")
    assert own == here.resolve(here.relative(own)) == f"{here.root}/shards/d/x.tar"
    assert there.resolve(here.relative(own)) == there.shard_url("d", "x.tar")
    for url in ("s3://bucket/d/x.tar", f"{tmp_path}/here too/x.tar"):
        assert there.resolve(here.relative(url)) == url


def test_a_relative_folder_of_shards_is_one_of_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Lake(tmp_path / "lake", "out").shard_url("d", "x.tar") == f"{tmp_path}/out/d/x.tar"
    assert Lake(tmp_path / "lake", "s3://bucket").shard_url("d", "x.tar") == "s3://bucket/d/x.tar"


def test_a_put_that_fails_leaves_the_former_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "file", b"former")

    def fail(*_: object) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="power cut"):
        put(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert get(tmp_path / "file") == b"former"


def test_a_new_folder_replaces_the_former_whole(tmp_path: Path) -> None:
    for names in (["a", "b"], ["b", "c"]):
        with new_folder(tmp_path / "x" / "target") as aside:
            for name in names:
                (aside / name).write_text(name)
    assert sorted(path.name for path in (tmp_path / "x" / "target").iterdir()) == ["b", "c"]
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["target"]


def test_a_folder_that_fails_leaves_the_former(tmp_path: Path) -> None:
    with new_folder(tmp_path / "target") as aside:
        (aside / "file").write_text("former")
    with pytest.raises(RuntimeError), new_folder(tmp_path / "target") as aside:
        (aside / "file").write_text("half")
        raise RuntimeError
    assert (tmp_path / "target" / "file").read_text() == "former"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_folder_that_another_writer_made_meanwhile_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "x"
    with new_folder(target) as mine:
        (mine / "a").write_text("mine")
        with new_folder(target) as other:
            (other / "a").write_text("other")
    assert (target / "a").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_never_absent_while_it_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with new_folder(tmp_path / "target") as aside:
        (aside / "file").write_text("former")

    def watched(step: Callable[..., None]) -> Callable[..., None]:
        def take(*arguments: object, **options: object) -> None:
            step(*arguments, **options)
            assert (tmp_path / "target" / "file").exists()  # a kill here would leave it so

        return take

    monkeypatch.setattr(os, "replace", watched(os.replace))
    monkeypatch.setattr("store.lake.shutil.rmtree", watched(shutil.rmtree))
    with new_folder(tmp_path / "target") as aside:
        (aside / "file").write_text("new")
    assert (tmp_path / "target" / "file").read_text() == "new"


def _killed(target: Path) -> None:
    with new_folder(target) as aside:
        (aside / "file").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_kill_leaves_is_swept_and_never_read(tmp_path: Path) -> None:
    with new_folder(tmp_path / "run" / "checkpoint") as aside:
        (aside / "file").write_text("former")
    child = FORK.Process(target=_killed, args=(tmp_path / "run" / "checkpoint",))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert (tmp_path / "run" / "checkpoint" / "file").read_text() == "former"
    assert sweep(tmp_path) == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint"]
    assert sweep(tmp_path) == 0


def test_a_folder_is_replaced_where_the_system_cannot_exchange_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("store.lake.ctypes.CDLL", lambda _: object())
    for text in ("former", "new"):
        with new_folder(tmp_path / "target") as aside:
            (aside / "file").write_text(text)
    assert (tmp_path / "target" / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def _hold(lake: Lake, shared: bool, ready: multiprocessing.synchronize.Event) -> None:
    with lock(lake, "stream", shared=shared):
        ready.set()
        signal.pause()


@pytest.mark.parametrize("shared", [False, True])
def test_a_lock_is_held_across_processes_until_its_holder_dies(lake: Lake, shared: bool) -> None:
    ready = FORK.Event()
    child = FORK.Process(target=_hold, args=(lake, shared, ready))
    child.start()
    assert ready.wait(30)
    with pytest.raises(BlockingIOError), lock(lake, "stream"):
        pass
    with lock(lake, "another"):
        pass
    if shared:
        with lock(lake, "stream", shared=True):
            pass
    child.kill()
    child.join()
    with lock(lake, "stream"), pytest.raises(BlockingIOError), lock(lake, "stream"):
        pass


def _hold_with_a_worker(lake: Lake, worker: multiprocessing.queues.SimpleQueue) -> None:
    def work() -> None:
        worker.put(os.getpid())
        signal.pause()

    with lock(lake, "stream"):
        FORK.Process(target=work).start()
        signal.pause()


def test_a_forked_worker_does_not_keep_the_lock_of_a_killed_parent(lake: Lake) -> None:
    worker = FORK.SimpleQueue()
    holder = FORK.Process(target=_hold_with_a_worker, args=(lake, worker))
    holder.start()
    orphan = worker.get()
    try:
        holder.kill()
        holder.join()
        with lock(lake, "stream"):
            pass
    finally:
        os.kill(orphan, signal.SIGKILL)
