"""Tokenises text into a token store."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from bert_jax.data.documents import (
    Refuse,
    SkippedRecords,
    Source,
    find_sources,
    read_documents,
    source_fingerprint,
)
from bert_jax.data.estimates import Estimate, estimate
from bert_jax.data.filters import Filter, Filtering, describe, find_filters
from bert_jax.data.heldout_documents import heldout_bound, is_single_document, training_texts
from bert_jax.data.limits import RUNNERS, TOKENIZERS, check_heldout, check_workers
from bert_jax.data.manifest import is_store
from bert_jax.data.store import TokenStore, open_token_store
from bert_jax.data.store_writer import SHARD_TOKENS, append_to_store, check_unused, write_store
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.data.train_tokenizer import train_tokenizer
from bert_jax.data.words import load_segmenter
from bert_jax.errors import UserError
from bert_jax.fields import Plain
from bert_jax.interop.tokenizer import read_tokenizer
from bert_jax.terminal import progress

if TYPE_CHECKING:
    from bert_jax.data.beam import BeamJob

# Options that say how sources are read; the others make the vocabulary and the splits.
_READING = (
    "text_field",
    "document_per_file",
    "document_separator",
    "unwrap",
    "skip_bad_lines",
    "filter",
)


def prepare(
    sources: Sequence[str | Source],
    output: epath.PathLike,
    *,
    vocab: epath.PathLike | None = None,
    tokenizer: str = "wordpiece",
    vocab_size: int = 30522,
    lowercase: bool | None = None,
    strip_accents: bool | None = None,
    heldout: float = 0.05,
    text_field: str = "text",
    document_per_file: bool = False,
    document_separator: str | None = None,
    unwrap: bool = False,
    data_dir: str | None = None,
    workers: int | None = None,
    skip_bad_lines: bool = False,
    segmenter: str | None = None,
    filters: Sequence[str | Filter] = (),
    append: bool = False,
    runner: str | None = None,
    beam_options: Sequence[str] = (),
) -> TokenStore:
    """Tokenises a corpus into a store; opens the store if it already exists.

    Shows progress on standard error.

    Args:
      sources: sources of documents; see `find_sources`.
      output: folder of the store, local or gs://.
      vocab: the tokenizer: a vocab.txt, a tokenizer.json of any kind, or a folder with one; None
        trains one on the training documents.
      tokenizer: kind of the one that is trained, see `train_tokenizer`.
      vocab_size: tokens in a vocabulary that is trained.
      lowercase: whether to lower-case; None for the casing of a given vocabulary, or as
        `train_tokenizer` does.
      strip_accents: whether to drop accents; None for what a given vocabulary says, or as
        `train_tokenizer` does.
      heldout: share of the documents kept for evaluation, at least two. Of a single document this
        share is kept, its last sentences.
      text_field: field of the text in JSONL or TFDS.
      document_per_file: each .txt file is one document; blank lines in it end paragraphs.
      document_separator: regular expression; a line of a .txt file that is such a separator ends a
        document and is left out, and blank lines end paragraphs. None: blank lines end documents.
      unwrap: join the lines of a paragraph, for text with line breaks at a fixed width.
      data_dir: directory in which TensorFlow Datasets keeps its datasets.
      workers: processes that tokenise; any number gives the same store. None for one per core.
      skip_bad_lines: leave out records that cannot be read: lines of text, and documents of other
        sources. The first few are logged; the manifest has their number.
      segmenter: says where the words of Chinese are, for whole-word and span masking: "jieba", or
        MODULE:NAME of a function that cuts a text into words. None: each ideograph is a word.
      filters: what to leave out, and how to clean texts, in order; see `bert_jax.data.filters`. The
        manifest has what each left out (`filtered`).
      append: add the documents to the store in `output`, as `append_to_store` does, with its
        vocabulary, segmenter and held-out share; nothing is done if they were added already.
      runner: what runs the work on Apache Beam, one of `bert_jax.data.limits.RUNNERS`; the store is
        the same. None: processes of this machine.
      beam_options: pipeline options of Beam, each NAME or NAME=VALUE.

    Raises:
      UserError: sources or vocabulary cannot be read, a number is out of range, or `output` holds
        something else, such as a store of other sources or options.
    """
    workers = (os.cpu_count() or 1) if workers is None else workers
    check_heldout(heldout)
    check_workers(workers)
    if tokenizer not in TOKENIZERS:
        raise UserError(f"tokenizer={tokenizer!r}: use one of {', '.join(TOKENIZERS)}")
    if segmenter is not None:
        load_segmenter(segmenter)
    output = epath.Path(output)
    filtering = Filtering(each_filter := find_filters(filters))
    if runner is not None and runner not in RUNNERS:
        raise UserError(f"runner={runner!r}: use one of {', '.join(RUNNERS)}")
    if beam_options and runner is None:
        raise UserError("--beam-option: is for Apache Beam; name a --runner")
    skipped = SkippedRecords()
    refuse: Refuse = skipped if skip_bad_lines else _refuse
    found = find_sources(
        sources,
        refuse=refuse,
        text_field=text_field,
        document_per_file=document_per_file,
        document_separator=document_separator,
        unwrap=unwrap,
        data_dir=data_dir,
    )
    given = None
    vocabulary: Plain
    if vocab is not None:
        given = read_tokenizer(epath.Path(vocab), lowercase=lowercase, strip_accents=strip_accents)
        vocabulary = {"vocab": given.vocab_hash}
    else:
        vocabulary = {
            "vocab_size": vocab_size,
            "cased": lowercase is False,
            "strip_accents": strip_accents,
        } | ({"tokenizer": tokenizer} if tokenizer != TOKENIZERS[0] else {})
    provenance: Plain = {  # everything that determines the content of the store, for its manifest
        "sources": [source_fingerprint(source) for source in found],
        "options": vocabulary
        | {
            "heldout": heldout,
            "text_field": text_field,
            "document_per_file": document_per_file,
            "unwrap": unwrap,
        }
        # Stores that were made before there were these options lack them.
        | ({"skip_bad_lines": True} if skip_bad_lines else {})
        | ({"document_separator": document_separator} if document_separator else {})
        | ({"segmenter": segmenter} if segmenter else {})
        | ({"filter": [describe(each) for each in each_filter]} if each_filter else {}),
        # Complete when all documents are read, before the manifest is written.
        **({"filtered": filtering.counts} if each_filter else {}),
    }

    @contextlib.contextmanager
    def on_beam() -> Iterator["BeamJob | None"]:
        """The job that makes the shards; None if this machine does."""
        if runner is None:
            yield None
            return
        from bert_jax.data.beam import beam_job

        with beam_job(
            found,
            refuse,
            each_filter,
            output,
            runner=runner,
            options=beam_options,
            workers=workers,
        ) as job:
            job.measure(filtering, SHARD_TOKENS)
            yield job

    if append:
        reading = {k: v for k, v in provenance["options"].items() if k in _READING}
        added = provenance | {"options": reading}
        store = open_token_store(output)
        for each in store.manifest.get("appended", ()):
            if all(each.get(name) == added[name] for name in ("sources", "options")):
                return store
        with on_beam() as job:
            skipped.count = 0
            return append_to_store(
                output,
                job or filtering(_with_progress(found, "tokens", refuse), workers),
                workers=workers,
                provenance=added,
                num_skipped=lambda: job.skipped if job else skipped.count,
            )
    if is_store(output):
        store = open_token_store(output)
        _check_same(store, provenance)
        return store

    check_unused(output)  # before the vocabulary is trained, which can take long
    bound = heldout_bound(filtering(read_documents(found, refuse=refuse)), heldout)
    is_single = is_single_document(filtering(read_documents(found, refuse=refuse)))
    tail = heldout if is_single else 0.0
    with on_beam() as job:
        if given is None:
            if job:
                training: Counter[str] | Iterator[str] = job.count_pieces(tokenizer, bound, tail)
            else:
                documents = filtering(_with_progress(found, "vocabulary", refuse), workers)
                training = training_texts(documents, bound, tail)
            given = train_tokenizer(
                tokenizer,
                training,
                vocab_size=vocab_size,
                lowercase=lowercase,
                strip_accents=strip_accents,
            )
        skipped.count = 0
        return write_store(
            output,
            job or filtering(_with_progress(found, "tokens", refuse), workers),
            given,
            heldout_bound=bound,
            workers=workers,
            provenance=provenance,
            num_skipped=lambda: job.skipped if job else skipped.count,
            heldout_tail=tail,
            segmenter=segmenter or "",
        )


def estimate_prepare(
    sources: Sequence[str | Source],
    *,
    vocab: epath.PathLike | None = None,
    tokenizer: str = "wordpiece",
    vocab_size: int = 30522,
    lowercase: bool | None = None,
    strip_accents: bool | None = None,
    text_field: str = "text",
    document_per_file: bool = False,
    document_separator: str | None = None,
    unwrap: bool = False,
    data_dir: str | None = None,
    workers: int | None = None,
    skip_bad_lines: bool = False,
    filters: Sequence[str | Filter] = (),
) -> Estimate:
    """What `prepare` would read and make, from a sample; writes nothing.

    Args:
      sources: as of `prepare`, and so are the others.

    Raises:
      UserError: as `prepare`.
    """
    refuse: Refuse = SkippedRecords() if skip_bad_lines else _refuse
    found = find_sources(
        sources,
        refuse=refuse,
        text_field=text_field,
        document_per_file=document_per_file,
        document_separator=document_separator,
        unwrap=unwrap,
        data_dir=data_dir,
    )
    given = None
    if vocab is not None:
        given = read_tokenizer(epath.Path(vocab), lowercase=lowercase, strip_accents=strip_accents)

    def train(texts: Sequence[str]) -> Tokenizer:
        return train_tokenizer(
            tokenizer,
            texts,
            vocab_size=vocab_size,
            lowercase=lowercase,
            strip_accents=strip_accents,
        )

    return estimate(
        found,
        given,
        train,
        filtering=Filtering(find_filters(filters)),
        workers=(os.cpu_count() or 1) if workers is None else workers,
        refuse=refuse,
    )


def _refuse(error: UserError) -> None:
    raise UserError(f"{error}; or leave such records out: --skip-bad-lines") from error


def _check_same(store: TokenStore, provenance: dict[str, Any]) -> None:
    there, here = store.manifest.get("options", {}), provenance["options"]
    different = [
        f"--{name.replace('_', '-')} ({there.get(name)} there, {here.get(name)} now)"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    ]
    if store.manifest.get("sources") != provenance["sources"] or store.manifest.get("appended"):
        different.insert(0, "sources")
    if different:
        raise UserError(
            f"{store.path}: a store of other {', '.join(different)}; choose another --output, "
            "or delete it"
        )


def _with_progress(sources: Sequence[Source], label: str, refuse: Refuse) -> Iterator[str]:
    total = sum(source.size for source in sources)
    with progress(label, total) as bar:
        count = 0
        for count, text in enumerate(read_documents(sources, bar.update, refuse), 1):
            if count % 100 == 0:
                bar.note(f"{count:,} documents")
            yield text
        bar.note(f"{count:,} documents")
        bar.update(int(total - bar.n))
