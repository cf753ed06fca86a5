"""Shorter names than a minifier may choose that sees one function at a time: it must think that anything is called by
keyword and that any attribute belongs to someone else. Here the whole program is in sight.
"""

from __future__ import annotations

import ast
import itertools
import string
from collections import Counter
from collections.abc import Iterator

from stages.bundle.merge import bound_by
from stages.bundle.values import Reason


def shorten(module: ast.Module) -> ast.Module:
    """Parameters that nothing passes by keyword become positional only; private attributes get names of two letters."""
    return positional(short_attributes(module))


def keywords(module: ast.Module) -> set[str]:
    """Whatever may be the name of an argument: keywords of calls, and texts, which may be keys of `**`."""
    found: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.keyword) and node.arg:
            found.add(node.arg)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


def positional(module: ast.Module) -> ast.Module:
    """Mark parameters as positional only, from the first on to the last before one that a keyword names."""
    named = keywords(module)
    for node in ast.walk(module):
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            args = node.args
            while args.args and args.args[0].arg not in named:
                args.posonlyargs.append(args.args.pop(0))
    return module


def unmark(source: str) -> str:
    """Positional-only parameters as ordinary ones, in minified source: the mark has done its work."""
    wanted = ast.parse(source)
    for node in ast.walk(wanted):
        if isinstance(node, ast.arguments):
            node.args, node.posonlyargs = node.posonlyargs + node.args, []
    short = source.replace(",/)", ")").replace(",/,", ",").replace(",/:", ":")
    return short if ast.dump(ast.parse(short)) == ast.dump(wanted) else ast.unparse(wanted)


def short_attributes(module: ast.Module) -> ast.Module:
    """Rename attributes and methods that this program defines: private ones, and those that only its objects have."""
    uses = Counter(node.attr for node in ast.walk(module) if isinstance(node, ast.Attribute))
    own, taken = defined_here(module)
    renaming = {name for name in own - taken - known_elsewhere(module) if not name.startswith("__")}
    names = fresh(taken | set(uses) | own)
    often_first = sorted(uses.items(), key=lambda each: (-each[1], each[0]))
    renamed = {name: next(names) for name, _ in often_first if name in renaming}
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute):
            node.attr = renamed.get(node.attr, node.attr)
        elif isinstance(node, ast.ClassDef):
            for each in node.body:
                if isinstance(each, ast.FunctionDef):
                    each.name = renamed.get(each.name, each.name)
    return module


def defined_here(module: ast.Module) -> tuple[set[str], set[str]]:
    """(methods and attributes that objects set on themselves, names that are also spelled in other ways)."""
    own, taken = set[str](), set[str]()
    for node in ast.walk(module):
        if isinstance(node, ast.ClassDef):
            own |= {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
            # Fields are names of arguments, too; what stands in a class's body is a name in it.
            taken |= {name for each in node.body if not isinstance(each, ast.FunctionDef) for name in bound_by(each)}
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            own |= {node.attr} if isinstance(node.value, ast.Name) and node.value.id == "self" else set()
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            taken.add(node.value)
    return own, taken


def known_elsewhere(module: ast.Module) -> set[str]:
    """Attributes that objects from outside may have, or that a base class from outside may know."""
    reason = Reason(module, {})
    classes = derived(module)
    found = {each.attr for node in classes.values() for each in ast.walk(node) if isinstance(each, ast.Attribute)}
    found |= {each.name for node in classes.values() for each in node.body if isinstance(each, ast.FunctionDef)}
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute):
            owners = reason.receivers(node)
            if (owners is None and not node.attr.startswith("_")) or (owners and owners & set(classes)):
                found.add(node.attr)
    return found


def derived(module: ast.Module) -> dict[str, ast.ClassDef]:
    """The classes that derive from one outside, which may know their attributes: nn.Module names parameters by them."""
    classes = {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}

    def is_ours(node: ast.ClassDef) -> bool:
        return all(isinstance(b, ast.Name) and b.id in classes and is_ours(classes[b.id]) for b in node.bases)

    return {name: node for name, node in classes.items() if not is_ours(node)}


def fresh(taken: set[str]) -> Iterator[str]:
    """_a, _b, ... _z, _A, ... _aa: private as before, and none that is there."""
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_letters, repeat=length):
            name = "_" + "".join(letters)
            if name not in taken:
                yield name
