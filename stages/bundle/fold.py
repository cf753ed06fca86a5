"""A merged program without the branches that its recipe never takes.

Tests whose outcome `values.py` knows are decided here, and numbers and texts of the recipe stand where they are read;
then assignments that nothing reads go. Together with `shake` this leaves out whole techniques.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from typing import Any

from stages.bundle.facts import Place, Scope
from stages.bundle.known import Known
from stages.bundle.merge import COMPREHENSIONS
from stages.bundle.values import SCALARS, Instance, Reason, is_pure

ENDS = (ast.Return, ast.Raise, ast.Continue, ast.Break)


def fold(module: ast.Module, known: Known) -> ast.Module:
    """One pass; another one may find more."""
    folded = Fold(Reason(module, known)).visit(module)
    return ast.fix_missing_locations(Unread(folded).visit(folded))


class Fold(ast.NodeTransformer):
    """Decides what is known."""

    def __init__(self, reason: Reason) -> None:
        self._reason = reason
        self._place = Place()

    def _inside(self, scope: Scope, owner: ast.ClassDef | None, node: ast.AST, fields: tuple[str, ...]) -> None:
        before = self._place
        self._place = Place((*before.scopes, scope), owner)
        for name in fields:
            value = getattr(node, name)
            setattr(node, name, self._statements(value) if isinstance(value, list) else self.visit(value))
        self._place = before

    def _statements(self, body: list[Any]) -> list[Any]:
        """Statements up to the first that nothing follows."""
        found: list[Any] = []
        for statement in body:
            visited = self.visit(statement)
            found += visited if isinstance(visited, list) else [visited] if visited is not None else []
            if any(isinstance(each, ENDS) for each in found):
                break
        ends = next((i for i, each in enumerate(found) if isinstance(each, ENDS)), len(found))
        return found[: ends + 1]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """The body in its scope."""
        node.args.defaults = [self.visit(each) for each in node.args.defaults]
        node.args.kw_defaults = [each and self.visit(each) for each in node.args.kw_defaults]
        last = node.args.args[len(node.args.args) - len(node.args.defaults) :]
        for index, argument in enumerate(last):
            if self._reason.always_given(node, argument):
                node.args.defaults[index] = ast.Constant(None)
        self._inside(node, self._place.owner, node, ("body",))
        node.body = node.body or [ast.Pass()]
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        """The body in its scope."""
        self._inside(node, self._place.owner, node, ("body",))
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """Methods know their class."""
        before, self._place = self._place, Place(self._place.scopes, node)
        node.body = self._statements(node.body) or [ast.Pass()]
        self._place = before
        return node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt] | None:
        """The branch that is taken, where that is known."""
        truth = self._reason.truth(node.test, self._place)
        if truth is not None:
            return self._statements(node.body if truth else node.orelse) or None
        node.test = self.visit(node.test)
        node.body = self._statements(node.body) or [ast.Pass()]
        node.orelse = self._statements(node.orelse)
        if len(node.body) == 1 and isinstance(node.body[0], ast.Pass) and not node.orelse and is_pure([node.test]):
            return None
        return node

    def visit_For(self, node: ast.For) -> ast.AST:
        """A loop's body is statements too."""
        node.iter = self.visit(node.iter)
        node.body = self._statements(node.body) or [ast.Pass()]
        node.orelse = self._statements(node.orelse)
        return node

    def visit_While(self, node: ast.While) -> ast.AST:
        """A loop's body is statements too."""
        node.test = self.visit(node.test)
        node.body = self._statements(node.body) or [ast.Pass()]
        return node

    def visit_With(self, node: ast.With) -> ast.AST:
        """A body is statements too."""
        node.items = [self.visit(each) for each in node.items]
        node.body = self._statements(node.body) or [ast.Pass()]
        return node

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        """The side that is taken."""
        truth = self._reason.truth(node.test, self._place)
        if truth is not None:
            return self.visit(node.body if truth else node.orelse)
        return self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        """Without operands that decide nothing."""
        ends = isinstance(node.op, ast.Or)
        kept: list[ast.expr] = []
        for index, each in enumerate(node.values):
            truth = self._reason.truth(each, self._place)
            last = index == len(node.values) - 1
            if truth is (not ends) and not last:
                continue
            kept.append(self.visit(each))
            if truth is ends:
                break
        node.values = kept
        return node if len(kept) > 1 else kept[0]

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Comprehensions are scopes; an expression with one plain value is that value."""
        if isinstance(node, COMPREHENSIONS):
            names = frozenset(n.id for g in node.generators for n in ast.walk(g.target) if isinstance(n, ast.Name))
            fields = ("key", "value") if isinstance(node, ast.DictComp) else ("elt",)
            before = self._place
            self._place = Place((*before.scopes, names), before.owner)
            for name in fields:
                setattr(node, name, self.visit(getattr(node, name)))
            node.generators = [self.visit(each) for each in node.generators]
            self._place = before
            return node
        if isinstance(node, (ast.Name, ast.Attribute, ast.Compare, ast.Call, ast.UnaryOp)):
            if isinstance(getattr(node, "ctx", None), (ast.Store, ast.Del)):
                return super().generic_visit(node)
            values = self._reason.values(node, self._place)
            if values and len(values) == 1 and not isinstance(values[0], Instance) and isinstance(values[0], SCALARS):
                return ast.copy_location(ast.Constant(values[0]), node)
        return super().generic_visit(node)

    visit_Name = visit_Attribute = visit_Compare = visit_Call = visit_UnaryOp = generic_visit


class Unread(ast.NodeTransformer):
    """Drops assignments of plain values to names and attributes that nothing reads."""

    def __init__(self, module: ast.Module) -> None:
        self._attributes = Counter[str]()
        for node in ast.walk(module):
            if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Store):
                self._attributes[node.attr] += 1
            elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Attribute):
                self._attributes[node.target.attr] += 1  # += reads
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                self._attributes[node.value] += 1
        self._names: list[set[str]] = []

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Names are read in the function or in one inside it."""
        self._names.append(set(read(node)))
        self.generic_visit(node)
        self._names.pop()
        node.body = node.body or [ast.Pass()]
        return node

    def _is_unread(self, target: ast.expr) -> bool:
        if isinstance(target, ast.Name):
            return bool(self._names) and target.id not in self._names[-1]
        if isinstance(target, ast.Attribute):
            own = isinstance(target.value, ast.Name) and target.value.id == "self"
            return own and bool(self._names) and not self._attributes[target.attr]
        return False

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        """Gone, or without those targets of a tuple that nothing reads."""
        (target, *more) = node.targets
        if more or not is_pure([node.value]):
            return node
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = [pair for pair in zip(target.elts, node.value.elts, strict=False) if not self._is_unread(pair[0])]
            if len(target.elts) != len(node.value.elts) or len(pairs) == len(target.elts):
                return node
            if len(pairs) == 1:
                return ast.Assign([pairs[0][0]], pairs[0][1])
            target.elts, node.value.elts = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            return node if pairs else None
        return None if self._is_unread(target) else node

    def _not_empty(self, node: Any) -> ast.AST:
        """A body may have become empty."""
        self.generic_visit(node)
        node.body = node.body or [ast.Pass()]
        return node

    visit_If = visit_For = visit_With = visit_While = _not_empty


def read(node: ast.AST) -> Iterator[str]:
    """The names that a node reads."""
    for each in ast.walk(node):
        if isinstance(each, ast.AugAssign) and isinstance(each.target, ast.Name):
            yield each.target.id
        elif isinstance(each, ast.Name) and not isinstance(each.ctx, ast.Store):
            yield each.id
