"""A recipe that came as text, from a form or with a schedule: what is wrong with it is said of the text."""

from __future__ import annotations

import tempfile

import pytest

from configs.load import load_recipe
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
