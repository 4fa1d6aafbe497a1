"""Counters on the Hugging Face Hub, from its cache and up to its client: no test uses the network."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from huggingface_hub import constants, errors

import headcount
from engine.test_stored import stored_pair
from headcount.config import ConfigError
from headcount.models import hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached(cache: Path, repository: str, revision: str = "main") -> Path:
    """The folder of a repository's files in a cache of the hub."""
    folder = cache / ("models--" + repository.replace("/", "--"))
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / revision).write_text(COMMIT)
    files = folder / "snapshots" / COMMIT
    files.mkdir(parents=True)
    return files


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of a hub that cannot be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.mark.slow
def test_offline_the_counter_comes_from_the_cache(tmp_path: Path) -> None:
    """As a user has it: by the variables of the hub, in a process of its own."""
    files = cached(tmp_path / "home" / "hub", "owner/my.counter")
    stored_pair(files, "model.width=8", name="model")
    code = "import headcount; print(headcount.load('hf-hub:owner/my.counter').record['commit'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "abc"


def test_a_revision_of_the_cache(cache: Path) -> None:
    stored_pair(cached(cache, "owner/counter", revision="v1"), "model.width=8", name="model")
    counter = headcount.load("hf-hub:owner/counter@v1")
    assert counter.count(np.zeros((16, 16, 3), dtype=np.uint8)) >= 0
    with pytest.raises(ConfigError, match=r"ckpt=hf-hub:owner/counter: the hub cannot be reached.*HF_HUB_OFFLINE"):
        headcount.load("hf-hub:owner/counter")


def test_what_is_not_in_the_cache_names_what_is_available(cache: Path) -> None:
    with pytest.raises(ConfigError, match=r"not in its cache on this machine.*; counters that come with headcount: "):
        headcount.load("hf-hub:owner/name")


INVALID = ["hf-hub:name", "hf-hub:", "hf-hub:a/b/c", "hf-hub:a/b@", "hf-hub:a/b c"]
MALFORMED = ["hf-hub:../x", "hf-hub:a/..", "hf-hub:-a/b", "hf-hub:a/b--c", "hf-hub:a/b.", "hf-hub:\u00e4/b"]


@pytest.mark.parametrize("name", INVALID + MALFORMED)
def test_an_invalid_name_is_refused(cache: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="must be hf-hub:owner/name, or hf-hub:owner/name@revision"):
        headcount.load(name)


RESPONSE = httpx.Response(404, request=httpx.Request("GET", "https://hub"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.RepositoryNotFoundError("x", response=RESPONSE), "no such repository on the hub, or a private one"),
        (errors.GatedRepoError("x", response=RESPONSE), "its owner restricts access: accept the terms"),
        (errors.RevisionNotFoundError("x", response=RESPONSE), "the repository has no such branch, tag or commit"),
        (
            errors.EntryNotFoundError("x"),
            r"the repository holds no counter of headcount: it lacks model\.safetensors",
        ),
        (errors.LocalTokenNotFoundError("x"), "a token of the hub is needed: type hf auth login"),
        (errors.OfflineModeIsEnabled("x"), "the hub cannot be reached"),
        (errors.HfHubHTTPError("x\ny", response=RESPONSE), "the hub answers: x y; to log in, type hf auth login"),
        (httpx.ConnectError("reset."), "the hub answers: reset; to log in"),
    ],
)
def test_an_error_of_the_hub_says_what_to_do(
    error: Exception, message: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(ConfigError, match=f"^ckpt=hf-hub:owner/name: {message}"):
        headcount.load("hf-hub:owner/name")


def test_what_is_pushed_loads_as_the_same_counter(tmp_path: Path, cache: Path, uploaded: dict[str, Any]) -> None:
    counter = headcount.load(stored_pair(tmp_path, "model.width=8", license="for research"))
    address = counter.push_to_hub("owner/name", private=True, token="secret")
    assert address == "https://hub/owner/name"
    assert (uploaded["private"], uploaded["exist_ok"], uploaded["token"]) == (True, True, "secret")
    assert uploaded["files"].keys() == {"model.safetensors", "model.json", "README.md"}
    card = uploaded["files"]["README.md"].decode()
    assert 'headcount.load("hf-hub:owner/name")' in card
    assert "License of the weights: for research." in card
    folder = cached(cache, "owner/name")
    for name, content in uploaded["files"].items():
        (folder / name).write_bytes(content)
    black = np.zeros((40, 56, 3), dtype=np.uint8)
    assert headcount.load("hf-hub:owner/name").count(black) == counter.count(black)


def test_a_counter_in_the_repository_is_replaced_only_if_asked_to(tmp_path: Path, uploaded: dict[str, Any]) -> None:
    counter = headcount.load(stored_pair(tmp_path, "model.width=8"))
    counter.push_to_hub("owner/name")
    before = uploaded["files"]
    message = r"'owner/name': the repository already holds model\.safetensors; choose another name, or replace it with"
    with pytest.raises(ConfigError, match=message):
        counter.push_to_hub("owner/name")
    assert uploaded["files"] is before
    counter.push_to_hub("owner/name", replace=True)
    assert uploaded["files"] is not before


def test_an_invalid_repository_is_refused(tmp_path: Path, uploaded: dict[str, Any]) -> None:
    counter = headcount.load(stored_pair(tmp_path, "model.width=8"))
    for name in ("name", "a/b/c", "a/b@main", "", "../x"):
        with pytest.raises(ConfigError, match="must be owner/name"):
            counter.push_to_hub(name)
    counter.record = {}
    with pytest.raises(ConfigError, match=r"only a counter that headcount\.load returned"):
        counter.push_to_hub("owner/name")
    assert not uploaded


def test_push_offline_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = headcount.load(stored_pair(tmp_path, "model.width=8"))
    monkeypatch.setattr(hub, "_reachable", lambda url: False)
    with pytest.raises(ConfigError, match="push_to_hub 'owner/name': the hub cannot be reached: connect and try again"):
        counter.push_to_hub("owner/name", token="secret")
