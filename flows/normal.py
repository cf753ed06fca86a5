"""The normal form of a source module: what of it can change a result. Equal on Python 3.11, 3.12 and 3.13.

`ast.dump` differs between versions, and it keeps what no output can depend on. The normal form is a list of statements
in the order of the source, one line each, made from the syntax tree by rules of our own. It leaves out

- layout, comments, docstrings and any other bare constant, `pass`, and blocks under `if TYPE_CHECKING`;
- descriptions: `description=` and `title=` of a `Field(...)` or a `knob(...)`;
- error text: the strings that a `raise X(...)` or an `assert` carries, interpolations included. A finished stage has
  raised nothing, so its output cannot depend on them. The type of the error stays: somebody may catch it.

In a module named `config.py` or `protocol.py` it also leaves out the fields that classes declare, the validators that
only check, and what is there for their sake: settings of the validation, classes of nothing but fields, imports that no
other statement uses. A field acts through its resolved value, and the key holds that value (`configs/introduced.py`);
so a new field that is off, with its check, changes no key. Methods, properties, `ClassVar`s and functions stay.

The *whole* form keeps error text and fields. It is what `bundle` depends on: packed code carries both.

Standard library only, no import of ours: a test runs this file under every supported Python.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard

# Fields of nodes that hold statements (or handlers and cases, which hold statements), in source order.
_BLOCKS = ("body", "handlers", "orelse", "finalbody", "cases")
# Fields that say nothing about behaviour. `type_params` is empty in any source that Python 3.11 can read.
_SILENT = {"ctx", "kind", "type_comment", "type_ignores", "type_params"}
# Calls that declare a field: pydantic's, and `model/protocol.py`'s.
_DESCRIBED = {"Field", "knob"}


@dataclass(frozen=True)
class Statement:
    """One statement, or the header of a compound one, in normal form."""

    text: str  # depth, block, and the statement itself as JSON
    definition: str  # dotted name of the function or class that holds it; "" at the top of the module
    first_line: int
    last_line: int


def normal_form(source: str, *, is_config: bool = False) -> str:
    """The module's normal form, one statement a line; an empty string for a module that does nothing."""
    return form_of(ast.parse(source), is_config=is_config)


def form_of(module: ast.Module, *, is_config: bool = False) -> str:
    """The normal form of a parsed module; a config module loses its fields on the way."""
    return "\n".join(statement.text for statement in statements(module, is_config=is_config))


def whole_form_of(module: ast.Module) -> str:
    """The form of a parsed module with its error text and fields."""
    return "\n".join(statement.text for statement in _block(module.body, 0, "body", "", keep_text=True))


def digest_form(form: str) -> str:
    """sha256 of a normal form, as hex."""
    return hashlib.sha256(form.encode()).hexdigest()


def statements(module: ast.Module, *, is_config: bool = False) -> Iterator[Statement]:
    """The statements of a module that can act, in source order; a config module loses its fields on the way."""
    if is_config:
        module = _without_fields(module)
    return _block(module.body, 0, "body", "", keep_text=False)


def _block(nodes: list[Any], depth: int, block: str, definition: str, *, keep_text: bool) -> Iterator[Statement]:
    for node in nodes:
        if _is_silent(node):
            continue
        if isinstance(node, ast.If) and is_type_checking(node.test):
            yield from _block(node.orelse, depth, block, definition, keep_text=keep_text)
            continue
        header = _encode_node(node, skip=_BLOCKS) if keep_text else _encode_header(node)
        text = json.dumps([depth, block, header], separators=(",", ":"))
        yield Statement(text, definition, *_header_lines(node))
        inner = definition
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            inner = f"{definition}.{node.name}".lstrip(".")
        for name in _BLOCKS:
            children = getattr(node, name, None)
            if isinstance(children, list):  # the body of a lambda is an expression
                yield from _block(children, depth + 1, name, inner, keep_text=keep_text)


def _is_silent(node: ast.AST) -> bool:
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def is_type_checking(test: ast.expr) -> bool:
    """Whether an `if` asks for TYPE_CHECKING, which is never true in a run."""
    return _last_name(test) == "TYPE_CHECKING"


def _without_fields(module: ast.Module) -> ast.Module:
    """A config module without what acts through the values of fields alone."""
    kept: list[ast.stmt] = []
    for node in module.body:
        if isinstance(node, ast.ClassDef) and _is_group(node):
            node.body = [child for child in node.body if not (_is_field(child) or _is_check(child))]
            holds_fields_only = all(_is_silent(child) for child in node.body)
            if holds_fields_only and {_last_name(base) for base in node.bases} <= {"Strict", "BaseModel"}:
                continue
        kept.append(node)
    acting = [node for node in kept if not isinstance(node, (ast.Import, ast.ImportFrom))]
    used = {part.id for node in acting for part in ast.walk(node) if isinstance(part, ast.Name)}
    for node in kept:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            node.names = [a for a in node.names if (a.asname or a.name).split(".")[0] in used | {"*"}]
    module.body = [n for n in kept if not (isinstance(n, (ast.Import, ast.ImportFrom)) and not n.names)]
    return module


def _is_group(node: ast.ClassDef) -> bool:
    """Whether a class declares fields: a dataclass, or a model, which has a base."""
    decorators = {_last_name(d.func if isinstance(d, ast.Call) else d) for d in node.decorator_list}
    bases = {_last_name(base) for base in node.bases}
    return "dataclass" in decorators or bool(bases - {"NamedTuple", "TypedDict", "Protocol", "Enum"})


def _is_field(node: ast.AST) -> bool:
    """A field of a pydantic model or a dataclass (annotated, not a ClassVar), or a setting of its validation."""
    if isinstance(node, ast.Assign):
        return {_last_name(target) for target in node.targets} == {"model_config"}
    if not isinstance(node, ast.AnnAssign):
        return False
    annotation = node.annotation.value if isinstance(node.annotation, ast.Subscript) else node.annotation
    return _last_name(annotation) != "ClassVar" or _last_name(node.target) in {"model_config", "__pydantic_config__"}


def _is_check(node: ast.AST) -> bool:
    """A validator that can refuse a value and cannot change one."""
    if not isinstance(node, ast.FunctionDef):
        return False
    decorators = {_last_name(d.func if isinstance(d, ast.Call) else d) for d in node.decorator_list}
    if node.name != "__post_init__" and not decorators & {"model_validator", "field_validator"}:
        return False
    parameters = {argument.arg for argument in node.args.args}
    return all(_only_reads(part, parameters) for part in ast.walk(node))


def _only_reads(part: ast.AST, parameters: set[str]) -> bool:
    if isinstance(part, ast.Return):
        return part.value is None or (isinstance(part.value, ast.Name) and part.value.id in parameters)
    if _last_name(part) in {"setattr", "__setattr__", "__dict__"}:
        return False
    if isinstance(part, (ast.Attribute, ast.Subscript)) or (isinstance(part, ast.Name) and part.id in parameters):
        return isinstance(part.ctx, ast.Load)
    return True


def _last_name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _header_lines(node: Any) -> tuple[int, int]:
    decorators = getattr(node, "decorator_list", [])
    first = min([d.lineno for d in decorators], default=_first_line(node))
    bodies = [children for name in _BLOCKS if isinstance(children := getattr(node, name, None), list) and children]
    last = max(first, _first_line(bodies[0][0]) - 1) if bodies else node.end_lineno
    return first, last


def _first_line(node: Any) -> int:
    return node.pattern.lineno if isinstance(node, ast.match_case) else node.lineno


def _encode_header(node: ast.AST) -> list[Any]:
    """A statement without the statements that it holds, and without error text."""
    if isinstance(node, ast.Raise):
        return ["Raise", ["exc", _encode_error(node.exc)], ["cause", _encode(node.cause)]]
    if isinstance(node, ast.Assert):
        return ["Assert", ["test", _encode(node.test)]]
    return _encode_node(node, skip=_BLOCKS)


def _encode(value: Any) -> Any:
    if isinstance(value, ast.Constant):
        return _encode_constant(value.value)
    if isinstance(value, ast.JoinedStr):
        return ["JoinedStr", *_merge_text(value.values)]
    if isinstance(value, ast.AST):
        return _encode_node(value)
    if isinstance(value, list):
        return [_encode(item) for item in value]
    return value  # an identifier, a number that the grammar defines, or None


def _encode_node(node: ast.AST, skip: tuple[str, ...] = ()) -> list[Any]:
    # Absent and empty fields are skipped: versions disagree about which of the two they write.
    encoded: list[Any] = [type(node).__name__]
    for name, value in ast.iter_fields(node):
        if name in _SILENT or name in skip or value is None or value == []:
            continue
        if name == "keywords" and isinstance(node, ast.Call) and _last_name(node.func) in _DESCRIBED:
            value = [keyword for keyword in value if keyword.arg not in {"description", "title"}]
        if isinstance(value, ast.JoinedStr) and name == "format_spec":
            if text := _merge_text(value.values):
                encoded.append([name, text])
        else:
            encoded.append([name, _encode(value)])
    return encoded


def _encode_constant(value: object) -> list[str]:
    kind = type(value).__name__
    if isinstance(value, str):  # repr would follow the Unicode tables of the running Python
        return [kind, value]
    if isinstance(value, bytes):
        return [kind, value.hex()]
    if isinstance(value, int) and not isinstance(value, bool):  # decimal text of a huge integer is refused
        return [kind, hex(value)]
    return [kind, repr(value)]


def _merge_text(values: list[ast.expr]) -> list[Any]:
    """Parts of an f-string with neighbouring texts joined: versions split them differently."""
    merged: list[Any] = []
    text = ""
    for value in values:
        if _is_text(value):
            text += value.value
            continue
        if text:
            merged.append(_encode_constant(text))
        text = ""
        merged.append(_encode(value))
    return [*merged, _encode_constant(text)] if text else merged


def _is_text(node: ast.AST | None) -> TypeGuard[Any]:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _encode_error(node: ast.expr | None) -> Any:
    """What a `raise` raises, its text left out."""
    if not isinstance(node, ast.Call):
        return _encode(node)
    arguments = [_without_text(argument) for argument in node.args]
    keywords = [[keyword.arg, _without_text(keyword.value)] for keyword in node.keywords]
    return ["Call", _encode(node.func), arguments, keywords]


def _without_text(node: ast.expr) -> Any:
    if _is_text(node) or isinstance(node, ast.JoinedStr):
        return ["text"]
    if isinstance(node, ast.BinOp):
        return ["BinOp", _without_text(node.left), type(node.op).__name__, _without_text(node.right)]
    if isinstance(node, ast.IfExp):
        return ["IfExp", _encode(node.test), _without_text(node.body), _without_text(node.orelse)]
    return _encode(node)
