"""What a recipe makes constant: the values that objects of a class can hold in the program of that recipe.

A list per class, by module and name: every object of it that the program makes is, field for field, one of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.config import from_dict
from stages.settings import Settings

Known = dict[str, list[Any]]


def known_objects(recipe: Mapping[str, Any]) -> Known:
    """Class -> its objects. A class that the recipe never makes an object of has none, and is not there."""
    settings = Settings(recipe)
    found: Known = {}
    if "train" in recipe:
        train = settings.train
        network = from_dict(recipe["train"]["network"])
        found["stages.train.config.Config"] = [train]
        found["stages.train.config.QatConfig"] = [train.qat]
        found["stages.train.config.ComplementConfig"] = [train.complement]
        found["model.config.GPTConfig"] = [network]
        found["model.config.RopeConfig"] = [network.rope]
    if "quantize" in recipe:
        quantize = settings.quantize
        groups = [quantize.matrices, quantize.embeddings, quantize.small, *quantize.overrides.values()]
        found["stages.quantize.config.Config"] = [quantize]
        found["stages.quantize.config.GroupConfig"] = groups
        # A budget gives a rule other bits than its group's, and with them another floor.
        same = ("clip", "quantile", "full_range", "prune")
        found["stages.quantize.rules.Rule"] = [Only({name: getattr(group, name) for name in same}) for group in groups]
    if "compress" in recipe:
        found["stages.compress.config.Config"] = [settings.compress]
    protocols = [Settings(each) for each in recipe.get("evaluate", {}).values()]
    adaptations = [each.ttt for each in protocols if each.protocol == "ttt"]
    phases = [
        phase
        for each in protocols
        if each.protocol == "pre_eval"
        for phase in (each.pre_eval.first, each.pre_eval.second)
        if phase.epochs
    ]
    # As `model.protocol` makes them.
    found["model.protocol.Protocol"] = [Scoring(each) for each in protocols]
    found["model.protocol.MixerSettings"] = [each.mixer for each in protocols]
    adapted = [Renamed(each, low_rank="lora") for each in adaptations]
    found["model.adapt.Adaptation"] = adapted
    found["model.pre_eval.Phase"] = phases
    found["model.descent.Descent"] = [*adapted, *(Renamed(each, low_rank="") for each in phases)]
    found["model.descent.LowRankSettings"] = [each.low_rank for each in found["model.descent.Descent"]]
    found["model.descent.FakeQuantise"] = [each.fake_quantise for each in (*adaptations, *phases)]
    return {name: objects for name, objects in found.items() if objects}


def has_field(owner: Any, name: str) -> bool:
    """Whether an object has this field itself, or only by its being absent."""
    if isinstance(owner, Renamed):
        return has_field(owner.settings, owner.names.get(name, name))
    if isinstance(owner, Scoring):
        return name in owner.__dict__ or has_field(owner.settings, name)
    return name in owner.__dict__ if isinstance(owner, Settings) else hasattr(owner, name)


class Scoring:
    """A `model.protocol.Protocol`, as far as it is plain."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        adapts = settings.protocol == "ttt"
        self.adaptation = Renamed(settings.ttt, low_rank="lora") if adapts else None
        both = (settings.pre_eval.first, settings.pre_eval.second)
        self.phases = tuple(Renamed(phase, low_rank="") for phase in both if phase.epochs)
        mixes = settings.mixer.chunk_tokens if settings.mixer.kind != "off" else 0
        self.chunk_tokens = settings.ttt.chunk_tokens if adapts else mixes

    def __getattr__(self, name: str) -> Any:
        """Other fields are those of the configuration."""
        return getattr(self.settings, name)


class Only:
    """An object of which some fields are known."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.__dict__.update(fields)


class Renamed:
    """Settings some of whose fields stand under other names; the name "" is a group that is off."""

    def __init__(self, settings: Settings, **names: str) -> None:
        self.settings, self.names = settings, names

    def __getattr__(self, name: str) -> Any:
        """The field of this name."""
        if name in self.names and not self.names[name]:
            return Settings({})
        return getattr(self.settings, self.names.get(name, name))
