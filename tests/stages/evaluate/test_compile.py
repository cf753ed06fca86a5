from __future__ import annotations

import json
import shutil

import pytest
import torch

from stages.evaluate.config import Config
from stages.evaluate.stage import run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's inductor uses torch.jit
    pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU"),
]


TTT = {"chunk_tokens": 512, "epochs": 1, "lr": 0.05}
PROTOCOLS = {
    "sliding": {"protocol": "sliding"},
    "ttt": {"protocol": "ttt", "ttt": TTT},
    "few": {"protocol": "ttt", "ttt": {**TTT, "adapt": ("blocks.2.*", "*.attn_scale"), "polyak_decay": 0.5}},
    "adapters": {"protocol": "ttt", "ttt": {**TTT, "lora": {"rank": 2}, "fake_quantise": {"bits": 6}}},
    "pre_eval": {
        "protocol": "pre_eval",
        "pre_eval": {
            "first": {"epochs": 2, "adapt": ("*.attn_scale",), "batch_sequences": 6, "microbatch_sequences": 4},
            "second": {"epochs": 1, "lr": 0.05, "batch_sequences": 6},
        },
    },
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_compiled_network_scores_as_the_eager_one(tmp_path, inputs, runtime, protocol):
    """Weights are exchanged in place and phases free other parameters: neither may leave a stale graph behind."""
    torch.compiler.reset()  # the limit of graphs per function counts those of the tests before
    scores = []
    for compile_ in ("off", "on"):
        config = Config(
            **PROTOCOLS[protocol], context_tokens=64, stride_tokens=16, batch_windows=8, max_targets=1500,
            compile=compile_,
        )  # fmt: skip
        out = tmp_path / compile_
        out.mkdir()
        run(config, inputs, out, runtime)
        scores.append(json.loads((out / "score" / "score.json").read_text()))
    assert scores[1]["nats"] == pytest.approx(scores[0]["nats"], rel=1e-5)
