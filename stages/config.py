"""The base of every stage's configuration: frozen, strict about names, described field by field."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict

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
