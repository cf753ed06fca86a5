"""A merged module without what its entry never reaches: definitions, imports, methods.

A definition is reached by its name, a method by its name as an attribute or as a text, of whatever object: too much may
stay and nothing that is used can go. Methods that Python or a base class from outside may call stay with their class.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator

from stages.bundle.merge import names_bound_by
from stages.bundle.values import Reason

# Methods that nn.Module and Optimizer have too, and so may call; a test compares them.
TORCH_BASES = {"nn.Module", "Optimizer"}
HOOKS = {"forward", "step"}
# Bases whose own methods call none of ours by name.
WEAK = {"STEPS"}  # tables that list classes by name: an entry is needed where something else can make one
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
        self._own: set[tuple[str, str]] = set()  # (class, attribute), where the class is known
        self._reason = Reason(module, {})
        self._waiting: list[ast.AST] = []
        self._optional: list[tuple[str, ast.FunctionDef]] = []  # class and method, not reached yet
        self._outside = outside(module)
        self._overridden = {id(method) for method in overridden(module)}

    def kept(self, entry: str) -> ast.Module:
        """The module without the rest."""
        self._name(entry)
        while self._waiting:
            self._scan(self._waiting.pop())
            if not self._waiting:
                called = [each for each in self._optional if each[1].name in self._words or self._is_own(each)]
                self._optional = [each for each in self._optional if each not in called]
                self._waiting += [method for _, method in called]
        dropped = {id(method) for _, method in self._optional} | self._overridden
        body: list[ast.stmt] = []
        for statement in self._module.body:
            if id(statement) not in self._reached:
                continue
            if is_weak(statement):
                self._drop_entries(statement)
            if isinstance(statement, ast.ClassDef):
                statement.body = [each for each in statement.body if id(each) not in dropped] or [ast.Pass()]
            body.append(statement)
        self._module.body = body
        return self._module

    def _is_own(self, method: tuple[str, ast.FunctionDef]) -> bool:
        return (method[0], method[1].name) in self._own

    def _name(self, name: str) -> None:
        for statement in self._definitions.get(name, []):
            if id(statement) not in self._reached:
                self._reached.add(id(statement))
                self._waiting.append(statement)

    def _drop_entries(self, statement: ast.AST) -> None:
        for node in ast.walk(statement):
            if isinstance(node, ast.Tuple):
                classes = {name for name, (first, *_) in self._definitions.items() if id(first) in self._reached}
                node.elts = [each for each in node.elts if not isinstance(each, ast.Name) or each.id in classes]

    def _scan(self, node: ast.AST) -> None:
        if is_weak(node):
            return
        if isinstance(node, ast.ClassDef) and id(node) in self._reached:
            self._scan_class(node)
            return
        for each in ast.walk(node):
            self._take(each)

    def _take(self, node: ast.AST) -> None:
        if isinstance(node, ast.Name):
            self._name(node.id)
        elif isinstance(node, ast.Attribute):
            if isinstance(node.ctx, ast.Store) or (isinstance(node.value, ast.Name) and node.value.id in self._outside):
                return
            owners = self._reason.receivers(node)
            if owners is None:
                self._words.add(node.attr)
            else:
                self._own |= {(owner, node.attr) for owner in owners}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            self._words.add(node.value)

    def _scan_class(self, node: ast.ClassDef) -> None:
        hooks = self._hooks(node)
        for part in (*node.decorator_list, *node.bases, *node.keywords):
            self._scan(part)
        for statement in node.body:
            if id(statement) in self._overridden:
                continue
            if (
                isinstance(statement, ast.FunctionDef)
                and statement.name not in hooks
                and not is_special(statement.name)
            ):
                for part in (*statement.decorator_list, *defaults(statement)):
                    self._scan(part)
                self._optional.append((node.name, statement))
            else:
                self._scan(statement)

    def _hooks(self, node: ast.ClassDef) -> set[str]:
        """The methods of a class that something outside may call by name."""
        found = set[str]()
        for base in node.bases:
            name = ast.unparse(base)
            if name in self._classes:
                found |= self._hooks(self._classes[name])
            elif name not in INERT_BASES:
                every = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
                found |= HOOKS if name in TORCH_BASES else every
        return found


def is_weak(node: ast.AST) -> bool:
    """Whether this is a table whose entries may go."""
    return isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in WEAK


def overridden(module: ast.Module) -> Iterator[ast.FunctionDef]:
    """Methods that nothing can call: their class is only there for one other to derive from, which has its own."""
    loads = Counter(n.id for n in ast.walk(module) if isinstance(n, ast.Name))
    classes = {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}
    for derived in classes.values():
        for base in derived.bases:
            if isinstance(base, ast.Name) and base.id in classes and loads[base.id] == 1:
                own = {each.name: each for each in derived.body if isinstance(each, ast.FunctionDef)}
                above = {n.attr for n in ast.walk(derived) if isinstance(n, ast.Attribute) and is_super(n.value)}
                yield from (
                    each
                    for each in classes[base.id].body
                    if isinstance(each, ast.FunctionDef) and each.name in own and each.name not in above
                )


def outside(module: ast.Module) -> set[str]:
    """Names of imported modules, which have no method of ours, where nothing else has that name."""
    imported = {name for each in module.body if isinstance(each, ast.Import) for name in defined(each)}
    local = {n.id for n in ast.walk(module) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    local |= {n.arg for n in ast.walk(module) if isinstance(n, ast.arg)}
    return imported - local


def is_super(node: ast.expr) -> bool:
    """super()"""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"


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
