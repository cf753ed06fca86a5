"""Which values an expression of a merged program can have, where that follows from the recipe.

`None` stands for "not known"; a list holds every value that is possible. Sources of knowledge: parameters whose class
has known objects (`known.py`), constants, names and attributes that are set in one place, arguments of all calls.
Whatever the program may change behind this reasoning is not known: names that are bound twice, attributes that are set
from outside their class.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stages.bundle.facts import Collect, Place, Scope
from stages.bundle.known import Known, has_field
from stages.bundle.merge import bound_by, bound_in

Values = list[Any] | None
SCALARS = (type(None), bool, int, float, str)
COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}


LOOKS = (
    *(ast.Name, ast.Attribute, ast.Constant, ast.Tuple, ast.expr_context, ast.UnaryOp, ast.unaryop),
    *(ast.Compare, ast.cmpop, ast.BoolOp, ast.boolop),
)


@dataclass(frozen=True)
class Instance:
    """Some object of one of the program's own classes, or of one derived from it."""

    name: str


class Reason:
    """Answers what an expression can be."""

    def __init__(self, module: ast.Module, known: Known) -> None:
        self.facts = Collect(module).facts
        self._known = known
        self._answers: dict[tuple[int, str], Values] = {}
        self._locals: dict[int, tuple[Scope, Mapping[str, int]]] = {}  # with the scope, whose id must not be used again
        self._methods = {
            each.name for node in self.facts.classes.values() for each in node.body if isinstance(each, ast.FunctionDef)
        }
        self._children: dict[str, set[str]] = {}
        for node in self.facts.classes.values():
            for base in node.bases:
                if isinstance(base, ast.Name):
                    self._children.setdefault(base.id, set()).add(node.name)

    def values(self, node: ast.expr, place: Place) -> Values:
        """Every value that the expression can have there, or None."""
        method = getattr(self, f"_of_{type(node).__name__}", None)
        return method(node, place) if method else None

    def truth(self, node: ast.expr, place: Place) -> bool | None:
        """Whether it is true there, if it is the same for all its values."""
        if isinstance(node, ast.BoolOp):
            ends = isinstance(node.op, ast.Or)
            truths = [self.truth(each, place) for each in node.values]
            if all(truth is (not ends) for truth in truths):
                return not ends
            # One operand decides, if those before it do nothing but look.
            return ends if ends in truths and is_pure(node.values[: truths.index(ends)]) else None
        values = self.values(node, place)
        if not values or any(isinstance(v, Instance) and self._may_be_false(v) for v in values):
            return None
        found = {True if isinstance(v, Instance) else bool(v) for v in values}
        return found.pop() if len(found) == 1 else None

    def _bound_in(self, scope: Scope) -> Mapping[str, int]:
        """The names that a scope binds, with how often its statements do."""
        if id(scope) not in self._locals:
            if isinstance(scope, frozenset):
                found = Counter(scope)
            else:
                body = scope.body if isinstance(scope.body, list) else [scope.body]
                found = Counter(name for statement in body for name in bound_by(statement))
                found.update(dict.fromkeys(bound_in(scope) - set(found), 0))
            self._locals[id(scope)] = (scope, found)
        return self._locals[id(scope)][1]

    def _may_be_false(self, instance: Instance) -> bool:
        family = self._family(instance.name)
        own = {
            each.name for name in family for each in self.facts.classes[name].body if isinstance(each, ast.FunctionDef)
        }
        return bool(own & {"__len__", "__bool__"}) or any(
            isinstance(base, ast.Name) and base.id == "NamedTuple"
            for name in family
            for base in self.facts.classes[name].bases
        )

    def _of_Constant(self, node: ast.Constant, place: Place) -> Values:
        return [node.value]

    def _of_Tuple(self, node: ast.Tuple, place: Place) -> Values:
        found = [self.values(each, place) for each in node.elts]
        if any(each is None or len(each) != 1 for each in found):
            return None
        return [tuple(each[0] for each in found if each)]

    _of_Set = _of_Tuple

    def _of_Dict(self, node: ast.Dict, place: Place) -> Values:
        """For asking whether a key is in it."""
        keys = [self.values(key, place) if key else None for key in node.keys]
        if any(key is None or len(key) != 1 for key in keys):
            return None
        return [tuple(key[0] for key in keys if key)]

    def _of_Name(self, node: ast.Name, place: Place) -> Values:
        for index in range(len(place.scopes) - 1, -1, -1):
            scope = place.scopes[index]
            if isinstance(scope, frozenset):
                if node.id in scope:
                    return None
            elif node.id in self._bound_in(scope):
                return self._local(scope, node.id, Place(place.scopes[:index], place.owner))
        constants = self.facts.constants.get(node.id, [])
        if len(constants) == 1 and isinstance(constants[0], (ast.Constant, ast.Tuple)):
            return self.values(constants[0], Place())
        return None

    def _local(self, scope: ast.FunctionDef | ast.Lambda, name: str, outside: Place) -> Values:
        key = (id(scope), name)
        if key in self._answers:
            return self._answers[key]
        self._answers[key] = None  # while it is being asked for, and for good where it depends on itself
        args = [*scope.args.posonlyargs, *scope.args.args, *scope.args.kwonlyargs]
        sites = self.facts.bound[id(scope)].get(name, [])
        argument = next((arg for arg in args if arg.arg == name), None)
        found: Values = None
        if argument is not None:
            found = None if self._bound_in(scope)[name] else self._parameter(scope, argument, outside)
        elif len(sites) == 1 and sites[0][0] is not None and self._bound_in(scope)[name] == 1:
            found = self.values(*sites[0])  # pyright: ignore[reportArgumentType]
        self._answers[key] = found
        return found

    def _parameter(self, scope: ast.FunctionDef | ast.Lambda, argument: ast.arg, outside: Place) -> Values:
        if isinstance(scope, ast.Lambda):
            return None
        owner = outside.owner if not outside.scopes else None
        if owner and scope in owner.body and argument is scope.args.args[0] and not scope.decorator_list:
            return [Instance(owner.name)]
        if isinstance(argument.annotation, ast.Constant):
            name = argument.annotation.value
            if name in self._known:
                return list(self._known[name])
        if owner and scope in owner.body and scope.name == "__init__":
            return self._from_constructors(owner, scope, argument)
        if not outside.scopes and not owner and self.facts.functions.get(scope.name) is scope:
            return self._from_calls(scope.name, scope, argument, skip=0)
        return None

    def _from_constructors(self, owner: ast.ClassDef, scope: ast.FunctionDef, argument: ast.arg) -> Values:
        """What an argument of a class's `__init__` can be, derived classes without one of their own included."""
        found: list[Any] = []
        made = False
        for name in sorted(self._below(owner.name)):
            if name != owner.name and "__init__" in {
                word for each in self.facts.classes[name].body for word in bound_by(each)
            }:
                return None
            if name in self.facts.loads:
                values = self._from_calls(name, scope, argument, skip=1)
                if values is None:
                    return None
                made = True
                found += [each for each in values if not any(same(each, old) for old in found)]
        return found if made else None

    def receivers(self, node: ast.Attribute) -> set[str] | None:
        """The classes of ours whose attribute this may be; None where it may be anyone's."""
        if isinstance(node.value, ast.Name) and node.value.id in self.facts.classes:
            return self._family(node.value.id)
        place = self.facts.places.get(id(node))
        values = self.values(node.value, place) if place else None
        if not values or not all(isinstance(each, Instance) for each in values):
            return None
        return {name for each in values for name in self._family(each.name)}

    def _below(self, name: str) -> set[str]:
        found, waiting = set[str](), [name]
        while waiting:
            each = waiting.pop()
            found.add(each)
            waiting += self._children.get(each, ())
        return found

    def _from_calls(self, name: str, scope: ast.FunctionDef, argument: ast.arg, skip: int) -> Values:
        calls = self.facts.calls.get(name, [])
        if not calls or len(calls) != self.facts.loads.get(name, 0):
            return None  # it is also handed around
        found: list[Any] = []
        for call, place in calls:
            values = self._argument(call, place, scope, argument, skip)
            if values is None:
                return None
            found += [each for each in values if not any(same(each, old) for old in found)]
        return found

    def always_given(self, scope: ast.FunctionDef, argument: ast.arg) -> bool:
        """Whether every call passes it, so that its default is never used."""
        calls = self.facts.calls.get(scope.name, [])
        if self.facts.functions.get(scope.name) is not scope or len(calls) != self.facts.loads.get(scope.name, 0):
            return False
        places = [*scope.args.posonlyargs, *scope.args.args]
        return all(
            any(word.arg == argument.arg for word in call.keywords)
            or (argument in places[: len(call.args)] and not any(isinstance(each, ast.Starred) for each in call.args))
            for call, _ in calls
        )

    def _argument(self, call: ast.Call, place: Place, scope: ast.FunctionDef, argument: ast.arg, skip: int) -> Values:
        if any(isinstance(arg, ast.Starred) for arg in call.args) or any(word.arg is None for word in call.keywords):
            return None
        positional = [*scope.args.posonlyargs, *scope.args.args][skip:]
        for parameter, given in zip(positional, call.args, strict=False):
            if parameter is argument:
                return self.values(given, place)
        for word in call.keywords:
            if word.arg == argument.arg:
                return self.values(word.value, place)
        defaults: Mapping[str, ast.expr | None] = {
            **{p.arg: d for p, d in zip(reversed(positional), reversed(scope.args.defaults), strict=False)},
            **{p.arg: d for p, d in zip(scope.args.kwonlyargs, scope.args.kw_defaults, strict=True)},
        }
        default = defaults.get(argument.arg)
        return None if default is None else self.values(default, Place())

    def _of_Attribute(self, node: ast.Attribute, place: Place) -> Values:
        objects = self.values(node.value, place)
        if not objects:
            return None
        found: list[Any] = []
        for each in objects:
            values = self._field(each, node.attr)
            if values is None:
                return None
            found += [value for value in values if not any(same(value, old) for old in found)]
        return found

    def _field(self, owner: Any, name: str) -> Values:
        if isinstance(owner, Instance):
            key = (0, f"{owner.name}.{name}")
            if key not in self._answers:
                self._answers[key] = None  # where it depends on itself
                self._answers[key] = self._attribute(owner.name, name)
            return self._answers[key]
        # Set from outside by someone: perhaps on this object. Its own class sets nothing after it is made.
        if isinstance(owner, (*SCALARS, tuple)) or any(store[0] is None for store in self.facts.stores.get(name, ())):
            return None
        if name in self._methods and not has_field(owner, name):
            return None  # absent fields are off, and what is a method is no field
        value = getattr(owner, name, self)
        return None if value is self or callable(value) else [value]

    def _family(self, name: str) -> set[str]:
        """A class with all above and below it."""
        found, waiting = set[str](), [name]
        while waiting:
            each = waiting.pop()
            if each in found or each not in self.facts.classes:
                continue
            found.add(each)
            waiting += self._children.get(each, ())
            waiting += [base.id for base in self.facts.classes[each].bases if isinstance(base, ast.Name)]
        return found

    def _attribute(self, name: str, attribute: str) -> Values:
        stores = self.facts.stores.get(attribute, [])
        family = self._family(name)
        own = [store for store in stores if store[0] is not None and store[0].name in family]
        defined = {
            word for each in family for statement in self.facts.classes[each].body for word in bound_by(statement)
        }
        if not own or any(store[0] is None for store in stores) or attribute in defined:
            return None
        found: list[Any] = []
        for _, value, place in own:
            values = None if value is None else self.values(value, place)
            if values is None:
                return None
            found += [each for each in values if not any(same(each, old) for old in found)]
        return found

    def _of_Call(self, node: ast.Call, place: Place) -> Values:
        if not isinstance(node.func, ast.Name) or any(node.func.id in self._bound_in(scope) for scope in place.scopes):
            return None
        if node.func.id in self.facts.classes:
            return [Instance(node.func.id)]
        function = self.facts.functions.get(node.func.id)
        if function and (returned := self._returned(function)):
            return returned
        if function and len(function.body) == 1 and not function.decorator_list:
            (only,) = function.body
            if isinstance(only, ast.Return) and (only.value is None or isinstance(only.value, ast.Constant)):
                pure = is_pure([*node.args, *(word.value for word in node.keywords)])
                return [only.value.value if isinstance(only.value, ast.Constant) else None] if pure else None
        return None

    def _returned(self, function: ast.FunctionDef) -> Values:
        """The objects of ours that a function with one way out returns."""
        returns = [each for each in ast.walk(function) if isinstance(each, (ast.Return, ast.Yield, ast.YieldFrom))]
        key = (id(function), "")
        if key not in self._answers:
            self._answers[key] = None
            (first, *more) = returns or [None]
            if isinstance(first, ast.Return) and first.value is not None and not more and not function.decorator_list:
                values = self.values(first.value, Place((function,)))
                if values and all(isinstance(each, Instance) for each in values):
                    self._answers[key] = values
        return self._answers[key]

    def _of_IfExp(self, node: ast.IfExp, place: Place) -> Values:
        truth = self.truth(node.test, place)
        if truth is not None:
            return self.values(node.body if truth else node.orelse, place)
        either = self.values(node.body, place), self.values(node.orelse, place)
        return None if either[0] is None or either[1] is None else either[0] + either[1]

    def _of_UnaryOp(self, node: ast.UnaryOp, place: Place) -> Values:
        if isinstance(node.op, ast.Not):
            truth = self.truth(node.operand, place)
            return None if truth is None else [not truth]
        return None

    def _of_BoolOp(self, node: ast.BoolOp, place: Place) -> Values:
        ends = isinstance(node.op, ast.Or)  # the truth that ends it
        for each in node.values[:-1]:
            truth = self.truth(each, place)
            if truth is None:
                return None
            if truth is ends:
                return self.values(each, place)
        return self.values(node.values[-1], place)

    def _of_Compare(self, node: ast.Compare, place: Place) -> Values:
        if len(node.ops) != 1:
            return None
        left, right = self.values(node.left, place), self.values(node.comparators[0], place)
        if not left or not right:
            return None
        found: list[Any] = []
        for a in left:
            for b in right:
                result = compared(node.ops[0], a, b)
                if result is None:
                    return None
                found += [] if result in found else [result]
        return found


def compared(op: ast.cmpop, a: Any, b: Any) -> bool | None:
    """a op b, where that is sure."""
    if isinstance(op, (ast.Is, ast.IsNot)):
        if a is not None and b is not None:
            return None
        return (a is b) is isinstance(op, ast.Is)
    if isinstance(a, Instance) or isinstance(b, Instance) or not isinstance(a, (*SCALARS, tuple)):
        return None
    try:
        return bool(COMPARE[type(op)](a, b))
    except TypeError:
        return None


def same(a: Any, b: Any) -> bool:
    """Whether two values are one to the program; 1 and True are not."""
    if isinstance(a, (*SCALARS, tuple)) and isinstance(b, (*SCALARS, tuple)):
        return type(a) is type(b) and a == b
    return a is b or (isinstance(a, Instance) and a == b)


def is_pure(nodes: list[ast.expr]) -> bool:
    """Whether evaluating does nothing but look."""
    return all(isinstance(each, LOOKS) for node in nodes for each in ast.walk(node))
