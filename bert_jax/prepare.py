"""`bert-jax prepare`: from text to a token store."""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath
from tqdm import tqdm

from bert_jax.data.documents import Source, find_sources, read_documents
from bert_jax.data.store import (
    Split,
    Store,
    check_unused,
    document_hash,
    heldout_bound,
    open_store,
    write_store,
)
from bert_jax.data.wordpiece import WordPiece, train_wordpiece
from bert_jax.errors import UserError
from bert_jax.interop.tokenizer import read_wordpiece

_DESCRIPTION = """\
Tokenise a corpus once, into a folder that `bert-jax pretrain` reads.

A source is
  a .txt file       documents separated by blank lines; a line break ends a sentence
  a .jsonl file     one JSON object a line, its text in the field --text-field
  a folder or glob  all such files in it, sorted by path; .gz, .xz, .bz2 and .zst are read as well
  tfds:NAME[:SPLIT] a dataset of TensorFlow Datasets in ArrayRecord format
  gs://...          any of these in Google Cloud Storage; --output may be there, too
  corpus:sotu       State of the Union 1790-2026, 2 million words, which comes with bert_jax
"""

_EXAMPLES = """\
examples:
  bert-jax prepare corpus:sotu --output data/sotu --vocab-size 8192
  bert-jax prepare 'books/*.txt.gz' --document-per-file --unwrap --output data/books
  bert-jax prepare more.jsonl --vocab data/books --output data/more
  bert-jax prepare tfds:wikipedia/20230601.en --data-dir ~/tensorflow_datasets --output data/wiki
"""


def main(argv: Sequence[str]) -> None:
    args = _parse(argv)
    sources = find_sources(
        args.sources,
        text_field=args.text_field,
        document_per_file=args.document_per_file,
        unwrap=args.unwrap,
        data_dir=args.data_dir,
    )
    wordpiece = read_wordpiece(args.vocab, lowercase=args.lowercase) if args.vocab else None
    provenance = _provenance(args, sources, wordpiece)
    if (args.output / "manifest.json").exists():
        store = open_store(args.output)
        _check_same(store, provenance)
        print(f"{args.output} is there already, from the same sources and options: nothing to do.")
        _print_summary(store)
        return

    check_unused(args.output)  # before the vocabulary is trained, which can take long
    started = time.monotonic()
    bound = heldout_bound(read_documents(sources), args.heldout)
    if wordpiece is None:
        documents = _with_progress(sources, "vocabulary")
        wordpiece = train_wordpiece(
            (text for text in documents if document_hash(text) >= bound),
            vocab_size=args.vocab_size,
            lowercase=args.lowercase is not False,
        )
    store = write_store(
        args.output,
        _with_progress(sources, "tokens"),
        wordpiece,
        heldout_bound=bound,
        workers=args.workers,
        provenance=provenance,
    )
    print(f"{args.output} is ready after {time.monotonic() - started:.1f} s.")
    _print_summary(store)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bert-jax prepare",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("sources", nargs="+", metavar="SOURCE")
    add("--output", required=True, type=epath.Path, metavar="DIR", help="folder of the store")
    vocabulary = parser.add_mutually_exclusive_group()
    vocabulary.add_argument(
        "--vocab",
        type=epath.Path,
        metavar="PATH",
        help="vocabulary to use: a vocab.txt, or a folder with one or with a tokenizer.json;"
        " without it, one is trained on the training documents",
    )
    vocabulary.add_argument(
        "--vocab-size",
        type=int,
        default=30522,
        metavar="N",
        help="tokens in the vocabulary that is trained (default: %(default)s, as in BERT)",
    )
    casing = parser.add_mutually_exclusive_group()
    casing.add_argument(
        "--cased",
        dest="lowercase",
        action="store_false",
        default=None,
        help="keep case and accents",
    )
    casing.add_argument(
        "--uncased",
        dest="lowercase",
        action="store_true",
        default=None,
        help="lower-case and strip accents (default where a vocabulary is trained)",
    )
    add(
        "--heldout",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="share of the documents kept for evaluation, at least two (default: %(default)s)",
    )
    add("--text-field", default="text", metavar="NAME", help="field of the text in JSONL or TFDS")
    add(
        "--document-per-file",
        action="store_true",
        help="each .txt file is one document; blank lines in it end paragraphs",
    )
    add(
        "--unwrap",
        action="store_true",
        help="join the lines of a paragraph, for text with line breaks at a fixed width",
    )
    add("--data-dir", metavar="DIR", help="where TensorFlow Datasets keeps its datasets")
    add(
        "--workers",
        type=int,
        default=os.cpu_count(),
        metavar="N",
        help="processes that tokenise (default: %(default)s); any number gives the same store",
    )
    args = parser.parse_args(argv)
    if not 0 < args.heldout < 1:
        raise UserError(f"--heldout: {args.heldout} is no share between 0 and 1; take 0.05, say")
    if args.workers < 1:
        raise UserError(f"--workers: {args.workers}; at least one is needed")
    return args


def _provenance(
    args: argparse.Namespace, sources: Sequence[Source], wordpiece: WordPiece | None
) -> dict[str, Any]:
    """What decides the content of the store, for its manifest."""
    if wordpiece is None:
        vocabulary = {"vocab_size": args.vocab_size, "cased": args.lowercase is False}
    else:
        vocabulary = {"vocab": wordpiece.vocab_hash}
    return {
        "sources": [source.fingerprint() for source in sources],
        "options": vocabulary
        | {
            "heldout": args.heldout,
            "text_field": args.text_field,
            "document_per_file": args.document_per_file,
            "unwrap": args.unwrap,
        },
    }


def _check_same(store: Store, provenance: dict[str, Any]) -> None:
    there, here = store.manifest["options"], provenance["options"]
    different = [
        f"--{name.replace('_', '-')} ({there.get(name)} there, {here.get(name)} now)"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    ]
    if store.manifest["sources"] != provenance["sources"]:
        different.insert(0, "sources")
    if different:
        raise UserError(
            f"{store.path}: a store of other {', '.join(different)}; choose another --output, "
            "or delete it"
        )


def _with_progress(sources: Sequence[Source], label: str) -> Iterator[str]:
    total = sum(source.size for source in sources)
    with tqdm(total=total, unit="B", unit_scale=True, desc=label, mininterval=0.5) as bar:
        count = 0
        for count, text in enumerate(read_documents(sources, bar.update), 1):
            if count % 100 == 0:
                bar.set_postfix_str(f"{count:,} documents", refresh=False)
            yield text
        bar.set_postfix_str(f"{count:,} documents", refresh=False)
        bar.update(total - bar.n)


def _print_summary(store: Store) -> None:
    casing = "uncased" if store.wordpiece.lowercase else "cased"
    print(f"vocabulary: {len(store.wordpiece.vocab):,} tokens, {casing}\n")
    columns = "{:10}{:>12}{:>14}{:>16}{:>10}{:>17}"
    print(columns.format("", "documents", "sentences", "tokens", "unknown", "tokens per word"))
    for split in (store.train, store.heldout):
        print(columns.format(split.name, *_row(split, store.wordpiece)))
    if empty := store.manifest["empty_documents"]:
        print(f"{empty:,} documents without text were left out.")
    if store.manifest["splits"]["heldout"]["documents"] < 2:
        print("Fewer than two documents are held out: next-sentence pairs need two.")


def _row(split: Split, wordpiece: WordPiece) -> list[str]:
    tokens = len(split.tokens)
    words = split.token_counts[~wordpiece.is_continuation].sum()
    return [
        f"{len(split.documents) - 1:,}",
        f"{len(split.sentences) - 1:,}",
        f"{tokens:,}",
        f"{split.token_counts[wordpiece.unk_id] / max(1, tokens):.3%}",
        f"{tokens / max(1, words):.2f}",
    ]
