"""Read text, JSON and number fields so that nothing in them is lost or reinterpreted without an error."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from headcount.data.kinds import DataErrorKind
from headcount.errors import DataError
from headcount.wording import cut

# float() also takes 1_000, digits of other scripts, and blanks.
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|inf|infinity)", re.ASCII | re.IGNORECASE)


def is_number(text: str) -> bool:
    """Whether a field is a number in plain ASCII digits; ``nan`` and ``inf`` are, so that they are named as such."""
    return _NUMBER.fullmatch(text) is not None


def read_text(path: Path) -> str:
    """Read a text file in UTF-8.

    Raises:
        DataError: if it does not exist or is not text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # Spreadsheets write a byte order mark.
    except (OSError, UnicodeDecodeError) as error:
        raise _invalid(path, f"{path} is not readable as text: {error}") from error
    if "\0" in text:  # A csv reader drops them, and the lines that they have replaced.
        line = text.count("\n", 0, text.index("\0")) + 1
        raise _invalid(path, f"{path}, line {line}: NUL bytes; the file is damaged, or is not text in UTF-8")
    return text


def load_json(path: Path) -> Any:
    """Read a JSON file, whose objects must not have a key twice.

    Raises:
        DataError: if it cannot be read, or a key comes twice; names the key.
    """
    try:
        return json.loads(read_text(path), object_pairs_hook=_unique)
    except DataError:
        raise
    except (ValueError, RecursionError) as error:  # Numbers of more than 4300 digits are a plain ValueError.
        raise _invalid(path, f"{path} is not a readable .json file: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"{cut(twice)!r} comes twice in one object, and only one could be used; merge or rename them")
    return content


def _invalid(path: Path, message: str) -> DataError:
    return DataError(message, kind=DataErrorKind.annotation, file=path)
