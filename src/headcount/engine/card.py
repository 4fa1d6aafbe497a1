"""The model card of a stored counter: a Markdown page made of what its description holds."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from headcount.data.catalogue import DATASETS, dataset_info
from headcount.engine.stored import without_folders
from headcount.published import UNSELECTED, WEIGHTS, Figure, figures_of, is_on_hub, license_of, names
from headcount.runs import flatten
from headcount.wording import printable

# Settings that say how it was trained, in the order of the table.
_RECIPE = (
    *("scale", "epochs", "batch_size", "seed", "model", "model.name", "model.weights", "model.head.name"),
    *("bins.strategy", "bins.block_size", "augment.crop_size", "loss", "optim.algorithm", "optim.lr"),
    *("optim.weight_decay", "optim.schedule", "optim.ema_decay"),
)
_FOLLOWING = "those of the dataset"
"""The first words of terms that follow from others; they name no license."""
_LIMITS = (
    "Scenes unlike those of its training images: much sparser ones, other camera heights and angles, night, haze, "
    "heads of another size in pixels. `headcount predict` notes pictures whose size or count lies far outside them.",
    "Whatever resembles a head at that scale may be counted: statues, foliage, patterns; empty scenes rarely get "
    "exactly 0.",
    "A count is an expectation with an error like those above, never evidence of a number of people. Do not use it "
    "alone where the safety of people depends on it.",
)
_PRIVACY = (
    "It counts heads in blocks of pixels. It does not detect, recognize or track persons, and stores no pictures. "
    "Counting people in public can still be surveillance, and the law may require a basis for it: tell the people who "
    "are counted, and keep no pictures that you do not need."
)
_BIAS = (
    "Errors by skin tone, clothing, age or region were not measured; expect them to differ, and evaluate on your own "
    "scenes first."
)
_COLLECTED = (
    "The training images were collected for research from the internet or in a few places, not as a balanced sample of "
    "people or regions, and those on them were not asked."
)


def model_card(content: Mapping[str, Any], name: str) -> str:
    """The page of a counter.

    Args:
        content: of its checkpoint or description: settings, commit, figures, license, limits.
        name: of a counter that comes with headcount, or of one on the hub, which ``headcount.load`` takes; or of its
            files, without an ending.

    Raises:
        ValueError: if its figures are damaged.
    """
    config = without_folders(content["config"])
    trained_on = _trained_on(config)
    loaded = name if is_on_hub(name) or name in names() else f"{name}{WEIGHTS}"
    parts = [
        *_front_matter(license_of(content)),
        f"# {_text(name.rpartition(':')[2])}",
        "Counts the people in pictures of crowds; made with headcount.",
        f'```python\nimport headcount\n\nprint(headcount.load("{loaded}").count("photo.jpg"))\n```',
        f"License of the weights: {_text(license_of(content)) or 'not stated'}.",
        "## Training data and its terms",
        *map(_data, trained_on),
        "## Recipe",
        _recipe(flatten(config), content),
        "## Errors",
        *_errors(figures_of(content)),
        "## What it is bad at",
        _list([*map(_text, _strings(content.get("limits"))), *_LIMITS]),
        "## Privacy and bias",
        _PRIVACY,
        " ".join([_COLLECTED, _BIAS] if any(map(_is_published, trained_on)) else [_BIAS]),
    ]
    return "\n\n".join(parts) + "\n"


def usual_license(content: Mapping[str, Any]) -> str:
    """The terms of a counter's weights: those that it states, or those that follow from its dataset.

    Args:
        content: of its checkpoint or description.
    """
    if stated := license_of(content):
        return stated
    config = content["config"]
    trained_on = _trained_on(config)
    started = config["model"].get("weights") not in (None, "none") or config.get("init_from")
    started = started or content.get("converted_from")  # a released checkpoint, of pretrained weights
    if trained_on == ["synthetic"] and not started:
        return "MIT, as the dataset synthetic that it was trained on"
    terms = " and ".join(
        f"{name} ({'of the owner of its images' if name == 'custom' else dataset_info(name).license})"
        for name in trained_on
    )
    return f"{_FOLLOWING} {terms}" + (" and of the weights that the training started from" if started else "")


def lacks_terms(content: Mapping[str, Any]) -> bool:
    """Whether a counter states no license, and none follows from its datasets: images of one's own are among them.

    Args:
        content: of its checkpoint or description.
    """
    return not license_of(content) and "custom" in _trained_on(content["config"])


def _trained_on(config: Mapping[str, Any]) -> list[str]:
    """The names of the datasets of a training, as those of :data:`DATASETS`."""
    dataset = config["dataset"]
    return [str(part["name"]) for part in dataset.get("datasets", {}).values()] or [str(dataset["name"])]


def _front_matter(license_text: str) -> list[str]:
    """What the Hugging Face Hub reads of a card."""
    lines = ["library_name: headcount", "tags: [crowd-counting]"]
    if license_text:
        lines.append("license: other")
        # A short identifier, if it has one; the page states the license in full.
        name = "" if license_text.startswith(_FOLLOWING) else re.split(r"[,;:(]", license_text.lower())[0]
        words = re.findall(r"[a-z0-9.]+", name)
        lines += [f"license_name: {'-'.join(words[:5])}"] if words else []
    return ["\n".join(["---", *lines, "---"])]


def _is_published(dataset: str) -> bool:
    """Whether it is a dataset of photographs that others have published."""
    return dataset != "custom" and dataset in DATASETS and DATASETS[dataset].files is not None


def _data(dataset: str) -> str:
    if not _is_published(dataset):
        return f"Dataset `{_text(dataset)}`."
    info = DATASETS[dataset]
    return (
        f"{info.title} ({info.source}). Terms of the dataset: {info.license}. The images are not part of this "
        "repository; whoever uses the weights is bound by these terms as well."
    )


def _recipe(flat: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    rows = []
    for key in _RECIPE:
        value = flat.get(key, flat.get(f"kinds.{key}"))
        if value is not None:
            rows.append([f"`{key}`", f"`{_text(str(value))}`"])
    epoch = "unknown" if content["epoch"] is None else str(content["epoch"])
    rows.append(["epoch of these weights", epoch])
    if not any(figure.own and figure.selected_on == UNSELECTED for figure in figures_of(content)):
        chosen = content["selection"]
        rows.append(["checkpoints were selected by", f"{chosen['metric']} on {chosen['dataset']} {chosen['split']}"])
    rows.append(["commit of the training", f"`{_text(str(content['commit']))}`"])
    return _table(["setting", "value"], rows)


def _errors(figures: Sequence[Figure]) -> list[str]:
    if not figures:
        return ["Not measured."]
    headings = ["images", "measured with", "selected on", "MAE", "RMSE"]
    rows = [
        [
            f"{_text(figure.dataset)} {_text(figure.split)}, {figure.images} images",
            "these weights" if figure.own else "another checkpoint of the recipe",
            _text(figure.selected_on),
            _with_interval(figure.mae, figure.mae_interval),
            _with_interval(figure.rmse, figure.rmse_interval),
        ]
        for figure in figures
    ]
    return [
        "In heads per image, over all images of the split, with 95 % bootstrap intervals. Errors on the split that "
        "selected the weights are optimistic.",
        _table(headings, rows),
    ]


def _with_interval(value: float, interval: tuple[float, float] | None) -> str:
    return f"{value:.2f}" if interval is None else f"{value:.2f} ({interval[0]:.2f} to {interval[1]:.2f})"


def _table(headings: list[str], rows: list[list[str]]) -> str:
    return tabulate(rows, headings, tablefmt="pipe", disable_numparse=True)


def _list(items: Sequence[str]) -> str:
    return "\n".join(f"* {item}" for item in items)


def _strings(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _text(text: str) -> str:
    """Text from a file within a line or a cell of a table."""
    return printable(text).replace("|", "\\|").replace("`", "'")
