"""Packages that add choices to headcount by entry points, without a change of its files.

A package names modules in its pyproject.toml::

    [project.entry-points."headcount.configs"]
    mine = "my_package.configs"       # calls headcount.config.register; must not import torch

    [project.entry-points."headcount.builders"]
    mine = "my_package.builders"      # registers builders: build_backbone, build_head, build_loss, register_dataset

The first is imported before a config is read, so that ``--help`` and errors stay quick; the second before anything is
built. A checkpoint with such a choice loads where the package is installed.
"""

from functools import cache
from importlib.metadata import entry_points

from headcount.errors import ConfigError

CONFIGS = "headcount.configs"
"""Entry points of modules that register schemas."""
BUILDERS = "headcount.builders"
"""Entry points of modules that register builders."""


@cache  # once per process
def load_extensions(group: str) -> None:
    """Import the modules of all installed packages for a group of entry points, in the order of their names.

    Raises:
        ConfigError: if one cannot be imported; names the package.
    """
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        try:
            entry.load()
        except Exception as error:  # whatever the module of another package does
            package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "a package"
            raise ConfigError(
                f"{entry.value}, which {package} adds to headcount, cannot be imported: "
                f"{type(error).__name__}: {error}; repair the package, or uninstall it"
            ) from error
