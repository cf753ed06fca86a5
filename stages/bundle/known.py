"""What a recipe makes constant: the values that objects of a class can hold in the program of that recipe.

A list per class, by module and name: every object of it that the program makes is, field for field, one of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.config import from_dict
from model.protocol import phases_of
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
    protocols: list[Any] = [Settings(each) for each in recipe.get("evaluate", {}).values()]
    adaptations = [each.ttt for each in protocols if each.protocol == "ttt"]
    phases = [phase for each in protocols for phase in phases_of(each).values()]
    descents = [*adaptations, *phases]
    found["model.protocol.Protocol"] = protocols
    found["model.protocol.MixerSettings"] = [each.mixer for each in protocols]
    found["model.protocol.Adaptation"] = adaptations
    found["model.protocol.Phase"] = phases
    found["model.protocol.Descent"] = descents
    found["model.protocol.FakeQuantise"] = [each.fake_quantise for each in descents]
    return {name: objects for name, objects in found.items() if objects}


def has_field(owner: Any, name: str) -> bool:
    """Whether an object has this field itself, or only by its being absent."""
    return name in owner.__dict__ if isinstance(owner, Settings) else hasattr(owner, name)


class Only:
    """An object of which some fields are known."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.__dict__.update(fields)
