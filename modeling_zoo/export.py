"""Writes the code of this package into a model folder, so that it loads anywhere with `trust_remote_code=True`.

Not shipped itself. A folder on the Hub is flat: every file of both packages is copied under its own name, and the one
line that imports the config package becomes a relative import (transformers follows lines of the form `from .name
import thing`).
"""

import re
from pathlib import Path

import configuration_zoo

PACKAGES = (Path(configuration_zoo.__file__).parent, Path(__file__).parent)
CONFIG_IMPORT = re.compile(r"^from configuration_zoo import ", flags=re.MULTILINE)
NEIGHBOUR = re.compile(r"^\s*from \.(\w+) import ", flags=re.MULTILINE)
AUTO_MAP = {
    "AutoConfig": "configuration_zoo.ZooConfig",
    "AutoModel": "modeling_zoo.ZooModel",
    "AutoModelForCausalLM": "modeling_zoo.ZooForCausalLM",
    "AutoModelForSequenceClassification": "modeling_zoo.ZooForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_zoo.ZooForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_zoo.ZooForQuestionAnswering",
}


def shipped_files():
    """{file name: text} of modeling_zoo.py and everything it reaches by relative imports."""
    paths = {path.stem: path for package in PACKAGES for path in package.glob("*.py")}
    files, waiting = {}, ["modeling_zoo"]
    while waiting:
        name = waiting.pop()
        text = CONFIG_IMPORT.sub("from .configuration_zoo import ", paths[name].read_text(encoding="utf-8"))
        files[f"{name}.py"] = text
        waiting += [found for found in NEIGHBOUR.findall(text) if f"{found}.py" not in files and found not in waiting]
    return files


def export_code(config, folder):
    """Writes the code into `folder` and the complete `auto_map` into `config`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in shipped_files().items():
        (folder / name).write_text(text, encoding="utf-8")
    config.auto_map = dict(AUTO_MAP)
