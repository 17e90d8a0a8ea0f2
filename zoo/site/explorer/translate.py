"""Python as JavaScript: what derives, checks and describes a config runs in a page from its own source.

So every refusal in the page is ZooConfig's, word for word. The subset is what `configuration_zoo` is written in:
functions, classes, comprehensions, f-strings, exceptions, no generators. What an operator or a builtin means stands in
`static/python.js`; anything outside the subset raises `NotTranslated`: no page is written that leaves a check out.
"""

import ast
import json
from collections.abc import Iterable

from .names import bound_names, free_names, is_for_editors, read_at_once

BINARY = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div", ast.FloorDiv: "floordiv", ast.Mod: "mod",
    ast.Pow: "pow", ast.BitOr: "or", ast.BitAnd: "and", ast.BitXor: "xor",
}  # fmt: skip
COMPARISONS = {
    ast.Eq: "py.eq({}, {})", ast.NotEq: "!py.eq({}, {})", ast.Is: "({} === {})", ast.IsNot: "({} !== {})",
    ast.In: "py.within({}, {})", ast.NotIn: "!py.within({}, {})", ast.Lt: "py.lt({}, {})", ast.LtE: "py.le({}, {})",
    ast.Gt: "py.lt({1}, {0})", ast.GtE: "py.le({1}, {0})",
}  # fmt: skip
# Names that JavaScript keeps for itself, and those of the runtime's own module.
RESERVED = {
    "arguments", "case", "catch", "const", "default", "delete", "do", "enum", "eval", "export", "extends", "function",
    "instanceof", "let", "new", "null", "package", "private", "protected", "public", "py", "static", "super", "switch",
    "this", "throw", "true", "typeof", "undefined", "var", "void", "interface", "implements", "false",
}  # fmt: skip


class NotTranslated(ValueError):
    """Source outside the subset; names the line."""

    def __init__(self, node: ast.AST):
        super().__init__(f"line {getattr(node, 'lineno', '?')}: {ast.unparse(node)[:120]!r} cannot be translated.")


def translated(sources: Iterable[str], imports: dict[str, set[str]]) -> str:
    """Modules of one package, in the order of their imports -> one JavaScript module, which exports all of their names.

    `imports`: {module of JavaScript: names that it has in place of imports}. Raises NotTranslated, and ValueError for a
    name that two modules give to two things or that nothing defines.
    """
    defined, parts, used = {}, [], set()
    for number, source in enumerate(sources):
        module = ast.parse(source)
        for name in bound_names(module.body):
            if defined.setdefault(name, number) != number and name != "logger":
                raise ValueError(f"{name} stands in two modules.")
        parts += [statement(node) for node in module.body]
        used |= free_names(source)
    known = {"super"}.union(defined, *imports.values())
    if missing := sorted(used - known):
        raise ValueError(f"Nothing defines {missing}.")
    lines = ['import * as py from "./python.js";']
    for file, names in imports.items():
        wanted = ", ".join(
            name if safe(name) == name else f"{name} as {safe(name)}"
            for name in sorted(names & used - defined.keys() - {"super"})
        )
        lines.append(f'import {{ {wanted} }} from "./{file}";')
    names = ", ".join(map(safe, sorted(defined)))
    return "\n".join([*lines, f"let {names};", *filter(None, parts), f"export {{ {names} }};", ""])


def safe(name: str) -> str:
    return f"{name}_" if name in RESERVED else name


def block(body: list[ast.stmt]) -> str:
    return "{ " + "\n".join(filter(None, map(statement, body))) + " }"


def statement(node: ast.stmt) -> str:
    """One statement."""
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Pass():
            return ""
        case ast.Expr(value=ast.Constant()):
            return ""
        case ast.Expr():
            return f"{expression(node.value)};"
        case ast.Assign():
            lines = [f"const $value = {expression(node.value)};", *(assign(one, "$value") for one in node.targets)]
            return "{ " + " ".join(lines) + " }"
        case ast.AnnAssign():
            return assign(node.target, expression(node.value)) if node.value else ""
        case ast.AugAssign():
            value = f"py.i{BINARY[type(node.op)]}({expression(node.target)}, {expression(node.value)})"
            return assign(node.target, value)
        case ast.Delete():
            return " ".join(delete(target) for target in node.targets)
        case ast.FunctionDef():
            return f"{safe(node.name)} = {decorated(node, function(node))};"
        case ast.ClassDef():
            return f"{safe(node.name)} = {decorated(node, class_of(node))};"
    return flow(node)


def flow(node: ast.stmt) -> str:
    """A statement that says which other comes next."""
    match node:
        case ast.If() if is_for_editors(node):
            return ""
        case ast.If():
            otherwise = f" else {block(node.orelse)}" if node.orelse else ""
            return f"if (py.truth({expression(node.test)})) {block(node.body)}{otherwise}"
        case ast.While(orelse=[]):
            return f"while (py.truth({expression(node.test)})) {block(node.body)}"
        case ast.For(orelse=[]):
            inside = f"{assign(node.target, '$each')} {block(node.body)}"
            return f"for (const $each of py.iter({expression(node.iter)})) {{ {inside} }}"
        case ast.Return():
            return f"return {expression(node.value) if node.value else 'null'};"
        case ast.Continue():
            return "continue;"
        case ast.Break():
            return "break;"
        case ast.Raise():
            if node.exc is None:
                return "throw $caught;"
            cause = expression(node.cause) if node.cause else "null"
            return f"py.raise({expression(node.exc)}, {cause});"
        case ast.Try(orelse=[], finalbody=[]):
            return attempt(node)
        case ast.Try(orelse=[], handlers=[]):
            return f"try {block(node.body)} finally {block(node.finalbody)}"
        case ast.With(items=[ast.withitem(context_expr=ast.Call(func=ast.Name(id="suppress")) as call)]):
            kinds = ", ".join(map(expression, call.args))
            return f"try {block(node.body)} catch ($caught) {{ if (!py.caughtBy($caught, [{kinds}])) throw $caught; }}"
    raise NotTranslated(node)


def attempt(node: ast.Try) -> str:
    branches = []
    for handler in node.handlers:
        kind = expression(handler.type) if handler.type else "py.Exception_"
        name = f"{safe(handler.name)} = $caught; " if handler.name else ""
        branches.append(f"if (py.caughtBy($caught, [{kind}])) {{ {name}{block(handler.body)} }}")
    return f"{{ try {block(node.body)} catch ($caught) {{ {' else '.join(branches)} else throw $caught; }} }}"


def delete(target: ast.expr) -> str:
    if isinstance(target, ast.Subscript):
        return f"py.delitem({expression(target.value)}, {expression(target.slice)});"
    raise NotTranslated(target)


def assign(target: ast.expr, value: str) -> str:
    match target:
        case ast.Name():
            return f"{safe(target.id)} = {value};"
        case ast.Attribute():
            return f"py.setattr({expression(target.value)}, {json.dumps(target.attr)}, {value});"
        case ast.Subscript():
            return f"py.setitem({expression(target.value)}, {expression(target.slice)}, {value});"
        case ast.Tuple() | ast.List():
            return f"{pattern(target)} = py.unpack({value}, {arity(target)});"
    raise NotTranslated(target)


def arity(target: ast.expr) -> int:
    """How many values a target takes, -1 for any number."""
    return -1 if any(isinstance(one, ast.Starred) for one in target.elts) else len(target.elts)


def pattern(target: ast.expr) -> str:
    """A target of assignment as a pattern of JavaScript."""
    match target:
        case ast.Name():
            return safe(target.id)
        case ast.Starred():
            return f"...{pattern(target.value)}"
        case ast.Tuple() | ast.List():
            return f"[{', '.join('' if name == '_' else name for name in map(pattern, target.elts))}]"
    raise NotTranslated(target)


def decorated(node: ast.FunctionDef | ast.ClassDef, value: str) -> str:
    for decorator in reversed(node.decorator_list):
        value = f"py.call({expression(decorator)}, {value})"
    return value


def function(node: ast.FunctionDef) -> str:
    """A function with the names of its parameters, so that it can be called with keywords."""
    own = sorted(bound_names(node.body) - {argument.arg for argument in parameters(node.args)})
    declared = f"let {', '.join(map(safe, own))};" if own else ""
    body = "\n".join(filter(None, map(statement, node.body)))
    names = ", ".join(safe(argument.arg) for argument in parameters(node.args))
    return (
        f"py.def({json.dumps(node.name)}, {signature(node.args)}, ({names}) => {{ {declared}\n{body}\nreturn null; }})"
    )


def parameters(arguments: ast.arguments) -> list[ast.arg]:
    """All parameters in the order in which the translated function takes them."""
    return [
        *arguments.posonlyargs, *arguments.args, *filter(None, [arguments.vararg]), *arguments.kwonlyargs,
        *filter(None, [arguments.kwarg]),
    ]  # fmt: skip


def signature(arguments: ast.arguments) -> str:
    """What `py.def` needs to bind a call: names, defaults, and where the rest goes."""
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = dict(
        zip([one.arg for one in plain][len(plain) - len(arguments.defaults) :], arguments.defaults, strict=True)
    )
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    defaults |= {one.arg: default for one, default in pairs if default is not None}
    said = {
        "plain": json.dumps([one.arg for one in plain]),
        "rest": json.dumps(arguments.vararg.arg if arguments.vararg else None),
        "only": json.dumps([one.arg for one in arguments.kwonlyargs]),
        "keywords": json.dumps(arguments.kwarg.arg if arguments.kwarg else None),
        "defaults": "{ "
        + ", ".join(f"{json.dumps(name)}: {expression(value)}" for name, value in defaults.items())
        + " }",
    }
    return "{ " + ", ".join(f"{name}: {value}" for name, value in said.items()) + " }"


def class_of(node: ast.ClassDef) -> str:
    """A class: its members in their order. Raises ValueError for one that reads its own members while it is made."""
    lines, names = [], bound_names(node.body)
    if clash := {one.id for part in node.body for one in read_at_once(part)} & names:
        raise ValueError(f"class {node.name} reads its own {sorted(clash)}: methods would see these names too.")
    for one in node.body:
        if isinstance(one, ast.AnnAssign):
            name = json.dumps(one.target.id)
            lines.append(f"$annotations.set({name}, {annotation(one.annotation)});")
            lines.append(f"$own.set({name}, {expression(one.value)});" if one.value else "")
        elif isinstance(one, ast.FunctionDef):
            name = json.dumps(one.name)
            if any(isinstance(two, ast.Attribute) and two.attr == "setter" for two in one.decorator_list):
                lines.append(f"$own.set({name}, new py.Property($own.get({name}).get, {function(one)}));")
            else:
                lines.append(f"$own.set({name}, {decorated(one, function(one))});")
        elif isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Name):
            lines.append(f"$own.set({json.dumps(one.targets[0].id)}, {expression(one.value)});")
        elif not isinstance(one, (ast.Expr, ast.Pass)):
            raise NotTranslated(one)
    bases = ", ".join(map(expression, node.bases))
    body = "\n".join(filter(None, lines))
    return f"py.makeClass({json.dumps(node.name)}, [{bases}], ($own, $annotations, $current) => {{ {body} }})"


def annotation(node: ast.expr) -> str:
    """The type of a field as an expression; a text, which nothing checks, for what is more than builtin types."""
    plain = {"int", "str", "float", "bool", "list", "dict", "tuple", "Any"}
    names = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
    open_ended = any(isinstance(one, ast.Constant) and one.value is ... for one in ast.walk(node))
    return expression(node) if names <= plain and not open_ended else json.dumps(ast.unparse(node))


def expression(node: ast.expr) -> str:
    """One expression."""
    match node:
        case ast.Constant():
            return constant(node)
        case ast.Name():
            return safe(node.id)
        case ast.Attribute():
            return f"py.attr({expression(node.value)}, {json.dumps(node.attr)})"
        case ast.Subscript(slice=ast.Slice()):
            ends = [expression(end) if end else "null" for end in (node.slice.lower, node.slice.upper, node.slice.step)]
            return f"py.slice({expression(node.value)}, {', '.join(ends)})"
        case ast.Subscript():
            return f"py.getitem({expression(node.value)}, {expression(node.slice)})"
        case ast.Call():
            return call(node)
        case ast.BinOp():
            return f"py.{BINARY[type(node.op)]}({expression(node.left)}, {expression(node.right)})"
        case ast.UnaryOp(op=ast.Not()):
            return f"!py.truth({expression(node.operand)})"
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=float())):
            return constant(ast.Constant(-node.operand.value))
        case ast.UnaryOp(op=ast.USub()):
            return f"-{expression(node.operand)}"
        case ast.BoolOp():
            word = "both" if isinstance(node.op, ast.And) else "either"
            return f"py.{word}({', '.join(f'() => {expression(value)}' for value in node.values)})"
        case ast.Compare():
            return comparison(node)
        case ast.IfExp():
            return f"(py.truth({expression(node.test)}) ? {expression(node.body)} : {expression(node.orelse)})"
        case ast.JoinedStr():
            return "(" + " + ".join(['""', *map(piece, node.values)]) + ")"
        case ast.Lambda():
            names = ", ".join(safe(argument.arg) for argument in parameters(node.args))
            return f'py.def("<lambda>", {signature(node.args)}, ({names}) => ({expression(node.body)}))'
        case ast.NamedExpr():
            return f"({safe(node.target.id)} = {expression(node.value)})"
        case ast.Starred():
            return f"...py.iter({expression(node.value)})"
    return display(node)


def display(node: ast.expr) -> str:
    """A list, tuple, set or dict, said entry by entry or by loops."""
    match node:
        case ast.List():
            return f"[{elements(node.elts)}]"
        case ast.Tuple():
            return f"py.tuple([{elements(node.elts)}])"
        case ast.Set():
            return f"py.set([{elements(node.elts)}])"
        case ast.Dict():
            parts = [
                f"...py.items({expression(value)})" if key is None else f"[{expression(key)}, {expression(value)}]"
                for key, value in zip(node.keys, node.values, strict=True)
            ]
            return f"py.dict([{', '.join(parts)}])"
        case ast.ListComp() | ast.GeneratorExp():
            return loops(node.generators, f"$found.push({expression(node.elt)});", "[]")
        case ast.SetComp():
            return f"py.set({loops(node.generators, f'$found.push({expression(node.elt)});', '[]')})"
        case ast.DictComp():
            return loops(
                node.generators, f"py.setitem($found, {expression(node.key)}, {expression(node.value)});", "py.dict([])"
            )
    raise NotTranslated(node)


def constant(node: ast.Constant) -> str:
    value = node.value
    if isinstance(value, (str, bool)) or value is None:
        return json.dumps(value)
    if isinstance(value, float) and value.is_integer():
        return f"py.whole({value!r})"
    if isinstance(value, (int, float)):
        return repr(value)
    raise NotTranslated(node)


def elements(nodes: list[ast.expr]) -> str:
    return ", ".join(map(expression, nodes))


def comparison(node: ast.Compare) -> str:
    """`a < b <= c` evaluates b twice here: the subset has names and attributes there."""
    sides = [node.left, *node.comparators]
    parts = [
        COMPARISONS[type(op)].format(expression(left), expression(right))
        for op, left, right in zip(node.ops, sides, sides[1:], strict=False)
    ]
    return parts[0] if len(parts) == 1 else f"({' && '.join(parts)})"


def piece(node: ast.expr) -> str:
    """A part of an f-string."""
    if isinstance(node, ast.Constant):
        return json.dumps(node.value)
    value = expression(node.value)
    if node.conversion == ord("r"):
        value = f"py.repr({value})"
    spec = expression(node.format_spec) if node.format_spec else '""'
    return f"py.format({value}, {spec})"


def loops(generators: list[ast.comprehension], inner: str, empty: str) -> str:
    """A comprehension as loops inside a function of no arguments."""
    for one in reversed(generators):
        for test in reversed(one.ifs):
            inner = f"if (py.truth({expression(test)})) {{ {inner} }}"
        inner = f"for (const {pattern(one.target)} of py.iter({expression(one.iter)})) {{ {inner} }}"
    return f"(() => {{ const $found = {empty}; {inner} return $found; }})()"


def call(node: ast.Call) -> str:
    if isinstance(node.func, ast.Name) and node.func.id == "super":
        return f"py.super({elements(node.args) or '$current, self'})"
    arguments = [expression(one) for one in node.args]
    if node.keywords:
        parts = [
            f"...py.items({expression(one.value)})"
            if one.arg is None
            else f"[{json.dumps(one.arg)}, {expression(one.value)}]"
            for one in node.keywords
        ]
        arguments.append(f"py.keywords([{', '.join(parts)}])")
    return f"py.call({', '.join([expression(node.func), *arguments])})"
