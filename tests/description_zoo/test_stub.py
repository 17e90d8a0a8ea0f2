"""What editors show of ZooConfig is what the fields say."""

import ast

from configuration_zoo import ZooConfig
from description_zoo.flags import flags
from description_zoo.stub import PATH, class_name, stub
from modeling_zoo.export import FILES

TREE = ast.parse(PATH.read_text())
CLASSES = {node.name: node for node in TREE.body if isinstance(node, ast.ClassDef)}
CONFIG = CLASSES["ZooConfig"]
METHODS = {node.name: node for node in CONFIG.body if isinstance(node, ast.FunctionDef)}


def test_it_is_of_today():
    assert PATH.read_text() == stub(), "the fields have changed: run python -m description_zoo.stub"
    assert PATH.name not in FILES


def said_below(node):
    """{annotated name: the docstring below it} of a class."""
    pairs = zip(node.body, node.body[1:], strict=False)
    pairs = [(field.target.id, said) for field, said in pairs if isinstance(field, ast.AnnAssign)]
    return {name: " ".join(said.value.value.split()) for name, said in pairs}


def test_every_field_and_key_has_its_meaning_below_it():
    found = said_below(CONFIG)
    for name, facts in flags().items():
        group, _, key = name.partition(".")
        said = said_below(CLASSES[class_name(group)])[key] if key else found[name]
        assert said.startswith(facts["meaning"]) and facts["source"] in said


def test_every_argument_has_its_default_and_its_meaning():
    arguments = METHODS["__init__"].args
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    defaults = {one.arg: ast.literal_eval(value) for one, value in pairs}
    said = dict(line.strip().split(": ", 1) for line in ast.get_docstring(METHODS["__init__"]).splitlines()[1:])
    assert said.keys() == defaults.keys() == {name.partition(".")[0] for name in flags()}
    for name, default in defaults.items():
        field = ZooConfig.__dataclass_fields__[name]
        assert default == field.default and said[name] == field.metadata["meaning"]


def test_every_public_method_and_property_is_there():
    own = [group for group in ZooConfig.__mro__ if group.__module__.startswith("configuration_zoo.")]
    for name, value in [pair for group in own for pair in vars(group).items()]:
        function = getattr(value, "fget", None) or getattr(value, "__func__", value)
        is_theirs = not getattr(function, "__module__", "").startswith("configuration_zoo.")
        if not (is_theirs or name.startswith(("_", "resolve_", "validate_")) or "." in name):
            assert name in METHODS
