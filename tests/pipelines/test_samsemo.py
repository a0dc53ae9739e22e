"""SAMSEMO: emotions, splits, quotation marks and archives, and the way from a synthesised one to rows."""

from __future__ import annotations

import csv
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from flows.recipe import load_recipe
from pipelines.ingest import ingest
from pipelines.readers import draw_split, reader
from pipelines.synthesize import synthesize
from store.ledger import Ledger
from store.types import Modality, PalimpsestError, Recording, Split

VIDEO, AUDIO = Modality.VIDEO, Modality.AUDIO
COLUMNS = ("utterance_id", "language", "aggregated_emotions", "transcript", "license")


def touch(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def write(source: Path, *rows: tuple[str, ...]) -> Path:
    return touch(source / "samsemo.tsv", "\n".join("\t".join(row) for row in (COLUMNS, *rows)))


def read(source: Path, **parameters: str) -> list[Recording]:
    return list(reader("samsemo", **parameters).recordings(source))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write(
        tmp_path,
        ("aaaaaaaaaa_1", "EN", "happiness,surprise", 'He said "hi', "CC BY"),
        ("bbbbbbbbbb_2", "KO", "fear,anger", "a", "CC BY"),
        ("cccccccccc_3", "pl", "other", "", "CC BY"),
    )
    touch(tmp_path / "data" / "EN" / "aaaaaaaaaa_1.mp4")
    touch(tmp_path / "data" / "EN" / "aaaaaaaaaa_1" / "audio.wav")
    touch(tmp_path / "data" / "deeper" / "KO" / "bbbbbbbbbb_2" / "audio.wav")
    touch(tmp_path / "data" / "deeper" / "KO" / "bbbbbbbbbb_2" / "image_0.jpg")
    touch(tmp_path / "data" / "pkl_files" / "samsemo_en.pkl", "never opened")
    touch(tmp_path / "splits" / "valid_split_EN.txt", "aaaaaaaaaa_1\n")
    touch(tmp_path / "splits" / "test_split_KO.txt", "\ufeffbbbbbbbbbb_2\r\n")
    return tmp_path


def test_the_layout_is_read(source):
    english, korean, absent = read(source)
    assert english.labels == ("happiness", "surprise")
    assert (english.domain, english.split, english.group) == ("EN", Split.VAL, "aaaaaaaaaa")
    assert english.clips[0].text == 'He said "hi'
    assert {m: t.path.as_posix() for m, t in english.tracks.items()} == {VIDEO: "data/EN/aaaaaaaaaa_1.mp4"}
    folder = "data/deeper/KO/bbbbbbbbbb_2"
    assert {m: t.path.as_posix() for m, t in korean.tracks.items()} == {VIDEO: folder, AUDIO: f"{folder}/audio.wav"}
    assert (korean.split, korean.language) == (Split.TEST, "ko")
    assert (absent.domain, absent.split, absent.clips[0].text) == ("PL", None, None)
    assert absent.tracks[VIDEO].path == Path("data/PL/cccccccccc_3.mp4")


@pytest.mark.parametrize(
    ("parameters", "labels"),
    [
        ({}, [("happiness", "surprise"), ("fear", "anger"), ("other",)]),
        ({"emotions": "first"}, [("happiness",), ("fear",), ("other",)]),
        ({"among": "seven"}, [("happiness", "surprise"), ("fear", "anger")]),
        ({"among": "five"}, [("happiness", "surprise"), ("anger",)]),
        ({"among": "five", "emotions": "first"}, [("happiness",), ("anger",)]),
    ],
)
def test_emotions_are_kept_as_asked(source, parameters, labels):
    assert [one.labels for one in read(source, **parameters)] == labels


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        ("['happiness', 'surprise']", ("happiness", "surprise")),
        ("Happiness; Surprise", ("happiness", "surprise")),
        ("anger,anger", ("anger",)),
        ("nan", ()),
        ("", ()),
    ],
)
def test_aggregated_emotions_come_in_several_forms(source, cell, labels):
    write(source, ("aaaaaaaaaa_1", "EN", cell, "", ""))
    assert read(source)[0].labels == labels


@pytest.mark.parametrize("parameters", [{"emotions": "some"}, {"among": "six"}, {"splits": "mine"}])
def test_a_wrong_parameter_says_what_it_may_be(parameters):
    with pytest.raises(PalimpsestError, match="it must be .* or "):
        reader("samsemo", **parameters)


def test_what_no_split_lists_goes_with_its_film(source):
    write(source, ("aaaaaaaaaa_1", "EN", "anger", "", ""), ("aaaaaaaaaa_7", "EN", "anger", "", ""))
    assert [one.split for one in read(source)] == [Split.VAL, Split.VAL]


def test_splits_drawn_by_film_ignore_the_official_ones(source):
    english, *_ = read(source, splits="film")
    assert english.split is None and english.group == "aaaaaaaaaa"


def test_of_two_rows_the_first_counts(source):
    row = ("aaaaaaaaaa_1", "EN", "anger", "", "")
    write(source, row, (*row[:2], "sadness", "", ""), row)
    assert [one.labels for one in read(source)] == [("anger",)]


def test_quotation_marks_are_csv_only_where_all_of_the_table_agrees(source):
    rows = [COLUMNS, ("aaaaaaaaaa_1", "EN", "anger", 'Two\nlines, "quoted"\there', ""), ("b_2", "KO", "anger", "", "")]
    with open(source / "samsemo.tsv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t").writerows(rows)
    assert [one.clips[0].text for one in read(source)] == ['Two\nlines, "quoted"\there', None]
    write(source, ("aaaaaaaaaa_1", "EN", "anger", '"Hi," he said', ""), ("b_2", "KO", "anger", '"Yes', ""))
    assert [one.clips[0].text for one in read(source)] == ['"Hi," he said', '"Yes']


def test_a_byte_order_mark_and_a_row_without_its_end_are_read(source):
    path = source / "samsemo.tsv"
    path.write_text("\ufeff" + path.read_text().removesuffix("\t\tCC BY").replace("\n", "\r\n"))
    assert [one.clips[0].text for one in read(source)] == ['He said "hi', "a", None]


def test_another_table_is_refused(source):
    touch(source / "samsemo.tsv", "utterance_id\taggregated_emotions\na_1\tanger")
    with pytest.raises(PalimpsestError, match="samsemo.tsv has no column language, transcript"):
        read(source)


@pytest.mark.parametrize("row", ["b_2", "\tEN\tanger\thi\t", f"b_2\tEN\tanger\t{'x' * 200_000}\t"])
def test_a_wrong_row_is_named_and_costs_no_other(source, row):
    touch(source / "samsemo.tsv", "\n".join(["\t".join(COLUMNS), row, "a_1\tEN\tanger\thi\t"]))
    wrong, fine = read(source)
    assert (wrong.name, fine.name) == ("samsemo.tsv line 2", "a_1")
    assert wrong.fault.endswith("it must be an utterance_id, a language and their cells")


@pytest.fixture
def packed(source: Path) -> Path:
    with zipfile.ZipFile(source / "data" / "KO.zip", "w") as archive:
        archive.writestr("KO/dddddddddd_4.mp4", "film")
        archive.writestr("KO/dddddddddd_4/audio.wav", "sound")
        archive.writestr("KO/eeeeeeeeee_5/audio.wav", "sound")
        archive.writestr("KO/eeeeeeeeee_5/image_0.jpg", "still")
    return write(source, *((name, "KO", "anger", "", "") for name in ("dddddddddd_4", "eeeeeeeeee_5", "gone_6"))).parent


def test_archives_are_read_in_place(packed):
    film, stills, absent = read(packed)
    archive = Path("data/KO.zip")
    assert {m: (t.path, t.member) for m, t in film.tracks.items()} == {VIDEO: (archive, "KO/dddddddddd_4.mp4")}
    assert {m: (t.path, t.member) for m, t in stills.tracks.items()} == {
        VIDEO: (archive, "KO/eeeeeeeeee_5/"),
        AUDIO: (archive, "KO/eeeeeeeeee_5/audio.wav"),
    }
    assert stills.tracks[AUDIO].read(packed) == b"sound"
    assert (absent.tracks[VIDEO].path, absent.tracks[VIDEO].member) == (archive, "gone_6.mp4")


def test_files_come_before_archives(packed):
    touch(packed / "data" / "KO" / "dddddddddd_4.mp4")
    film, *_ = read(packed)
    assert film.tracks[VIDEO].path == Path("data/KO/dddddddddd_4.mp4")


def test_a_damaged_archive_is_what_its_utterances_name(packed):
    (packed / "data" / "KO.zip").write_bytes(b"PK\x03\x04")
    assert {one.tracks[VIDEO].path for one in read(packed)} == {Path("data/KO.zip")}


@pytest.fixture(scope="module")
def synthesised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """75 utterances: three films of five scenes in each of five languages."""
    return synthesize("samsemo", tmp_path_factory.mktemp("data") / "samsemo", size="tiny", seed=2)


def test_from_synthesis_to_rows_with_one_language_packed(synthesised, tmp_path, lake):
    source = shutil.copytree(synthesised, tmp_path / "samsemo")
    shutil.make_archive(str(source / "data" / "DE"), "zip", root_dir=source / "data", base_dir="DE")
    shutil.rmtree(source / "data" / "DE")
    lost = min((source / "data" / "PL").glob("*.mp4"))
    lost.unlink()
    shutil.rmtree(lost.with_suffix(""))
    recipe = load_recipe("samsemo")
    found = reader("samsemo", **recipe.reader.parameters)
    done = ingest(lake, found, source, format=recipe.format, dataset="samsemo", group="domain")
    assert dict(done.quarantined) == {lost.stem: f"no such file: data/PL/{lost.name}"}
    rows = Ledger(lake).rows(
        "SELECT r.name, s.labels, s.domain, s.split, s.modalities FROM samples s JOIN recordings r USING (recording)"
    )
    assert Counter(row["domain"] for row in rows) == {"EN": 15, "DE": 15, "ES": 15, "PL": 14, "KO": 15}
    assert {tuple(row["modalities"]) for row in rows} == {("video", "audio", "text")}
    with open(source / "samsemo.tsv", encoding="utf-8", newline="") as file:
        wanted = {row["utterance_id"]: row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}
    for row in rows:
        assert row["labels"] == [wanted[row["name"]]["aggregated_emotions"].split(",")[0]]
        part = {"train": "train", "val": "valid", "test": "test"}[row["split"]]
        assert row["name"] in (source / "splits" / f"{part}_split_{row['domain']}.txt").read_text().split()


def test_stills_and_sound_in_an_archive_are_as_good_as_files(synthesised, tmp_path, lake):
    source = shutil.copytree(synthesised, tmp_path / "samsemo")
    for film in (source / "data").rglob("*.mp4"):
        film.unlink()
    found, format = reader("samsemo"), load_recipe("samsemo").format
    plain = ingest(lake, found, source, format=format, dataset="plain")
    for language in ("EN", "DE", "ES", "PL", "KO"):
        shutil.make_archive(str(source / "data" / language), "zip", root_dir=source / "data" / language)
        shutil.rmtree(source / "data" / language)
    packed = ingest(lake, found, source, format=format, dataset="packed")
    assert (plain.samples, plain.quarantined) == (packed.samples, packed.quarantined) == (75, ())


def test_drawn_splits_share_no_film(synthesised):
    for one in read(synthesised, splits="film"):
        assert draw_split(one.group) in Split and one.group == one.name.split("_")[0]
