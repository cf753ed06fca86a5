"""The base of every stage's configuration: frozen, strict about names, described field by field."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from stages.contract import StageSpec


class Strict(BaseModel):
    """A frozen group of fields that refuses names it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class StageConfig(Strict):
    """One stage's knobs. A new technique's default is "off", so that adding a field never invalidates old results.

    What of it belongs to the key: `configs.introduced.stage_slice`.
    """

    SPEC: ClassVar[StageSpec]
    LOCATIONS: ClassVar[tuple[str, ...]] = ()  # fields that say where something lies; its fingerprint is the identity

    def reads(self) -> tuple[str, ...]:
        """The input roles that this configuration needs, a subset of `SPEC.inputs`."""
        return self.SPEC.inputs


def with_fields(group: type[Any]) -> type[StageConfig]:
    """A `StageConfig` with the fields of a dataclass (types, defaults, and texts and bounds from their metadata).

    For what a stage's hot modules read as a dataclass, since they import no pydantic: it is stated there and not again.
    """
    hints = get_type_hints(group)
    made: dict[str, Any] = {
        each.name: (hints[each.name], Field(default=each.default, **each.metadata)) for each in fields(group)
    }
    return create_model(group.__name__, __base__=StageConfig, **made)
