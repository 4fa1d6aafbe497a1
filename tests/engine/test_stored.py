"""A counter as a pair of files: the same counts, half the size, and clear errors for every pair that is none."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import headcount
from engine.test_checkpoint import write_checkpoint
from headcount.cli.compose import compose, to_config
from headcount.config import MixedConfig, TrainConfig, to_plain
from headcount.engine import checkpoint
from headcount.engine.card import lacks_terms, model_card, usual_license
from headcount.engine.stored import save_counter, without_folders
from headcount.errors import CheckpointError, ConfigError
from headcount.published import DEFAULT

LAST = "nothing: the last epoch"


def stored_pair(folder: Path, *overrides: str, int16: bool = True, name: str = "a", **more: Any) -> Path:
    """An untrained counter, stored; its file of weights."""
    content = checkpoint.read(write_checkpoint(folder, *overrides))
    save_counter(folder / f"{name}.safetensors", content | more, int16=int16)
    return folder / f"{name}.safetensors"


def noise(seed: int = 0, side: int = 96) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("named", ["a.safetensors", "a.json"])
def test_either_file_loads_the_counter_of_the_checkpoint(tmp_path: Path, named: str) -> None:
    calibration = {
        **{"scores": [0.5, 2.0], "names": ["a", "b"], "digests": ["1", "2"]},
        **{"dataset": "sha", "split": "holdout", "mode": "whole image"},
        **{end: {"density": value, "megapixels": value} for end, value in (("least", 1.0), ("most", 2.0))},
    }
    stored_pair(tmp_path, int16=False, calibration=calibration)
    original, loaded = checkpoint.load(tmp_path / "best_mae.pt"), checkpoint.load(tmp_path / named)
    for key, value in original.counter.state_dict().items():
        assert torch.equal(loaded.counter.state_dict()[key], value)
    assert loaded.bins == original.bins  # the last one ends at infinity
    assert loaded.seen == original.seen
    assert loaded.content["calibration"] == calibration
    for key in ("commit", "epoch", "selection", "best"):
        assert loaded.content[key] == original.content[key]


def test_half_the_size_changes_no_count_by_more_than_a_thousandth(tmp_path: Path) -> None:
    weights = stored_pair(tmp_path, "model.width=32")
    stored = safetensors.torch.load_file(weights)
    assert torch.int16 in {value.dtype for value in stored.values()}
    assert {value.dtype for name, value in stored.items() if "running" in name} == {torch.float32}
    assert weights.stat().st_size < 0.55 * (tmp_path / "best_mae.pt").stat().st_size
    full, half = headcount.load(tmp_path / "best_mae.pt"), headcount.load(weights)
    assert {value.dtype for value in half.network.parameters()} == {torch.float32}
    for seed in range(4):
        expected = full.count(noise(seed))
        assert expected > 1
        assert half.count(noise(seed)) == pytest.approx(expected, rel=1e-3)


def test_an_interruption_leaves_neither_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(values: Any) -> str:
        raise KeyboardInterrupt

    content = checkpoint.read(write_checkpoint(tmp_path))
    with monkeypatch.context() as patch:
        for module in ("files", "engine.stored"):
            patch.setattr(f"headcount.{module}.json_text", stop)
        with pytest.raises(KeyboardInterrupt):
            save_counter(tmp_path / "a.json", content)
    assert [file.name for file in tmp_path.iterdir()] == ["best_mae.pt"]
    save_counter(tmp_path / "a.json", content)


@pytest.mark.parametrize(
    ("stated", "line"),
    [
        ("Apache-2.0", "license_name: apache-2.0"),
        ("research use only, as the images (of others)", "license_name: research-use-only"),
        ("Forschung\nmodel: x", "license_name: forschung-model"),
        ("\u7814\u7a76", None),
    ],
)
def test_the_card_names_the_license_in_short(tmp_path: Path, stated: str, line: str | None) -> None:
    card = model_card(checkpoint.read(stored_pair(tmp_path, license=stated)), "a")
    header = card.split("---")[1].splitlines()
    assert header[1:] == [
        "library_name: headcount",
        "tags: [crowd-counting]",
        "license: other",
        *([line] if line else []),
    ]


def test_the_terms_that_follow_from_a_training(tmp_path: Path) -> None:
    def terms(*overrides: str, **stated: Any) -> str:
        content = checkpoint.read(write_checkpoint(tmp_path, "model.width=8", *overrides)) | stated
        text = usual_license(content)
        assert text.startswith("MIT") == ("license_name: mit" in model_card(content | {"license": text}, "a"))
        assert text.startswith("MIT") or "license_name" not in model_card(content | {"license": text}, "a")
        return text

    assert terms() == "MIT, as the dataset synthetic that it was trained on"
    assert terms("dataset=sha") == "those of the dataset sha (research use; Zhang et al., CVPR 2016)"
    for start in (terms("init_from=last.pt"), terms(converted_from="released.pth")):
        assert start == (
            "those of the dataset synthetic (MIT, as this code) and of the weights that the training started from"
        )
    content = checkpoint.read(tmp_path / "best_mae.pt")
    for weights, is_named in (("none", False), (None, False), ("imagenet", True), ("a.pth", True)):
        content["config"]["model"]["weights"] = weights
        assert ("of the weights that the training started from" in usual_license(content)) == is_named
    assert usual_license(content | {"license": "mine"}) == "mine"
    assert not lacks_terms(content)
    content["config"]["dataset"] = {"name": "mixed", "datasets": {"sha": {"name": "sha"}, "plaza": {"name": "custom"}}}
    assert lacks_terms(content)
    assert not lacks_terms(content | {"license": "mine"})
    assert "and custom (of the owner of its images)" in usual_license(content)


def test_the_card_loads_what_it_describes(tmp_path: Path) -> None:
    content = checkpoint.read(stored_pair(tmp_path, license="MIT"))
    for name, loaded in {"tiny": "tiny.safetensors", DEFAULT: DEFAULT, "hf-hub:o/tiny": "hf-hub:o/tiny"}.items():
        card = model_card(content, name)
        assert f'headcount.load("{loaded}")' in card
        assert f"\n# {name.removeprefix('hf-hub:')}\n" in card


@pytest.mark.parametrize(
    ("selected_on", "own", "shown"), [("val", True, True), ("val", False, True), (LAST, True, False)]
)
def test_the_card_says_what_selected_the_weights(tmp_path: Path, selected_on: str, own: bool, shown: bool) -> None:
    figure = {"dataset": "sha", "split": "test", "images": 9, "mae": 1.0, "rmse": 2.0, "selected_on": selected_on}
    figures = [{**figure, "mae_interval": None, "rmse_interval": None, "own": own}]
    card = model_card(checkpoint.read(stored_pair(tmp_path, figures=figures)), "a")
    assert ("checkpoints were selected by" in card) == shown


@pytest.mark.slow
def test_half_the_size_changes_no_count_of_a_real_picture(tmp_path: Path, data_dir: Path) -> None:
    """Of an untrained EfficientNet, whose layers have the shapes of the published counter's."""
    model = "model=timm model.name=tf_efficientnet_lite0 model.weights=none dataset=sha"
    weights = stored_pair(tmp_path, *model.split())
    assert weights.stat().st_size < 7_000_000
    full, half = headcount.load(tmp_path / "best_mae.pt"), headcount.load(weights)
    pictures = sorted((data_dir / "ShanghaiTech" / "part_A" / "test_data" / "images").glob("*.jpg"))[:8]
    assert len(pictures) == 8
    for picture in pictures:
        assert half.count(picture) == pytest.approx(full.count(picture), rel=1e-3), picture.name


def large(content: dict[str, Any]) -> str:
    """The name of a tensor that is stored in 16 bits."""
    return next(key for key, tensor in content["model"].items() if tensor.ndim == 4 and tensor.numel() > 4096)


@pytest.mark.parametrize("factor", [1e20, 1e-20, 0.0])
def test_every_value_is_exact_to_sixteen_bits_of_the_largest_of_its_channel(tmp_path: Path, factor: float) -> None:
    content = checkpoint.read(write_checkpoint(tmp_path))
    name = large(content)
    value = content["model"][name] = content["model"][name] * factor
    weights, _ = save_counter(tmp_path / "a.safetensors", content)
    assert safetensors.torch.load_file(weights)[name].dtype is torch.int16
    loaded = checkpoint.read(weights)["model"][name]
    assert ((loaded - value).abs() <= value.abs().amax(dim=(1, 2, 3), keepdim=True) / 32767 * 0.501).all()
    # What was loaded is stored without further loss.
    again, _ = save_counter(tmp_path / "b.safetensors", content | checkpoint.read(weights))
    torch.testing.assert_close(checkpoint.read(again)["model"][name], loaded, rtol=3e-7, atol=0)


@pytest.mark.parametrize("value", [float("inf"), 1e-36])
def test_a_tensor_that_sixteen_bits_cannot_hold_stays_float32(tmp_path: Path, value: float) -> None:
    content = checkpoint.read(write_checkpoint(tmp_path))
    name = large(content)
    content["model"][name] = torch.full_like(content["model"][name], value)
    weights, _ = save_counter(tmp_path / "a.safetensors", content)
    assert torch.equal(checkpoint.read(weights)["model"][name], content["model"][name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state, name: state.pop(f"{name}.scale_of_int16"), "has no scale"),
        (lambda state, name: state.update({f"{name}.scale_of_int16": torch.ones(7, 1, 1, 1)}), "scales of shape"),
        (lambda state, name: state.update({name: state[name].float()}), "is torch.float32, with scales"),
    ],
)
def test_integers_without_their_scales_are_refused(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor], str], Any], message: str
) -> None:
    weights = stored_pair(tmp_path)
    state = safetensors.torch.load_file(weights)
    change(state, large(checkpoint.read(weights)))
    rewrite(weights, safetensors.torch.save(state))
    with pytest.raises(CheckpointError, match=rf"a\.safetensors is damaged: .*{message}"):
        checkpoint.load(weights)


def test_folders_of_this_machine_are_left_out() -> None:
    config = {
        "data_root": "/home/me/data",
        "output_dir": "/home/me/runs",
        "init_from": "runs/custom/me/last.pt",
        "model": {"weights": "/home/me/lite0.pth", "name": "tf_efficientnet_lite0"},
        "dataset": {
            "name": "custom",
            "root": "~/crowds/",
            "cache_dir": "/tmp/c",
            "points": r"C:\me\points.csv",
            "mask": "me/roi.png",
        },
        "kinds": {"dataset": "custom"},
    }
    assert without_folders(config) == {
        "init_from": "last.pt",
        "model": {"weights": "lite0.pth", "name": "tf_efficientnet_lite0"},
        "dataset": {"name": "custom", "root": "crowds", "points": "points.csv", "mask": "roi.png"},
        "kinds": {"dataset": "custom"},
    }
    config["dataset"]["name"] = "sha"
    assert "root" not in without_folders(config)["dataset"]


def test_the_settings_without_folders_are_valid(tmp_path: Path) -> None:
    weights = stored_pair(tmp_path, "dataset=sha", f"data_root={tmp_path}", f"output_dir={tmp_path}")
    assert str(tmp_path) not in weights.with_suffix(".json").read_text()
    config = checkpoint.load(weights).config
    assert (config.dataset.name, config.data_root, config.output_dir) == ("sha", None, TrainConfig.output_dir)


def test_a_mixed_dataset_keeps_its_parts_without_their_folders(tmp_path: Path) -> None:
    parts = "dataset.parts=[sha,{name: custom, root: /home/me/crowd, as: mine}]"
    content = checkpoint.read(write_checkpoint(tmp_path, "model.width=8"))
    content["config"] = to_plain(to_config(compose(["dataset=mixed", "model.width=8", parts], config_name="train")))
    weights, description = save_counter(tmp_path / "a.safetensors", content)
    assert "/home" not in description.read_text()
    dataset = checkpoint.load(weights).config.dataset
    assert isinstance(dataset, MixedConfig)
    assert dataset.datasets["mine"].root == "crowd"
    card = model_card(checkpoint.read(weights), "a")
    assert "ShanghaiTech part A" in card
    assert "Dataset `custom`." in card


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change the description."""

    def damage(weights: Path) -> None:
        description = weights.with_suffix(".json")
        plain = json.loads(description.read_text())
        change(plain)
        description.write_text(json.dumps(plain))

    return damage


def shortened(name: str, size: int) -> Callable[[Path], None]:
    def damage(weights: Path) -> None:
        file = weights.with_name(name)
        file.write_bytes(file.read_bytes()[:size])

    return damage


def replaced(text: str) -> Callable[[Path], None]:
    def damage(weights: Path) -> None:
        weights.with_suffix(".json").write_text(text)

    return damage


def rewrite(weights: Path, content: bytes) -> None:
    """Other weights, whose hash is in the description."""
    weights.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    edited(lambda plain: plain["weights"].update(sha256=digest))(weights)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda weights: weights.unlink(), r"a\.safetensors is missing beside it, which holds its weights"),
        (lambda weights: weights.with_suffix(".json").unlink(), r"a\.json is missing beside it, which holds its desc"),
        (shortened("a.safetensors", 1000), r"a\.safetensors is truncated, changed, or of another counter: its SHA-256"),
        (shortened("a.safetensors", 0), r"a\.safetensors is truncated, changed"),
        (shortened("a.json", 300), r"a\.json cannot be used: it is truncated or not JSON"),
        (replaced('{"shapes": []}'), r"a\.json cannot be used: it is not the description of a counter"),
        (replaced("[" * 100_000), r"a\.json cannot be used: it is not the description.* nested too deeply"),
        (lambda weights: weights.with_suffix(".json").write_bytes(b"\xff\xfe"), r"a\.json cannot be used: .*decode"),
        (lambda weights: rewrite(weights, b"x" * 100), r"a\.safetensors is not a file of safetensors"),
        (edited(lambda p: p.update(format_version=99)), "format 99; this version of headcount reads formats up to 1"),
        (edited(lambda p: p.update(format_version="1")), "its 'format_version' is '1'"),
        (edited(lambda p: p.pop("weights")), "it does not name the SHA-256 of its weights"),
        (edited(lambda p: p.pop("config")), "the checkpoint is damaged: it has no 'config'"),
        (edited(lambda p: p.update(bins=None)), "the checkpoint is damaged"),
        (edited(lambda p: p["bins"].update(clip_at="often")), "the checkpoint is damaged"),
        (edited(lambda p: p["config"]["model"].update(width=7)), "the weights do not fit the network"),
        (edited(lambda p: p["config"].update(scale="${oc.env:HOME}")), "interpolation"),
        (edited(lambda p: p.update(figures=[{"mae": "low"}])), "a figure is"),
    ],
)
def test_a_pair_that_is_none_is_refused_naming_the_file(
    tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    weights = stored_pair(tmp_path, "model.width=8")
    damage(weights)
    named = weights if weights.exists() else weights.with_suffix(".json")
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.load(named)
    assert f"ckpt={named}" in str(caught.value)


def test_the_files_of_two_counters_are_never_mixed(tmp_path: Path) -> None:
    one = stored_pair(tmp_path, name="one")
    content = checkpoint.read(one)
    content["model"] = {key: value * 2 for key, value in content["model"].items()}
    save_counter(tmp_path / "two.safetensors", content)
    (tmp_path / "two.json").write_bytes((tmp_path / "one.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"two\.safetensors is truncated, changed, or of another counter"):
        checkpoint.load(tmp_path / "two.json")


def test_nothing_is_replaced_and_what_json_cannot_hold_is_named(tmp_path: Path) -> None:
    weights = stored_pair(tmp_path)
    content = checkpoint.read(weights)
    with pytest.raises(ConfigError, match=r"a\.safetensors: exists; name another file"):
        save_counter(weights, content)
    (tmp_path / "photo.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"photo\.json: exists"):
        save_counter(tmp_path / "photo.safetensors", content)
    with pytest.raises(ConfigError, match=r"must end in \.safetensors or \.json"):
        save_counter(tmp_path / "b.pt", content)
    with pytest.raises(CheckpointError, match="'calibration' cannot be written as JSON"):
        save_counter(tmp_path / "b.safetensors", content | {"calibration": torch.zeros(1)})
    assert not (tmp_path / "b.safetensors").exists()


def test_what_only_training_needs_is_not_stored(tmp_path: Path) -> None:
    training = {"optimizer": {"state": torch.zeros(3)}, "step": 3, "training_images": "abc"}
    weights = stored_pair(tmp_path, **training)
    assert not training.keys() & checkpoint.read(weights).keys()
    assert not training.keys() & headcount.load(weights).record.keys()
