"""A merged module without what its entry never reaches: definitions, imports, methods.

A definition is reached by its name, a method by its name as an attribute or as a text, of whatever object: too much may
stay and nothing that is used can go. Methods that Python or a base class from outside may call stay with their class.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from stages.bundle.merge import names_bound_by

# Bases whose own methods call none of ours by name.
INERT_BASES = {"ABC", "NamedTuple", "ValueError", "BaseException", "Exception", "RuntimeError", "Protocol"}


def shake(module: ast.Module, entry: str) -> ast.Module:
    """What `entry` reaches; the order of statements stays."""
    return Reach(module).kept(entry)


class Reach:
    """Marks statements and methods, from the entry on, until nothing new is reached."""

    def __init__(self, module: ast.Module) -> None:
        self._module = module
        self._definitions: dict[str, list[ast.stmt]] = {}
        for statement in module.body:
            for name in defined(statement):
                self._definitions.setdefault(name, []).append(statement)
        self._classes = {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}
        self._reached: set[int] = set()
        self._words: set[str] = set()  # attributes and texts of what is reached
        self._waiting: list[ast.AST] = []
        self._optional: list[tuple[str, ast.FunctionDef]] = []  # methods not reached yet

    def kept(self, entry: str) -> ast.Module:
        """The module without the rest."""
        self._name(entry)
        while self._waiting:
            self._scan(self._waiting.pop())
            if not self._waiting:
                called = [method for name, method in self._optional if name in self._words]
                self._optional = [each for each in self._optional if each[0] not in self._words]
                self._waiting += called
        dropped = {id(method) for _, method in self._optional}
        body: list[ast.stmt] = []
        for statement in self._module.body:
            if id(statement) not in self._reached:
                continue
            if isinstance(statement, ast.ClassDef):
                statement.body = [each for each in statement.body if id(each) not in dropped] or [ast.Pass()]
            body.append(statement)
        self._module.body = body
        return self._module

    def _name(self, name: str) -> None:
        for statement in self._definitions.get(name, []):
            if id(statement) not in self._reached:
                self._reached.add(id(statement))
                self._waiting.append(statement)

    def _scan(self, node: ast.AST) -> None:
        if isinstance(node, ast.ClassDef) and id(node) in self._reached:
            self._scan_class(node)
            return
        for each in ast.walk(node):
            self._take(each)

    def _take(self, node: ast.AST) -> None:
        if isinstance(node, ast.Name):
            self._name(node.id)
        elif isinstance(node, ast.Attribute):
            if not isinstance(node.ctx, ast.Store):
                self._words.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            self._words.add(node.value)

    def _scan_class(self, node: ast.ClassDef) -> None:
        inert = self._is_inert(node)
        for part in (*node.decorator_list, *node.bases, *node.keywords):
            self._scan(part)
        for statement in node.body:
            if isinstance(statement, ast.FunctionDef) and inert and not is_special(statement.name):
                for part in (*statement.decorator_list, *defaults(statement)):
                    self._scan(part)
                self._optional.append((statement.name, statement))
            else:
                self._scan(statement)

    def _is_inert(self, node: ast.ClassDef) -> bool:
        """Whether nothing outside calls methods of this class by name."""
        return all(
            isinstance(base, ast.Name)
            and (base.id in INERT_BASES or (base.id in self._classes and self._is_inert(self._classes[base.id])))
            for base in node.bases
        )


def is_special(name: str) -> bool:
    """Whether Python calls it."""
    return name.startswith("__") and name.endswith("__")


def defaults(function: ast.FunctionDef) -> list[ast.expr]:
    """What is evaluated when a function is defined."""
    return [each for each in (*function.args.defaults, *function.args.kw_defaults) if each]


def defined(statement: ast.stmt) -> Iterator[str]:
    """The names that a statement at the top defines or imports."""
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        for alias in statement.names:
            yield alias.asname or alias.name
    elif isinstance(statement, (ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)):
        yield from names_bound_by(statement)
