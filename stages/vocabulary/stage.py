"""Train documents, or a `.model` that exists -> the tokenizer and its table of bytes per token id."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.bytes import ByteTable
from stages.contract import Runtime, StageError, fresh_role
from stages.urls import filesystem
from stages.vocabulary.config import Config
from stages.vocabulary.sample import Sample, sentences
from stages.vocabulary.sentencepiece_model import train, verify_import


def run(config: Config, inputs: Mapping[str, Path], out: Path, runtime: Runtime) -> dict[str, Any]:
    """Write `tokenizer/tokenizer.model` and `tokenizer/bytes.npy`."""
    taken = Sample()
    if config.model:
        raw, name = _imported(config, inputs)
        verify_import(raw, name, config.size)
    else:
        lines = sentences(inputs["documents"], config.sample_bytes, taken)
        raw = train(lines, config.size, config.character_coverage)
    folder = fresh_role(out, "tokenizer")
    (folder / "tokenizer.model").write_bytes(raw)
    table = ByteTable.from_sentencepiece(folder / "tokenizer.model")
    table.save(folder / "bytes.npy")
    return {"pieces": table.vocab, "sample_documents": taken.documents, "sample_bytes": taken.bytes}


def _imported(config: Config, inputs: Mapping[str, Path]) -> tuple[bytes, str]:
    """The bytes and name of the model: from the input folder where there is one, else from where it lies."""
    if "model" in inputs:
        files = sorted(inputs["model"].iterdir())
        if len(files) != 1:
            raise StageError(f"the role 'model' holds one .model file; got {len(files)} files; give one")
        return files[0].read_bytes(), files[0].name
    fs, path = filesystem(config.model)
    try:
        return fs.cat_file(path), path.rsplit("/", 1)[-1]
    except Exception as error:  # every filesystem has errors of its own
        raise StageError(
            f"a tokenizer must be readable; {config.model} is not: {type(error).__name__}: {error}"
        ) from error
