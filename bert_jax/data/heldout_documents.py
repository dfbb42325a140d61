"""Which documents are held out for evaluation: by their text alone."""

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator

from bert_jax.data.sentences import split_sentences


def document_hash(text: str) -> float:
    """A number in [0, 1) that depends only on the text."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).digest()
    return int.from_bytes(digest) / 2**48


def heldout_bound(documents: Iterable[str], share: float) -> float:
    """The bound on `document_hash` below which documents are held out.

    A document's split depends neither on order nor on file names, and copies of a document are in
    the same split. The bound is `share` itself, unless the corpus is so small that a split would
    have fewer than two different documents: then it moves only as far as needed (of two or three
    documents one is held out, of one none).

    Stops reading `documents` after two of each split.
    """
    hashes: set[float] = set()
    num_heldout = 0
    for text in documents:
        value = document_hash(text)
        if text.strip() and value not in hashes:
            hashes.add(value)
            num_heldout += value < share
            if num_heldout >= 2 and len(hashes) - num_heldout >= 2:
                return share
    if not hashes:
        return share
    least = min(2, len(hashes) // 2)
    most = len(hashes) - min(2, len(hashes) - least)
    return sorted(hashes)[min(max(num_heldout, least), most)]


def is_single_document(documents: Iterable[str]) -> bool:
    """Whether there is exactly one document with text. Stops reading at the second."""
    return len(list(itertools.islice(filter(str.strip, documents), 2))) == 1


def tail_start(num_sentences: int, share: float) -> int:
    """Where the last `share` of a document begins: it and the rest have a sentence each if any."""
    return num_sentences - min(num_sentences - 1, math.ceil(share * num_sentences))


def training_texts(documents: Iterable[str], bound: float, tail: float) -> Iterator[str]:
    """What is not held out: documents from the bound on, and of each all but its tail, if any."""
    for text in documents:
        if document_hash(text) < bound:
            continue
        if tail:
            sentences = split_sentences(text)
            text = "\n".join(sentences[: tail_start(len(sentences), tail)])
        yield text
