"""A recipe: one value that composes every stage's configuration. See `load.py` for files, `extends` and scales."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, StringConstraints

from stages.average.config import Config as AverageConfig
from stages.bundle.config import Config as BundleConfig
from stages.compress.config import Config as CompressConfig
from stages.config import Strict
from stages.corpus.config import Config as CorpusConfig
from stages.evaluate.config import Config as EvaluateConfig
from stages.quantize.config import Config as QuantizeConfig
from stages.tokenize.config import Config as TokenizeConfig
from stages.train.config import Config as TrainConfig
from stages.vocabulary.config import Config as VocabularyConfig
from stages.weigh.config import Config as WeighConfig

# Names of recipes and protocols become names of files and of artifacts.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class DeviceConfig(Strict):
    """What an accelerated stage asks for; part of its identity."""

    kind: str = Field("cpu", pattern="^(cpu|cuda)$", description="cpu or cuda.")
    count: int = Field(1, ge=1, description="Ranks, one per device.")
    threads: int = Field(2, ge=1, description="CPU threads per rank; float sums depend on it.")
    model: str = Field("", description="Substring of the device's name that must be there, such as H100.")


class Devices(Strict):
    """Requested devices, by accelerated stage."""

    train: DeviceConfig = Field(DeviceConfig(), description="Device of `train`.")
    quantize: DeviceConfig = Field(DeviceConfig(), description="Device of `quantize`.")
    evaluate: DeviceConfig = Field(DeviceConfig(), description="Device of `evaluate`.")


class Recipe(Strict):
    """Everything that decides a run's result, the seed aside."""

    name: Name = Field(description="Name of the recipe.")
    about: str = Field("", description="What this recipe is, in a sentence.")
    seed: int = Field(1337, ge=0, description="Seed when the command names none.")
    published: dict[str, Any] = Field({}, description="Published figures of the system, as data.")
    devices: Devices = Field(Devices(), description="Requested devices.")
    corpus: CorpusConfig = Field(CorpusConfig(), description="Documents.")
    vocabulary: VocabularyConfig = Field(VocabularyConfig(), description="Tokenizer.")
    tokenize: TokenizeConfig = Field(TokenizeConfig(), description="Token shards.")
    train: TrainConfig = Field(TrainConfig(), description="Training.")
    average: AverageConfig = Field(AverageConfig(), description="Weight averaging.")
    quantize: QuantizeConfig = Field(QuantizeConfig(), description="Quantisation.")
    compress: CompressConfig = Field(CompressConfig(), description="Archive.")
    bundle: BundleConfig = Field(BundleConfig(), description="Packed code.")
    weigh: WeighConfig = Field(WeighConfig(), description="Size check.")
    evaluate: dict[Name, EvaluateConfig] = Field({}, description="One protocol per name.")
