"""What pyproject.toml cannot say: the trained model under examples/ goes into the wheel, beside the explorer."""

from pathlib import Path
from shutil import copytree

from setuptools import setup
from setuptools.command.build_py import build_py


class WithStories(build_py):
    """Copies `examples/stories260K` into a build; an editable install reads it where it stands."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            place = Path(self.build_lib, "zoo", "site", "explorer", "stories260K")
            copytree("examples/stories260K", place, dirs_exist_ok=True)


setup(cmdclass={"build_py": WithStories})
