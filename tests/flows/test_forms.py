"""A recipe that came as text, from a form or with a schedule: what is wrong with it is said of the text."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from configs.load import load_recipe
from flows.asked import asked_again, kept_text
from flows.supervise import named_recipe
from stages.contract import StageError


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('name = "mine\n', "recipes are TOML; the text is not: "),
        ('name = "mine"\nextends = "base.toml"\n', "base.toml is not there"),
        ('name = "mine"\nextends = "quickstart"\n[trian]\nsteps = 3\n', "trian is no field (from recipe mine)"),
    ],
)
def test_a_complaint_about_a_text_names_no_file_that_only_we_know(toml: str, said: str):
    with pytest.raises(StageError) as complaint, named_recipe("quickstart", toml) as named:
        load_recipe(named)
    assert said in str(complaint.value)
    assert tempfile.gettempdir() not in str(complaint.value)


def test_a_recipe_whose_file_is_gone_is_asked_for_again_under_its_name(tmp_path: Path):
    with named_recipe("quickstart", 'name = "mine"\nextends = "quickstart"\nseed = 5\n') as named:
        document = {"asked": named, "recipe": "mine", **kept_text(named)}
    assert not Path(named).exists()
    with asked_again(document) as again:
        recipe = load_recipe(again["asked"]).recipe
    assert (recipe.name, recipe.seed) == ("mine", 5)
    assert not Path(again["asked"]).exists()


def test_a_recipe_whose_file_is_there_or_that_is_built_in_is_that_one(tmp_path: Path):
    mine = tmp_path / "mine.toml"
    mine.write_text('extends = "quickstart"\n', encoding="utf-8")
    for asked in (str(mine), "quickstart"):
        with asked_again({"asked": asked, "recipe": "mine", **kept_text(asked)}) as again:
            assert again["asked"] == asked
