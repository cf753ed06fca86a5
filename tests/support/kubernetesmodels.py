"""What Kubernetes' own models say of a manifest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from kubernetes import client


def unknown_fields(value: Any, kind: str, at: str) -> Iterator[str]:
    """Paths of fields that the Kubernetes API's own model of `kind` does not have."""
    inner = re.fullmatch(r"(list|dict)(?:\[|\(str, ?)(.+?)[\])]", kind)
    if inner and inner[1] == "list":
        for index, each in enumerate(value):
            yield from unknown_fields(each, inner[2], f"{at}[{index}]")
        return
    model = getattr(client, kind, None)
    if model is None:  # a plain type, or a map of them
        return
    kinds = {name: model.openapi_types[attribute] for attribute, name in model.attribute_map.items()}
    for name, each in value.items():
        if name not in kinds:
            yield f"{at}.{name}"
        else:
            yield from unknown_fields(each, kinds[name], f"{at}.{name}")
