"""Builds the wheel with what lies at the top of the repository: configs/ and the published counters."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# Folder of the repository, folder in the package, which files.
COPIED = (("configs", "configs", "**/*"), ("checkpoints/published", "counters", "*"))


class BuildWithFiles(build_py):
    """Copies these files into the package."""

    def run(self) -> None:
        """Called by setuptools; an editable install reads the files where they are."""
        super().run()
        if self.editable_mode:
            return
        for folder, name, pattern in COPIED:
            copied = Path(self.build_lib, "headcount", name)
            shutil.rmtree(copied, ignore_errors=True)  # of an earlier build
            for file in filter(Path.is_file, Path(folder).glob(pattern)):
                target = copied / file.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)


setup(cmdclass={"build_py": BuildWithFiles})
