"""Which names a piece of Python binds, and which it reads from outside."""

import ast


def free_names(source: str) -> set[str]:
    """Names that a module reads and no function or comprehension in it binds: its own top level's included."""
    module = ast.parse(source)
    for node in list(ast.walk(module)):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
            for argument in ast.walk(node.args):
                if isinstance(argument, ast.arg):
                    argument.annotation = None
        if isinstance(node, ast.AnnAssign) and not isinstance(node.target, ast.Name):
            node.annotation = ast.Constant(None)
    found = set()

    def visit(node: ast.AST, bound: frozenset) -> None:
        if isinstance(node, ast.If) and is_for_editors(node):
            return
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            inside = {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
            if isinstance(node, ast.FunctionDef):
                inside |= bound_names(node.body)
                for decorator in node.decorator_list:
                    visit(decorator, bound)
            for default in (*node.args.defaults, *(one for one in node.args.kw_defaults if one is not None)):
                visit(default, bound)
            for one in node.body if isinstance(node.body, list) else [node.body]:
                visit(one, bound | inside)
            return
        if isinstance(node, ast.ClassDef):
            bound |= bound_names(node.body)
        if isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            bound |= {name.id for one in node.generators for name in ast.walk(one.target) if isinstance(name, ast.Name)}
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is None:
            return
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in bound:
            found.add(node.id)
        for child in ast.iter_child_nodes(node):
            visit(child, bound)

    visit(module, frozenset())
    return found


def is_for_editors(node: ast.If) -> bool:
    return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def bound_names(body: list[ast.stmt]) -> set[str]:
    """Names that statements bind in their own scope."""
    found = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and is_for_editors(node):
            return
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
            return
        if isinstance(node, ast.Lambda):
            return
        if isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            # Their own names are theirs; what `:=` binds is the function's.
            found.update(one.target.id for one in ast.walk(node) if isinstance(one, ast.NamedExpr))
            return
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        if isinstance(node, ast.ExceptHandler) and node.name:
            found.add(node.name)
        for child in ast.iter_child_nodes(node):
            visit(child)

    for node in body:
        visit(node)
    return found


def read_at_once(node: ast.stmt) -> list[ast.Name]:
    """Names that a statement of a class reads while the class is made."""
    parts = node.decorator_list if isinstance(node, ast.FunctionDef) else [getattr(node, "value", None)]
    found = [one for part in parts if part is not None for one in ast.walk(part) if isinstance(one, ast.Name)]
    setters = [one.value for one in parts if isinstance(one, ast.Attribute) and one.attr == "setter"]
    return [one for one in found if isinstance(one.ctx, ast.Load) and one not in setters]
