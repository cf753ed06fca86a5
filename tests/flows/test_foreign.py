"""Scores of files that no run here made: real stages on a small network and a short text, and the refusals."""

from __future__ import annotations

import json
import pydoc_data.topics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch

from artifacts.store import Store
from configs.load import load_recipe
from flows.foreign import Given, Question, inspect, score
from flows.session import Event
from model.archive import write_archive
from model.config import GPTConfig, to_dict
from model.gpt import GPT
from model.init import initialise
from model.weights import save_weights
from stages.contract import StageError

NETWORK = GPTConfig(vocab=384, layers=2, dim=16, heads=2, kv_heads=1, mlp_hidden=32)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A text, a tokenizer, and a network as an archive and as float weights."""
    root = tmp_path_factory.mktemp("given")
    text = "\n\n".join(text[:600] for _, text in sorted(pydoc_data.topics.topics.items())[:20])
    (root / "val.txt").write_text(text, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(root / "val.txt"), model_prefix=str(root / "spm"), vocab_size=384, model_type="bpe",
        byte_fallback=True, pad_id=0, bos_id=1, eos_id=2, unk_id=3, minloglevel=2, num_threads=1,
        add_dummy_prefix=False, normalization_rule_name="nmt_nfkc",
    )  # fmt: skip
    model = GPT(NETWORK)
    initialise(model, 0)
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.1)
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    write_archive(root / "mine.fwy", {name: tensor.half() for name, tensor in state.items()}, NETWORK)
    save_weights(root / "mine.safetensors", state, {"network": json.dumps(to_dict(NETWORK))})
    return {name: root / name for name in ("val.txt", "spm.model", "mine.fwy", "mine.safetensors")}


def ask(files: dict[str, Path], store: Path, **changes: Any) -> Question:
    """A question about one protocol of the quickstart recipe, on the given text."""
    asked = Question(
        recipe="quickstart", scale="smoke", protocols=("roundtrip",), val=str(files["val.txt"]),
        tokenizer=str(files["spm.model"]), store=str(store), overrides=("evaluate.roundtrip.max_targets=400",), cores=2,
    )  # fmt: skip
    return replace(asked, **changes)


@pytest.fixture(scope="module")
def scored(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    store = tmp_path_factory.mktemp("scored") / "store"
    return score(inspect(files["mine.fwy"]), ask(files, store)), store


def test_a_score_is_of_the_referee_and_says_that_nobody_audited_it(scored: tuple[dict[str, Any], Path]) -> None:
    result, _ = scored
    (only,) = result["scores"].values()
    assert only["tokens"] == 400
    assert only["verdict"] == "not audited"
    assert only["bpb"] > 1
    assert only["marks"] == ["partial"]


def test_the_record_names_the_files_content_and_no_producer(scored: tuple[dict[str, Any], Path]) -> None:
    result, folder = scored
    store = Store.open(folder)
    record = store.resolve(result["scores"]["roundtrip"]["record"])
    assert record.inputs["archive"]["from"] == []
    assert record.inputs["archive"]["digest"]
    assert [name for name in store.names() if "evaluate" in name] == [
        f"score-{result['sha256'][:12]}/smoke/1337/evaluate[roundtrip]@1"
    ]


def test_nothing_is_trained_and_no_training_text_is_tokenized(scored: tuple[dict[str, Any], Path]) -> None:
    _, folder = scored
    assert {stage for stage, _ in Store.open(folder).records()} == {"corpus", "vocabulary", "tokenize", "evaluate"}
    assert not [name for name in Store.open(folder).names() if "tokenize[train" in name]


def test_a_file_that_was_scored_is_not_scored_again(
    scored: tuple[dict[str, Any], Path], files: dict[str, Path]
) -> None:
    result, folder = scored
    events: list[Event] = []
    again = score(inspect(files["mine.fwy"]), ask(files, folder), events.append)
    assert again["scores"]["roundtrip"]["state"] == "cached"
    assert again["scores"]["roundtrip"]["bpb"] == result["scores"]["roundtrip"]["bpb"]
    assert not [event for event in events if event.kind == "start"]


def test_the_stage_that_made_a_file_is_its_producer_and_a_rejection_is_told(
    scored: tuple[dict[str, Any], Path], files: dict[str, Path], tmp_path: Path
) -> None:
    _, folder = scored
    store = Store.open(folder)
    (tmp_path / "out" / "archive").mkdir(parents=True)
    (tmp_path / "out" / "archive" / "archive.fwy").write_bytes(files["mine.fwy"].read_bytes())
    made = store.publish(
        stage="compress", key="1" * 64, folder=tmp_path / "out", components={}, report={}, inputs={}
    ).record  # fmt: skip
    question = ask(files, folder, overrides=("evaluate.roundtrip.max_targets=300",))
    found = score(inspect(files["mine.fwy"]), question)["scores"]["roundtrip"]["record"]
    assert [each["key"] for each in store.resolve(found).inputs["archive"]["from"]] == [made.key]
    store.reject(f"compress/{made.key}", "trained on val")
    after = score(inspect(files["mine.fwy"]), question)["scores"]["roundtrip"]
    assert after["verdict"] == "rejected: trained on val; not audited"


@pytest.mark.parametrize("stage", ["compress", "audit"])
def test_somebody_elses_damaged_record_does_not_stop_a_score(
    scored: tuple[dict[str, Any], Path], files: dict[str, Path], tmp_path: Path, stage: str
) -> None:
    """The store is looked through for who made the file and who audited its score."""
    result, folder = scored
    (tmp_path / "out" / "role").mkdir(parents=True)
    (tmp_path / "out" / "role" / "file").write_bytes(stage.encode())
    store = Store.open(folder)
    store.publish(stage=stage, key="2" * 64, folder=tmp_path / "out", components={}, report={}, inputs={})
    path = folder / "records" / stage / f"{'2' * 64}.json"
    path.write_bytes(path.read_bytes().replace(b"role/file", b"role/fine"))
    again = score(inspect(files["mine.fwy"]), ask(files, folder))
    assert again["scores"]["roundtrip"]["bpb"] == result["scores"]["roundtrip"]["bpb"]
    path.unlink()


def test_float_weights_are_scored_as_the_diagnostic_that_they_are(
    scored: tuple[dict[str, Any], Path], files: dict[str, Path]
) -> None:
    result, folder = scored
    floats = score(inspect(files["mine.safetensors"]), ask(files, folder))
    assert floats["kind"] == "weights"
    assert floats["scores"]["roundtrip"]["bpb"] == pytest.approx(result["scores"]["roundtrip"]["bpb"], abs=0.01)
    components = Store.open(folder).resolve(floats["scores"]["roundtrip"]["record"]).components
    assert components["config"]["of"] == "averaged"


def test_a_tokenizer_with_more_pieces_than_the_network_has_ids_is_refused(
    files: dict[str, Path], tmp_path: Path
) -> None:
    small = Given(Path("x.fwy"), "archive", inspect(files["mine.fwy"]).file, replace(NETWORK, vocab=256))
    with pytest.raises(StageError, match="256 of them and the tokenizer 384 pieces"):
        score(replace(small, path=files["mine.fwy"]), ask(files, tmp_path / "store"))


def test_a_tokenizer_with_far_fewer_pieces_than_the_network_has_ids_is_refused(
    files: dict[str, Path], tmp_path: Path
) -> None:
    wide = Given(files["mine.fwy"], "archive", inspect(files["mine.fwy"]).file, replace(NETWORK, vocab=1024))
    with pytest.raises(StageError, match="1,024 of them and the tokenizer 384 pieces"):
        score(wide, ask(files, tmp_path / "store"))


def test_another_tokenizer_of_the_same_size_is_refused_if_the_store_knows_the_right_one(
    scored: tuple[dict[str, Any], Path], files: dict[str, Path], tmp_path: Path
) -> None:
    _, folder = scored
    store = Store.open(folder)
    right = "a" * 64
    for stage, role, content in (("train", "raw", b"weights"), ("compress", "archive", files["mine.fwy"].read_bytes())):
        path = tmp_path / stage / role / f"{role}.fwy"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    trained = store.publish(
        stage="train", key="2" * 64, folder=tmp_path / "train", components={}, report={},
        inputs={"tokenizer": {"digest": right, "from": []}},
    ).record  # fmt: skip
    given = {"weights": {"digest": "b" * 64, "from": [trained.producer("raw")]}}
    made = store.publish(
        stage="compress", key="3" * 64, folder=tmp_path / "compress", components={}, report={}, inputs=given
    ).record
    with pytest.raises(StageError, match=f"was {right[:12]} and this one is"):
        score(inspect(files["mine.fwy"]), ask(files, folder))
    store.reject(f"compress/{made.key}", "not of this test")


@pytest.mark.slow
def test_a_tokenizer_that_nobody_vouches_for_is_marked(files: dict[str, Path], tmp_path: Path) -> None:
    """Of the recipe's own size, so that nothing tells them apart."""
    vocab = load_recipe("quickstart", "smoke").recipe.vocabulary.size
    network = replace(NETWORK, vocab=vocab)
    state = {name: tensor.detach().half() for name, tensor in GPT(network).state_dict().items()}
    write_archive(tmp_path / "other.fwy", state, network)
    question = ask(files, tmp_path / "store", val="", tokenizer="")
    found = score(inspect(tmp_path / "other.fwy"), question)
    assert "tokenizer assumed" in found["scores"]["roundtrip"]["marks"]


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"FWAY and no more", "damaged"), (b"something else", "not a safetensors file"), (b"", "empty")],
)
def test_what_is_none_of_ours_is_refused(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    with pytest.raises(StageError, match=says):
        inspect(path)


def test_a_flipped_byte_is_found_before_anything_runs(files: dict[str, Path], tmp_path: Path) -> None:
    content = bytearray(files["mine.fwy"].read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.fwy").write_bytes(content)
    with pytest.raises(StageError, match="CRC-32"):
        inspect(tmp_path / "flipped.fwy")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"protocols": ("slide",)}, "there are roundtrip, sliding, ttt"),
        ({"tokenizer": ""}, "come together"),
        ({"recipe": "nowhere"}, "nowhere"),
        ({"tokenizer": __file__}, "SentencePiece .model"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused(
    changes: dict[str, Any], says: str, files: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(StageError, match=says):
        score(inspect(files["mine.fwy"]), ask(files, tmp_path / "store", **changes))
    assert not (tmp_path / "store" / "runs").exists()


def test_quickstart_has_the_protocols_that_these_tests_name() -> None:
    assert {"roundtrip", "sliding", "ttt"} <= load_recipe("quickstart", "smoke").recipe.evaluate.keys()
