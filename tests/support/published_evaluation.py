"""The evaluation code of published scripts, run as it is on a CPU at tiny width, as a function of the token stream.

The scripts are executed, never copied: `benchmarks/parity.py` loads them with our shared weights. What they read of
the stream and which prices they add up is heard by what they call: the token tensor, `F.cross_entropy`, the mixer's
`score`. Only what needs a GPU is replaced: autocast, `torch.compile` and the synchronisation.
"""

from __future__ import annotations

import ast
import contextlib
import os
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.audit.journal import Journal, Tokens

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CPU = torch.device("cpu")
Published = Callable[[Tokens, Journal], None]
"""Run over a stream; its `mean` is what the published function then returned, in nats."""
VOCAB, CONTEXT, STRIDE, CHUNK = 16, 32, 8, 64


@cache
def parity() -> types.SimpleNamespace:
    """The module `benchmarks/parity.py`."""
    with mock.patch.object(sys, "path", [str(BENCHMARKS), *sys.path]):
        import parity as loaded
    return types.SimpleNamespace(**vars(loaded))


class HeardTokens:
    """The journal's tokens, with the windows that were read under inference mode and have no price yet."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self.windows: list[tuple[int, int]] = []

    def numel(self) -> int:
        return len(self._tokens)

    def __getitem__(self, part: slice) -> Tensor:
        read = self._tokens[part]
        if torch.is_inference_mode_enabled():
            self.windows.append((int(part.start), int(part.start) + len(read) - 1))
        return read


class Script:
    """One published script; `system` is its name in `benchmarks/parity.py`."""

    def __init__(self, system: str, checkout: Path) -> None:
        tools = parity()
        self.system = system
        self.source = tools.read_script(tools.SCRIPTS[system], checkout)
        self._published = tools.Published(tools.SCRIPTS[system], self.source, "float32")
        self.module = self._published.module
        case = tools.CASES[system]["beyond 1024 tokens"]
        network = replace(case.network, vocab=VOCAB)
        self._case = replace(case, train=case.train.model_copy(update={"network": network}))

    def network(self) -> nn.Module:
        """A fresh network with the shared weights.

        Its rotary tables are made here, outside of inference mode: published runs cast them to bf16 at each use, which
        made them usable for training.
        """
        network = self._published.network(self._case)
        with torch.no_grad():
            network.forward_logits(torch.zeros(1, CONTEXT, dtype=torch.int64))
        return network

    def evaluation(self, run: Callable[[nn.Module, Any], tuple[float, float]]) -> Published:
        """`run(network, tokens)` as a function of a stream."""

        def evaluate(tokens: Tokens, journal: Journal) -> None:
            heard = HeardTokens(tokens)
            network = self.network()
            with self._on_a_cpu(), self._listening(heard, journal):
                evaluate.mean, _ = run(network, heard)  # pyright: ignore[reportFunctionMemberAccess]

        return evaluate  # pyright: ignore[reportReturnType]

    def arguments(self, **changes: Any) -> types.SimpleNamespace:
        """The script's hyperparameters as its run had them, but for these."""
        settings = self.module.Hyperparameters
        values = {name: getattr(settings, name) for name in dir(settings) if not name.startswith("_")}
        return types.SimpleNamespace(**values | {"train_seq_len": CONTEXT, "vocab_size": VOCAB} | changes)

    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """One byte per token, so that their quotient is defined: base, leading space, boundary."""
        none = torch.zeros(VOCAB, dtype=torch.bool)
        return torch.ones(VOCAB, dtype=torch.int16), none, none

    @contextlib.contextmanager
    def _on_a_cpu(self) -> Iterator[None]:
        with contextlib.ExitStack() as patches:
            patches.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            patches.enter_context(mock.patch.object(torch, "autocast", return_value=contextlib.nullcontext()))
            patches.enter_context(mock.patch.object(torch, "compile", lambda model, **_: model))
            patches.enter_context(mock.patch.object(torch.cuda, "synchronize", return_value=None))
            yield

    @contextlib.contextmanager
    def _listening(self, tokens: HeardTokens, journal: Journal) -> Iterator[None]:
        def keep(nll: Tensor) -> Tensor:
            if torch.is_inference_mode_enabled() and tokens.windows:
                nll_BT = nll.view(-1, CONTEXT)
                rows, tokens.windows = tokens.windows[-len(nll_BT) :], []  # what came before them was only looked at
                for nll_T, (lo, hi) in zip(nll_BT, rows, strict=True):
                    # What every published loop adds up: all of the first window, the last stride of the others.
                    first = lo if lo == 0 else max(hi - STRIDE, lo)
                    journal.price(first, nll_T[first - lo : hi - lo])
            return nll

        def cross_entropy(*args: Any, **options: Any) -> Tensor:
            nll = functional.cross_entropy(*args, **options)
            return keep(nll) if options.get("reduction") == "none" else nll

        parts = vars(self.module.F) | {"cross_entropy": cross_entropy}
        with contextlib.ExitStack() as patches:
            patches.enter_context(mock.patch.dict(vars(self.module), {"F": types.SimpleNamespace(**parts)}))
            if mixer := getattr(self.module, "BackoffNgramMixer", None):
                price = mixer.score
                patches.enter_context(mock.patch.object(mixer, "score", lambda *a, **o: keep(price(*a, **o))))
            yield


def sliding(script: Script, network: nn.Module, tokens: Any) -> tuple[float, float]:
    """The scripts' `eval_val_sliding`."""
    return script.module.eval_val_sliding(
        script.arguments(), network, 0, 1, CPU, tokens, *script.tables(), STRIDE, batch_seqs=4
    )


def adapt_then_score(script: Script, **settings: Any) -> Published:
    """What #398 runs, and #1232 unless LEGAL_TTT is set: `ttt_adapt` over all tokens, then the sliding window."""
    arguments = script.arguments(**{"ttt_batch_seqs": 2, "ttt_epochs": 2, "ttt_chunk_tokens": CHUNK, **settings})

    def evaluate(network: nn.Module, tokens: Any) -> tuple[float, float]:
        script.module.ttt_adapt(arguments, network, CPU, tokens)
        return sliding(script, network, tokens)

    return script.evaluation(evaluate)


def two_phases(script: Script) -> Published:
    """What #417 runs: the statements between `ttt_enabled = ...` and the sliding window of its `main`."""
    main = next(
        node for node in ast.parse(script.source).body if isinstance(node, ast.FunctionDef) and node.name == "main"
    )
    texts = [ast.unparse(node) for node in main.body]
    first = next(i for i, text in enumerate(texts) if text.startswith("ttt_enabled ="))
    last = next(i for i, text in enumerate(texts) if i > first and text.startswith("if ttt_enabled"))
    phases = compile(ast.Module(body=main.body[first : last + 1], type_ignores=[]), "phases", "exec")
    environment = {"TTT_BATCH_SEQS": "2", "TTT_P1_EPOCHS": "2", "TTT_P2_EPOCHS": "2"}

    def evaluate(network: nn.Module, tokens: Any) -> tuple[float, float]:
        around = {
            "eval_model": network, "val_tokens": tokens, "world_size": 1, "rank": 0, "device": CPU,
            "distributed": False, "effective_eval_seq_len": CONTEXT, "log0": lambda _text: None,
        }  # fmt: skip
        with mock.patch.dict(os.environ, environment):
            exec(phases, vars(script.module) | around)
        return sliding(script, network, tokens)

    return script.evaluation(evaluate)


def score_first(script: Script, **settings: Any) -> Published:
    """The `eval_val_sliding_ttt` of #1033 (with its n-gram mixer) and of #1232."""
    arguments = script.arguments(**{"ttt_batch_seqs": 2, "ttt_epochs": 1, "ttt_chunk_tokens": CHUNK, **settings})
    environment = {
        "NGRAM_ORDER": "5", "NGRAM_BUCKETS": "256", "MIN_COUNT": "2", "ALPHA_BASE": "0.20", "ALPHA_RANGE": "0.55",
        "ALPHA_CENTER": "3.0",
    }  # fmt: skip

    def evaluate(network: nn.Module, tokens: Any) -> tuple[float, float]:
        function = script.module.eval_val_sliding_ttt
        quiet = {"log0": lambda _text: None} if "log0" in function.__code__.co_varnames else {}
        with mock.patch.dict(os.environ, environment):
            return function(arguments, network, 0, 1, CPU, tokens, *script.tables(), STRIDE, batch_seqs=4, **quiet)

    return script.evaluation(evaluate)


def has_checkout(checkout: Path) -> bool:
    """Whether git finds the pull requests there."""
    script = parity().SCRIPTS["pr398"]
    found = subprocess.run(["git", "-C", checkout, "cat-file", "-e", script.ref], check=False, capture_output=True)
    return found.returncode == 0
