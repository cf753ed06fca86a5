"""The protocols of `evaluate` as scorers: the same network, adapter and expert, without the referee's loop around them.

Letters: B windows, T inputs of a window, S scored positions of each, V vocabulary, K = B * S targets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from torch import Tensor

from model.load import load_bytes, load_network
from model.mixer import Blend, PublishedMixer
from model.passes import make_adapter, make_mixer, make_pre_adapter, make_scorer, put_in_place
from model.protocol import Phases, from_dict
from model.referee import Handout, Revealed
from stages.audit.state import State, reachable
from stages.audit.subject import Scorer


class ProtocolScorer(Scorer):
    """One protocol of evaluate on an archive. `folder` holds archive.fwy, tokenizer.model and bytes.npy.

    A protocol that adapts to the whole stream first does so for one epoch of its first phase: what an audit has to
    show is that it happens, not how far it goes. `whole` runs it as it was.
    """

    def __init__(self, folder: Path, values: Mapping[str, Any], device: torch.device, whole: bool = False) -> None:
        self._folder, self._protocol, self._device, self._whole = folder, from_dict(values), device, whole
        self._spent = 0
        self.exposed = self._protocol.protocol == "pre_eval"
        tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        self._bos = tokenizer.bos_id()
        self._table = load_bytes(folder)
        self._network = load_network(folder / "archive.fwy")
        put_in_place(self._network, self._protocol, device)
        self._forward, self._compute = make_scorer(self._protocol, self._network, device)
        self._archived = {name: tensor.clone() for name, tensor in self._network.state_dict().items()}
        self.vocab = self._network.config.vocab
        self.reset()

    @property
    def log_probabilities(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether an expert has begun to blend: from then on what is returned sums to 1."""
        return isinstance(self._mixer, Blend) and self._mixer.active

    @property
    def trained_tokens(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Inputs that went forward in training."""
        return self._spent + (self._adapter.trained_tokens if self._adapter else 0)

    def reset(self) -> None:
        """The archive's weights, no adapter's memory, no counts."""
        protocol, device = self._protocol, self._device
        if hasattr(self, "_adapter"):
            self._spent = self.trained_tokens
        self._network.load_state_dict(self._archived)
        self._adapter = make_adapter(protocol, self._network, self._compute, self._table, self._bos)
        self._mixer = make_mixer(protocol, self, self.vocab, device)

    def permit_unnormalised(self, why: str) -> None:
        """The published mixer asks its referee for this; who audits it asks for prices then."""
        del why
        self.normalised = False

    def _logits(self, inputs_BT: Tensor, scored: int) -> Tensor:
        logits_KV = self._forward(inputs_BT, scored).flatten(0, 1)
        return logits_KV if self._protocol.temperature == 1 else logits_KV / self._protocol.temperature

    def score(self, inputs_BT: Tensor, scored: int) -> Tensor:
        """What evaluate would commit."""
        logits_KV = self._logits(inputs_BT, scored)
        if isinstance(self._mixer, Blend) and self._mixer.active:
            logits_KV = self._mixer.blend(Handout(inputs_BT, scored, 0, len(logits_KV)), logits_KV)
        return logits_KV.float().cpu().view(len(inputs_BT), scored, self.vocab)

    def price(self, inputs_BT: Tensor, scored: int, targets_KM: Tensor) -> Tensor:
        """What evaluate would charge for each of M candidates."""
        logits_KV, targets_KM = self._logits(inputs_BT, scored), targets_KM.to(self._device)
        if not isinstance(self._mixer, PublishedMixer) or not self._mixer.active:
            return -logits_KV.float().log_softmax(-1).gather(1, targets_KM).cpu()
        handout = Handout(inputs_BT, scored, 0, len(logits_KV))
        return torch.stack([self._mixer.price(handout, logits_KV, target_K).cpu() for target_K in targets_KM.T], dim=1)

    def update(self, tokens: Tensor, index: int) -> None:
        """Count, then train, in evaluate's order."""
        if self._mixer is not None:
            self._mixer.update(Revealed(index, tokens))
        if self._adapter is not None:
            self._adapter.update(tokens, index)

    def expose(self, tokens_N1: Tensor) -> None:
        """Adapt to all of it, before any of it is scored."""
        protocol = self._protocol
        if not self._whole:
            protocol = replace(protocol, pre_eval=Phases(first=replace(protocol.pre_eval.first, epochs=1)))
        adapter = make_pre_adapter(protocol, self._network, self._compute, len(tokens_N1) - 1)
        assert adapter is not None
        adapter.run(tokens_N1, lambda _done, _total, _loss: None)
        self._spent += adapter.trained_tokens

    def state(self) -> Iterable[State]:
        """The network's tensors, and all that adapter and expert hold."""
        yield from self._network.state_dict().items()
        yield from reachable((self._adapter, self._mixer), "learned")
