"""The recipes of ``configs/`` go into the package; everything else is in setup.cfg."""

import shutil
import warnings
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# A general remark of setuptools on `pip install -e`, which the newest pip shows in ten lines, --quiet or not.
warnings.filterwarnings("ignore", message="Editable installation")


class BuildWithRecipes(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # then they are found where they are
            shutil.copytree("configs", Path(self.build_lib, "clip_core", "configs"), dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithRecipes})
