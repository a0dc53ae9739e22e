"""Recipes: what comes with Palimpsest is valid, and a wrong one says where."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.recipe import load_recipe, names, override
from pipelines.readers import reader
from store.types import PalimpsestError

FOLDER = Path(__file__).parents[2] / "flows" / "recipes"


@pytest.mark.parametrize("name", names())
def test_a_packaged_recipe_is_valid_and_says_how_to_run_it(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    reader(recipe.reader.name, **recipe.reader.parameters)
    command, *_ = (FOLDER / f"{name}.yaml").read_text().splitlines()
    assert command.startswith(f"# palimpsest ingest {recipe.dataset} ")
    first = load_recipe(
        recipe.dataset
    )  # which `ingest` takes: a further stream over its data set cuts nothing otherwise
    assert (first.dataset, first.reader, first.format) == (recipe.dataset, recipe.reader, recipe.format)
    assert first.group == recipe.group


def test_the_words_of_grid_are_in_six_tasks():
    tasks = load_recipe("grid-words").stream.tasks
    assert [len(task.labels) for task in tasks] == [4, 4, 4, 25, 10, 4]
    assert len({label for task in tasks for label in task.labels}) == 51


def test_a_recipe_of_ones_own_is_read_by_its_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text((FOLDER / "folder.yaml").read_text().replace("name: folder", "name: mine", 1))
    assert load_recipe(path).name == "mine"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("group: label", "grouped: label", "grouped: Extra inputs are not permitted"),
        ("window_s: 10", "windows: 10", "format.windows: "),
        ("epochs: 10", "epochs: many", "learner.epochs: "),
        ("by: label, ", "", "stream: .*either `tasks` or `by`"),
        ("name: folder", "name: [", "not valid YAML"),
    ],
)
def test_a_wrong_recipe_names_the_field(tmp_path, old, new, message):
    text = (FOLDER / "folder.yaml").read_text()
    assert old in text
    (tmp_path / "wrong.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(PalimpsestError, match=message):
        load_recipe(tmp_path / "wrong.yaml")


def test_an_unknown_name_lists_the_known():
    with pytest.raises(PalimpsestError, match="no recipe 'grid-wrods'.*grid-words"):
        load_recipe("grid-wrods")


def test_settings_override_fields():
    recipe = override(
        load_recipe("digits"), ["learner.epochs=3", "learner.params.experts=8", "format.frame_size=[32, 32]"]
    )
    assert (recipe.learner.epochs, recipe.learner.params["experts"], recipe.format.frame_size) == (3, 8, (32, 32))
    assert override(load_recipe("digits"), []) == load_recipe("digits")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("learner.epochs", "write key=value"),
        ("learner.epoch=3", "learner.epoch: Extra inputs"),
        ("teacher.epochs=3", "teacher: Extra inputs"),
        ("learner.epochs.first=3", "epochs has none"),
        ("learner.epochs=[", "not valid YAML"),
    ],
)
def test_a_wrong_setting_says_so(setting, message):
    with pytest.raises(PalimpsestError, match=message):
        override(load_recipe("digits"), [setting])
