"""One module without what does not act: comments, docstrings, annotations, type-checking imports, long names."""

from __future__ import annotations

import ast

from python_minifier import RemoveAnnotationsOptions, minify

from stages.contract import StageError

# Annotations of class attributes are the fields of dataclasses: they stay.
ANNOTATIONS = RemoveAnnotationsOptions(
    remove_variable_annotations=True,
    remove_return_annotations=True,
    remove_argument_annotations=True,
    remove_class_attribute_annotations=False,
)


def minified(source: str, path: str) -> str:
    """The smallest source that does the same. Global names stay, because other modules import them."""
    try:
        tree = WithoutTypeChecking().visit(ast.parse(source, path))
    except (SyntaxError, ValueError) as error:
        raise StageError(f"what is packed is Python source; {path} is not: {error}; mend it") from error
    return minify(
        ast.unparse(ast.fix_missing_locations(tree)),
        path,
        remove_annotations=ANNOTATIONS,
        remove_literal_statements=True,
        rename_globals=False,
        hoist_literals=False,  # what repeats is cheap once the whole is compressed; measured
    )


class WithoutTypeChecking(ast.NodeTransformer):
    """Drops `if TYPE_CHECKING` blocks: their modules are not packed, and the names serve annotations only."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        """The else branch, or `pass` where a block would be left empty."""
        self.generic_visit(node)
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return node.orelse or [ast.Pass()]
        return node
