"""Shorter names than a minifier may choose that sees one function at a time: it must think that anything is called by
keyword and that any attribute belongs to someone else. Here the whole program is in sight.
"""

from __future__ import annotations

import ast
import itertools
import string
from collections import Counter
from collections.abc import Iterator

from stages.bundle.shake import INERT_BASES
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
    reason = Reason(module, {})
    foreign = {
        node.attr for node in ast.walk(module) if isinstance(node, ast.Attribute) and reason.receivers(node) is None
    }
    outside = known_outside(module)
    own, taken, uses = set[str](), set[str](), Counter[str]()
    for node in ast.walk(module):
        if isinstance(node, ast.ClassDef):
            fields = {
                each.target.id
                for each in node.body
                if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
            }
            taken |= fields  # the names of arguments, too
            own |= {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
        elif isinstance(node, ast.Attribute):
            uses[node.attr] += 1
            if isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self":
                own.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            taken.add(node.value)
    private = {
        name
        for name in own - taken - outside
        if not name.startswith("__") and (name.startswith("_") or name not in foreign)
    }
    names = fresh(taken | set(uses) | own)
    renamed = {
        name: next(names) for name, _ in sorted(uses.items(), key=lambda each: (-each[1], each[0])) if name in private
    }
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute):
            node.attr = renamed.get(node.attr, node.attr)
        elif isinstance(node, ast.ClassDef):
            for each in node.body:
                if isinstance(each, ast.FunctionDef):
                    each.name = renamed.get(each.name, each.name)
    return module


def known_outside(module: ast.Module) -> set[str]:
    """Attributes of classes that derive from one outside, which may know them: a module's are its parameters' names."""
    classes = {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}

    def is_ours(node: ast.ClassDef) -> bool:
        bases = [ast.unparse(base) for base in node.bases]
        return all(base in INERT_BASES or (base in classes and is_ours(classes[base])) for base in bases)

    found = set[str]()
    for node in classes.values():
        if not is_ours(node):
            found |= {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
            found |= {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}
    return found


def fresh(taken: set[str]) -> Iterator[str]:
    """_a, _b, ... _z, _A, ... _aa: private as before, and none that is there."""
    for length in itertools.count(1):
        for letters in itertools.product(string.ascii_letters, repeat=length):
            name = "_" + "".join(letters)
            if name not in taken:
                yield name
