"""Which attributes of a model have one value in all its objects, and which functions give back one value.

Never shipped. An attribute is decided where everything that sets it sets one constant: `self.gate = None` in a model
without gates.
"""

import ast
import importlib
from typing import Any

from transformers import PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, LinearAttentionLayer

from .export_config_code import nodes_of, source, stored
from .export_model_values import (
    BUILTINS,
    CONFIG,
    CONFIGS,
    FILLED_IN,
    MODELS,
    PLAIN,
    ModelFrame,
    Place,
    fixed_names,
    is_ours,
    one_of,
)
from .export_source import Piece

# The files that make masks for layers of a `layer_type` that see a `window`.
MASKS = ("attention_masks", "ops_attention", "ops_attention_bands", "ops_attention_masks")

# The file whose functions are given a module, and the class of that.
ATTENDING = ("ops_attention", "SoftmaxAttention")


def real(piece: Piece) -> Any:
    """What the package has for a function or class."""
    return getattr(importlib.import_module(f".{piece.module}", __package__), piece.tree.name)


def annotated(function: ast.FunctionDef, names: tuple[str, ...]) -> set[str]:
    """The parameters of a function whose annotation is one of `names`."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return {one.arg for one in arguments if isinstance(one.annotation, ast.Name) and one.annotation.id in names}


# Methods of a module that set an attribute by its name.
REGISTERING = ("register_buffer", "register_parameter", "register_module", "add_module")


class Facts:
    """What is decided of the attributes in the pieces of a program."""

    def __init__(self, pieces: list[Piece], layers: list, known: "Facts | None" = None):
        self.layers, self.own, self.everywhere = layers, {}, {}
        functions = [piece.tree for piece in pieces if isinstance(piece.tree, ast.FunctionDef)]
        found = {one.name: returned(one) for one in functions if not one.decorator_list}
        # What a function gives back that does nothing else; tables that have lost all their rows.
        self.defined = {name for piece in pieces for name in piece.defines}
        self.returns = {name: value for name, value in found.items() if value is not None}
        self.empty = {name for piece in pieces if is_empty_table(piece.tree) for name in piece.defines} - {*FILLED_IN}
        # Those that the values of attributes are found with; functions are folded with these.
        self.known = known or self
        # What is read of a piece for one config says nothing of another.
        self.program = known.program if known else object()
        # {(class, function): {parameter: its one value}} (export_model_calls.py).
        self.parameters: dict[tuple, dict[str, Any]] = known.parameters if known else {}
        self.named: tuple[dict, dict[str, list]] | None = None
        self.classes = {piece.tree.name: piece for piece in pieces if isinstance(piece.tree, ast.ClassDef)}
        self.real = {name: real(piece) for name, piece in self.classes.items()}
        self.families: dict[str, frozenset[str]] = {}
        # Attribute -> [(class or None, the one value as a tuple, or None)].
        self.stores: dict[str, list] = {}
        for piece in pieces:
            known = self.snapshot(piece)
            if getattr(piece, "facts_known", None) != known:
                piece.facts_known, piece.stores = known, []
                self.reading = piece.stores
                self.read_piece(piece)
            for name, row in piece.stores:
                self.stores.setdefault(name, []).append(row)
        self.own = {name: self.known_in(name) for name in self.classes}
        self.everywhere = {name: values[0] for name, rows in self.stores.items() if (values := self.agreed(rows))}
        self.known = self

    def snapshot(self, piece: Piece) -> tuple:
        """All that is known of what a piece names, to see whether it has changed."""
        known, words = self.known, words_in(piece)
        own = known.own.get(piece.defines[0] if piece.defines else "", {})
        every = (own, known.everywhere, known.own.get(ATTENDING[1], {}), known.returns)
        values = [sorted((name, repr(facts[name])) for name in words & facts.keys()) for facts in every]
        given = [row for name in piece.defines for row in known.parameters_by_name().get(name, ())]
        return known.program, values, given, sorted(words & known.empty), sorted(words & known.defined)

    def parameters_by_name(self) -> dict[str, list]:
        """What is known of the parameters of functions and methods, by the name at the top of the file."""
        if self.named is None or self.named[0] is not self.parameters:
            rows: dict[str, list] = {}
            for (owner, name), values in self.parameters.items():
                rows.setdefault(owner or name, []).append((owner, name, repr(values)))
            self.named = self.parameters, rows
        return self.named[1]

    def family(self, name: str) -> frozenset[str]:
        """The classes that a class inherits from or that inherit from it, so far as they are here; itself too."""
        if name not in self.families:
            own = self.real[name]
            related = {o for o, cls in self.real.items() if cls in own.__mro__ or own in cls.__mro__}
            # Classes that are mixed together share their attributes.
            mixed = {o for one in related for o, cls in self.real.items() if cls in self.real[one].__mro__}
            self.families[name] = frozenset(related | mixed)
        return self.families[name]

    def has_config(self, name: str) -> bool:
        """Whether `self.config` is the model's config."""
        related = [self.real[one] for one in self.family(name)]
        return any(issubclass(one, PreTrainedModel) or one.__name__ == "TokenMixer" for one in related)

    def place(self, module: str, owner: str | None, function: ast.FunctionDef) -> Place:
        models = annotated(function, MODELS)
        roots = {"self": self.known.own.get(owner, {}), **dict.fromkeys(models, self.known.everywhere)}
        if owner is None and module == ATTENDING[0]:
            roots |= {"module": self.known.own.get(ATTENDING[1], {})}
        return Place(self.known, roots, owner is not None and self.has_config(owner), models)

    def frame(self, module: str, owner: str | None, function: ast.FunctionDef) -> ModelFrame:
        """The names of a function where it begins."""
        known, spaces = fixed_names(module), []
        configs = annotated(function, CONFIGS)
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        annotations = {one.arg: getattr(one.annotation, "id", None) for one in arguments}
        given = self.mask_kinds() if module in MASKS else {}
        given = given | self.parameters.get((owner, function.name), {})
        for world, index in self.layers:
            space = {"__builtins__": BUILTINS, **known, CONFIG: world, **dict.fromkeys(configs, world)}
            if annotations.get("layer_idx") == "int":
                space["layer_idx"] = index
            space |= {name: value for name, value in given.items() if name in annotations}
            spaces.append(space)
        parameters = {one.arg for one in nodes_of(function.args, ast.arg)}
        opened = (parameters | stored_anywhere(function)) - {*configs}
        opened -= {"layer_idx"} if annotations.get("layer_idx") == "int" else set()
        opened -= given.keys() & annotations.keys()
        place = self.place(module, owner, function)
        place.local = set(annotations) - configs | stored_anywhere(function)
        return ModelFrame(spaces, opened, place)

    def mask_kinds(self) -> dict[str, Any]:
        """What is said of a layer where masks are made, in a model all of whose layers see every key before a query."""
        worlds = [world for world, _ in self.layers]
        if any(set(world.layer_types) != {"full_attention"} or world.sparse_attention_pattern for world in worlds):
            return {}
        return {"layer_type": "full_attention", "window": None}

    def read_piece(self, piece: Piece) -> None:
        if isinstance(piece.tree, ast.FunctionDef):
            self.read_function(piece.module, None, piece.tree)
        elif isinstance(piece.tree, ast.ClassDef):
            for stmt in piece.tree.body:
                self.read_member(piece.module, piece.tree.name, stmt)

    def read_member(self, module: str, owner: str, stmt: ast.stmt) -> None:
        if isinstance(stmt, ast.FunctionDef):
            value = None
            if any(source(one) == "property" for one in stmt.decorator_list):
                value = one_return(stmt)
            self.reading.append((stmt.name, (owner, value)))
            self.read_function(module, owner, stmt)
        elif isinstance(stmt, ast.Assign | ast.AnnAssign):
            targets = stmt.targets if isinstance(stmt, ast.Assign) else [stmt.target]
            for target in [one for part in targets for one in nodes_of(part, ast.Name)]:
                # What has an annotation is a field, which is set where one is made.
                value = written_out(stmt.value) if isinstance(stmt, ast.Assign) else None
                self.reading.append((target.id, (owner, value)))

    def read_function(self, module: str, owner: str | None, function: ast.FunctionDef) -> None:
        """Collects what a function sets."""
        pairs: dict[int, tuple] = {}
        for node in nodes_of(function, ast.Assign):
            found = [pair for target in node.targets for pair in paired(target, node.value)]
            pairs |= {id(target): (target, value) for target, value in found}
        for node in nodes_of(function, ast.Attribute):
            if not isinstance(node.ctx, ast.Load):
                pairs.setdefault(id(node), (node, None))
        for node in nodes_of(function, ast.Call):
            if (name := set_by(node)) is not None:
                self.reading.append((name, (None, None)))
        pairs = {key: pair for key, pair in pairs.items() if isinstance(pair[0], ast.Attribute)}
        frame = self.started(module, owner, function) if pairs else None
        for target, value in pairs.values():
            found = None if value is None else frame.constant(value)
            is_own = isinstance(target.value, ast.Name) and target.value.id == "self"
            self.reading.append((target.attr, (owner if is_own else None, found)))

    def started(self, module: str, owner: str | None, function: ast.FunctionDef) -> ModelFrame:
        """The names of a function behind those of its statements that name one value for good."""
        frame = self.frame(module, owner, function)
        counts: dict[str, int] = {}
        for node in nodes_of(function, ast.Name):
            if not isinstance(node.ctx, ast.Load):
                counts[node.id] = counts.get(node.id, 0) + 1
        for stmt in function.body:
            names = stored(stmt) if isinstance(stmt, ast.Assign) else ()
            if names and all(counts.get(name, 0) == 1 for name in names):
                frame.names_one(stmt)
        return frame

    def known_in(self, owner: str) -> dict[str, Any]:
        """{attribute: value} of those that are decided in a class."""
        family = self.family(owner)
        if any(issubclass(self.real[one], CacheLayerMixin | LinearAttentionLayer) for one in family):
            return {}
        outside = [base for base in self.real[owner].__mro__ if not is_ours(base)]
        found = {}
        for name, rows in self.stores.items():
            own = [row for row in rows if row[0] is None or row[0] in family]
            if any(row[0] is not None for row in own) and not any(name in vars(base) for base in outside):
                if value := self.agreed(own):
                    found[name] = value[0]
        return found

    @staticmethod
    def agreed(rows: list) -> tuple | None:
        values = [row[1] for row in rows]
        return one_of([value[0] for value in values]) if values and None not in values else None


def set_by(call: ast.Call) -> str | None:
    """The attribute that `setattr(x, "name", ...)` or `x.register_buffer("name", ...)` sets."""
    named = call.args[1:2] if isinstance(call.func, ast.Name) and call.func.id == "setattr" else []
    if isinstance(call.func, ast.Attribute) and call.func.attr in REGISTERING:
        named = call.args[:1]
    return named[0].value if named and isinstance(named[0], ast.Constant) else None


def stores_attribute(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)


def paired(target: ast.expr, value: ast.expr) -> list[tuple[ast.expr, ast.expr | None]]:
    """(target, value) of an assignment, entry by entry where tuples stand on both sides."""
    if not isinstance(target, ast.Tuple):
        return [(target, value)]
    if isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts):
        return list(zip(target.elts, value.elts, strict=True))
    return [(one, None) for one in target.elts]


def stored_anywhere(function: ast.FunctionDef) -> set[str]:
    """The names that a function binds, in whatever is inside it."""
    if not hasattr(function, "names_bound"):
        names = nodes_of(function, ast.Name)
        function.names_bound = {n.id for n in names if not isinstance(n.ctx, ast.Load)}
    return function.names_bound


def words_in(piece: Piece) -> set[str]:
    """The names and attributes in a piece."""
    if not hasattr(piece, "words"):
        piece.words = {n.id for n in nodes_of(piece.tree, ast.Name)} | {
            n.attr for n in nodes_of(piece.tree, ast.Attribute)
        }
    return piece.words


def is_call_of_entry(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Subscript):
        return False
    return isinstance(node.func.value, ast.Name)


def callers_and_called(piece: Piece) -> list[ast.AST]:
    """The calls and the functions in a piece."""
    if not hasattr(piece, "callers_and_called"):
        piece.callers_and_called = nodes_of(piece.tree, ast.Call) + nodes_of(piece.tree, ast.FunctionDef)
    return piece.callers_and_called


def names_asked(piece: Piece) -> list[tuple[str, bool]]:
    """The names that a piece reads, and whether what stands in it is called at once."""
    if not hasattr(piece, "names_asked"):
        called = {id(node.func.value) for node in callers_and_called(piece) if is_call_of_entry(node)}
        names = [n for n in nodes_of(piece.tree, ast.Name) if isinstance(n.ctx, ast.Load)]
        piece.names_asked = [(node.id, id(node) in called) for node in names]
    return piece.names_asked


def written_out(node: ast.expr) -> tuple | None:
    """The constant or the tuple of constants that an expression is, as a tuple of one."""
    entries = node.elts if isinstance(node, ast.Tuple) else [node]
    return (ast.literal_eval(node),) if all(isinstance(one, ast.Constant) for one in entries) else None


def is_empty_table(tree: ast.stmt) -> bool:
    value = getattr(tree, "value", None)
    return isinstance(tree, ast.Assign | ast.AnnAssign) and isinstance(value, ast.Dict) and not value.keys


def returned(function: ast.FunctionDef) -> ast.expr | None:
    """The constant, or the empty list or dict, that a function returns and does nothing else; None for another."""
    body = [s for s in function.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    body = [s for s in body if not isinstance(s, ast.Pass)]
    if not body:
        return ast.Constant(None)
    value = body[0].value if isinstance(body[0], ast.Return) else None
    plain = isinstance(value, ast.Constant) and isinstance(value.value, PLAIN)
    empty = isinstance(value, ast.Dict) and not value.keys or isinstance(value, ast.List) and not value.elts
    return value if plain or empty else None


def one_return(function: ast.FunctionDef) -> tuple | None:
    """The constant that a function returns and does nothing else, as a tuple of one."""
    body = [s for s in function.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    if len(body) == 1 and isinstance(body[0], ast.Return) and isinstance(body[0].value, ast.Constant):
        return (body[0].value.value,)
    return None
