from __future__ import annotations

import json
import shutil

import pytest

from stages.evaluate.config import Config
from stages.evaluate.stage import run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's inductor uses torch.jit
    pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU"),
]


@pytest.mark.parametrize("protocol", ["sliding", "ttt"])
def test_a_compiled_network_scores_as_the_eager_one(tmp_path, inputs, runtime, protocol):
    scores = []
    for compile_ in ("off", "on"):
        config = Config(
            protocol=protocol, context_tokens=64, stride_tokens=16, batch_windows=8, max_targets=1500,
            compile=compile_, ttt={"chunk_tokens": 512, "epochs": 1, "lr": 0.05},
        )  # fmt: skip
        out = tmp_path / compile_
        out.mkdir()
        run(config, inputs, out, runtime)
        scores.append(json.loads((out / "score" / "score.json").read_text()))
    assert scores[1]["nats"] == pytest.approx(scores[0]["nats"], rel=1e-5)
