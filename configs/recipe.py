"""A recipe: one value that composes every stage's configuration. See `load.py` for files, `extends` and scales."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, StringConstraints, model_validator

from configs.checks import CHECKS
from stages.audit.config import Config as AuditConfig
from stages.average.config import Config as AverageConfig
from stages.bundle.config import Config as BundleConfig
from stages.compress.config import Config as CompressConfig
from stages.config import Strict
from stages.corpus.config import Config as CorpusConfig
from stages.evaluate.config import Config as EvaluateConfig
from stages.overlap.config import Config as OverlapConfig
from stages.quantize.config import Config as QuantizeConfig
from stages.tokenize.config import Config as TokenizeConfig
from stages.train.config import Config as TrainConfig
from stages.vocabulary.config import Config as VocabularyConfig
from stages.weigh.config import Config as WeighConfig

# Names of recipes and protocols become names of files and of artifacts.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class DeviceConfig(Strict):
    """What an accelerated stage asks for; part of its identity."""

    kind: str = Field(default="cpu", pattern="^(cpu|cuda)$", description="cpu or cuda.")
    count: int = Field(default=1, ge=1, description="Ranks, one per device.")
    threads: int = Field(default=2, ge=1, description="CPU threads per rank; float sums depend on it.")
    model: str = Field(default="", description="Substring of the device's name that must be there, such as H100.")


class Devices(Strict):
    """Requested devices, by accelerated stage."""

    train: DeviceConfig = Field(default=DeviceConfig(), description="Device of `train`.")
    quantize: DeviceConfig = Field(default=DeviceConfig(), description="Device of `quantize`.")
    evaluate: DeviceConfig = Field(default=DeviceConfig(), description="Device of `evaluate`.")
    audit: DeviceConfig | None = Field(default=None, description="Device of `audit`; null is one of evaluate's.")

    def of(self, stage: str) -> DeviceConfig:
        """What a stage asks for. The audit asks for one device of the kind that scored, unless the recipe says more."""
        device: DeviceConfig | None = getattr(self, stage)
        return device or self.evaluate.model_copy(update={"count": 1})


class Recipe(Strict):
    """Everything that decides a run's result, the seed aside."""

    name: Name = Field(description="Name of the recipe.")
    about: str = Field(default="", description="What this recipe is, in a sentence.")
    seed: int = Field(default=1337, ge=0, description="Seed when the command names none.")
    published: dict[str, Any] = Field(default={}, description="Published figures of the system, as data.")
    devices: Devices = Field(default=Devices(), description="Requested devices.")
    corpus: CorpusConfig = Field(default=CorpusConfig(), description="Documents.")
    vocabulary: VocabularyConfig = Field(default=VocabularyConfig(), description="Tokenizer.")
    tokenize: TokenizeConfig = Field(default=TokenizeConfig(), description="Token shards.")
    train: TrainConfig = Field(default=TrainConfig(), description="Training.")
    average: AverageConfig = Field(default=AverageConfig(), description="Weight averaging.")
    quantize: QuantizeConfig = Field(default=QuantizeConfig(), description="Quantisation.")
    compress: CompressConfig = Field(default=CompressConfig(), description="Archive.")
    bundle: BundleConfig = Field(default=BundleConfig(), description="Packed code.")
    weigh: WeighConfig = Field(default=WeighConfig(), description="Size check.")
    evaluate: dict[Name, EvaluateConfig] = Field(default={}, description="One protocol per name.")
    overlap: OverlapConfig = Field(default=OverlapConfig(), description="What of val stands in train.")
    audit: AuditConfig = Field(default=AuditConfig(), description="The verdict on what was scored.")

    @model_validator(mode="after")
    def _keeps_its_promises(self) -> Self:
        for check in CHECKS:
            check(self)
        return self
