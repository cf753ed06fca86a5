"""T10: does a byte table count the text that the tokenizer stands for, each byte once?

The table is asked as a function, (previous ids, target ids) -> bytes, and compared with what the tokenizer itself says:
piece by piece with the pieces' text, and text by text with the decoder. Known mistakes are told by name.

Letters: V ids of the tokenizer, N targets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import sentencepiece

from stages.audit.finding import Finding, Verdict

Count = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(previous ids, target ids), equal shapes -> bytes of each target: `ByteTable.target_bytes`, or what is suspected."""

SPACE = "▁"
PROBES = (
    "Hello world",
    "A sentence with 1234 digits, and more: 56.7%!",
    "é ü ñ 中文 🙂 καλημέρα",
    "x + y = z; a\nb\n\nc\td",
    " lead and trail ",
    "a\x00b",
    "MiXeD Case",
    "",
)
EXAMPLES = 8


def check_byte_table(tokenizer: sentencepiece.SentencePieceProcessor, count: Count) -> list[Finding]:
    """Every piece after text and after BOS, the standalone space, and probing texts against the decoder."""
    return [check_pieces(tokenizer, count), check_space_piece(tokenizer), check_probes(tokenizer, count)]


def reference_bytes(tokenizer: sentencepiece.SentencePieceProcessor) -> tuple[np.ndarray, np.ndarray]:
    """(bytes after text, bytes after a boundary), int64 [V] each, from the text of the pieces."""
    after_text = np.zeros(tokenizer.vocab_size(), dtype=np.int64)
    after_boundary = after_text.copy()
    for i in range(len(after_text)):
        if tokenizer.is_byte(i):
            after_text[i] = after_boundary[i] = 1
        elif not _is_silent(tokenizer, i):
            text = tokenizer.id_to_piece(i).replace(SPACE, " ")
            after_text[i] = len(text.encode())
            # A space that opens a document is not part of its text.
            after_boundary[i] = after_text[i] - text.startswith(" ")
    return after_text, after_boundary


def _is_silent(tokenizer: sentencepiece.SentencePieceProcessor, i: int) -> bool:
    return tokenizer.is_control(i) or tokenizer.is_unknown(i) or tokenizer.is_unused(i)


def check_pieces(tokenizer: sentencepiece.SentencePieceProcessor, count: Count) -> Finding:
    """Each id as a target, once after text and once after BOS."""
    ids = np.arange(tokenizer.vocab_size())
    text = next(i for i in ids.tolist() if not _is_silent(tokenizer, i) and not tokenizer.is_byte(i))
    wrong: Counter[str] = Counter()
    examples: list[dict[str, object]] = []
    for previous, wanted in zip((text, tokenizer.bos_id()), reference_bytes(tokenizer), strict=True):
        got = count(np.full_like(ids, previous), ids)
        for i in np.flatnonzero(got != wanted).tolist():
            wrong[_mistake(tokenizer, i, int(got[i]), int(wanted[i]))] += 1
            if len(examples) < EXAMPLES:
                after = "text" if previous == text else "BOS"
                piece = tokenizer.id_to_piece(i)
                examples.append({"piece": piece, "after": after, "counted": int(got[i]), "is": int(wanted[i])})
    evidence = {"pieces": len(ids), "wrong": dict(sorted(wrong.items())), "examples": examples}
    if not wrong:
        return _finding("pass", f"each of {len(ids):,} pieces counts the bytes of its text", evidence)
    worst = ", ".join(f"{what} ({number:,} pieces)" for what, number in wrong.most_common())
    return _finding("fail", f"the byte table is not the tokenizer's text: {worst}", evidence)


def _mistake(tokenizer: sentencepiece.SentencePieceProcessor, i: int, got: int, wanted: int) -> str:
    piece = tokenizer.id_to_piece(i)
    if tokenizer.is_byte(i):
        return {3: "bytes counted as U+FFFD", len(piece): "bytes counted by the name of their piece"}.get(
            got, "bytes counted wrongly"
        )
    if _is_silent(tokenizer, i):
        return "control pieces counted as text"
    if piece.startswith(SPACE) and got == wanted + 1:
        return "space counted twice"
    return "pieces counted wrongly"


def check_space_piece(tokenizer: sentencepiece.SentencePieceProcessor) -> Finding:
    """A space before what no piece begins with needs a piece of its own, or it becomes three byte pieces."""
    i = tokenizer.piece_to_id(SPACE)
    there = not _is_silent(tokenizer, i) and tokenizer.id_to_piece(i) == SPACE
    fallback = [tokenizer.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
    falls_back = all(tokenizer.is_byte(i) for i in fallback)
    evidence = {"standalone_space_piece": there, "byte_fallback": falls_back}
    if there:
        return _finding("pass", "a lone space is one piece of one byte", evidence)
    if falls_back:
        return _finding("fail", "the tokenizer has no piece ▁: a lone space becomes 3 bytes in place of 1", evidence)
    return _finding("fail", "the tokenizer has no piece ▁ and no bytes to fall back to: a lone space is lost", evidence)


def check_probes(tokenizer: sentencepiece.SentencePieceProcessor, count: Count) -> Finding:
    """Texts of all kinds: what the table counts is the length of what decodes again, and no letter's case is lost."""
    wrong: list[dict[str, object]] = []
    for text in PROBES:
        ids = tokenizer.encode(text)
        counted = count_document(ids, tokenizer.bos_id(), count)
        if (length := _decoded_bytes(tokenizer, ids)) is not None and counted != length:
            wrong.append({"text": text, "counted": counted, "decoded": length})
    if wrong:
        says = f"{len(wrong)} of {len(PROBES)} probing texts decode to another number of bytes than the table counts"
        return _finding("fail", says, {"probes": len(PROBES), "wrong": wrong})
    cased = "MiXeD Case"
    if tokenizer.decode(tokenizer.encode(cased)) == cased.lower():
        return _finding("unknown", "the tokenizer drops the case of letters; nobody has ruled", {"ruling": "casefold"})
    return _finding("pass", f"{len(PROBES)} probing texts decode to as many bytes as are counted", {})


def count_document(ids: Sequence[int], bos: int, count: Count) -> int:
    """Bytes that a table counts for a document behind its BOS."""
    targets = np.asarray(ids, dtype=np.int64)
    return int(count(np.concatenate([[bos], targets[:-1]]), targets).sum()) if len(targets) else 0


def _decoded_bytes(tokenizer: sentencepiece.SentencePieceProcessor, ids: Sequence[int]) -> int | None:
    """UTF-8 length of the decoded text; None where pieces or unknown tokens make no text of their own."""
    text = tokenizer.decode(list(ids))
    if "\ufffd" in text or any(_is_silent(tokenizer, i) for i in set(ids)):
        return None
    return len(text.encode())


def check_counted_bytes(
    tokenizer: sentencepiece.SentencePieceProcessor, tokens: np.ndarray, targets: int, counted: int
) -> Finding:
    """The bytes that a score was divided by, against a count of our own over its first `targets` targets.

    Args:
        tokenizer: of the stream.
        tokens: ids of the whole stream; only the first `targets` + 1 are read.
        targets: that the score is a sum of, each once.
        counted: bytes that the score says they stand for.
    """
    after_text, after_boundary = reference_bytes(tokenizer)
    silent = np.array([_is_silent(tokenizer, i) for i in range(len(after_text))])
    total = 0
    for begin in range(0, targets, 1 << 22):
        block = np.asarray(tokens[begin : min(begin + (1 << 22), targets) + 1], dtype=np.int64)
        total += int(np.where(silent[block[:-1]], after_boundary[block[1:]], after_text[block[1:]]).sum())
    evidence = {"targets": targets, "counted_bytes": counted, "bytes": total, "ratio": counted / max(total, 1)}
    if counted == total:
        return _finding("pass", f"{targets:,} targets stand for the {total:,} bytes that the score says", evidence)
    says = f"the score divides by {counted:,} bytes; its {targets:,} targets stand for {total:,}"
    return _finding("fail", says, evidence)


def check_documents(
    tokenizer: sentencepiece.SentencePieceProcessor, documents: Sequence[Sequence[int]], count: Count
) -> Finding:
    """Documents of the validation set, ids without BOS: the table's sum is the length of the decoded text."""
    checked = 0
    wrong: list[dict[str, int]] = []
    for index, ids in enumerate(documents):
        length = _decoded_bytes(tokenizer, ids)
        if length is None:
            continue
        checked += 1
        if (counted := count_document(ids, tokenizer.bos_id(), count)) != length:
            wrong.append({"document": index, "counted": counted, "decoded": length})
    evidence = {"documents": checked, "wrong": wrong[:EXAMPLES]}
    if wrong:
        says = f"{len(wrong)} of {checked} validation documents decode to another number of bytes than the table counts"
        return _finding("fail", says, evidence)
    if not checked:
        return _finding("not_applicable", "no sampled document decodes to text of its own", evidence)
    return _finding("pass", f"{checked} validation documents decode to as many bytes as the table counts", evidence)


def _finding(verdict: Verdict, says: str, evidence: Mapping[str, object]) -> Finding:
    return Finding(rule="E2", detector="T10", verdict=verdict, says=says, evidence=dict(evidence))
