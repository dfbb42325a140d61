"""What it would take to prepare a corpus, from a sample of it."""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bert_jax.data.documents import Refuse, Source, read_documents
from bert_jax.data.filters import Filtering
from bert_jax.data.sentences import split_sentences
from bert_jax.data.tokenizer import Tokenizer

SAMPLED_SOURCES, SAMPLED_CHARACTERS = 16, 4_000_000


@dataclass(frozen=True)
class Estimate:
    """What there is to read, and what would come of it.

    Attributes:
      sources: name, as in a manifest, and size of each source, in bytes where it is a file.
      characters: of the sample.
      documents, tokens: of the whole corpus, about; those that filters leave out not counted.
      is_whole: whether the sample is the whole corpus.
      filtered: what each filter left out of the sample, as in a manifest.
      seconds: about the time it takes.
      tokenizer: the vocabulary, in one line.
    """

    sources: list[tuple[str, int]]
    characters: int
    documents: int
    tokens: int
    is_whole: bool
    filtered: list[dict[str, object]]
    seconds: float
    tokenizer: str


def estimate(
    sources: Sequence[Source],
    tokenizer: Tokenizer | None,
    train: Callable[[Sequence[str]], Tokenizer],
    *,
    filtering: Filtering,
    workers: int,
    refuse: Refuse,
) -> Estimate:
    """Reads a sample: the beginnings of some sources, about four million characters in all.

    Args:
      sources: the corpus.
      tokenizer: its tokenizer; None to train one.
      train: trains a tokenizer on texts.
      filtering: filters of the documents.
      workers: processes that would tokenise.
      refuse: called with the error of a record that cannot be read.

    Raises:
      UserError: as `read_documents` and `train`.
    """
    count = min(len(sources), SAMPLED_SOURCES)
    chosen = [sources[i * len(sources) // count] for i in range(count)]
    start = time.perf_counter()
    texts: list[str] = []
    size = 0
    is_whole = count == len(sources)
    for source in chosen:
        read: list[int] = []
        left = SAMPLED_CHARACTERS // count
        documents = read_documents([source], read.append, refuse)
        for text in documents:
            texts.append(text)
            left -= len(text)
            if left < 0:
                break
        ended = next(documents, None) is None
        size += source.size if ended else max(1, min(sum(read), source.size))
        is_whole &= ended
    characters = sum(map(len, texts))
    kept = [text for text in filtering(texts) if text.strip()]
    reading = time.perf_counter() - start

    start = time.perf_counter()
    passes = 1 if tokenizer else 2
    tokenizer = tokenizer or train(kept)
    training = time.perf_counter() - start if passes == 2 else 0.0
    start = time.perf_counter()
    tokens = sum(map(len, itertools.chain(*(tokenizer.encode(split_sentences(t)) for t in kept))))
    encoding = time.perf_counter() - start

    total = sum(source.size for source in sources)
    scale = 1.0 if is_whole else total / max(1, size)
    return Estimate(
        sources=[(str(getattr(each, "name", type(each).__name__)), each.size) for each in sources],
        characters=characters,
        documents=round(scale * len(kept)),
        tokens=round(scale * tokens),
        is_whole=is_whole,
        filtered=filtering.counts,
        seconds=scale * (passes * reading + training + encoding / workers),
        tokenizer=tokenizer.description,
    )
