"""The scorer's side of the pipe: questions in, answers out, errors told, training heard of."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from stages.audit import child
from stages.audit.subject import Scorer
from stages.audit.wire import WireError, receive, send


class Trains(Scorer):
    """Takes a gradient inside `score`."""

    vocab = 3

    def reset(self):
        pass

    def update(self, tokens, index):
        raise ValueError(f"chunk {index} is not welcome")

    def score(self, inputs_BT, scored):
        weight = torch.zeros(3, requires_grad=True)
        weight.softmax(0)[0].backward()
        return torch.zeros(len(inputs_BT), scored, 3)


def ask(monkeypatch, *questions):
    monkeypatch.setattr(child, "_open", lambda header: Trains())
    sent, heard = io.BytesIO(), io.BytesIO()
    for header, arrays in questions:
        send(sent, header, arrays)
    sent.seek(0)
    child.serve(sent, heard)
    heard.seek(0)
    return [receive(heard) for _ in questions]


def test_a_gradient_inside_score_is_told_with_the_answer(monkeypatch):
    inputs = np.zeros((2, 4), dtype=np.int64)
    opened, (said, (logits_BSV,)) = ask(monkeypatch, ({"ask": "open"}, []), ({"ask": "score", "scored": 2}, [inputs]))
    assert opened[0]["trained"] == 0
    assert said["trained"] == 1
    assert logits_BSV.shape == (2, 2, 3)


def test_what_goes_wrong_is_told_and_the_next_question_is_answered(monkeypatch):
    tokens = np.arange(5)
    answers = ask(monkeypatch, ({"ask": "open"}, []), ({"ask": "update", "index": 7}, [tokens]), ({"ask": "reset"}, []))
    assert answers[1][0]["error"] == "ValueError: chunk 7 is not welcome"
    assert "error" not in answers[2][0]


@pytest.mark.parametrize("array", [np.arange(6).reshape(2, 3), np.zeros((0, 4), dtype=np.float32), np.float32(1.5)])
def test_arrays_arrive_as_they_were_sent(array):
    pipe = io.BytesIO()
    send(pipe, {"ask": "x"}, [np.asarray(array)])
    pipe.seek(0)
    header, (arrived,) = receive(pipe)
    assert header == {"ask": "x"}
    assert arrived.dtype == np.asarray(array).dtype
    np.testing.assert_array_equal(arrived, array)


@pytest.mark.parametrize("cut", [0, 3, 10, -1])
def test_a_message_that_is_cut_off_is_no_message(cut):
    pipe = io.BytesIO()
    send(pipe, {"ask": "x"}, [np.arange(3)])
    with pytest.raises(WireError):
        receive(io.BytesIO(pipe.getvalue()[:cut]))


@pytest.mark.parametrize(
    "header",
    [b'{"arrays": [["|O", [1]]]}', b'{"arrays": [["<i8", [-1]]]}', b"[]", b"\xff", b'{"arrays": [["<i8", [1e99]]]}'],
)
def test_what_is_no_message_is_refused_before_anything_is_read(header):
    with pytest.raises(WireError):
        receive(io.BytesIO(len(header).to_bytes(4, "little") + header + bytes(64)))
