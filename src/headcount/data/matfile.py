"""Read variables of MATLAB files; a damaged file is an error, never a crash.

scipy's reader of version 5 files trusts their tags: one wrong byte can end the Python process. Each tag that scipy will
follow is therefore checked first. Source of the format: "MAT-File Format", The MathWorks, version 5 files.
"""

import io
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import scipy.io
from scipy.io.matlab import matfile_version

MAX_BYTES = 2**28
"""Largest size of a decompressed variable; a million heads take a sixteenth of it."""
_MAX_DEPTH = 32  # of cells and structs inside each other
_HEADER_BYTES = 128
# Types of elements.
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED, _UTF8 = 1, 5, 6, 14, 15, 16
_NUMBER_BYTES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8}
_TEXT_TYPES = (1, 2, 4, 16, 17, 18)
# Classes of arrays.
_CELL, _STRUCT, _CHAR, _NUMBERS = 1, 2, 4, range(6, 16)


def load_mat(path: Path, *wanted: str) -> dict[str, Any]:
    """Read variables of a .mat file of MATLAB version 4 to 7.

    Args:
        wanted: names of the variables to read, if the file has them.

    Returns:
        Value by name of each variable in the file, as ``scipy.io.loadmat`` returns it, except that logical arrays are
        of dtype bool; None for variables that are not wanted.

    Raises:
        Exception: of a dozen types, if the file cannot be read; the message does not name the file.
    """
    data = path.read_bytes()
    if data.startswith(b"\x89HDF") or data.startswith(b"MATLAB 7.3") or matfile_version(io.BytesIO(data))[0] == 2:
        raise ValueError("it is of MATLAB version 7.3 (HDF5); save it again with save(..., '-v7')")
    if matfile_version(io.BytesIO(data))[0] == 1:
        names = _checked_names(data, wanted)
    else:
        names = [name for name, _, _ in scipy.io.whosmat(io.BytesIO(data))]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"it holds {name} twice")
    # With the types of MATLAB: a logical matrix, a mask, must not be taken for one of positions.
    chosen = [name for name in wanted if name in names]
    values = scipy.io.loadmat(io.BytesIO(data), variable_names=chosen, mat_dtype=True) if chosen else {}
    return {name: values.get(name) for name in names}


def _checked_names(data: bytes, wanted: tuple[str, ...]) -> list[str]:
    """Check the tags of a version 5 file, in the variables that are wanted to their end.

    Returns:
        Names of all variables.

    Raises:
        ValueError, struct.error, zlib.error: if a tag or a size is not possible.
    """
    order = "<" if data[126:128] == b"IM" else ">"
    names = []
    position = _HEADER_BYTES
    while position < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, position)
        start, position = position + 8, position + 8 + size
        if position > len(data) or not size:
            raise ValueError("it is cut off, or the size of a variable is damaged")
        if kind == _COMPRESSED:
            stream = zlib.decompressobj()
            content = stream.decompress(data[start:position], MAX_BYTES)
            if stream.unconsumed_tail:
                raise ValueError(f"a variable has more than {MAX_BYTES >> 20} MiB")
            if not stream.eof:
                raise ValueError("a compressed variable is cut off")
        elif kind == _MATRIX:
            content = data[start - 8 : position]
        else:
            raise ValueError(f"a variable has the type {kind}, not that of a matrix; the file is damaged")
        names.append(_Elements(content, order).variable(wanted))
    return names


class _Elements:
    """The elements of one variable, visited in the order in which scipy reads them."""

    def __init__(self, data: bytes, order: str) -> None:
        self._data, self._order, self._position = data, order, 0

    def variable(self, wanted: tuple[str, ...]) -> str:
        """Check a variable and return its name."""
        kind, _ = self._take("II")
        if kind != _MATRIX:
            raise ValueError(f"a variable has the type {kind}, not that of a matrix; the file is damaged")
        flags, items, name = self._header()
        if name in wanted:
            self._content(flags, items, 0)
        return name

    def _take(self, form: str) -> tuple[int, ...]:
        values = struct.unpack_from(self._order + form, self._data, self._position)
        self._position += struct.calcsize(form)
        return values

    def _element(self, *kinds: int) -> tuple[int, bytes]:
        """Return the type and the bytes of the next element, which must be one of ``kinds``."""
        (first,) = self._take("I")
        if first >> 16:  # up to four bytes, in the tag itself
            kind, size, end = first & 0xFFFF, first >> 16, self._position + 4
            if size > 4:
                raise ValueError(f"a tag says {size} bytes, which do not fit in it; the file is damaged")
        else:
            kind, (size,) = first, self._take("I")
            end = self._position + size + -size % 8
        content = self._data[self._position : self._position + size]
        if kind not in kinds or len(content) != size:
            raise ValueError(f"an element has the type {kind} and {size} bytes; the file is damaged")
        self._position = end
        return kind, content

    def _header(self) -> tuple[int, int, str]:
        """Return the flags, the number of items, and the name of an array."""
        kind, size, flags, _ = self._take("IIII")
        _, dimensions = self._element(_INT32)
        if (kind, size) != (_UINT32, 8) or len(dimensions) % 4 or not 2 <= len(dimensions) // 4 <= 32:
            raise ValueError("the header of an array is damaged")
        sides = struct.unpack(f"{self._order}{len(dimensions) // 4}i", dimensions)
        if min(sides) < 0:
            raise ValueError(f"an array has the shape {sides}; the file is damaged")
        _, name = self._element(_INT8, _UTF8)
        return flags, math.prod(sides), name.decode("latin1")

    def _content(self, flags: int, items: int, depth: int) -> None:
        """Check what follows the header of an array."""
        array_class, is_complex = flags & 0xFF, flags >> 11 & 1
        if array_class in _NUMBERS:
            for _ in range(1 + is_complex):
                kind, content = self._element(*_NUMBER_BYTES)
                if len(content) != items * _NUMBER_BYTES[kind]:
                    raise ValueError(f"an array of {items} numbers has {len(content)} bytes; the file is damaged")
        elif array_class == _CHAR:
            _, content = self._element(*_TEXT_TYPES)
            if items > max(len(content), 2**16):
                raise ValueError(f"a text of {items} characters has {len(content)} bytes; the file is damaged")
        elif array_class == _CELL:
            self._matrices(items, depth)
        elif array_class == _STRUCT:
            _, width = self._element(_INT32)
            _, fields = self._element(_INT8)
            (length,) = struct.unpack(f"{self._order}i", width)
            if length < 1 or len(fields) % length or items > len(self._data):
                raise ValueError("the fields of a struct are damaged")
            self._matrices(items * (len(fields) // length), depth)
        else:
            raise ValueError(
                f"it holds an array of class {array_class}, which is neither numbers, text, cells nor a struct"
            )

    def _matrices(self, number: int, depth: int) -> None:
        """Check the arrays inside a cell array or a struct."""
        if 8 * number > len(self._data) or depth == _MAX_DEPTH:
            raise ValueError(f"{number} arrays inside another do not fit in the file, or are nested too deep")
        for _ in range(number):
            kind, size = self._take("II")
            if kind != _MATRIX:
                raise ValueError(f"an array has the type {kind}, not that of a matrix; the file is damaged")
            if size:  # MATLAB writes an empty array without a header.
                flags, items, _ = self._header()
                self._content(flags, items, depth + 1)
