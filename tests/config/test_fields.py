"""Ranges of numbers, and a docstring for every setting."""

import ast
import dataclasses
import math
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import headcount.config
from headcount.config import (
    EvalCommandConfig,
    ExpectedConfig,
    OptimConfig,
    PromptsConfig,
    TrainConfig,
    number,
    range_errors,
)
from headcount.errors import CheckpointError, ConfigError, DataError, HeadcountError

PACKAGE = Path(headcount.config.__file__).parent


@dataclass
class Inner:
    share: float = number(0.5, 0, 1)


@dataclass
class Outer:
    count: int | None = number(None, 1)
    inner: Inner = field(default_factory=Inner)


def test_numbers_inside_their_range_are_no_error() -> None:
    assert range_errors(Outer()) == range_errors(Outer(count=1, inner=Inner(1.0))) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Outer(count=0), "count=0: must be at least 1, and finite"),
        (Outer(inner=Inner(1.5)), "inner.share=1.5: must be from 0 to 1"),
        (Outer(inner=Inner(float("nan"))), "inner.share=nan: must be from 0 to 1"),
    ],
)
def test_numbers_outside_are_named(config: Outer, message: str) -> None:
    assert range_errors(config) == [message]


def test_a_group_is_checked_under_its_own_name() -> None:
    assert range_errors(OptimConfig(lr=0.0), "optim.") == ["optim.lr=0.0: must be from 1e-12 to 1e+30"]


def test_every_number_has_an_upper_limit() -> None:
    """A typing error such as 10^12 is refused instead of starting processes or allocating memory."""
    schemas = [TrainConfig, EvalCommandConfig, ExpectedConfig, PromptsConfig]
    schemas += [schema for group in headcount.config.SCHEMAS.values() for schema in group.values()]
    own_check = {"mean", "std"}  # headcount.config.model.errors
    without = [
        f"{schema.__name__}.{item.name}"
        for schema in schemas
        for item in dataclasses.fields(schema)
        if {int, float} & _inner_types(get_type_hints(schema)[item.name])
        and item.name not in own_check
        and not math.isfinite(item.metadata.get("range", (0, math.inf))[1])
    ]
    assert without == []


def _inner_types(hint: Any) -> set[Any]:
    """The types in a type such as ``list[float] | None``."""
    return {hint}.union(*map(_inner_types, get_args(hint)))


@pytest.mark.parametrize("file", sorted(PACKAGE.glob("*.py")), ids=lambda f: f.name)
def test_every_setting_has_a_docstring(file: Path) -> None:
    """A setting without one of its own (a name, a group of TrainConfig) is documented by its base or its type."""
    missing = []
    for node in ast.parse(file.read_text()).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for item, following in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                inherited = "ClassVar" in ast.unparse(item.annotation) or item.target.id == "name"
                group = ast.unparse(item.annotation).removesuffix(" | None").endswith("Config")
                if not (documented or inherited or group):
                    missing.append(f"{node.name}.{item.target.id}")
    assert missing == []


def test_errors_for_users_have_one_base_and_a_kind() -> None:
    assert {kind.__base__ for kind in (ConfigError, DataError, CheckpointError)} == {HeadcountError}
    assert issubclass(HeadcountError, ValueError)
    error = DataError("a.mat: cannot be read", kind="unreadable", file=Path("a.mat"))
    assert (str(error), error.kind, error.file) == ("a.mat: cannot be read", "unreadable", Path("a.mat"))


def test_every_field_of_a_schema_has_a_default() -> None:
    """A choice composes without being asked for a value, apart from names."""
    for group, schemas in headcount.config.SCHEMAS.items():
        for kind, schema in schemas.items():
            without = [
                item.name
                for item in dataclasses.fields(schema)
                if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
            ]
            assert without == [], f"{group}={kind}"


def test_configs_are_read_without_torch() -> None:
    code = "import sys, headcount.config; print([m for m in ('torch', 'PIL', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
