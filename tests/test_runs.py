"""A run is read back from its folder as it was made."""

import json
import math
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from headcount.cli.compose import compose, to_config
from headcount.config import TrainConfig, to_plain
from headcount.engine.records import Records
from headcount.errors import CheckpointError
from headcount.runs import differences, find_runs, flatten, read_run, recipe


def config_of(*settings: str) -> TrainConfig:
    config: TrainConfig = to_config(compose(settings, config_name="train"))
    return config


def write_run(folder: Path, *settings: str, maes: dict[int, float] | None = None, epochs: int = 40) -> Path:
    """A run of ``epochs`` with these errors at these epochs."""
    folder.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(to_plain(config_of(*settings))), folder / "config.yaml")
    lines = []
    for epoch in range(1, epochs + 1):
        record: dict[str, object] = {"epoch": epoch, "train/total": 1.0 / epoch}
        if epoch in (maes or {}):
            mae = (maes or {})[epoch]
            record |= {"eval/split": "val", "eval/mae": mae, "eval/rmse": 2 * mae}
        lines.append(json.dumps(record) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def test_best_and_late_errors(tmp_path: Path) -> None:
    errors = {5: 90.0, 10: 50.0, 15: 30.0, 20: 10.0, 25: 20.0, 30: 30.0, 35: 40.0, 40: 50.0}
    run = read_run(write_run(tmp_path / "run", maes=errors))
    assert run.finished
    assert run.best is not None
    assert (run.best["epoch"], run.best["eval/mae"], run.selection) == (20, 10.0, "val")
    assert (run.late("mae"), run.late("rmse")) == (30.0, 60.0)


def test_renamed_values_of_older_records_are_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", epochs=1)
    old = {"epoch": 1, "train/predicted_spread": 1.5, "eval/predicted_spread": 2.5, "eval/true_spread": 3.5, "lr": 0.1}
    (folder / "metrics.jsonl").write_text(json.dumps(old) + "\n")
    expected = {"epoch": 1, "train/predicted_std": 1.5, "eval/predicted_std": 2.5, "eval/true_std": 3.5, "lr": 0.1}
    assert read_run(folder).metrics == [expected]
    Records(folder, start_epoch=1)  # resumed: one name for the whole run
    assert json.loads((folder / "metrics.jsonl").read_text()) == expected


def test_a_run_that_was_cut_short(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", epochs=3)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "eval/ma')
    run = read_run(folder)
    assert (run.epochs, run.finished, run.best, run.selection) == (3, False, None, "nothing")
    assert math.isnan(run.late("mae"))


@pytest.mark.parametrize(
    "content", [None, "a: [", "kinds: {}\n", "[1, 2]\n", "kinds: {model: gone}\nmodel: {}\n", "kinds: null\n"]
)
def test_what_is_no_run_is_refused_by_name(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.yaml|another version"):
        read_run(tmp_path)


def test_runs_are_found_below_a_folder(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name / "seed1", epochs=1) for name in ("b", "a")]
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.yaml").write_text("no: records\n")
    assert list(find_runs(tmp_path)) == sorted(folders)


def test_a_recipe_is_what_is_learned_not_where() -> None:
    here = config_of("model=mobilenet_v2", "model.weights=none", "seed=1")
    there = config_of(
        *("model=mobilenet_v2", "model.weights=none", "seed=2", "output_dir=x", "eval=whole_image", "runtime.workers=0")
    )
    assert differences(recipe(here), recipe(there)) == {"seed": (1, 2)}
    assert differences(recipe(here), recipe(there), ignore=("seed",)) == {}
    changed = config_of("model=mobilenet_v2", "model.weights=none", "optim.lr=0.5", "eval=sliding_window")
    found = differences(recipe(here), recipe(changed))
    assert found["optim.lr"] == (0.001, 0.5)
    assert found["eval.mode"] == ("WholeImage", "SlidingWindow")


def test_a_file_is_the_same_wherever_it_lies(tmp_path: Path) -> None:
    plain = [config_of("model=mobilenet_v2", f"model.weights={folder}/w.pth") for folder in ("/a", "/b/c")]
    assert differences(recipe(plain[0]), recipe(plain[1])) == {}


def test_a_file_is_not_the_choice_it_is_named_after() -> None:
    plain = [config_of("model=mobilenet_v2", f"model.weights={value}") for value in ("imagenet", "w/imagenet")]
    assert list(differences(recipe(plain[0]), recipe(plain[1]))) == ["model.weights"]


def test_datasets_of_ones_own_are_told_apart_by_their_folders() -> None:
    plain = [config_of("dataset=custom", f"dataset.root=/data/{name}") for name in ("penguins", "cars")]
    assert list(differences(recipe(plain[0]), recipe(plain[1]))) == ["dataset.root"]
    parts = [config_of("dataset=custom", f"dataset.train=/{k}/train", f"dataset.test=/{k}/test") for k in "ab"]
    assert list(differences(recipe(parts[0]), recipe(parts[1]))) == ["dataset.test", "dataset.train"]


@pytest.mark.parametrize(
    "line",
    [
        *("", "5", "[]", '{"a": 1}', '{"epoch": "1"}', '{"epoch": 2, "train/total": "abc"}'),
        '{"epoch": 1, "eval/mae": 2.0, "eval/split": "val"}',
        '{"epoch": 1, "eval/mae": "2", "eval/rmse": 3.0, "eval/split": "val"}',
        '{"epoch": 1, "eval/mae": 2.0, "eval/rmse": 3.0}',
    ],
)
def test_a_damaged_record_is_named_and_nothing_is_lost(line: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", epochs=3)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    damaged = "\n".join([lines[0], line, lines[2]]) + "\n"
    (folder / "metrics.jsonl").write_text(damaged)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: line 2 "):
        read_run(folder)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: line 2 "):
        Records(folder, start_epoch=3)
    assert (folder / "metrics.jsonl").read_text() == damaged


ALIASES = "a0: &a0 [x]\n" + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 40))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.yaml", ALIASES, "line 2 refers to another setting"),
        ("config.yaml", "seed: ${oc.env:HOME}\n", "line 1 refers to another setting"),
        ("config.yaml", "a: " + "[" * 100_000, "line 1 is more than 20 levels deep"),
        ("config.yaml", "a: 1\n" * 100_000, "more than 200,000 bytes"),
        ("config.yaml", "seed: 0x" + "f" * 5000, "seed has more digits"),
        ("config.yaml", "seed: " + "9" * 5000, "cannot be read"),
        ("metrics.jsonl", "[" * 100_000 + "\n{}\n", "line 1 cannot be read"),
        ("metrics.jsonl", '{"epoch": 1, "train/total": 1' + "0" * 400 + "}\n", "line 1 is not a record"),
        ("metrics.jsonl", '{"epoch": 1' + "0" * 5000 + "}\n{}\n", "line 1 cannot be read"),
        (
            "metrics.jsonl",
            '{"epoch": 1, "eval/mae": 1, "eval/rmse": 1, "eval/split": "\\u001b[2J"}\n',
            "line 1 is not a record",
        ),
        ("metrics.jsonl", " " * 20_000_001, "more than 20,000,000 bytes"),
        ("run.json", "[" * 100_000, "cannot be read"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else None,
)
def test_a_file_that_would_never_be_read_to_its_end_is_refused(
    name: str, content: str, reason: str, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "run", epochs=1)
    (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)}.*{reason}"):
        read_run(folder)


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml"])
def test_a_file_that_is_no_text_is_named(name: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", epochs=1)
    (folder / name).write_bytes(b"\xff\xfe\x80")
    with pytest.raises(CheckpointError, match=name):
        read_run(folder)


@pytest.mark.parametrize(
    ("made", "commits", "images"),
    [
        ("{}", [], None),
        ('{"commit": "abc"}', ["abc"], None),
        ('{"commits": ["abc", "def"], "images": {"train": 3, "selection": 2}}', ["abc", "def"], (3, 2)),
    ],
)
def test_how_a_run_was_made(made: str, commits: list[str], images: tuple[int, int] | None, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", epochs=1)
    (folder / "run.json").write_text(made)
    assert (read_run(folder).commits, read_run(folder).images) == (commits, images)


@pytest.mark.parametrize(
    "made",
    [
        *("", "[]", '{"commits": null}', '{"commits": [1]}', '{"images": null}', '{"images": {"train": "3"}}'),
        '{"commits": ["abc"',
    ],
)
def test_a_damaged_file_of_how_a_run_was_made_is_named(made: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", epochs=1)
    (folder / "run.json").write_text(made)
    with pytest.raises(CheckpointError, match=r"run\.json .*put it back, or delete it"):
        read_run(folder)


def test_records_that_end_before_the_checkpoint_are_not_gone_on_with(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", epochs=3)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    for damaged in (lines[:1], [*lines[:2], lines[2][:-9]], [lines[0], lines[2]], []):
        (folder / "metrics.jsonl").write_text("".join(damaged))
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl does not contain epochs 1 to 3"):
            Records(folder, start_epoch=3)
        assert (folder / "metrics.jsonl").read_text() == "".join(damaged)


def test_a_slash_in_a_text_is_no_folder() -> None:
    phrases = [f"model.prompts.many='A {word}/picture of {{count}} {{noun}}.'" for word in ("photo", "drawing")]
    plain = [config_of("model=clip_rn50", "model.weights=none", phrase) for phrase in phrases]
    assert list(differences(recipe(plain[0]), recipe(plain[1]))) == ["model.prompts.many"]


def test_full_names_of_nested_settings() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}
