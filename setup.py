"""Builds the wheel with configs/, which lies at the top of the repository, as files of the package."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copies configs/ to headcount/configs."""

    def run(self) -> None:
        """Called by setuptools; an editable install reads configs/ where it is."""
        super().run()
        if not self.editable_mode:
            copied = Path(self.build_lib, "headcount", "configs")
            shutil.rmtree(copied, ignore_errors=True)  # of an earlier build
            shutil.copytree("configs", copied)


setup(cmdclass={"build_py": BuildWithConfigs})
