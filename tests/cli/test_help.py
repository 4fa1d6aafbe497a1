"""The help page lists what can be chosen."""

import re

import pytest

from headcount.cli.compose import config_dir
from headcount.cli.help import help_page


@pytest.mark.parametrize("page", ["train", "eval"])
def test_help_names_every_choice(page: str) -> None:
    text = help_page(page)
    groups = ("dataset", "model", "bins", "loss", "optim") if page == "train" else ("eval", "runtime")
    for group in groups:
        for file in (config_dir() / group).glob("*.yaml"):
            assert file.stem in text
    assert text.count(f"python {page}.py") >= 5
    assert "schema" not in text
    assert "head/ebc" not in text
    if page == "train":
        assert re.search(r"model\.head= +ebc\*  ranking  regression  zip\n", text)
        assert re.search(r"loss\.kernel= +adaptive  fixed\*   with loss=mse\n", text)
