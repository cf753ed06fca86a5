"""What is submitted: one program that trains, averages, quantises, compresses and scores, with its recipe baked in.

The stage `bundle` packs this module and all that it reaches into `train_gpt.py` and calls `main(recipe)` at its end.
The arithmetic is that of the stages, whose hot modules are called here in one process per rank: on the same device with
the same seed the archive is the pipeline's, byte for byte.

    torchrun --standalone --nproc_per_node=8 train_gpt.py      # trains, writes final_model.fwy, scores it
    train_gpt.py --score-only [final_model.fwy]                # scores an archive; no train shards needed
    train_gpt.py --code-bytes                                  # the size of this file

Environment, named as in the challenge's own script:
    DATA_PATH        folder of fineweb_train_*.bin and fineweb_val_*.bin, default ./data/datasets/fineweb10B_sp<vocab>
    TOKENIZER_PATH   SentencePiece model, default ./data/tokenizers/fineweb_<vocab>_bpe.model
    SEED             of the initial weights, default 1337
    PROTOCOL         names of the recipe's protocols to score with, comma-separated; default: its headline, the
                     furthest one that breaks no rule

It runs on the recipe's kind of device where there is one and on the CPU where not, with as many ranks as it is started
with. Rank 0 prints; there is no other log:

    Running Python <version> | Running PyTorch <version>
    train_gpt.py sha256:<hex>
    Code size: <n> bytes
    device:<name> world_size:<n> seed:<n>                     seed is missing with --score-only
    train_loader:dataset:<folder> train_shards:<n> tokens:<n>
    model_params:<n>
    step:<i>/<N> train_loss:<x.xxxx> train_time:<ms>ms step_avg:<ms>ms
    step:<i>/<N> val_loss:<x.xxxx> val_bpb:<x.xxxx> train_time:<ms>ms step_avg:<ms>ms
    stopping_early: wallclock_cap train_time:<ms>ms step:<i>/<N>
    peak memory allocated: <n> MiB reserved: <n> MiB
    artifact_time:<ms>ms                                       averaging, quantisation, compression
    Serialized model: <n> bytes sha256:<hex>
    Total submission size: <n> bytes                           code and archive
    val_loader:dataset:<folder> val_shards:<n> tokens:<n>
    pre_eval_epoch:<i>/<N> loss:<x.xxxx>                       where a protocol adapts before it scores
    final_<protocol>_exact val_loss:<x.8f> val_bpb:<x.8f>      nats per target, bits per byte
    final_<protocol>_sums nats:<exact> targets:<n> bytes:<n> ledger_sha256:<hex> rules_broken:<-|C2,C4>
    final_<protocol> eval_time:<ms>ms

val_loss of a step line is on the end of the last train shard, which training never reads; that of the final lines is on
the validation shards. Step lines: the first ten, every 200th, every validation.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import torch.distributed as dist
from torch import Tensor

from model.archive import read_archive, read_quantized, write_archive
from model.batches import Spans, TrainStream
from model.bytes import ByteTable
from model.config import GPTConfig, from_dict
from model.gpt import GPT
from model.ledger import bits_per_byte
from model.passes import ScoringPass
from model.protocol import Protocol
from model.quantized import equal
from model.shards import open_shard
from model.stream import TokenStream
from stages.average.combine import mean
from stages.compress.chains import chains_for
from stages.contract import Device
from stages.device import device_name, process_group, torch_device
from stages.quantize.network import quantize_network
from stages.settings import Settings
from stages.train.loop import Trainer
from stages.train.telemetry import Measured
from stages.train.validation import Validation

ARCHIVE = "final_model.fwy"
State = dict[str, Tensor]


class Process:
    """One rank as the stages' modules see it: a `stages.contract.Runtime` that keeps no progress and no checkpoints."""

    checkpoint_every_s = float("inf")

    def __init__(self) -> None:
        self.rank, self.world, self.local_rank = (
            int(os.environ.get(name, value)) for name, value in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
        )
        self.device = Device()

    def on(self, wanted: Settings) -> torch.device:
        """This rank's device for a stage that asks for `wanted`."""
        kind = wanted.kind if torch.cuda.is_available() else "cpu"
        self.device = Device(kind=kind, count=self.world, threads=wanted.threads)
        return torch_device(self)  # pyright: ignore[reportArgumentType]

    def adapted(self, done: int, total: int, loss: float) -> None:
        """A line about adaptation before scoring."""
        self.log(f"pre_eval_epoch:{done}/{total} loss:{loss:.4f}")

    def log(self, text: str) -> None:
        """A line of the log."""
        if not self.rank:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()


class Snapshots:
    """Warmdown snapshots in memory, in place of `stages.train.checkpoint.Checkpoints`."""

    def __init__(self) -> None:
        self.states: list[State] = []

    def save_snapshot(self, step: int, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Keep a copy."""
        self.states.append({name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()})

    def close(self) -> None:
        """Nothing is being written."""


class Training(Trainer):
    """Training that logs, and neither leaves nor resumes from a checkpoint."""

    def _resume(self) -> None:
        pass

    def _checkpoint(self) -> None:
        pass

    def _show(self) -> None:
        pass

    def _record(self, measured: Measured) -> None:
        super()._record(measured)
        if measured.step <= 10 or measured.step % 200 == 0:
            self._log(measured.step, f"train_loss:{measured.loss:.4f}")

    def _validate(self) -> None:
        super()._validate()
        step = self.progress.step
        if self.validation is not None:
            line = self._line(step)
            self._log(step, f"val_loss:{line['val_loss']:.4f} val_bpb:{line['val_bpb']:.4f}")

    def _log(self, step: int, measures: str) -> None:
        ms = 1000 * self.clock.elapsed_s()
        times = f"train_time:{ms:.0f}ms step_avg:{ms / max(step, 1):.2f}ms"
        self.runtime.log(f"step:{step}/{self.config.steps} {measures} {times}")  # pyright: ignore[reportAttributeAccessIssue]


def main(recipe: Mapping[str, Any]) -> None:
    """The program. `recipe`: the stages' configurations, `devices`, and under `evaluate` the archive's protocols."""
    code = Path(__file__).read_bytes()
    words = sys.argv[1:]
    if words == ["--code-bytes"]:
        sys.stdout.write(f"{len(code)}\n")
    elif words and (words[0] != "--score-only" or len(words) > 2):
        sys.exit("usage: train_gpt.py [--score-only [ARCHIVE] | --code-bytes]")
    else:
        _run(recipe, code, Path(words[1] if words[1:] else ARCHIVE), bool(words))


def _run(recipe: Mapping[str, Any], code: bytes, archive: Path, score_only: bool) -> None:
    process = Process()
    log = process.log
    settings = Settings(recipe)
    vocab = settings.train.network.vocab
    data = Path(os.environ.get("DATA_PATH", f"./data/datasets/fineweb10B_sp{vocab}"))
    model = os.environ.get("TOKENIZER_PATH", f"./data/tokenizers/fineweb_{vocab}_bpe.model")
    table = ByteTable.from_sentencepiece(Path(model))
    bos = sentencepiece.SentencePieceProcessor(model_file=model).bos_id()
    names = os.environ["PROTOCOL"].split(",") if "PROTOCOL" in os.environ else [headline(recipe["evaluate"])]
    log(f"Running Python {platform.python_version()}\nRunning PyTorch {torch.__version__}")
    log(f"train_gpt.py sha256:{hashlib.sha256(code).hexdigest()}\nCode size: {len(code)} bytes")
    device = process.on(settings.devices.evaluate if score_only else settings.devices.train)
    seed = int(os.environ.get("SEED", 1337))
    log(f"device:{device_name(device)} world_size:{process.world}" + ("" if score_only else f" seed:{seed}"))
    with process_group(process, device):  # pyright: ignore[reportArgumentType]
        network = from_dict(recipe["train"]["network"])
        if not score_only:
            state = train(settings, network, data, table, device, process, seed)
            if not process.rank:
                make_archive(settings, network, state, archive, process)
            if process.world > 1:
                dist.barrier()
        size = archive.stat().st_size
        log(f"Serialized model: {size} bytes sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}")
        log(f"Total submission size: {size + len(code)} bytes")
        val = shards(data, "val")
        stream = TokenStream([open_shard(path, min(vocab, table.vocab)) for path in val])
        log(f"val_loader:dataset:{data.name} val_shards:{len(val)} tokens:{len(stream)}")
        device = process.on(settings.devices.evaluate)
        torch.set_float32_matmul_precision("highest")  # as in a fresh process
        for name in names:
            torch.compiler.reset()
            protocol: Any = Settings(recipe["evaluate"][name])
            evaluate(name, protocol, network, archive, stream, table, bos, device, process)


def headline(protocols: Mapping[str, Any]) -> str:
    """The furthest protocol that breaks no rule."""
    order = ("roundtrip", "sliding", "ttt")
    settings = {name: Settings(protocol) for name, protocol in protocols.items()}
    legal = [
        name
        for name, each in settings.items()
        if each.protocol in order and not each.tail_rescore and each.mixer.kind != "published_ngram"
    ]
    return max(sorted(legal), key=lambda name: order.index(settings[name].protocol))


def shards(folder: Path, split: str) -> list[Path]:
    """The token shards of a split, in the order of their names."""
    found = sorted(folder.glob(f"fineweb_{split}_*.bin"))
    if not found:
        raise ValueError(f"token shards are {folder}/fineweb_{split}_*.bin; there are none; set DATA_PATH")
    return found


def train(
    settings: Settings,
    network: GPTConfig,
    data: Path,
    table: ByteTable,
    device: torch.device,
    process: Process,
    seed: int,
) -> State:
    """The weights that go into the archive, on the CPU."""
    config: Any = settings.train
    config.network = network
    paths = shards(data, "train")
    stream = TrainStream(paths, config.network.vocab, held_out=config.validation_tokens)
    rows = config.microbatch_tokens, config.batch_tokens
    spans = Spans(
        stream=stream,
        sequence_tokens=config.sequence_tokens,
        microbatch_tokens=rows[0],
        batch_tokens=rows[1],
        rank=process.rank,
        world=process.world,
    )
    validation = None
    if config.validation_tokens:
        validation = Validation(stream.held_out(), config.sequence_tokens, rows[0] // config.sequence_tokens, table)
    process.log(f"train_loader:dataset:{data.name} train_shards:{len(paths)} tokens:{stream.tokens}")
    snapshots = Snapshots()
    trainer = Training(config, spans, validation, process, device, snapshots, seed)  # pyright: ignore[reportArgumentType]
    process.log(f"model_params:{sum(parameter.numel() for parameter in trainer.parameters)}")
    ended = trainer.run()
    if ended == "budget":
        ms = 1000 * trainer.progress.train_s
        process.log(f"stopping_early: wallclock_cap train_time:{ms:.0f}ms step:{trainer.progress.step}/{config.steps}")
    log_memory(device, process)
    return {name: tensor.cpu() for name, tensor in mean(chosen(settings.average, trainer, snapshots.states)).items()}


def chosen(average: Settings, trainer: Trainer, snapshots: list[State]) -> Sequence[State]:
    """The weights whose mean is wanted."""
    if average.kind == "raw":
        return [trainer.model.state_dict()]
    if average.kind == "ema":
        assert trainer.ema
        return [trainer.ema.state()]
    last = average.last if average.kind == "tight_swa" else len(snapshots)
    if average.kind == "mean" or not 0 < last <= len(snapshots):
        raise ValueError(f"one training has no weights for average {average.kind!r}: {len(snapshots)} snapshots")
    return snapshots[-last:]


def make_archive(settings: Settings, network: GPTConfig, state: State, path: Path, process: Process) -> None:
    """Quantise, compress, and read back what was written."""
    began_s = time.perf_counter()
    alone = Process()
    alone.world = 1
    device = alone.on(settings.devices.quantize)
    quantized = {name: form for name, form, _ in quantize_network(state, settings.quantize, device)}  # pyright: ignore[reportArgumentType]
    compress: Any = settings.compress
    write_archive(path, quantized, network, compress.constants, chains_for(compress))
    if not equal(read_quantized(path)[0], quantized):
        raise RuntimeError("the archive does not decode to what was stored")
    process.log(f"artifact_time:{1000 * (time.perf_counter() - began_s):.0f}ms")


def evaluate(
    name: str,
    protocol: Protocol,
    expected: GPTConfig,
    archive: Path,
    stream: TokenStream,
    table: ByteTable,
    bos: int,
    device: torch.device,
    process: Process,
) -> None:
    """Score the archive under one protocol, as the stage of this name does."""
    tensors, shape, _ = read_archive(archive)
    if shape != expected:
        raise ValueError("the archive holds another network than the recipe's; score it with its own program")
    network = GPT(shape)
    network.load_state_dict(tensors)
    scoring = ScoringPass(protocol, network, stream, table, bos, device, process.rank, process.world)
    began_s = time.perf_counter()
    scoring.run(adapted=process.adapted)
    seconds = time.perf_counter() - began_s
    ledger = scoring.referee.ledger
    account = ledger.account + ledger.again
    bpb = bits_per_byte(account.nats, account.bytes)
    broken = ",".join(rule["rule"] for rule in scoring.referee.broken) or "-"
    process.log(f"final_{name}_exact val_loss:{account.nats / account.targets:.8f} val_bpb:{bpb:.8f}")
    sums = f"nats:{account.nats!r} targets:{account.targets} bytes:{account.bytes} ledger_sha256:{ledger.sha256}"
    process.log(f"final_{name}_sums {sums} rules_broken:{broken}")
    process.log(f"final_{name} eval_time:{1000 * seconds:.0f}ms")
    log_memory(device, process)


def log_memory(device: torch.device, process: Process) -> None:
    """The most memory that this rank's GPU has held."""
    if device.type == "cuda":
        held = (torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device))
        process.log("peak memory allocated: {} MiB reserved: {} MiB".format(*(each >> 20 for each in held)))
