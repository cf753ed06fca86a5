"""Many modules as one: everything that is defined at the top of any of them stands in one namespace.

Modules come in the order of their imports. A name that two modules give to different things gets a number in the
second; a name is found by its scope, so a local variable of the same name stays what it was. Where the result could
mean something else than the modules, this refuses.
"""

from __future__ import annotations

import ast
import builtins
import keyword
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from stages.contract import StageError

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
Symbol = tuple[str, str]  # (module, name in it); the name is "" for the module itself


@dataclass
class Module:
    """A parsed module: its statements without imports, and what its global names stand for."""

    name: str
    body: list[ast.stmt] = field(default_factory=list)
    names: dict[str, Symbol] = field(default_factory=dict)


def merge(trees: Mapping[str, ast.Module], entry: str) -> ast.Module:
    """The module `entry` and all that it imports of `trees`, by module name, as one module."""
    modules: dict[str, Module] = {}
    for name in in_order(trees, entry):
        modules[name] = opened(name, trees[name], trees)
    spelled = spell(list(reversed(modules.values())), trees)  # the entry, which comes last, keeps its names
    body: list[ast.stmt] = imports([symbol for symbol in spelled if symbol[0] not in trees], spelled)
    for module in modules.values():
        renamer = Renamer(module, spelled, trees)
        body += [renamer.visit(statement) for statement in module.body]
    return ast.fix_missing_locations(ast.Module(body, []))


def in_order(trees: Mapping[str, ast.Module], entry: str) -> list[str]:
    """`entry` and every module that it needs, each after those that it imports."""
    found: list[str] = []
    waiting: list[str] = []

    def visit(name: str) -> None:
        if name in found:
            return
        if name in waiting:
            raise StageError(f"packed modules import each other in one direction; {name} is in a circle; break it")
        waiting.append(name)
        for statement in trees[name].body:
            for module, what, _ in imported(statement):
                for each in (module, f"{module}.{what}"):
                    if each in trees:
                        visit(each)
        found.append(waiting.pop())

    visit(entry)
    return found


def imported(statement: ast.stmt) -> Iterator[tuple[str, str, str]]:
    """(module, name in it or "", local name) of an import; submodules of a package are modules."""
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            yield (
                (alias.name if alias.asname else alias.name.split(".")[0]),
                "",
                alias.asname or alias.name.split(".")[0],
            )
    elif isinstance(statement, ast.ImportFrom):
        for alias in statement.names:
            yield statement.module or "", alias.name, alias.asname or alias.name


def opened(name: str, tree: ast.Module, trees: Mapping[str, ast.Module]) -> Module:
    """A module's statements and names, with imports resolved to what they stand for."""
    module = Module(name)
    for statement in tree.body:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            for source, what, local in imported(statement):
                submodule = f"{source}.{what}"
                module.names[local] = (submodule, "") if submodule in trees else (source, what)
                if source == "__future__":
                    del module.names[local]
            continue
        if not isinstance(statement, (ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)):
            raise StageError(
                f"the top of a packed module defines and does nothing else; {name}, line {statement.lineno}, is "
                f"{type(statement).__name__}; move it into a function"
            )
        module.body.append(statement)
        for defined in names_bound_by(statement):
            module.names[defined] = (name, defined)
    return module


def names_bound_by(statement: ast.stmt) -> list[str]:
    """What a statement at the top of a module defines."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]  # pyright: ignore[reportAttributeAccessIssue]
    return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]


def spell(modules: list[Module], trees: Mapping[str, ast.Module]) -> dict[Symbol, str]:
    """The one name that each symbol gets; the first to come keeps its own."""
    everywhere = {
        word
        for module in modules
        for statement in module.body
        for node in ast.walk(statement)
        for word in (getattr(node, "id", None), getattr(node, "arg", None), getattr(node, "name", None))
        if isinstance(word, str)
    }
    spelled: dict[Symbol, str] = {}
    taken = {*dir(builtins), *keyword.kwlist}
    own = {
        (module.name, name) for module in modules for name in module.names if module.names[name] == (module.name, name)
    }
    for module in modules:
        for local, symbol in module.names.items():
            if symbol in spelled or (symbol[0] in trees and not symbol[1]):
                continue
            if symbol[0] in trees and symbol not in own:
                raise StageError(f"{module.name} imports {symbol[1]} of {symbol[0]}, which does not define it")
            name, number = (symbol[1] if symbol[0] in trees else local), 2
            while name in taken or (number > 2 and name in everywhere):
                name, number = f"{local}_{number}", number + 1
            spelled[symbol] = name
            taken.add(name)
    return spelled


def imports(symbols: list[Symbol], spelled: Mapping[Symbol, str]) -> list[ast.stmt]:
    """The imports of what is not packed."""
    found: list[ast.stmt] = []
    for module, name in sorted(symbols):
        local = spelled[module, name]
        if name:
            found.append(ast.ImportFrom(module, [ast.alias(name, None if name == local else local)], 0))
        else:
            found.append(ast.Import([ast.alias(module, None if module == local else local)]))
    return found


class Renamer(ast.NodeTransformer):
    """Global names of one module as they are spelled in the merged one."""

    def __init__(self, module: Module, spelled: Mapping[Symbol, str], trees: Mapping[str, ast.Module]) -> None:
        self._module, self._spelled, self._trees = module, spelled, trees
        self._scopes: list[set[str]] = []

    def _symbol(self, name: str) -> Symbol | None:
        if any(name in scope for scope in self._scopes):
            return None
        return self._module.names.get(name)

    def _rename(self, name: str) -> str:
        symbol = self._symbol(name)
        if symbol is None:
            return name
        if symbol not in self._spelled:
            raise StageError(f"a packed module is used as `module.name` only; {self._module.name} has {name} alone")
        spelled = self._spelled[symbol]
        if any(spelled in scope for scope in self._scopes):
            raise StageError(
                f"{spelled} of {symbol[0]} is hidden by a local name where {self._module.name} needs it; rename that"
            )
        return spelled

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """A name in the scope where it stands."""
        node.id = self._rename(node.id)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        """`module.name` of a packed module is that name."""
        if isinstance(node.value, ast.Name):
            symbol = self._symbol(node.value.id)
            if symbol and symbol[0] in self._trees and not symbol[1]:
                target: Symbol = (symbol[0], node.attr)
                if target not in self._spelled or any(self._spelled[target] in scope for scope in self._scopes):
                    raise StageError(f"{self._module.name} needs {node.attr} of {symbol[0]}, which is not reachable")
                return ast.Name(self._spelled[target], node.ctx)
        self.generic_visit(node)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Defaults and decorators belong to the scope outside, the body to a scope of its own."""
        node.decorator_list = [self.visit(each) for each in node.decorator_list]
        self._visit_defaults(node.args)
        if not self._scopes:
            node.name = self._rename(node.name)
        self._scopes.append(bound_in(node))
        node.body = [self.visit(each) for each in node.body]
        self._scopes.pop()
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        """As a function."""
        self._visit_defaults(node.args)
        self._scopes.append(bound_in(node))
        node.body = self.visit(node.body)
        self._scopes.pop()
        return node

    def _visit_defaults(self, args: ast.arguments) -> None:
        args.defaults = [self.visit(each) for each in args.defaults]
        args.kw_defaults = [each and self.visit(each) for each in args.kw_defaults]

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """Names of a class's body are seen by its own statements, and not by its methods."""
        node.decorator_list = [self.visit(each) for each in node.decorator_list]
        node.bases = [self.visit(each) for each in node.bases]
        node.keywords = [self.visit(each) for each in node.keywords]
        if not self._scopes:
            node.name = self._rename(node.name)
        own: set[str] = set()
        for statement in node.body:
            own |= set(bound_by(statement))
        body: list[ast.stmt] = []
        for statement in node.body:
            if isinstance(statement, ast.FunctionDef):
                name = statement.name
                # Its decorators and defaults could read the class's names; none of ours do, and `own` would hide them.
                self._scopes.append(set())
                body.append(self.visit(statement))
                self._scopes.pop()
                statement.name = name
            else:
                self._scopes.append(own)
                body.append(self.visit(statement))
                self._scopes.pop()
        node.body = body
        return node

    def _visit_comprehension(self, node: ast.AST) -> ast.AST:
        self._scopes.append({n.id for g in node.generators for n in ast.walk(g.target) if isinstance(n, ast.Name)})  # pyright: ignore[reportAttributeAccessIssue]
        self.generic_visit(node)
        self._scopes.pop()
        return node

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _visit_comprehension


def bound_in(function: ast.FunctionDef | ast.Lambda) -> set[str]:
    """The local names of a function."""
    args = function.args
    found = {each.arg for each in [*args.posonlyargs, *args.args, *args.kwonlyargs]}
    found |= {each.arg for each in (args.vararg, args.kwarg) if each}
    for statement in function.body if isinstance(function.body, list) else [function.body]:
        found |= set(bound_by(statement))
    return found


def bound_by(node: ast.AST) -> Iterator[str]:
    """Names that a node binds in the scope where it stands."""
    if isinstance(node, (ast.Global, ast.Nonlocal, ast.Match)):
        raise StageError(f"packed code has no {type(node).__name__.lower()} statement; line {node.lineno} does")
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
        return
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        yield node.id
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        yield from (local for _, _, local in imported(node))
    if isinstance(node, ast.ExceptHandler) and node.name:
        yield node.name
    if isinstance(node, ast.Lambda):
        return
    if isinstance(node, COMPREHENSIONS):  # only := reaches out of one
        yield from (
            n.target.id for n in ast.walk(node) if isinstance(n, ast.NamedExpr) and isinstance(n.target, ast.Name)
        )
        return
    for child in ast.iter_child_nodes(node):
        yield from bound_by(child)
