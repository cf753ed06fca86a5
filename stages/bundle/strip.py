"""What of a module does not act: docstrings, annotations, type-checking imports, `cast`, the tails of error texts."""

from __future__ import annotations

import ast
from typing import Any

FIELDS = {"dataclass", "NamedTuple"}

# Where what comes from outside is checked: files, environment, devices, training that diverges. Other modules check
# what the recipe and the program's own calls give them, the same in every run: as assertions do, these checks go.
OUTSIDE = {
    *("model.shards", "model.archive", "model.bytes", "model.batches", "model.stream", "model.adapt", "model.grid"),
    *("stages.submission", "stages.device", "stages.train.loop", "stages.train.telemetry", "stages.train.validation"),
}
LOOKS = (
    *(ast.Name, ast.Attribute, ast.Constant, ast.Tuple, ast.Set, ast.Subscript, ast.Slice, ast.expr_context),
    *(ast.UnaryOp, ast.unaryop, ast.Compare, ast.cmpop, ast.BoolOp, ast.boolop, ast.BinOp, ast.operator),
)


class Strip(ast.NodeTransformer):
    """Drops it. Of parameters the full name of a class stays in place of the annotation, for `values.py` to read."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._imported: dict[str, str] = {}
        self._classes: set[str] = set()  # so far: annotations of fields keep those, since code may ask

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        """Remembers what names of classes mean, those for type checking too."""
        self._imported.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
        return node

    def _full_name(self, annotation: ast.expr | None) -> ast.expr | None:
        if not isinstance(annotation, ast.Name):
            return None
        name = annotation.id
        return ast.Constant(self._imported.get(name, f"{self._module}.{name}" if name in self._classes else name))

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        """The modules of `if TYPE_CHECKING` are not packed, and their names serve annotations only."""
        self.generic_visit(node)
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return node.orelse
        if self._module not in OUTSIDE and isinstance(node.body[0], ast.Raise) and looks(node.test):
            return node.orelse
        node.body = node.body or [ast.Pass()]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """No annotations, no docstring."""
        self.generic_visit(node)
        node.returns = None
        for each in ast.walk(node.args):
            if isinstance(each, ast.arg):
                each.annotation = self._full_name(each.annotation)
        node.body = without_text(node.body) or [ast.Pass()]
        return node

    def _not_empty(self, node: Any) -> ast.AST:
        self.generic_visit(node)
        node.body = node.body or [ast.Pass()]
        return node

    visit_For = visit_With = visit_While = _not_empty

    def visit_Module(self, node: ast.Module) -> ast.AST:
        """No docstring, and no texts under constants."""
        self.generic_visit(node)
        node.body = without_text(node.body)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """Fields of dataclasses and named tuples keep a type each; other annotations without a value go."""
        has_fields = bool(FIELDS & {n.id for part in (*node.decorator_list, *node.bases) for n in names(part)})
        body: list[ast.stmt] = []
        for statement in without_text(node.body):
            if isinstance(statement, ast.AnnAssign) and has_fields:
                if any(name.id == "ClassVar" for name in names(statement.annotation)):
                    continue
                kept = isinstance(statement.annotation, ast.Name) and statement.annotation.id in self._classes
                statement.annotation = statement.annotation if kept else ast.Name("int", ast.Load())
                if statement.value:
                    statement.value = self.visit(statement.value)
                body.append(statement)
            else:
                visited = self.visit(statement)
                body += visited if isinstance(visited, list) else [visited] if visited else []
        if any(name.id == "Protocol" for part in node.bases for name in names(part)):
            node.bases, body = [], []
        # What is abstract says something to a reader only.
        body = [each for each in body if not (isinstance(each, ast.FunctionDef) and is_abstract(each))]
        node.body = body or [ast.Pass()]
        node.bases = [base for base in node.bases if not (isinstance(base, ast.Name) and base.id == "ABC")]
        self._classes.add(node.name)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        """A plain assignment, or nothing."""
        self.generic_visit(node)
        return ast.copy_location(ast.Assign([node.target], node.value), node) if node.value else None

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """`cast` is its second argument."""
        self.generic_visit(node)
        return node.args[1] if isinstance(node.func, ast.Name) and node.func.id == "cast" else node

    def visit_Assert(self, node: ast.Assert) -> None:
        """Ours tell a type checker what holds by construction."""

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        """Of "rule; what came; what to do" the bundle says the rule: whoever runs it has its source to ask."""
        self.generic_visit(node)
        if isinstance(node.exc, ast.Call):
            node.exc.args = [first_clause(arg) for arg in node.exc.args]
        return node


def is_abstract(function: ast.FunctionDef) -> bool:
    """Whether a derived class must have its own."""
    return any(isinstance(each, ast.Name) and each.id == "abstractmethod" for each in function.decorator_list)


def looks(test: ast.expr) -> bool:
    """Whether a test does nothing but look at numbers and objects that are there."""
    asked = {id(n.func) for n in ast.walk(test) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    known = {"len", "isinstance", "type", "set"}
    return all(
        isinstance(n, LOOKS) or (isinstance(n, ast.Call) and id(n.func) in asked and ast.unparse(n.func) in known)
        for n in ast.walk(test)
    )


def names(node: ast.AST) -> list[ast.Name]:
    """Every name in a node."""
    return [each for each in ast.walk(node) if isinstance(each, ast.Name)]


def without_text(body: list[ast.stmt]) -> list[ast.stmt]:
    """Statements that are no constants."""
    return [each for each in body if not (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))]


def first_clause(text: ast.expr) -> ast.expr:
    """An error's text up to its first semicolon."""
    if isinstance(text, ast.Constant) and isinstance(text.value, str):
        return ast.Constant(text.value.split(";")[0])
    if isinstance(text, ast.JoinedStr):
        kept: list[ast.expr] = []
        for part in text.values:
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and ";" in part.value:
                kept.append(ast.Constant(part.value.split(";")[0]))
                break
            kept.append(part)
        return ast.JoinedStr(kept) if any(isinstance(part, ast.FormattedValue) for part in kept) else kept[0]
    return text
