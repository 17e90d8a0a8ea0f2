"""Functions and classes of Python with all that they read, as JavaScript: from the objects, not from whole files."""

import ast
import builtins
import inspect
import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import FunctionType, ModuleType
from typing import Any

from conversion.engine.family import Family

from .names import free_names
from .translate import annotation, class_of, expression, function, safe

# What a config class has for models and ranks, and what decorates it.
OF_MODELS = ("base_model_tp_plan", "base_model_pp_plan", "base_model_ep_plan", "base_model_fsdp_plan", "sub_configs")


class Gathered:
    """JavaScript of what was asked for, each thing once and behind what it reads.

    `given`: (an object, the expression that stands for it); `outside`: names of builtins and modules that there are.
    """

    def __init__(self, given: Iterable[tuple[Any, str]], outside: set[str]):
        self.lines: list[str] = []
        self.used: set[str] = set()
        self.outside = outside
        self.names = {id(thing): name for thing, name in given}
        self.kept = [thing for thing, _ in given]

    def of(self, value: Any) -> str:
        """An expression for a value. Raises ValueError for what is no plain data, no function and no class."""
        if id(value) in self.names:
            return self.names[id(value)]
        if value is None or isinstance(value, (bool, int, float, str)):
            return expression(ast.parse(repr(value), mode="eval").body)
        if isinstance(value, dict):
            return f"py.dict([{', '.join(f'[{self.of(key)}, {self.of(one)}]' for key, one in value.items())}])"
        if isinstance(value, (list, tuple, set, frozenset)):
            items = f"[{', '.join(map(self.of, value))}]"
            return items if isinstance(value, list) else f"py.{'tuple' if isinstance(value, tuple) else 'set'}({items})"
        if isinstance(value, Family):
            parts = {name: self.of(getattr(value, name)) for name in OF_FAMILY}
            return f"{{ {', '.join(f'{name}: {said}' for name, said in parts.items())} }}"
        if isinstance(value, partial):
            return f"(...given) => py.call({', '.join(map(self.of, (value.func, *value.args)))}, ...given)"
        if isinstance(value, FunctionType):
            return self.add(value, self.function(value))
        if value is Sequence:  # which configs ask of values of config.json alone
            return "[py.list, py.tupleType]"
        if isinstance(value, type):
            return self.add(value, self.config_class(value))
        raise ValueError(f"{value!r} cannot be said in JavaScript.")

    def add(self, thing: Any, said: str) -> str:
        name = f"${len(self.lines)}_{thing.__name__.strip('<>')}"
        self.lines.append(f"const {name} = {said};")
        self.names[id(thing)] = name
        self.kept.append(thing)
        return name

    def with_names(self, source: str, said: str, find: Callable[[str], Any], itself: Any = None) -> str:
        """`said`, which is JavaScript of `itself`, inside of a function that knows what `source` reads. Raises
        ValueError for a name that the page has nothing for."""
        bound, plain = [], set()
        for name in sorted(free_names(source)):
            value = find(name)
            if name == "super":
                continue
            if value is MISSING:
                plain.add(name)
            elif isinstance(value, ModuleType) or value is getattr(builtins, name, MISSING) or name in ALWAYS:
                plain.add(name)
            elif value is itself:
                bound.append(f"let {safe(name)};")
                said = f"{safe(name)} = {said}"
            elif (there := self.of(value)) != safe(name):
                bound.append(f"const {safe(name)} = {there};")
        if missing := sorted(plain - self.outside):
            raise ValueError(f"Nothing in the page stands for {missing}: {source[:200]}")
        self.used |= plain
        return f"(() => {{ {' '.join(bound)} return {said}; }})()" if bound else said

    def function(self, what: FunctionType) -> str:
        node = node_of(what)
        cells = inspect.getclosurevars(what).nonlocals

        def find(name: str) -> Any:
            return cells.get(name, what.__globals__.get(name, getattr(builtins, name, MISSING)))

        said = expression(node) if isinstance(node, ast.Lambda) else function(node)
        if isinstance(node, ast.FunctionDef):
            node.decorator_list = []
            unannotated(node)
        return self.with_names(ast.unparse(node), said, find, what)

    def config_class(self, cls: type) -> str:
        """A config class of transformers, or one that was made of names and defaults."""
        bases = [base for base in cls.__bases__ if base.__name__ != "RotaryEmbeddingConfigMixin"]
        try:
            source = textwrap.dedent(inspect.getsource(cls))
        except (OSError, TypeError):
            return self.with_names("", self.made_class(cls), lambda name: MISSING)
        node = ast.parse(source).body[0]
        if node.name != cls.__name__:
            return self.with_names("", self.made_class(cls), lambda name: MISSING)
        node.decorator_list, node.bases, node.keywords = (
            [],
            [ast.Name(f"base_{i}", ast.Load()) for i in range(len(bases))],
            [],
        )
        node.body = [unchecked(one) for one in node.body if not is_of_models(one)]
        for method in [one for one in node.body if isinstance(one, ast.FunctionDef)]:
            unannotated(method)
        scope = vars(inspect.getmodule(cls))
        known = {f"base_{i}": base for i, base in enumerate(bases)}

        def find(name: str) -> Any:
            return known.get(name, scope.get(name, getattr(builtins, name, MISSING)))

        self.used.add("strict")
        return f"strict({self.with_names(ast.unparse(node), class_of(node), find, cls)})"

    def made_class(self, cls: type) -> str:
        """A class that has no source: `published_config`."""
        lines = [f'$own.set("attribute_map", {self.of(dict(cls.attribute_map))});']
        lines.append(f'$own.set("model_type", {self.of(cls.model_type)});')
        for name in cls.__dict__["__annotations__"]:
            lines.append(f'$annotations.set("{name}", "Any"); $own.set("{name}", {self.of(getattr(cls, name))});')
        self.used.add("strict")
        body = "\n".join(lines)
        base = self.of(cls.__bases__[0])
        return f'strict(py.makeClass("{cls.__name__}", [{base}], ($own, $annotations, $current) => {{ {body} }}))'


def unchecked(node: ast.stmt) -> ast.stmt:
    """A field whose type is more than builtin ones is of any; one that has to be in an interval has its default."""
    if isinstance(getattr(node, "value", None), ast.Call) and isinstance(node.value.func, ast.Call):
        node.value = node.value.keywords[0].value
    if isinstance(node, ast.AnnAssign) and annotation(node.annotation).startswith('"'):
        node.annotation = ast.Name("Any", ast.Load())
    return node


MISSING = object()
OF_FAMILY = ("fields", "fixed", "derive", "prepare", "section", "reads", "ties_at_top", "architecture")
# Names that mean in the page what they mean everywhere.
ALWAYS = {"deepcopy", "fields", "super", "Any", "PreTrainedConfig", "strict", "logger", "get_close_matches"}


def is_of_models(node: ast.stmt) -> bool:
    """Whether a statement of a config class says nothing of what a config is."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    names = {one.id for one in targets if isinstance(one, ast.Name)}
    return bool(names & {*OF_MODELS, "keys_to_ignore_at_inference"}) or (
        isinstance(node, ast.FunctionDef) and node.name in ("to_dict", "to_diff_dict", "__init__")
    )


def unannotated(function: ast.FunctionDef) -> None:
    """Takes the types of parameters and of the result away, which the page has nothing for."""
    function.returns = None
    for one in [one for one in ast.walk(function.args) if isinstance(one, ast.arg)]:
        one.annotation = None


def node_of(what: FunctionType) -> ast.FunctionDef | ast.Lambda:
    """The source of a function; of several lambdas in a line, the one that compiles to it. Raises ValueError where none
    does."""
    if what.__name__ != "<lambda>":
        return ast.parse(textwrap.dedent(inspect.getsource(what))).body[0]
    tree = ast.parse(inspect.getsource(inspect.getmodule(what)))
    found = [
        one for one in ast.walk(tree) if isinstance(one, ast.Lambda) and one.lineno == what.__code__.co_firstlineno
    ]
    for node in found:
        if len(found) == 1:
            return node
        code = compile(ast.Expression(node), "", "eval").co_consts[0]
        if (code.co_code, code.co_names) == (what.__code__.co_code, what.__code__.co_names):
            return node
    raise ValueError(f"The source of a lambda of {what.__module__} was not found.")
