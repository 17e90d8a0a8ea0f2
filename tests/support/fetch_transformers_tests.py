"""Fetch transformers' own common model tests, of the installed version, from its source distribution.

sdist -> .cache/transformers_tests/<version>/transformers_common/*.py, a package that tests/ can import. The source
distribution carries the mixins of the top folder of transformers' tests only; what they import from deeper folders is
replaced by the empty stand-ins of STAND_INS, so those deeper mixins (generation, exporters) add no test here.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "transformers_tests"
PACKAGE = "transformers_common"
STAND_INS = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}


def location():
    """The folder to put on sys.path; it exists once the tests were fetched."""
    return CACHE / version("transformers")


def download(folder):
    """-> path of the source distribution of the installed version; raises CalledProcessError."""
    requirement = f"transformers=={version('transformers')}"
    command = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", "transformers", "--dest", str(folder), requirement]
    subprocess.run(command, check=True)
    return next(Path(folder).glob("transformers-*.tar.gz"))


def unpack(archive, package):
    """Write tests/*.py of the archive and the stand-ins as one importable package."""
    package.mkdir(parents=True)
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            parts = Path(member.name).parts
            if member.isfile() and len(parts) == 3 and parts[1] == "tests" and parts[2].endswith(".py"):
                (package / parts[2]).write_bytes(tar.extractfile(member).read())
    for name, text in STAND_INS.items():
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text(text)
    for folder in {package, *((package / name).parent for name in STAND_INS)}:
        (folder / "__init__.py").touch()


def main():
    if location().is_dir():
        return 0
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        try:
            archive = download(scratch)
        except subprocess.CalledProcessError as error:
            print(f"could not download the tests of transformers: pip exited {error.returncode}", file=sys.stderr)
            return 1
        unpack(archive, Path(scratch) / "unpacked" / PACKAGE)
        shutil.move(Path(scratch) / "unpacked", location())
    print(f"fetched transformers' common tests into {location().relative_to(CACHE.parent.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
