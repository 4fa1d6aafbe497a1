"""The facts of each dataset are the same in configs/dataset/*.yaml, in ``DATASETS``, and in the documentation."""

import re
from pathlib import Path

import pytest

from headcount.config import SyntheticConfig
from headcount.data.catalogue import DATASETS
from headcount.data.layouts import NWPU_IMAGES
from headcount.report.tables.paper import IMAGES

ROOT = Path(__file__).resolve().parent.parent
WORDS = {"train": r"train(?:ing)?", "val": r"val(?:idation)?", "test": r"test(?:ed)?"}


def comment(name: str) -> str:
    """The comment at the start of a dataset's config, in one line."""
    lines = (ROOT / "configs" / "dataset" / f"{name}.yaml").read_text().splitlines()
    return " ".join(line.removeprefix("# ") for line in lines if line.startswith("#"))


def documented_selections() -> dict[str, str]:
    """Dataset -> the split it selects on, from the table in the documentation that has a row for each dataset."""
    found = {}
    for file in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for line in file.read_text().splitlines():
            cells = [cell.strip(" `") for cell in line.strip().strip("|").split("|")]
            names = re.findall(r"\w+", cells[0])
            split = cells[-1].partition(";")[0]  # "val; without any, test"
            if line.startswith("|") and split in WORDS and names and set(names) <= DATASETS.keys():
                found |= dict.fromkeys(names, split)
    return found


def test_every_dataset_has_a_config_and_a_row_in_the_documentation() -> None:
    assert {file.stem for file in (ROOT / "configs" / "dataset").glob("*.yaml")} == DATASETS.keys() | {"mixed"}
    assert documented_selections().keys() >= DATASETS.keys() - {"synthetic"}


@pytest.mark.parametrize("name", DATASETS)
def test_the_selection_split_is_the_same_everywhere(name: str) -> None:
    selection = DATASETS[name].selection
    (selects,) = re.findall(rf"\b({'|'.join(WORDS.values())})\b[^.;]*? selects?\b", comment(name))
    assert re.fullmatch(WORDS[selection], selects)
    assert documented_selections().get(name, selection) == selection


@pytest.mark.parametrize("name", DATASETS)
def test_a_config_names_the_dataset_and_its_splits(name: str) -> None:
    info, text = DATASETS[name], comment(name)
    assert info.title.lower() in text.lower()
    named = {split for split, word in WORDS.items() if re.search(rf"\b{word}\b", text)}
    assert named <= set(info.splits)
    citation = re.search(r"[\w-]+ et al\., .*", info.license)
    if citation is not None:
        assert f"({citation[0]})" in text
    if name in IMAGES:
        assert named == set(info.splits)
    if info.unannotated is not None:
        assert re.search(rf"unannotated {info.unannotated} images", text)


@pytest.mark.parametrize("name", IMAGES)
def test_the_published_numbers_of_images_are_the_same(name: str) -> None:
    train, select = (
        re.search(rf"(\d+) {WORDS[split]}\b", comment(name)) for split in ("train", DATASETS[name].selection)
    )
    assert train is not None
    assert select is not None
    assert (int(train[1]), int(select[1])) == IMAGES[name]


def test_the_published_ids_of_nwpu_are_as_many_as_its_images() -> None:
    sizes = {split: last - first + 1 for split, (first, last) in NWPU_IMAGES.items()}
    assert sizes.items() >= {"train": 3109, "val": 500, "test": 1500}.items()
    assert all(str(size) in comment("nwpu") for size in sizes.values())


def test_the_comment_on_drawn_crowds_gives_their_numbers() -> None:
    config = SyntheticConfig()
    assert f"validation split of {config.val_images} images" in comment("synthetic")
    assert f"test split has {config.test_images}" in comment("synthetic")
