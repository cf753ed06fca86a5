"""What a look at a whole merged program tells: where names are bound, attributes set, functions called."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

from stages.bundle.merge import COMPREHENSIONS

Scope = ast.FunctionDef | ast.Lambda | frozenset[str]  # the set: names of a comprehension


@dataclass(frozen=True)
class Place:
    """Where an expression stands: scopes from the outermost in, and the class whose method it is in."""

    scopes: tuple[Scope, ...] = ()
    owner: ast.ClassDef | None = None


@dataclass
class Facts:
    """What a look at the whole program tells."""

    functions: dict[str, ast.FunctionDef] = field(default_factory=dict)
    classes: dict[str, ast.ClassDef] = field(default_factory=dict)
    constants: dict[str, list[ast.expr]] = field(default_factory=dict)
    calls: dict[str, list[tuple[ast.Call, Place]]] = field(default_factory=dict)  # of a name
    loads: dict[str, int] = field(default_factory=dict)  # of a name, calls included
    stores: dict[str, list[tuple[ast.ClassDef | None, ast.expr | None, Place]]] = field(default_factory=dict)
    places: dict[int, Place] = field(default_factory=dict)  # of attributes, by id
    bound: dict[int, dict[str, list[tuple[ast.expr | None, Place]]]] = field(default_factory=dict)


class Collect(ast.NodeVisitor):
    """Fills `Facts`."""

    def __init__(self, module: ast.Module) -> None:
        self.facts = Facts()
        self._place = Place()
        for statement in module.body:
            if isinstance(statement, ast.FunctionDef):
                self.facts.functions[statement.name] = statement
            elif isinstance(statement, ast.ClassDef):
                self.facts.classes[statement.name] = statement
            elif isinstance(statement, ast.Assign):
                for target in statement.targets:
                    if isinstance(target, ast.Name):
                        self.facts.constants.setdefault(target.id, []).append(statement.value)
            self.visit(statement)

    def _inside(self, scope: Scope, nodes: list[ast.AST]) -> None:
        before = self._place
        self._place = Place((*before.scopes, scope), before.owner)
        for node in nodes:
            self.visit(node)
        self._place = before

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Defaults outside, the body inside."""
        for each in (*node.decorator_list, *node.args.defaults, *(d for d in node.args.kw_defaults if d)):
            self.visit(each)
        self.facts.bound[id(node)] = {}
        self._inside(node, list(node.body))

    def visit_Lambda(self, node: ast.Lambda) -> None:
        """As a function."""
        for each in (*node.args.defaults, *(d for d in node.args.kw_defaults if d)):
            self.visit(each)
        self.facts.bound[id(node)] = {}
        self._inside(node, [node.body])

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """Methods know their class. To derive from a class is not to hand it around."""
        for each in (*node.decorator_list, *(base for base in node.bases if not isinstance(base, ast.Name))):
            self.visit(each)
        before, self._place = self._place, Place(self._place.scopes, node)
        for each in node.body:
            self.visit(each)
        self._place = before

    def generic_visit(self, node: ast.AST) -> None:
        """Comprehensions are scopes; every other node is looked at."""
        if isinstance(node, COMPREHENSIONS):
            names = {n.id for g in node.generators for n in ast.walk(g.target) if isinstance(n, ast.Name)}
            self._inside(frozenset(names), list(ast.iter_child_nodes(node)))
            return
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            self.facts.loads[node.id] = self.facts.loads.get(node.id, 0) + 1
        elif isinstance(node, ast.Attribute):
            self.facts.places[id(node)] = self._place
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            self.facts.calls.setdefault(node.func.id, []).append((node, self._place))
        for target, value in targets(node):
            self._bind(target, value)
        super().generic_visit(node)

    def _bind(self, target: ast.expr, value: ast.expr | None) -> None:
        if isinstance(target, (ast.Tuple, ast.List)):
            paired = isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts)
            for index, each in enumerate(target.elts):
                self._bind(each, value.elts[index] if paired and isinstance(value, ast.Tuple) else None)
        elif isinstance(target, ast.Starred):
            self._bind(target.value, None)
        elif isinstance(target, ast.Attribute):
            own = isinstance(target.value, ast.Name) and target.value.id == "self"
            owner = self._place.owner if own else None
            self.facts.stores.setdefault(target.attr, []).append((owner, value, self._place))
        elif isinstance(target, ast.Name):
            function = next((s for s in reversed(self._place.scopes) if not isinstance(s, frozenset)), None)
            if function is not None:
                self.facts.bound[id(function)].setdefault(target.id, []).append((value, self._place))


def targets(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    """(target, what it is set to, if that is an expression) of everything that a node binds."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            yield target, node.value
    elif isinstance(node, (ast.AugAssign, ast.AnnAssign, ast.For, ast.NamedExpr)):
        yield node.target, None
    elif isinstance(node, ast.Delete):
        for target in node.targets:
            yield target, None
    elif isinstance(node, ast.With):
        for item in node.items:
            if item.optional_vars is not None:
                yield item.optional_vars, None
    elif isinstance(node, ast.ExceptHandler) and node.name:
        yield ast.Name(node.name, ast.Store()), None
