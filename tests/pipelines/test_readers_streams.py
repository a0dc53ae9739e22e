"""Readers of the sets usual in continual learning: pictures, films, sounds, depth and texts by class."""

from __future__ import annotations

import gzip
import struct
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from flows.recipe import load_recipe
from pipelines.readers import reader
from store.types import Modality, PalimpsestError, Split

VIDEO, AUDIO, IMU, IMAGE, DEPTH, TEXT = Modality


def touch(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def path_of(recording, modality):
    return recording.tracks[modality].path.as_posix()


def faults(found):
    return {one.name: one.fault for one in found if one.fault}


def splits(found):
    return {one.name: str(one.split) for one in found}


class TestImageFolder:
    def test_without_parts_the_split_is_drawn_by_the_file_and_styles_are_domains(self, tmp_path):
        for n in range(300):
            touch(tmp_path / "n01443537" / f"art_{n}.jpg")
        touch(tmp_path / "n02000000" / "video_game_7.JPEG")
        touch(tmp_path / "n02000000" / "notes.md")
        touch(tmp_path / "README.txt", "n02000000\nn01443537 goldfish\nart is here\n")
        found = list(reader("image-folder", domain="style").recordings(tmp_path))
        assert [one.name for one in found] == sorted(one.name for one in found) and len(found) == 301
        assert (found[0].labels, found[0].domain, found[0].clips) == (("goldfish",), "art", ())
        assert (found[-1].labels, found[-1].domain) == (("n02000000",), "video_game")
        assert path_of(found[-1], IMAGE) == "n02000000/video_game_7.JPEG"
        assert Counter(one.split for one in found)[Split.TRAIN] == pytest.approx(210, abs=25)
        assert reader("image-folder").recordings(tmp_path).__next__().domain is None

    def test_parts_are_kept_and_val_is_tested_where_nothing_else_is(self, tmp_path):
        for part, count in (("train", 200), ("val", 5)):
            for n in range(count):
                touch(tmp_path / part / "n01" / f"n01_{n}.JPEG")
        drawn = Counter((one.name.split("/")[0], one.split) for one in reader("image-folder").recordings(tmp_path))
        assert drawn["val", Split.TEST] == 5 and drawn["train", Split.TEST] == 0
        assert 5 < drawn["train", Split.VAL] < 40
        touch(tmp_path / "test" / "n01" / "n01_900.png")
        drawn = Counter((one.name.split("/")[0], one.split) for one in reader("image-folder").recordings(tmp_path))
        assert drawn == {("train", Split.TRAIN): 200, ("val", Split.VAL): 5, ("test", Split.TEST): 1}

    def test_lists_choose_and_may_have_been_written_elsewhere(self, tmp_path):
        for name in ("a_1.jpg", "a_2.jpg", "b_1.jpg"):
            touch(tmp_path / "n01" / name)
        touch(tmp_path / "train.txt", "n01/a_1.jpg 0\n\n/data/imagenet-r/n01/b_1.jpg\t17\n")
        touch(tmp_path / "test.txt", "data/imagenet-r/n01/a_2.jpg\n")
        found = splits(reader("image-folder").recordings(tmp_path))
        assert found.keys() == {"n01/a_1.jpg", "n01/b_1.jpg", "n01/a_2.jpg"} and found["n01/a_2.jpg"] == "test"

    def test_a_list_beside_parts_names_images_of_them(self, tmp_path):
        for part in ("train", "val"):
            touch(tmp_path / part / "n01" / "1.jpg")
            touch(tmp_path / f"{part}.txt", f"{'' if part == 'train' else 'val/'}n01/1.jpg 3\n")
        assert list(splits(reader("image-folder").recordings(tmp_path))) == ["train/n01/1.jpg", "val/n01/1.jpg"]

    @pytest.mark.parametrize("row", ["a_1.jpg 0", "../n01/a_1.jpg 0"])
    def test_a_line_that_is_no_image_of_a_class_is_named(self, tmp_path, row):
        touch(tmp_path / "n01" / "a_1.jpg")
        path = touch(tmp_path / "train.txt", f"n01/a_1.jpg 0\n{row}\n")
        with pytest.raises(PalimpsestError, match=f"{path} line 2 is '{row[:-2]}'; it must be a path"):
            list(reader("image-folder").recordings(tmp_path))

    def test_a_list_need_not_be_utf_8(self, tmp_path):
        touch(tmp_path / "n01" / "a_1.jpg")
        (tmp_path / "train.txt").write_bytes(b"n01/a_1.jpg 0\nn01/caf\xe9.jpg 0\n")
        assert list(splits(reader("image-folder").recordings(tmp_path))) == ["n01/a_1.jpg", "n01/caf\ufffd.jpg"]

    def test_two_classes_of_one_name_stay_two(self, tmp_path):
        touch(tmp_path / "classes.txt", "n01 crane\nn02 crane\nn03 heron\n")
        for wnid in ("n01", "n02", "n03"):
            touch(tmp_path / wnid / "1.jpg")
        labels = [one.labels[0] for one in reader("image-folder").recordings(tmp_path)]
        assert labels == ["crane (n01)", "crane (n02)", "heron"]

    def test_a_folder_without_classes_says_so(self, tmp_path):
        with pytest.raises(PalimpsestError, match="holds no folder of a class"):
            list(reader("image-folder").recordings(tmp_path))


class TestUcf101:
    @pytest.fixture
    def source(self, tmp_path):
        lists = tmp_path / "ucfTrainTestlist"
        touch(lists / "classInd.txt", "1 Archery\n2 YoYo\n")
        rows = [f"{name}/v_{name}_g{g:02d}_c01.avi" for name in ("Archery", "YoYo") for g in range(1, 26)]
        test = [row for row in rows if int(row.split("_g")[1][:2]) < 8]
        touch(lists / "trainlist01.txt", "".join(f"{row} 1\r\n" for row in rows if row not in test))
        touch(lists / "testlist01.txt", "".join(f"{row}\r\n" for row in test))
        return tmp_path

    def test_official_lists_with_the_last_training_groups_held_out(self, source):
        found = list(reader("ucf101").recordings(source))
        assert Counter((one.labels[0], one.split) for one in found) == {
            (label, split): count
            for label in ("Archery", "YoYo")
            for split, count in ((Split.TRAIN, 16), (Split.VAL, 2), (Split.TEST, 7))
        }
        assert {one.name[-7:-4] for one in found if one.split == Split.VAL} == {"g24", "g25"}
        assert path_of(found[0], VIDEO) == "UCF-101/Archery/v_Archery_g08_c01.avi"
        assert found[0].group == "Archery 08"

    def test_a_line_of_no_known_class_is_named(self, source):
        path = touch(
            source / "ucfTrainTestlist" / "testlist01.txt", "Archery/v_a_g01_c01.avi\nSkiing/v_b_g01_c01.avi\n"
        )
        with pytest.raises(PalimpsestError, match=f"{path} line 2 is 'Skiing/v_b_g01_c01.avi'; it must be <Class>"):
            list(reader("ucf101").recordings(source))

    @pytest.mark.parametrize("name", ["classInd.txt", "testlist01.txt"])
    def test_lists_need_not_be_utf_8(self, source, name):
        path = source / "ucfTrainTestlist" / name
        path.write_bytes(path.read_bytes() + b"Archery/v_Archery_\xe9_g01_c01.avi\n")
        assert len(list(reader("ucf101").recordings(source))) == 50 + (name == "testlist01.txt")

    def test_the_copy_with_folders_for_parts(self, tmp_path):
        for part in ("train", "val", "test"):
            touch(tmp_path / part / "YoYo" / f"v_YoYo_{part}.avi")
        found = splits(reader("ucf101").recordings(tmp_path))
        assert found == {"v_YoYo_train": "train", "v_YoYo_val": "val", "v_YoYo_test": "test"}

    def test_another_split_than_the_three_and_another_folder_are_refused(self, tmp_path):
        with pytest.raises(PalimpsestError, match="it must be 1, 2 or 3"):
            reader("ucf101", split=4)
        with pytest.raises(PalimpsestError, match="no ucfTrainTestlist/ and no train/ in"):
            list(reader("ucf101").recordings(tmp_path))


class TestEsc50:
    @pytest.fixture
    def source(self, tmp_path):
        rows = "".join(
            f"{f}-10{f}-A-0.wav,{f},0,dog,True,10{f},A\n{f}-20{f}-B-3.wav,{f},3,cow,False,20{f},B\n"
            for f in range(1, 6)
        )
        touch(tmp_path / "meta" / "esc50.csv", "filename,fold,target,category,esc10,src_file,take\n" + rows)
        return tmp_path

    def test_folds_are_splits(self, source):
        found = {one.name: one for one in reader("esc50").recordings(source)}
        assert len(found) == 10
        assert path_of(found["3-103-A-0"], AUDIO) == "audio/3-103-A-0.wav"
        assert (found["3-203-B-3"].labels, found["3-203-B-3"].group) == (("cow",), "203")
        for fold, val in ((5, "1"), (2, "3")):
            by_fold = {one.name[0]: one.split for one in reader("esc50", fold=fold).recordings(source)}
            assert (by_fold[str(fold)], by_fold[val]) == (Split.TEST, Split.VAL)
            assert sorted(by_fold.values()).count(Split.TRAIN) == 3

    def test_the_ten_alone(self, source):
        assert {one.labels for one in reader("esc50", esc10=True).recordings(source)} == {("dog",)}

    @pytest.mark.parametrize(
        "row",
        ["../x.wav,1,0,dog,True,1,A", "x.wav,6,0,dog,True,1,A", "x.wav,1", f"x.wav,1,0,{'x' * 200_000},True,1,A"],
    )
    def test_a_wrong_row_is_named_and_costs_no_other(self, source, row):
        path = source / "meta" / "esc50.csv"
        header, *rows = path.read_text().splitlines()
        path.write_text("\n".join([header, row, *rows]))
        found = list(reader("esc50").recordings(source))
        assert len(found) == 11 and list(faults(found)) == ["esc50.csv line 2"]
        assert faults(found)["esc50.csv line 2"].endswith("it must be a file, one of the folds 1-5 and a category")

    def test_another_table_is_refused(self, source):
        path = touch(source / "meta" / "esc50.csv", "filename,target\nx.wav,1\n")
        with pytest.raises(PalimpsestError, match=f"{path} has no column fold, category, esc10, src_file"):
            list(reader("esc50").recordings(source))


class TestClips:
    def test_vggsound_finds_clips_wherever_they_lie(self, tmp_path):
        touch(
            tmp_path / "vggsound.csv",
            '-abc,30,"playing violin, fiddle",train\nxyz,5,dog barking,test\ngone,1,owl hooting,test\n',
        )
        touch(tmp_path / "video" / "-abc_000030.mp4")
        touch(tmp_path / "audio" / "-abc_000030.wav")
        touch(tmp_path / "audio" / "xyz_000005.wav")
        film, sound, gone = reader("vggsound").recordings(tmp_path)
        assert (film.labels, path_of(film, VIDEO)) == (("playing violin, fiddle",), "video/-abc_000030.mp4")
        assert (sound.split, path_of(sound, AUDIO)) == (Split.TEST, "audio/xyz_000005.wav")
        assert path_of(gone, VIDEO) == "gone_000001.mp4"

    def test_vggsound_holds_out_videos_not_clips(self, tmp_path):
        rows = [f"id{n},{start},owl hooting,train\n" for n in range(200) for start in (0, 10)]
        touch(tmp_path / "vggsound.csv", "".join(rows))
        found = list(reader("vggsound").recordings(tmp_path))
        assert len({(one.group, one.split) for one in found}) == 200
        assert 10 < sum(one.split == Split.VAL for one in found) < 80

    @pytest.mark.parametrize("row", ["a,b", "a,soon,owl,train", "a,1,owl,dev", "../a,1,owl,train", "a,1,,train"])
    def test_a_wrong_row_is_named_and_costs_no_other(self, tmp_path, row):
        touch(tmp_path / "vggsound.csv", f"ok,1,owl,train\n{row}\nfine,2,owl,test\n")
        ok, wrong, fine = reader("vggsound").recordings(tmp_path)
        assert (ok.name, wrong.name, fine.name) == ("ok_000001", "vggsound.csv line 2", "fine_000002")
        assert wrong.fault.startswith(f"vggsound.csv line 2 is {row.split(',')!r}; it must be id,start,label,split")
        assert not wrong.tracks

    def test_a_first_row_that_makes_no_sense_is_another_table(self, tmp_path):
        path = touch(tmp_path / "vggsound.csv", "youtube id,from,what,part\nfine,2,owl,test\n")
        with pytest.raises(PalimpsestError, match=f"{path} line 1 is .*; it must be id,start,label,split"):
            list(reader("vggsound").recordings(tmp_path))

    def test_kinetics_leaves_out_what_has_no_label(self, tmp_path):
        head = "label,youtube_id,time_start,time_end,split\n"
        touch(
            tmp_path / "train.csv",
            head + "juggling balls,aaa,4,14,train\n" + "".join(f"yoga,b{n},0,10,train\n" for n in range(100)),
        )
        touch(tmp_path / "validate.csv", head + "yoga,ccc,1,11,validate\n")
        touch(tmp_path / "test.csv", head + ",ddd,1,11,test\n")
        found = {one.name: one for one in reader("kinetics").recordings(tmp_path)}
        assert len(found) == 102 and "ddd_000001_000011" not in found
        assert path_of(found["aaa_000004_000014"], VIDEO) == "train/juggling balls/aaa_000004_000014.mp4"
        assert found["ccc_000001_000011"].split == Split.TEST
        assert {one.split for one in found.values()} == set(Split)

    def test_kinetics_takes_columns_by_name_and_leaves_out_other_tables(self, tmp_path):
        touch(tmp_path / "train.csv", "split,label,youtube_id,time_start,time_end,is_cc\ntrain,yoga,aaa,4,14,0\n")
        touch(tmp_path / "test.csv", "youtube_id,time_start,time_end,split\nddd,1,11,test\n")
        touch(tmp_path / "kinetics_400_labels.csv", "id,name\n0,yoga\n")
        touch(tmp_path / "empty.csv")
        (only,) = reader("kinetics").recordings(tmp_path)
        assert (only.name, only.labels) == ("aaa_000004_000014", ("yoga",))
        assert path_of(only, VIDEO) == "train/yoga/aaa_000004_000014.mp4"

    @pytest.mark.parametrize("row", ["yoga,bbb,soon,14,train", "yoga,bbb,4,14,dev", "yoga,bbb", "yoga,,4,14,train"])
    def test_a_wrong_row_of_kinetics_is_named_and_costs_no_other(self, tmp_path, row):
        touch(tmp_path / "train.csv", f"label,youtube_id,time_start,time_end,split\n{row}\nyoga,aaa,4,14,train\n")
        wrong, fine = reader("kinetics").recordings(tmp_path)
        assert (wrong.name, fine.name) == ("train.csv line 2", "aaa_000004_000014")
        assert "it must be label,youtube_id,time_start,time_end,split" in wrong.fault

    @pytest.mark.parametrize("text", [None, "id,name\n0,yoga\n"])
    def test_kinetics_without_tables_says_so(self, tmp_path, text):
        if text:
            touch(tmp_path / "kinetics_400_labels.csv", text)
        with pytest.raises(PalimpsestError, match="no csv file with columns label and youtube_id in"):
            list(reader("kinetics").recordings(tmp_path))


class TestNyuDepth:
    @pytest.fixture
    def source(self, tmp_path):
        for room in ("train/living_room_0001a", "train/cafe_0003", "val/home_office_0002"):
            for name in ("rgb.png", "depth.png"):
                touch(tmp_path / "raw_data" / room / "00001" / name)
        touch(tmp_path / "raw_data" / "train" / "cafe_0003" / "00002" / "rgb.png")
        (tmp_path / "raw_data" / "train" / "cafe_0003" / "00003").mkdir()
        return tmp_path

    def test_views_by_room(self, source):
        found = list(reader("nyu-depth").recordings(source))
        assert [one.labels[0] for one in found] == ["cafe", "cafe", "living_room", "home_office"]
        assert {m: t.path.name for m, t in found[0].tracks.items()} == {IMAGE: "rgb.png", DEPTH: "depth.png"}
        assert set(found[1].tracks) == {IMAGE}
        assert found[0].group == found[1].group == "cafe_0003" and found[3].split == Split.TEST

    def test_the_usual_ten(self, source):
        labels = [one.labels[0] for one in reader("nyu-depth", classes="ten").recordings(source)]
        assert labels == ["others", "others", "living_room", "home_office"]

    @pytest.mark.parametrize("file", ["nyu_depth_v2_labeled.mat", "README"])
    def test_another_folder_says_what_is_expected(self, tmp_path, file):
        touch(tmp_path / file)
        message = "no train/ in .*<scene>_<nnnn>/<frame>/.*; nyu_depth_v2_labeled.mat is not read"
        with pytest.raises(PalimpsestError, match=message):
            list(reader("nyu-depth").recordings(tmp_path))


class TestSunRgbd:
    @pytest.fixture
    def source(self, tmp_path):
        for view, scene in (
            ("kv1/NYUdata/NYU0001", "bedroom\n"),
            ("kv2/kinect2data/000065", "idk"),
            ("kv2/kinect2data/000066", ""),
            *((f"xtion/sun3ddata/brown/room_1/{n:04d}", "kitchen") for n in range(5)),
        ):
            folder = tmp_path / "SUNRGBD" / view
            touch(folder / "scene.txt", scene)
            for kind, suffix in (("image", "jpg"), ("depth", "png"), ("depth_bfx", "png")):
                touch(folder / kind / f"x.{suffix}")
        return tmp_path

    def test_common_scenes_with_their_camera(self, source):
        first, *film = reader("sun-rgbd").recordings(source)
        assert (first.name, first.labels, first.domain) == ("SUNRGBD/kv1/NYUdata/NYU0001", ("bedroom",), "kv1")
        assert path_of(first, IMAGE) == "SUNRGBD/kv1/NYUdata/NYU0001/image/x.jpg"
        assert path_of(first, DEPTH) == "SUNRGBD/kv1/NYUdata/NYU0001/depth_bfx/x.png"
        assert len(film) == 5 and len({(one.split, one.group) for one in film}) == 1

    def test_all_scenes_and_the_cameras_own_depth(self, source):
        found = list(reader("sun-rgbd", scenes="all", filled=False).recordings(source))
        assert [one.labels[0] for one in found] == ["bedroom", "idk", *["kitchen"] * 5]
        assert path_of(found[0], DEPTH).endswith("/depth/x.png")

    def test_only_pictures_are_taken_for_pictures(self, source):
        view = source / "SUNRGBD" / "kv1" / "NYUdata" / "NYU0001"
        for file in ("image/._x.jpg", "image/Thumbs.db", "depth_bfx/.a.png", "depth_bfx/a.mat", "depth_bfx/b.jpg"):
            touch(view / file)
        first, *_ = reader("sun-rgbd").recordings(source)
        assert (first.tracks[IMAGE].path.name, first.tracks[DEPTH].path.name) == ("x.jpg", "x.png")
        (view / "depth_bfx" / "x.png").unlink()
        first, *_ = reader("sun-rgbd").recordings(source)
        assert path_of(first, DEPTH).endswith("/depth/x.png")

    def test_the_official_split(self, source):
        scipy = pytest.importorskip("scipy.io")
        table = touch(source / "SUNRGBDtoolbox" / "traintestSUNRGBD" / "allsplit.mat")
        root = "/n/fs/sun3d/data/SUNRGBD"
        train, test = (
            [f"{root}/xtion/sun3ddata/brown/room_1/{n:04d}" for n in range(5)],
            [f"{root}/kv1/NYUdata/NYU0001/"],
        )
        scipy.savemat(table, {"alltrain": np.array(train, object), "alltest": np.array(test, object)})
        first, *film = reader("sun-rgbd").recordings(source)
        assert first.split == Split.TEST and {one.split for one in film} <= {Split.TRAIN, Split.VAL}

    def test_an_official_split_that_cannot_be_read_is_not_replaced_in_silence(self, source):
        touch(source / "SUNRGBDtoolbox" / "traintestSUNRGBD" / "allsplit.mat", "no matlab")
        with pytest.raises(PalimpsestError, match="allsplit.mat (cannot be read|is a MATLAB file)"):
            list(reader("sun-rgbd").recordings(source))

    def test_without_scipy_the_extra_is_named(self, source, monkeypatch):
        touch(source / "SUNRGBDtoolbox" / "traintestSUNRGBD" / "allsplit.mat", "matlab")
        monkeypatch.setitem(sys.modules, "scipy.io", None)
        with pytest.raises(PalimpsestError, match=r"MATLAB file: pip install 'palimpsest\[depth\]'"):
            list(reader("sun-rgbd").recordings(source))


class TestTextCsv:
    @pytest.fixture
    def source(self, tmp_path):
        touch(tmp_path / "classes.txt", "World\nSports\n")
        touch(tmp_path / "train.csv", '"2","A ""great"" game","It was,\\nthey say"\n"1","Two\nlines",""\n')
        touch(tmp_path / "test.csv", '"1","News"\n')
        return tmp_path

    def test_rows_are_texts(self, source):
        first, second, third = reader("text-csv").recordings(source)
        assert first.tracks[TEXT].text == 'A "great" game\nIt was,\nthey say'
        assert (first.labels, first.language, first.name) == (("Sports",), "en", "train line 1")
        assert (second.tracks[TEXT].text, second.name) == ("Two\nlines", "train line 3")
        assert third.split == Split.TEST and {first.split, second.split} <= {Split.TRAIN, Split.VAL}

    def test_without_names_classes_are_numbers(self, source):
        (source / "classes.txt").unlink()
        assert [one.labels[0] for one in reader("text-csv").recordings(source)] == ["2", "1", "1"]

    @pytest.mark.parametrize("row", ['"3","x"', '"0","x"', '"one","x"', '"1",""', '"1"', '"1","' + "x" * 200_000 + '"'])
    def test_a_wrong_row_is_named_and_costs_no_other(self, source, row):
        (source / "test.csv").write_text(f'"1","News"\n{row}\n"2","More"\n')
        *_, before, wrong, behind = reader("text-csv").recordings(source)
        assert (before.name, wrong.name, behind.name) == ("test line 1", "test.csv line 2", "test line 3")
        assert wrong.fault.startswith("test.csv line 2 is ") and len(wrong.fault) < 300
        assert wrong.fault.endswith("it must be a label from 1 to 2 and a text")

    @pytest.mark.parametrize(
        ("text", "line"), [("label,text\n1,News\n", 1), ('"1","News"\n"1","open\n' + "1,x\n" * 40_000, 2)]
    )
    def test_a_wrong_table_is_named(self, source, text, line):
        path = touch(source / "test.csv", text)
        with pytest.raises(PalimpsestError, match=f"{path} line {line}"):
            list(reader("text-csv").recordings(source))

    def test_names_of_classes_need_not_be_utf_8(self, source):
        (source / "classes.txt").write_bytes(b"Welt\nCaf\xe9\n")
        assert next(iter(reader("text-csv").recordings(source))).labels == ("Caf\ufffd",)


class TestXed:
    @pytest.fixture
    def source(self, tmp_path):
        lines = [
            "Komm her.\t1, 4",
            "de/1990/1.gz\ten/1990/1.gz\t1\t2\ta\tb\t5",
            "ohne",
            "Ach so!\t7",
            "Neun\t9",
            " \t1",
        ]
        touch(tmp_path / "Projections" / "de-projections.tsv", "\n".join(lines))
        touch(tmp_path / "Projections" / "es-projections.tsv", "".join(f"Linea {n}\t5\n" for n in range(100)))
        touch(tmp_path / "AnnotatedData" / "en-annotated.tsv", "By hand.\t0\n")
        return tmp_path

    def test_lines_without_labels_are_left_out(self, source):
        found = [one for one in reader("xed").recordings(source) if one.domain == "DE"]
        assert [(one.name, one.tracks[TEXT].text, one.labels) for one in found] == [
            ("de line 1", "Komm her.", ("anger", "fear")),
            ("de line 4", "Ach so!", ("surprise",)),
        ]
        assert {one.language for one in found} == {"de"}

    def test_splits_are_blocks_of_lines(self, source):
        found = [one.split for one in reader("xed").recordings(source) if one.domain == "ES"]
        assert found == [Split.TRAIN] * 70 + [Split.VAL] * 10 + [Split.TEST] * 20

    def test_one_emotion_a_line(self, source):
        first = {one.name: one.labels for one in reader("xed", emotions="first").recordings(source)}
        single = {one.name for one in reader("xed", emotions="single").recordings(source)}
        assert first["de line 1"] == ("anger",) and "de line 1" not in single and "de line 4" in single

    def test_languages_may_be_chosen(self, source):
        assert {one.domain for one in reader("xed", languages=["es"]).recordings(source)} == {"ES"}
        with pytest.raises(PalimpsestError, match="no fr-projections.tsv in"):
            list(reader("xed", languages=["fr", "es"]).recordings(source))
        with pytest.raises(PalimpsestError, match=r"it must be a list, such as \[es\]"):
            reader("xed", languages="es")
        recipe = load_recipe("xed-languages")
        assert {code.upper() for code in recipe.reader.parameters["languages"]} == set(recipe.stream.order)

    def test_what_was_annotated_by_hand(self, source):
        (only,) = reader("xed", part="annotated").recordings(source)
        assert (only.domain, only.labels) == ("EN", ("neutral",))

    def test_the_real_one_in_seven_languages(self, recordings):
        found = list(reader("xed", emotions="single").recordings(recordings / "xed"))
        counted = Counter(one.domain for one in found)
        assert counted["DE"] == 3572 and len(counted) == 7
        assert len({one.labels for one in found}) == 8


class TestDigitSets:
    def test_written_digits_with_a_training_file(self, tmp_path):
        for part, count in (("train", 40), ("t10k", 20)):
            head = struct.pack(">4I", 0x803, count, 2, 2)
            (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(head + bytes(range(4 * count)))
            labels = struct.pack(">2I", 0x801, count) + bytes(n % 10 for n in range(count))
            (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
        found = list(reader("mnist").recordings(tmp_path))
        assert Counter(one.split for one in found)[Split.TEST] == 20 and found[-1].split == Split.TEST
        assert found[3].tracks[IMAGE].read(tmp_path) == bytes([12, 13, 14, 15])
        assert (found[3].name, found[3].labels) == ("train-00003", ("three",))

    def test_labels_that_do_not_fit_the_images_are_refused(self, tmp_path):
        (tmp_path / "t10k-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, 3, 1, 1) + bytes(3))
        (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 2) + bytes(2))
        with pytest.raises(PalimpsestError, match="t10k-labels-idx1-ubyte has 2 labels for 3 images"):
            list(reader("mnist").recordings(tmp_path))

    @pytest.mark.parametrize("name", ["fsdd", "arabic-digits", "imu-digits", "mnist"])
    def test_another_folder_says_what_is_missing(self, name, tmp_path):
        with pytest.raises(PalimpsestError, match=f"in {tmp_path}"):
            list(reader(name).recordings(tmp_path))

    @pytest.mark.parametrize(
        ("name", "folder", "modality", "counts"),
        [
            ("fsdd", "fsdd", AUDIO, (2400, 300, 300)),
            ("arabic-digits", "arabic-digits", AUDIO, (928, 133, 266)),
            ("mnist", "mnist-t10k", IMAGE, (7000, 1000, 2000)),
            ("imu-digits", "imu-digits", IMU, (350, 50, 100)),
        ],
    )
    def test_the_real_ones(self, name, folder, modality, counts, recordings):
        found = list(reader(name).recordings(recordings / folder))
        assert tuple(Counter(one.split for one in found)[split] for split in Split) == counts
        assert {tuple(one.tracks) for one in found} == {(modality,)}
        assert len({one.labels for one in found}) == 10
