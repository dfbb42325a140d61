"""`bert-jax prepare`: tokenises documents into a token store."""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from etils import epath

from bert_jax.cli import flags
from bert_jax.data.limits import (
    COMPRESSIONS,
    FILTERS,
    FORMATS,
    RUNNERS,
    SOURCES,
    TOKENIZERS,
    check_heldout,
    check_workers,
)
from bert_jax.errors import UserError
from bert_jax.terminal import say

if TYPE_CHECKING:
    from bert_jax.data.split import Shards
    from bert_jax.data.store import TokenStore

_DESCRIPTION = f"""\
Tokenise a corpus once, into a folder that `bert-jax pretrain` reads.

A source is, and a document in it:
{flags.table(SOURCES)}

All but Parquet and Arrow may be compressed: {", ".join(COMPRESSIONS)}. \
A folder or glob gives all its {" and ".join(FORMATS[0])} files, sorted by path, or else those of \
the first of these groups that it has any of: \
{"; ".join(" ".join(group) for group in FORMATS[1:])}. \
Files and --output may be in Google Cloud Storage (gs://...). A field within another is named \
outer.inner.
"""

# Arguments that a dry run does not need.
_OF_OUTPUT = ("output", "dry_run", "heldout", "segmenter", "append", "runner", "beam_options")
_LISTED = 20  # sources that a dry run names
_VOCAB_SIZE = 30522
_SOME_CHINESE = 0.01  # share of the tokens from which a user is told what words are
_MOST_UNKNOWN = 0.01  # share of the characters beyond which a user is warned

_EXAMPLES = """\
examples:
  bert-jax prepare corpus:sotu --output data/sotu --vocab-size 8192
  bert-jax prepare 'books/*.txt.gz' --document-per-file --unwrap --output data/books
  zcat dump.txt.gz | bert-jax prepare - --output data/dump
  bert-jax prepare 'crawl/*.json.gz' --text-field content.text --output data/crawl
  bert-jax prepare web.jsonl --filter length:minimum=200 --filter near_duplicates --output data/web
  bert-jax prepare 'web/*.jsonl.zst' --dry-run
  bert-jax prepare more.jsonl --tokenizer data/books --output data/more
  bert-jax prepare books.jsonl --tokenizer bpe --vocab-size 50368 --output data/books
  bert-jax prepare hf:wikimedia/wikipedia/20231101.en --output data/wiki
  bert-jax prepare 'gs://me/*.jsonl' --runner dataflow --beam-option project=p --output gs://me/web
  bert-jax prepare tfds:wikipedia/20230601.en --data-dir ~/tensorflow_datasets --output data/wiki
"""


def main(argv: Sequence[str]) -> None:
    args = _parse(argv)
    if args.dry_run:
        _estimate(args)
        return
    del args.dry_run

    from bert_jax.api.prepare import prepare
    from bert_jax.data.manifest import is_store, read_manifest

    there, started = is_store(args.output), time.monotonic()
    before = read_manifest(args.output)[1].identity if there else ""
    store = prepare(**vars(args))
    if store.fingerprint == before:
        say(f"{args.output} already exists, from the same sources and options: nothing to do.")
    else:
        say(f"{args.output} is ready after {time.monotonic() - started:.1f} s.")
    _print_summary(store)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = flags.Parser(
        prog="bert-jax prepare",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=flags.HelpFormatter,
    )
    add = parser.add_argument
    add("sources", nargs="*", metavar="SOURCE")
    add("--output", type=epath.Path, metavar="DIR", help="folder of the store")
    add(
        "--dry-run",
        action="store_true",
        help="write nothing: say what would be read, and estimate documents, tokens and time from"
        " a sample",
    )
    add(
        "--tokenizer",
        default=TOKENIZERS[0],
        metavar="KIND|PATH",
        help="what to train on the training documents: wordpiece (the default), bpe (byte-level, as"
        " in ModernBERT: nothing is unknown), unigram or characters; or what to use: a vocab.txt, a"
        " tokenizer.json of any kind, or a folder with one",
    )
    vocabulary = parser.add_mutually_exclusive_group()
    vocabulary.add_argument(
        "--vocab",
        type=epath.Path,
        metavar="PATH",
        help="the same as --tokenizer=PATH",
    )
    vocabulary.add_argument(
        "--vocab-size",
        type=int,
        metavar="N",
        help=f"tokens in a vocabulary that is trained (default: {_VOCAB_SIZE}, as in BERT)",
    )
    flags.add_casing(
        parser,
        cased="keep case and, without --strip-accents, accents",
        uncased="lower-case the text (default if WordPiece is trained)",
    )
    add(
        "--strip-accents",
        action=argparse.BooleanOptionalAction,
        help="drop accents: café becomes cafe, but also か becomes the same as が and में as म"
        " (default: if uncased; where a vocabulary is trained, unless accents are parts of letters"
        " in 1%% of the words)",
    )
    add(
        "--heldout",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="share of the documents kept for evaluation, at least two (default: %(default)s); of a"
        " single document its last sentences",
    )
    add("--text-field", default="text", metavar="NAME", help="field or column of the text")
    add(
        "--document-per-file",
        action="store_true",
        help="each .txt file is one document; blank lines in it end paragraphs",
    )
    add(
        "--document-separator",
        metavar="REGEX",
        help="lines of a .txt file that match it as a whole, such as 'CHAPTER [IVXL]+', separate"
        " documents and are left out; blank lines end paragraphs",
    )
    add(
        "--skip-bad-lines",
        action="store_true",
        help="leave out records that cannot be read (JSON, UTF-8, no text in the field), log the"
        " first few, and count them",
    )
    add(
        "--unwrap",
        action="store_true",
        help="join the lines of a paragraph, for text with line breaks at a fixed width",
    )
    add(
        "--segmenter",
        metavar="NAME",
        help="says where the words of Chinese are, for whole-word and span masking: jieba, or"
        " MODULE:NAME for a function of yours from a text to its words; without one each ideograph"
        " is a word",
    )
    add(
        "--filter",
        action="append",
        default=[],
        dest="filters",
        metavar="NAME[:OPTION=VALUE,...]",
        help="leave documents out, or clean texts; several work in the order given:"
        f" {', '.join(FILTERS)}; or MODULE:NAME, a function of yours from a text to what is kept of"
        " it, or None. docs/data.md has the options",
    )
    add(
        "--append",
        action="store_true",
        help="add the documents to the store in --output, with its vocabulary, segmenter and share"
        " held out; what it has is not written again, but its fingerprint is another one then",
    )
    add("--data-dir", metavar="DIR", help="where TensorFlow Datasets keeps its datasets")
    add(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes that tokenise (default: %(default)s); any number gives the same store",
    )
    add(
        "--runner",
        choices=[*RUNNERS],
        help="work on many machines with Apache Beam, which must be installed: the store is the"
        " same; direct is Beam on this machine",
    )
    add(
        "--beam-option",
        action="append",
        default=[],
        dest="beam_options",
        metavar="NAME[=VALUE]",
        help="pipeline option of Beam, such as project=mine; may be given several times",
    )
    args = parser.parse_args(argv)
    if args.beam_options and not args.runner:
        parser.error("--beam-option needs a --runner")
    if not args.sources or not (args.output or args.dry_run):
        parser.error("a SOURCE and --output, or --dry-run, are required")
    if args.document_separator is not None and args.document_per_file:
        parser.error("--document-separator and --document-per-file exclude each other")
    if args.append:
        of_store = ("tokenizer", "vocab", "vocab_size", "lowercase", "strip_accents", "heldout")
        for name in (*of_store, "segmenter"):
            if getattr(args, name) != parser.get_default(name):
                parser.error(f"--append takes no --{name.replace('_', '-')}: the store has its own")
    if args.tokenizer not in TOKENIZERS:
        if args.vocab is not None or args.vocab_size is not None:
            other = "--vocab" if args.vocab is not None else "--vocab-size"
            parser.error(f"argument {other}: not allowed with a path in --tokenizer")
        args.vocab, args.tokenizer = epath.Path(args.tokenizer), TOKENIZERS[0]
        if not args.vocab.exists():
            raise UserError(
                f"--tokenizer={args.vocab}: neither {', '.join(TOKENIZERS)} nor an existing path"
            )
    elif args.vocab is not None and args.tokenizer != TOKENIZERS[0]:
        parser.error("argument --vocab: not allowed with a kind in --tokenizer")
    args.vocab_size = args.vocab_size or _VOCAB_SIZE
    check_heldout(args.heldout)
    check_workers(args.workers)
    return args


def _estimate(args: argparse.Namespace) -> None:
    from bert_jax.api.prepare import estimate_prepare
    from bert_jax.report.units import duration

    options = {k: v for k, v in vars(args).items() if k not in _OF_OUTPUT}
    if args.append:
        options["vocab"] = args.output
    found = estimate_prepare(**options)
    for name, size in found.sources[:_LISTED]:
        say(f"{size:>16,} {name}")
    if (more := len(found.sources) - _LISTED) > 0:
        say(f"{sum(size for _, size in found.sources[_LISTED:]):>16,} {more:,} more")
    say(f"{sum(size for _, size in found.sources):>16,} bytes in {len(found.sources):,} sources")
    for each in found.filtered:
        say(f"filter {each['filter']}: {each['documents']:,} documents of the sample are left out")
    about = "" if found.is_whole else "about "
    sample = "all of it" if found.is_whole else f"a sample of {found.characters:,} characters"
    say(f"{about}{found.documents:,} documents, {about}{found.tokens:,} tokens, by {sample}")
    say(f"vocabulary: {found.tokenizer}" + ("" if options["vocab"] else ", trained on the sample"))
    say(f"about {duration(found.seconds)} with {args.workers} worker(s); nothing was written")


def _print_summary(store: "TokenStore") -> None:
    from bert_jax.data.store_writer import EPOCH_LENGTH

    say(f"vocabulary: {store.tokenizer.description}")
    say("")
    columns = "{:8}{:>10}{:>12}{:>15}{:>9}{:>12}{:>13}"
    titles = ("documents", "sentences", "tokens", "unknown", "of the text", "tokens/word")
    say(columns.format("", *titles))
    for name, split in store.shards.items():
        say(columns.format(name, *_row(split, store)))
    if empty := store.manifest["empty_documents"]:
        say(f"{empty:,} documents without text were left out.")
    if skipped := store.manifest.get("skipped_records"):
        say(f"{skipped:,} records that could not be read were left out.")
    for each in store.manifest.get("filtered", []):
        say(
            f"filter {each['filter']}: {each['documents']:,} documents were left out, "
            f"{each['characters']:,} characters in all."
        )
    if epoch := store.manifest.get("epoch"):
        counts = store.manifest["splits"]["train"]
        single = (counts.get("single_sentence_documents") or 0) / max(1, counts["documents"])
        say(
            f"next-sentence pairs in rows of {EPOCH_LENGTH} tokens: {epoch['tokens']:.1%} of the "
            f"tokens used in an epoch, {epoch['label_1']:.0%} of the pairs random; {single:.1%} of "
            "the documents are one sentence"
        )
    if words := _chinese_words(store):
        say(words)
    for warning in _warnings(store):
        say(f"Warning: {warning}.")


def _chinese_words(store: "TokenStore") -> str:
    """What words of Chinese are in a store; empty if it has little Chinese."""
    from bert_jax.data.words import ideographs

    counts = store.token_counts
    chinese = [id_ for id_, piece in enumerate(store.tokenizer.pieces) if ideographs(piece)]
    if counts[chinese].sum() <= _SOME_CHINESE * counts.sum():
        return ""
    if segmenter := store.manifest.get("options", {}).get("segmenter"):
        return f"words of Chinese, for whole-word and span masking: those of {segmenter}"
    return (
        "words of Chinese: each character is one, also for whole-word and span masking; "
        "--segmenter=jieba takes those of a segmenter"
    )


def _warnings(store: "TokenStore") -> Iterator[str]:
    """What a user should know before training on the store."""
    from bert_jax.data.sampling import Usage

    train = store.manifest["splits"]["train"]
    if characters := train.get("characters"):
        unknown = (train.get("unknown_characters") or 0) / characters
        long = (train.get("long_word_characters") or 0) / characters
        if long > _MOST_UNKNOWN:
            yield (
                f"{long:.0%} of the characters are in words of more than 100 characters, each one "
                "[UNK]. Languages written without spaces (Thai, Lao, Khmer, Burmese) need text "
                "with spaces between words: segment it first"
            )
        if unknown - long > _MOST_UNKNOWN:
            yield (
                f"{unknown - long:.0%} of the characters are in other words that the vocabulary "
                "lacks, each one [UNK]: take a vocabulary of this language or a larger one"
            )
    if width := store.manifest.get("wrapped_at"):
        yield (
            f"lines break within sentences, at about {width} characters, and a line break ends a "
            "sentence: if the text is hard-wrapped, prepare it again with --unwrap"
        )
    if store.manifest.get("heldout_tail") and store.totals["heldout"].any():
        yield (
            "there is one document, whose end is held out, and next-sentence pairs need several: "
            "pretrain with --config.data.pairs=none, or mark the ends of documents by blank lines "
            "or --document-separator"
        )
    elif store.manifest["splits"]["heldout"]["documents"] < 2:
        yield (
            "fewer than two documents are held out, and next-sentence pairs need two: add "
            "documents, or pretrain with --config.data.pairs=none"
        )
    elif (epoch := store.manifest.get("epoch")) and (problem := Usage(**epoch).warning()):
        yield problem


def _row(split: "Shards", store: "TokenStore") -> list[str]:
    counts, totals = store.manifest["splits"][split.name], store.totals[split.name]
    tokens, characters = counts["tokens"], counts.get("characters") or 0
    unknown = counts.get("unknown_characters") or 0
    words = store.num_words(split.name)
    return [
        f"{counts['documents']:,}",
        f"{counts['sentences']:,}",
        f"{tokens:,}",
        f"{totals[store.tokenizer.unk_id] / max(1, tokens):.3%}",
        f"{unknown / characters:.3%}" if characters else "",
        f"{tokens / max(1, words):.2f}",
    ]
