"""Checkpoints: the counter that was saved, or refused by name; nothing in a file is ever run."""

import io
import os
import pickle
import tempfile
import warnings
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from engine.test_checkpoint import write_checkpoint
from fuzz.mutate import TOKENS, mutated, pick
from fuzz.verdict import refused
from headcount.engine import checkpoint
from headcount.errors import HeadcountError
from headcount.models.weights import read_state_dict

_STORED = Path(__file__).parents[1] / "stored" / "format_2" / "best_mae.pt"
_IMAGE = torch.arange(3 * 32 * 32, dtype=torch.uint8).view(3, 32, 32)
_PLAIN = (
    *(None, True, 0, 1, -1, 2**70, 1.5, float("nan"), float("inf"), "", "tiny", "${oc.env:HOME}", "../../x", b"x"),
    *([], [1, 2], {}, {"a": 1}, {1: 2}, (), (1,), torch.zeros(2), torch.zeros(0), "\x1b[2J", "A" * 10_000, 10**9),
)


def check(rng: np.random.Generator, folder: Path) -> str:
    """Load a checkpoint that is sound, damaged, changed, foreign or hostile."""
    path, marker = folder / "best_mae.pt", folder / "executed"
    form = pick(rng, ["sound", "damaged", "damaged", "record", "changed", "changed", "foreign", "hostile"])
    if form == "hostile":
        path.write_bytes(_hostile(rng, marker))
    else:
        path.write_bytes(_FORMS[form](rng))
    try:
        if rng.random() < 0.25:  # as pretrained weights
            found = read_state_dict(str(path))
            assert all(isinstance(value, torch.Tensor) for value in found.values())
            outcome = "read"
        else:
            outcome = _check_counter(path, form)
    except HeadcountError as error:
        assert form != "sound" or "state dict" in str(error), f"a sound checkpoint is refused: {error}"
        outcome = refused(error, path)
    assert not marker.exists(), "code in the file was executed"
    assert form != "hostile" or outcome == "refused"
    return f"{form} {outcome}"


def _check_counter(path: Path, form: str) -> str:
    """A counter that loads counts; if only bytes were changed, it counts as before."""
    loaded = checkpoint.load(path)
    count = loaded.counter.count(_IMAGE, loaded.counting_mode(loaded.config.eval)).count
    assert np.isfinite(count)
    if form in ("damaged", "sound"):
        assert count == _sound()[1], f"{count} instead of {_sound()[1]}"
    return "read"


@cache
def _sound() -> tuple[bytes, float, dict[str, Any]]:
    """A small checkpoint: its bytes, the count of a picture, its content."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_checkpoint(Path(folder), "model.width=8")
        loaded = checkpoint.load(path)
        count = loaded.counter.count(_IMAGE, loaded.counting_mode(loaded.config.eval)).count
        return path.read_bytes(), count, checkpoint.read(path)


def _unchanged(rng: np.random.Generator) -> bytes:
    return _sound()[0]


def _damaged(rng: np.random.Generator) -> bytes:
    data = _sound()[0]
    if rng.random() < 0.3:
        return data[: int(rng.integers(len(data)))]
    return mutated(rng, data, other=_STORED.read_bytes())


def _changed_record(rng: np.random.Generator) -> bytes:
    """One record of the archive damaged, with a checksum that fits."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_sound()[0])) as archive, zipfile.ZipFile(out, "w") as changed:
        records = archive.infolist()
        chosen = (
            next(r for r in records if r.filename.endswith("data.pkl")) if rng.random() < 0.7 else pick(rng, records)
        )
        for record in records:
            data = archive.read(record)
            changed.writestr(record, mutated(rng, data) if record is chosen else data)
    return out.getvalue()


def _changed_values(rng: np.random.Generator) -> bytes:
    """Values of the content replaced by others."""
    content = torch.load(io.BytesIO(_sound()[0]), weights_only=True)
    for _ in range(int(rng.choice([1, 1, 2]))):
        node: Any = content
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = pick(rng, keys)
            if not isinstance(node[key], dict | list) or not node[key] or rng.random() < 0.1:
                break
            node = node[key]
        value = node[key]
        if isinstance(node, dict) and rng.random() < 0.1:
            del node[key]
        elif isinstance(value, torch.Tensor) and rng.random() < 0.7:
            others = [
                value.double(),
                value.half(),
                value.flatten()[:1],
                value * torch.nan,
                value.to(torch.complex64),
                value[None],
            ]
            node[key] = pick(rng, [*others, value.to_sparse(), torch.zeros(1).expand(10**9), value.long()])
        elif isinstance(value, str) and rng.random() < 0.5:
            node[key] = value[:1] + pick(rng, TOKENS) + value[1:]
        elif isinstance(value, int | float) and rng.random() < 0.5:
            node[key] = pick(rng, [value + 1, -value, value * 10**6, float(value), str(value)])
        else:
            node[key] = pick(rng, _PLAIN)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _foreign(rng: np.random.Generator) -> bytes:
    """Files of other programs."""
    tensor = torch.zeros(3)
    buffer = io.BytesIO()
    match int(rng.integers(7)):
        case 0:
            return safetensors.torch.save({"a": tensor})
        case 1:
            np.savez(buffer, a=np.zeros(3))
        case 2:
            with warnings.catch_warnings(action="ignore"):  # of torch, which deprecates TorchScript
                torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), buffer)
        case 3:
            torch.save({"a": tensor}, buffer, _use_new_zipfile_serialization=False)
        case 4:
            return pickle.dumps({"a": [1, 2]}, protocol=int(rng.integers(6)))
        case 5:
            return pick(rng, [b"", b"\0", b"PK\x03\x04", b"<html>404</html>", b"version https://git-lfs", b"\x80\x02."])
        case _:
            torch.save(pick(rng, [torch.nn.Linear(2, 2), [1], "x", {"format": checkpoint.FORMAT}]), buffer)
    return buffer.getvalue()


class _Call:
    """A pickle of it calls a function when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


def _hostile(rng: np.random.Generator, marker: Path) -> bytes:
    """A file that makes ``marker`` if its code is run."""
    code = f"open({str(marker)!r}, 'w')"
    call = pick(
        rng,
        [
            _Call(os.system, f"touch {marker}"),
            _Call(eval, code),
            _Call(exec, code),
            _Call(os.mkdir, str(marker)),
            _Call(torch.save, 1, str(marker)),
            _Call(np.save, f"{marker}", np.zeros(1)),
            _Call(getattr, _Call(__import__, "os"), "system"),
            _Call(torch.load, str(marker)),
        ],
    )
    content: Any = torch.load(io.BytesIO(_sound()[0]), weights_only=True)
    place = pick(rng, [*content, "extra", "itself"])
    content = call if place == "itself" else {**content, place: call}
    buffer = io.BytesIO()
    match int(rng.integers(3)):
        case 0:
            torch.save(content, buffer)
        case 1:
            torch.save(content, buffer, _use_new_zipfile_serialization=False)
        case _:
            pickle.dump(content, buffer, protocol=2)
    return buffer.getvalue()


_FORMS = {
    "sound": _unchanged,
    "damaged": _damaged,
    "record": _changed_record,
    "changed": _changed_values,
    "foreign": _foreign,
}
