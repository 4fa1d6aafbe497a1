"""Zip archives that torch writes: verify their checksums, and read the tensors of a TorchScript archive.

``torch.load`` and ``torch.jit.load`` do not look at the checksums, and ``torch.jit.load`` executes code in the file.
Nothing in an archive is executed here.
"""

import io
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_ZIP = b"PK\x03\x04"
# torch compresses only the source code in an archive; a few kilobytes may claim to be terabytes.
_MAX_COMPRESSED_BYTES = 2**28
# The bit of a record's attributes that makes it a folder.
_FOLDER = 0x10


class DamagedRecord(ValueError):
    """A record whose checksum does not match."""


def check_archive(path: Path) -> None:
    """Verify the checksum of every record of a zip archive; files in torch's old format have none and pass.

    Raises:
        DamagedRecord: if a checksum does not match; names the record.
        Exception: of many kinds, if the archive is truncated or damaged elsewhere.
    """
    with path.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            return
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        compressed = sum(record.file_size for record in records if record.compress_type != zipfile.ZIP_STORED)
        stored = sum(record.file_size for record in records if record.compress_type == zipfile.ZIP_STORED)
        if compressed > _MAX_COMPRESSED_BYTES or stored > path.stat().st_size:
            raise zipfile.BadZipFile("its records are larger than the file")
        if folders := [record.filename for record in records if record.external_attr & _FOLDER]:
            raise DamagedRecord(f"its record {folders[0]} is marked as a folder, whose content torch does not read")
        if not any(record.CRC for record in records):  # written after torch.serialization.set_crc32_options(False)
            return
        damaged = archive.testzip()
    if damaged is not None:
        raise DamagedRecord(f"the checksum of its record {damaged} does not match")


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive of a TorchScript module."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except Exception:  # many kinds, for a damaged file
        return False


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Read the parameters and buffers of a TorchScript archive without running its code.

    Raises:
        Exception: of many kinds, if the archive is damaged or contains anything but modules, tensors and plain values.
    """
    check_archive(path)
    with zipfile.ZipFile(path) as archive:
        return _ModuleReader(archive).tensors()


@dataclass
class _View:
    """A tensor as the archive describes it."""

    dtype: torch.dtype
    record: str
    """Name of the record that holds its numbers."""
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Object:
    """Stands for an object of the archive, whose own class is never built."""

    qualified_name = ""

    def __setstate__(self, state: Any) -> None:
        self.state: dict[str, Any] = state if isinstance(state, dict) else {}


class _ModuleReader(pickle.Unpickler):
    """Reads ``data.pkl`` of an archive; of every other type than those below it builds nothing."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        folders = [name.removesuffix("data.pkl") for name in archive.namelist() if re.fullmatch("[^/]+/data.pkl", name)]
        if len(folders) != 1:
            raise pickle.UnpicklingError("there is not one module in the archive")
        self._archive, self._folder = archive, folders[0]
        self._records: dict[str, Tensor] = {}
        content = archive.read(f"{self._folder}data.pkl")
        # The unpickler allocates a table up to the largest index.
        indices = (int(arg or 0) for code, arg, _ in pickletools.genops(content) if code.name in ("PUT", "LONG_BINPUT"))
        if any(index > len(content) for index in indices):
            raise pickle.UnpicklingError("an index exceeds the size of the archive")
        super().__init__(io.BytesIO(content))

    def tensors(self) -> dict[str, Tensor]:
        """The state dict of the module."""
        return {name: self._tensor(view) for name, view in self._views(self.load(), "", set())}

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a type that ``data.pkl`` names."""
        if module == "__torch__" or module.startswith("__torch__."):
            return type("Module", (_Object,), {"qualified_name": f"{module}.{name}"})
        # Bound methods and types, whose attributes a file cannot change.
        known: dict[tuple[str, str], Any] = {
            ("torch._utils", "_rebuild_tensor_v2"): self._view,
            ("torch.jit._pickle", "restore_type_tag"): self._first,
            **{("torch.jit._pickle", f"build_{kind}list"): self._first for kind in ("int", "double", "bool", "tensor")},
            ("collections", "OrderedDict"): dict,
        }
        if (module, name) in known:
            return known[module, name]
        dtype = _STORAGES.get(name) if module == "torch" else None
        if dtype is None:
            raise pickle.UnpicklingError(f"it holds {module}.{name}")
        return dtype

    def persistent_load(self, description: Any) -> tuple[torch.dtype, str]:
        """Type and record of a storage."""
        kind, dtype, record, *_ = description
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(record, str):
            raise pickle.UnpicklingError("it holds an unknown kind of storage")
        return dtype, record

    def _view(self, storage: tuple[torch.dtype, str], offset: int, size: Any, stride: Any, *_: Any) -> _View:
        dtype, record = storage
        return _View(dtype, record, offset, tuple(size), tuple(stride))

    def _first(self, value: Any, *_: Any) -> Any:
        return value

    def _views(self, module: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, _View]]:
        """The parameters and buffers of a module by name; no module is visited twice, so that cycles end."""
        if not isinstance(module, _Object) or id(module) in seen:
            return
        seen.add(id(module))
        registered = self._registered(module.qualified_name)
        for name, value in module.state.items():
            if isinstance(value, _View) and (registered is None or name in registered):
                yield prefix + name, value
            yield from self._views(value, f"{prefix}{name}.", seen)

    def _registered(self, qualified_name: str) -> set[str] | None:
        """Names of a class's parameters and buffers in its source text; None if it does not state them."""
        folder, _, name = qualified_name.rpartition(".")
        file = f"{self._folder}code/{folder.replace('.', '/')}.py"
        if file not in self._archive.namelist():
            return None
        source = self._archive.read(file).decode()
        lists = r"((?:  __(?:parameters|buffers)__ = .*\n)+)"
        body = re.search(rf"^class {re.escape(name)}\(.*\n{lists}", source, re.MULTILINE)
        return None if body is None else set(re.findall(r'"([^"]+)"', body[1]))

    def _tensor(self, view: _View) -> Tensor:
        if view.record not in self._records:
            content = bytearray(self._archive.read(f"{self._folder}data/{view.record}"))
            empty = torch.empty(0, dtype=view.dtype)
            self._records[view.record] = torch.frombuffer(content, dtype=view.dtype) if content else empty
        # Refused by torch if it exceeds the record.
        return self._records[view.record].as_strided(view.size, view.stride, view.offset)


_STORAGES: dict[str, torch.dtype] = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
