"""Scores a file that no run of this store made: an archive, or float weights, through the referee.

The records say the digest of the file's content, and as its producer the stage that made it if that was here, else
none. So an archive that a run here did make is found scored already, and nothing that was not trained here looks as if
it were. The recipe lends its documents, tokenizer and protocols; nothing is trained.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import sentencepiece

from artifacts.digest import hash_file
from artifacts.record import File, Record, digest_files
from configs.load import Loaded, load_recipe
from flows import verdicts
from flows.launch import Interrupted
from flows.prepare import Prepared, Request, prepare
from flows.river import Input, Step, StepId, of, river
from flows.session import Event, Outcome, Session
from flows.snapshot import Packed
from flows.step import hit_or_run
from model.archive import MAGIC, read_archive
from model.config import GPTConfig, from_dict
from model.weights import load_weights
from stages.config import StageConfig
from stages.contract import StageError
from stages.urls import filesystem

FILES = {"archive": "archive.fwy", "weights": "weights.safetensors"}  # the names that `evaluate` opens
_MAKERS = {  # the outputs that such a file may be
    "archive": (("compress", "archive"),),
    "weights": (("average", "weights"), ("train", "raw"), ("train", "ema")),
}


_PADDING = 128  # embedding matrices are padded to multiples of at most this
_WHICH = "name the recipe that it was trained for, or give --val and --tokenizer"


@dataclass(frozen=True)
class Given:
    """The file to score, read once in full."""

    path: Path
    kind: Literal["archive", "weights"]
    file: File  # under the name that `evaluate` opens
    network: GPTConfig

    @property
    def name(self) -> str:
        """What the store calls it: `score-` and the beginning of its sha256."""
        return f"score-{self.file.sha256[:12]}"


@dataclass(frozen=True, kw_only=True)
class Question:
    """What `fairway score` was asked for."""

    recipe: str
    scale: str
    overrides: Sequence[str] = ()
    protocols: Sequence[str] = ()  # none: every one of the recipe that scores the archive
    val: str = ""  # URL of documents or token shards, in place of the recipe's
    tokenizer: str = ""  # URL of a .model, in place of the recipe's
    store: str
    cores: int | None = None
    argv: Sequence[str] = ()


def inspect(path: Path) -> Given:
    """Read the file, every checksum of it. Raises StageError if it is damaged, or none of ours."""
    try:
        with path.open("rb") as file:
            kind = "archive" if file.read(len(MAGIC)) == MAGIC else "weights"
        sha256, size_bytes = hash_file(path)
        network = read_archive(path)[1] if kind == "archive" else _network_of_weights(path)
    except OSError as error:
        raise StageError(f"score reads a file; {path} cannot be read: {error}; give an archive.fwy") from error
    except ValueError as error:  # FormatError is one
        raise StageError(
            f"score takes an archive (.fwy) or weights (.safetensors) as Fairway writes them; {path.name} is none, or "
            f"is damaged: {error}"
        ) from error
    return Given(path, kind, File(FILES[kind], sha256, size_bytes), network)


def _network_of_weights(path: Path) -> GPTConfig:
    _, metadata = load_weights(path)
    if "network" not in metadata:
        raise ValueError("it does not say what network it is for")
    return from_dict(json.loads(metadata["network"]))


def score(given: Given, question: Question, tell: Callable[[Event], None] = lambda event: None) -> dict[str, Any]:
    """Score the file under each protocol; the result as JSON.

    Raises:
        StageError: the recipe, a protocol or a field is wrong, or the tokenizer is not the network's.
        StageFailed, Interrupted, StoreError: see `hit_or_run`.
    """
    base = load_recipe(question.recipe, question.scale, question.overrides)
    wanted = _protocols(base, question.protocols)
    with _recipe(given, question, base, wanted) as (folder, recipe, overrides):
        request = Request(
            recipe=str(recipe),
            scale=question.scale,
            overrides=overrides,
            store=question.store,
            cores=question.cores,
            argv=question.argv,
        )
        with prepare(request, tell) as prepared:
            prepared.session.packed = Packed(folder, (given.file,))
            outcomes = _flow(given, prepared)
            why = _rejected(given, prepared.session)
            # Neither this store nor who asks says which tokenizer it was: that of the recipe is taken on trust.
            trusted = not question.tokenizer and not _tokenizers(given, prepared.session)
            scores = {
                o.step.part: _score(o, why, _audited(prepared.session, o), ["tokenizer assumed"] if trusted else [])
                for o in outcomes
                if o.step.stage == "evaluate"
            }
            prepared.session.run.finish("completed", scores=scores)
            return _result(given, question, prepared.session, scores)


def _protocols(base: Loaded, asked: Sequence[str]) -> list[str]:
    """The names of the protocols to score under."""
    known = [name for name, protocol in base.recipe.evaluate.items() if protocol.of == "archive"]
    for name in asked:
        if name not in known:
            raise StageError(
                f"--protocol names one that scores the archive in {base.recipe.name}; got {name!r}; there are "
                f"{', '.join(known) or 'none'}"
            )
    if not known:
        raise StageError(
            f"a protocol says how to score; {base.recipe.name} has none of an archive; name another recipe"
        )
    return list(asked) or known


@contextmanager
def _recipe(
    given: Given, question: Question, base: Loaded, wanted: Sequence[str]
) -> Iterator[tuple[Path, Path, list[str]]]:
    """A folder with the file under its stage's name, a recipe of this question's own, and the overrides.

    A recipe of its own, because what is scored here is no result of the recipe that lends its data.
    """
    extends = str(Path(question.recipe).absolute()) if question.recipe.endswith(".toml") else question.recipe
    left_out = [f"evaluate.{name}" for name in base.recipe.evaluate if name not in wanted]
    lines = [
        f"extends = {json.dumps(extends)}",
        f"without = {json.dumps(left_out)}",
        f"about = {json.dumps(f'{given.path.name}, scored with the data and protocols of {base.recipe.name}.')}",
    ]
    with tempfile.TemporaryDirectory(prefix="fairway-score-") as root:
        folder = Path(root) / "given"
        folder.mkdir()
        shutil.copyfile(given.path, folder / given.file.path)
        path = Path(root) / f"{given.name}.toml"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        kept = [text for text in question.overrides if not _speaks_to(text, left_out)]
        yield folder, path, [*kept, *_data(question), *_of(given, wanted)]


def _speaks_to(override: str, left_out: Sequence[str]) -> bool:
    return any(override.startswith(f"{path}.") for path in left_out)


def _of(given: Given, wanted: Sequence[str]) -> list[str]:
    """Float weights are scored as what they are: a diagnostic."""
    return [] if given.kind == "archive" else [f"evaluate.{name}.of=averaged" for name in wanted]


def _data(question: Question) -> list[str]:
    """Overrides that put the given text and tokenizer in the place of the recipe's."""
    if bool(question.val) != bool(question.tokenizer):
        raise StageError("--val and --tokenizer come together: text without its tokenizer has no tokens; give both")
    if not question.val:
        return []
    where, model = json.dumps(question.val), json.dumps(question.tokenizer)
    shards = question.val.endswith(".bin")
    # Only val is read. Its source stands in for the training documents too, cut to the first.
    form = ["format=shards", "max_documents=0"] if shards else ["format=auto", "max_documents=1", "duplicates=keep"]
    corpus = [f"source={where}", f"val_source={where}", "val_documents=0", *form]
    vocabulary = [f"model={model}", f"size={_pieces(question.tokenizer)}"]
    return [*(f"corpus.{text}" for text in corpus), *(f"vocabulary.{text}" for text in vocabulary)]


def _pieces(url: str) -> int:
    """How many pieces a .model has."""
    fs, path = filesystem(url)
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=fs.cat_file(path)).vocab_size()
    except Exception as error:  # every filesystem has errors of its own
        raise StageError(f"--tokenizer is a SentencePiece .model; {url} cannot be read as one: {error}") from error


def _flow(given: Given, prepared: Prepared) -> list[Outcome]:
    """Documents, tokenizer and val shards as the recipe's river makes them, then the scores; every outcome."""
    session, recipe = prepared.session, prepared.loaded.recipe
    outputs: dict[StepId, tuple[File, ...] | None] = {}
    outcomes: list[Outcome] = []
    for step in river(recipe, session.seed, prepared.outside, outputs):
        if step.stage == "train":
            break
        if step.stage == "tokenize" and not step.part.startswith("val-"):
            continue
        outcomes.append(hit_or_run(step, session))
        outputs[step.id] = outcomes[-1].record.files
        if step.stage == "vocabulary":
            _same_vocabulary(given, outcomes[-1].record)
            _same_tokenizer(given, outcomes[-1].record, session)
    inputs = {
        given.kind: _network(given, session),
        "tokenizer": of(outputs, "vocabulary", "tokenizer"),
        "val": of(outputs, "tokenize", "shards", "val-"),
    }
    steps = [
        Step("evaluate", name, each, {role: inputs[role] for role in each.reads()}, None, recipe.devices.evaluate)
        for name, each in recipe.evaluate.items()
    ]
    return [*outcomes, *_side_by_side(steps, session)]


def _network(given: Given, session: Session) -> Input:
    """The file as an input; its producer is the stage that made it here, if one did, so that `reject` finds it."""
    digest = digest_files((given.file,))
    for record, role in _makers(given, session):
        step = Step(record.stage, record.part, StageConfig(), {}, None, None)
        session.done[step.id] = Outcome(step, record, "cached", record.label, 0.0)
        return Input(digest, (given.file,), ((record.stage, record.part, role),))
    return Input(digest, (given.file,))


def _makers(given: Given, session: Session) -> Iterator[tuple[Record, str]]:
    """The records of this store that made such a file, with the output that it is."""
    digest = digest_files((given.file,))
    for stage, role in _MAKERS[given.kind]:
        for record, _ in session.store.all_records(stage):
            if record.role_digest(role) == digest:
                yield record, role


def _tokenizers(given: Given, session: Session) -> set[str]:
    """Digests of the tokenizers that the file's network was trained with, as far as this store knows."""
    found: set[str] = set()
    above = [record for record, _ in _makers(given, session)]
    while above:
        record = above.pop()
        if record.stage == "train":
            found.add(record.inputs["tokenizer"]["digest"])
            continue
        parents = (session.store.get(each["stage"], each["key"]) for each in record.producers())
        above += [parent for parent in parents if parent is not None]
    return found


def _rejected(given: Given, session: Session) -> str:
    """Why the file must not be used, if it was made and rejected here."""
    digest = digest_files((given.file,))
    for record, reason in session.store.rejected():
        if any(record.stage == stage and record.role_digest(role) == digest for stage, role in _MAKERS[given.kind]):
            return reason
    return ""


def _side_by_side(steps: Sequence[Step], session: Session) -> list[Outcome]:
    """Every step's outcome; when one fails the others are stopped."""
    with ThreadPoolExecutor(max(len(steps), 1)) as pool:
        pending = [pool.submit(hit_or_run, step, session) for step in steps]
        try:
            return [each.result() for each in pending]
        except BaseException:
            session.cancel.set()
            errors = [error for each in pending if (error := each.exception()) and not isinstance(error, Interrupted)]
            if errors:
                raise errors[0] from None
            raise


def _same_vocabulary(given: Given, vocabulary: Record) -> None:
    """As many ids as pieces; rows that only pad the matrix may come on top."""
    pieces = vocabulary.report["pieces"]
    if not pieces <= given.network.vocab <= _PADDING * math.ceil(pieces / _PADDING):
        raise StageError(
            f"a network scores the ids of the tokenizer that it was trained with; {given.path.name} has "
            f"{given.network.vocab:,} of them and the tokenizer {pieces:,} pieces; {_WHICH}"
        )


def _same_tokenizer(given: Given, vocabulary: Record, session: Session) -> None:
    """If this store knows which tokenizer it was: that one. An equal number of pieces does not make them equal."""
    known, here = _tokenizers(given, session), vocabulary.role_digest("tokenizer")
    if known and here not in known:
        raise StageError(
            f"a network scores the ids of the tokenizer that it was trained with; that of {given.path.name} was "
            f"{', '.join(sorted(digest[:12] for digest in known))} and this one is {here[:12]}; {_WHICH}"
        )


def _audited(session: Session, outcome: Outcome) -> str:
    """What the latest audit here made of this very score, if there is one."""
    found: tuple[str, Mapping[str, Any]] = ("", {})
    for record, _ in session.store.all_records("audit"):
        if any(each["record"] == outcome.record.id for each in record.producers()):
            found = max(
                found, (record.provenance["published"], verdicts.summary(record.report)), key=lambda one: one[0]
            )
    return verdicts.mark(found[1], outcome.step.part) or "not audited"


def _score(outcome: Outcome, rejected: str, audited: str, marks: Sequence[str]) -> dict[str, Any]:
    report = outcome.record.report
    broken = sorted(set(report["rules_broken"]))
    verdict = [f"rejected: {rejected}"] if rejected else []
    verdict += [f"breaks {' '.join(broken)}"] if broken else []
    verdict.append(audited)
    return {
        **{name: report[name] for name in ("bpb", "nats_per_token", "tokens", "bytes")},
        "marks": [*report["marks"], *marks],
        "rules_broken": broken,
        "verdict": "; ".join(verdict),
        "record": f"evaluate/{outcome.record.key}",
        "state": outcome.state,
        "seconds": outcome.record.provenance.get("seconds"),
    }


def _result(given: Given, question: Question, session: Session, scores: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "run": session.run.id,
        "file": given.path.name,
        "kind": given.kind,
        "sha256": given.file.sha256,
        "bytes": given.file.bytes,
        "recipe": question.recipe,
        "scale": question.scale,
        "scores": dict(scores),
    }
