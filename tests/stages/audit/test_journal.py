from __future__ import annotations

import numpy as np
import torch

from model.ledger import Event
from stages.audit.journal import Journal, Tokens, listen

IDS = np.arange(9)


def test_a_stretch_that_is_priced_twice_is_noted_as_such():
    def evaluate(tokens: Tokens, journal: Journal) -> None:
        journal.price(0, torch.ones(4))
        journal.price(2, torch.full((4,), 2.0))

    journal = listen(evaluate, IDS)
    assert journal.events == [Event("score", 0, 4), Event("score", 4, 6), Event("again", 2, 4)]
    assert journal.counts().tolist() == [1, 1, 2, 2, 1, 1, 0, 0]
    assert journal.nll().tolist() == [1, 1, 1, 1, 2, 2, 0, 0]


def test_a_price_may_take_the_place_of_another():
    def evaluate(tokens: Tokens, journal: Journal) -> None:
        journal.price(0, torch.ones(8))
        journal.price(0, torch.full((2,), 0.5), instead=True)

    journal = listen(evaluate, IDS)
    assert journal.nll().tolist() == [0.5, 0.5, 1, 1, 1, 1, 1, 1]
    assert journal.counts().tolist() == [1] * 8
    assert journal.events[-1] == Event("again", 0, 2)


def test_what_is_read_outside_of_inference_mode_counts_as_revealed():
    def evaluate(tokens: Tokens, journal: Journal) -> None:
        with torch.inference_mode():
            assert tokens[0:5].tolist() == [0, 1, 2, 3, 4]
        journal.price(0, torch.ones(4))
        tokens[2:5]

    assert listen(evaluate, IDS).events == [Event("score", 0, 4), Event("reveal", 2, 4)]


def test_training_before_the_first_price_is_counted_and_later_training_is_not():
    def evaluate(tokens: Tokens, journal: Journal) -> None:
        weight = torch.ones(1, requires_grad=True)
        optimizer = torch.optim.SGD([weight], lr=0.1)
        for _ in range(3):
            weight.sum().backward()
            optimizer.step()
        journal.price(0, torch.ones(8))
        weight.sum().backward()

    assert listen(evaluate, IDS).claims().trained_before_first_score == 6
