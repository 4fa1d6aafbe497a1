"""Counters on the Hugging Face Hub: a repository holds model.safetensors, model.json and README.md, the model card."""

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headcount import published
from headcount.config import ConfigError
from headcount.engine.card import model_card
from headcount.engine.stored import save_counter
from headcount.files import write_text
from headcount.models.hub import quick_hub
from headcount.wording import cut, one_line

_STEM = "model"
# The hub's own rule: no part begins or ends with a period or hyphen, and none of these is doubled.
_PART = r"\w+(?:[.-]\w+)*"
_NAME = re.compile(rf"hf-hub:({_PART}/{_PART})(?:@([\w./-]+))?", re.ASCII)
_RULE = "letters, digits and _, with single periods and hyphens between them"


def download(ckpt: str) -> Path:
    """The description of a counter on the hub, with its weights beside it, in the cache of the hub.

    What is in the cache is read from there if the hub cannot be reached.

    Args:
        ckpt: ``hf-hub:owner/name`` or ``hf-hub:owner/name@revision``.

    Raises:
        ConfigError: if the name is invalid, there is no such counter, or it cannot be downloaded.
    """
    found = _NAME.fullmatch(ckpt)
    if found is None:
        raise ConfigError(
            f"ckpt={cut(ckpt)}: must be {published.HUB}owner/name, or {published.HUB}owner/name@revision for a branch, "
            f"tag or commit; owner and name are {_RULE}"
        )
    from huggingface_hub import hf_hub_download

    with quick_hub(), _naming_errors(f"ckpt={ckpt}"):
        for ending in (published.WEIGHTS, published.DESCRIPTION):
            file = hf_hub_download(found[1], f"{_STEM}{ending}", revision=found[2])
    return Path(file)


def push(
    content: Mapping[str, Any],
    repository: str,
    *,
    private: bool,
    token: str | None,
    int16: bool,
    replace: bool,
    setting: str = "push_to_hub",
) -> str:
    """Upload a counter with its model card; the repository is created if it does not exist.

    Args:
        content: as :func:`~headcount.engine.stored.save_counter` takes it.
        repository: ``owner/name``.
        private: whether a repository that is created can be read by its owner only.
        token: of the hub; None uses the one of ``hf auth login`` or of HF_TOKEN.
        int16: whether to store the weights as 16-bit integers.
        replace: whether a counter that the repository holds is replaced by a new commit.
        setting: what an error calls the repository.

    Returns:
        The address of the repository.

    Raises:
        ConfigError: if the name is invalid, the repository holds a counter, or the hub refuses or cannot be reached.
    """
    repository = checked_repository(repository, setting=setting)
    from huggingface_hub import HfApi

    api, stored = HfApi(token=token), f"{_STEM}{published.WEIGHTS}"
    with quick_hub(), _naming_errors(f"{setting} {repository!r}"):
        is_used = not replace and api.file_exists(repository, stored)
    if is_used:
        raise ConfigError(
            f"{setting} {repository!r}: the repository already holds {stored}; choose another name, or replace it "
            "with --replace (in Python, replace=True)"
        )
    with tempfile.TemporaryDirectory() as folder:
        save_counter(Path(folder, stored), content, int16=int16)
        write_text(Path(folder, "README.md"), model_card(content, f"{published.HUB}{repository}"))
        with quick_hub(), _naming_errors(f"{setting} {repository!r}"):
            address = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload a counter of headcount")
    return str(address)


def checked_repository(repository: str, *, setting: str = "push_to_hub") -> str:
    """The name of a repository to upload to, without ``hf-hub:``.

    Args:
        repository: as typed.
        setting: what an error calls it.

    Raises:
        ConfigError: if it is not ``owner/name``.
    """
    repository = repository.removeprefix(published.HUB)
    if not _NAME.fullmatch(f"{published.HUB}{repository}") or "@" in repository:
        raise ConfigError(f"{setting} {cut(repository)!r}: must be owner/name, each {_RULE}")
    return repository


@contextmanager
def _naming_errors(name: str) -> Iterator[None]:
    """Replace an error of the hub by one that says what to do.

    Raises:
        ConfigError: for any error in the block.
    """
    try:
        yield
    except Exception as error:  # many kinds, of several libraries
        raise ConfigError(f"{name}: {_explained(error)}") from error


def _explained(error: Exception) -> str:
    """What an error of the hub means, and what to do."""
    from huggingface_hub import errors

    here = f"counters that come with headcount: {', '.join(published.names()) or 'none'}"
    # Some are special cases of later ones.
    meanings: dict[type[Exception], str] = {
        errors.LocalEntryNotFoundError: "the hub cannot be reached, and this counter is not in its cache on this "
        f"machine: connect and try again, without HF_HUB_OFFLINE; {here}",
        errors.OfflineModeIsEnabled: "the hub cannot be reached: connect and try again, without HF_HUB_OFFLINE",
        errors.GatedRepoError: "its owner restricts access: accept the terms on its page, and type hf auth login",
        errors.RepositoryNotFoundError: "no such repository on the hub, or a private one: check the name, or type "
        f"hf auth login; {here}",
        errors.RevisionNotFoundError: "the repository has no such branch, tag or commit",
        errors.EntryNotFoundError: f"the repository holds no counter of headcount: it lacks {_STEM}{published.WEIGHTS} "
        f"or {_STEM}{published.DESCRIPTION}",
        errors.LocalTokenNotFoundError: "a token of the hub is needed: type hf auth login, or set HF_TOKEN",
    }
    known = (text for kind, text in meanings.items() if isinstance(error, kind))
    return next(known, f"the hub answers: {one_line(error).rstrip('.')}; to log in, type hf auth login")
