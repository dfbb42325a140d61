"""Prepares stores on many machines with Apache Beam, which is imported only when it is used.

A store is the same, byte for byte, as one that a single process writes. What depends on the order
of all documents is decided here, on the launcher, from a few numbers of each; all that takes time
is done by workers, which read the sources once for each of the first three stages:

1. Measure: the workers read each source and say how long each document is, and what filters make
   of it. From these, in order, follow the documents that stay, and the chunks (`in_chunks`) of a
   store that one process writes. A document is known by its number among those that stay.
2. Count, if a vocabulary is trained: each document is sent to the worker of its chunk, which sorts
   those of the chunk by their numbers and counts their pieces. The launcher adds these up in order
   and trains.
3. Encode: the same, but ids are made. From the tokens of each chunk follow the shards.
4. Write: a worker writes each shard from its chunks.

What a stage finds is in files in a folder beside the store, which launcher and workers must both
see. A stage may run more than once for the same number, as Beam does after a failure: its files
have the same content every time, and appear when they are complete.
"""

import contextlib
import functools
import io
import itertools
import pickle
import re
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from bert_jax.data.documents import Refuse, SkippedRecords, Source, read_documents
from bert_jax.data.encoding import EncodedChunk, Encoder
from bert_jax.data.filters import Filter, Filtering, Found, look_at
from bert_jax.data.heldout_documents import training_texts
from bert_jax.data.limits import RUNNERS
from bert_jax.data.manifest import MANIFEST, shard_folder
from bert_jax.data.store_writer import ShardWriter, Written, chunk_characters, in_shards
from bert_jax.data.train_tokenizer import finds_pieces
from bert_jax.data.wordpiece import MAX_COUNTED_PIECES, count_pieces
from bert_jax.data.workers import in_chunks
from bert_jax.errors import UserError
from bert_jax.locks import locked
from bert_jax.storage import files_below, is_remote, whole_file, write_json, write_text

_FOUND, _COUNTS, _ENCODED, _WRITTEN, _ERRORS = "found", "counts", "encoded", "written", "errors"


@contextlib.contextmanager
def beam_job(
    sources: Sequence[Source],
    refuse: Refuse,
    filters: Sequence[Filter],
    output: epath.Path,
    *,
    runner: str,
    options: Sequence[str],
    workers: int,
) -> Iterator["BeamJob"]:
    """A job that prepares a store; its folder beside the store is removed in the end.

    Args:
      sources: can be pickled, and read by every worker.
      refuse: that of the sources.
      filters: of the documents.
      output: the store.
      runner: one of `bert_jax.data.limits.RUNNERS`.
      options: pipeline options of Beam, NAME or NAME=VALUE.
      workers: processes of the runner "direct"; others have their own options.

    Raises:
      UserError: Beam is not installed, an option has another form, a source cannot be sent to
        workers, or workers would not see the store.
    """
    try:
        import apache_beam  # noqa: F401
    except ImportError as error:
        raise UserError("--runner needs Apache Beam: pip install apache-beam") from error
    for option in options:
        if not re.fullmatch(r"[A-Za-z]\w*(=.*)?", option, re.DOTALL):
            raise UserError(f"--beam-option={option}: must be NAME or NAME=VALUE, without dashes")
    if runner == "dataflow" and not is_remote(output):
        raise UserError(f"--output={output}: workers of Dataflow see gs:// only")
    try:
        sent = [pickle.dumps((source, refuse)) for source in sources]
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(f"a source cannot be sent to workers ({error})") from error
    own = [f"runner={RUNNERS[runner]}"]
    if runner == "direct":
        own += ["direct_running_mode=multi_processing", f"direct_num_workers={workers}"]
    if runner in ("flink", "spark"):
        own.append("job_server_timeout=60")  # seconds; Beam would wait five minutes
    flags = [f"--{option}" for option in (*own, *options)]
    around = output.with_name(f"{output.name}.beam")
    with locked(f"{around}.lock", str(output)):
        if around.exists():  # of an interrupted run
            around.rmtree()
        folder = around / uuid.uuid4().hex  # workers keep what they read of a folder
        for name in (_FOUND, _COUNTS, _ENCODED, _WRITTEN, _ERRORS):
            (folder / name).mkdir(parents=True, exist_ok=True)
        try:
            _save(folder / "sources", sent)
            _save(folder / "filters", list(filters))
            yield BeamJob(str(folder), len(sources), output, runner, flags)
        finally:
            around.rmtree()


@dataclass
class BeamJob:
    """Stages of a job, see above.

    Attributes:
      folder: what the stages share.
      num_sources: number of sources.
      output: the store.
      runner: one of `bert_jax.data.limits.RUNNERS`.
      flags: the command line of Beam.
      skipped: records that were left out because they could not be read.
    """

    folder: str
    num_sources: int
    output: epath.Path
    runner: str
    flags: Sequence[str]
    skipped: int = 0

    def measure(self, filtering: Filtering, shard_tokens: int) -> None:
        """Finds the documents that stay, counted by `filtering`, and cuts them into chunks."""
        self._run(self.num_sources, _measure)
        kept: list[bytearray] = []  # of each source

        def found() -> Iterator[Found]:
            for number in range(self.num_sources):
                kept.append(bytearray())
                for item in _items(self._path(_FOUND, number)):
                    if isinstance(item, int):
                        self.skipped += item
                    else:
                        yield from item

        def sizes() -> Iterator[range]:  # as long as the texts
            for each in filtering.decide(found()):
                kept[-1].append(each is not None)
                if each is not None:
                    yield range(each.steps[-1].size if each.steps and each.steps[-1] else each.size)

        chunks = [len(chunk) for chunk in in_chunks(sizes(), chunk_characters(shard_tokens))]
        firsts = [0, *itertools.accumulate(map(sum, kept))]
        starts = np.cumsum([0, *chunks])[:-1]
        bits = [np.packbits(np.frombuffer(each, np.uint8)) for each in kept]
        _save(epath.Path(self.folder) / "plan", _Plan(starts, firsts, bits))
        self._num_chunks = len(chunks)

    def count_pieces(self, kind: str, bound: float, tail: float) -> Counter[str]:
        """How often each piece occurs that a tokenizer of a kind is trained on.

        Args:
          kind: see `train_tokenizer`.
          bound, tail: what is held out, see `training_texts`.
        """
        self._run_by_chunk(functools.partial(_count, kind=kind, bound=bound, tail=tail))
        counts: Counter[str] = Counter()
        for number in range(self._num_chunks):
            items = _items(self._path(_COUNTS, number))
            of_chunk = next(items)
            if len(counts) + sum(piece not in counts for piece in of_chunk) <= MAX_COUNTED_PIECES:
                counts.update(of_chunk)
            else:  # rare ones are dropped after one of these texts
                counts = count_pieces(next(items), finds_pieces(kind), counts)
        return counts

    def __call__(
        self, store: epath.Path, first: int, encoder: Encoder, shard_tokens: int
    ) -> Iterator[Written]:
        """See `bert_jax.data.store_writer.ShardMaker`."""
        _save(epath.Path(self.folder) / "encoder", encoder)
        self._run_by_chunk(_encode)
        (found,) = _items(epath.Path(self.folder) / "results")
        sizes = [size for _, size in sorted(found)]
        of_chunks = [shard for shard, _ in in_shards(sizes, shard_tokens)]
        target = self.output if is_remote(self.output) else store
        shards = range(of_chunks[-1] + 1)
        chunks = np.searchsorted(of_chunks, [*shards, len(shards)])
        _save(epath.Path(self.folder) / "shards", chunks)
        self._run(len(shards), functools.partial(_write, first=first, target=str(target)))
        for shard in shards:
            (written,) = _items(self._path(_WRITTEN, shard))
            if first + shard and is_remote(self.output):
                shard_folder(store, first + shard).mkdir(parents=True)
                write_json(shard_folder(store, first + shard) / MANIFEST, written.manifest)
            yield written

    def _path(self, name: str, number: int) -> epath.Path:
        return epath.Path(self.folder) / name / str(number)

    def _run(self, count: int, stage: Callable[..., Any]) -> None:
        """Runs a stage for each number."""
        self._pipeline(count, lambda beam: beam.Map(functools.partial(stage, self.folder)))

    def _run_by_chunk(self, stage: Callable[..., Any]) -> None:
        """Runs a stage for each chunk and its texts; `results` has what it returns."""
        self._pipeline(
            self.num_sources,
            lambda beam: (
                beam.FlatMap(functools.partial(_texts_by_chunk, self.folder))
                | beam.GroupByKey()
                | beam.MapTuple(functools.partial(_of_chunk, self.folder, stage))
                | beam.combiners.ToList()
                | beam.Map(functools.partial(_keep, self.folder))
            ),
        )

    def _pipeline(self, count: int, transform: Callable[[Any], Any]) -> None:
        import apache_beam as beam

        options = self._options()
        try:
            with beam.Pipeline(options=options) as pipeline:
                pipeline | beam.Create(range(count)) | beam.Reshuffle() | transform(beam)
        except Exception as error:  # each runner has its own
            for path in sorted((epath.Path(self.folder) / _ERRORS).iterdir()):
                raise UserError(path.read_text()) from error
            if self.runner == "direct":
                raise
            raise UserError(
                f"--runner={self.runner}: Beam cannot run the job: {_in_one_line(error)}. Give the "
                "cluster and what else its runner needs as --beam-option, or take --runner=direct"
            ) from error

    def _options(self) -> Any:
        from apache_beam.options.pipeline_options import PipelineOptions

        options = PipelineOptions(list(self.flags))
        try:
            with contextlib.redirect_stderr(io.StringIO()) as printed:
                options.get_all_options()
        except SystemExit as error:  # it has printed how to use all options of Beam
            problem = printed.getvalue().strip().splitlines()[-1].partition("error: ")[2]
            raise UserError(f"--beam-option: {problem}") from error
        return options


def _in_one_line(error: Exception) -> str:
    """What an error of a runner says; of a traceback, the end."""
    details = getattr(error, "details", None)  # of gRPC
    text = str(details() if callable(details) else error).strip()
    if "Traceback" in text:
        text = text.splitlines()[-1]
    if not text:
        name = type(error).__name__
        text = f"its job server does not answer ({name})" if "Timeout" in name else name
    return " ".join(text.split()).rstrip(".")


class _Plan(NamedTuple):
    """Which documents stay, and in which chunks.

    Attributes:
      starts: int64 [chunks], number of the first document of each.
      firsts: number of the first document of each source.
      kept: a bit for each document of a source, whether it stays.
    """

    starts: np.ndarray
    firsts: Sequence[int]
    kept: Sequence[np.ndarray]


def _measure(folder: str, number: int) -> None:
    """Writes what filters make of the documents of a source, and how many records it skipped."""
    filters = _shared(folder, "filters")

    def found() -> Iterator[list[Found] | int]:
        documents, refuse = _documents(folder, number)
        for chunk in in_chunks(documents):
            yield [each._replace(text="") for each in look_at(filters, chunk)]
        yield refuse.count if isinstance(refuse, SkippedRecords) else 0

    with _errors_told(folder, number):
        _save(epath.Path(folder) / _FOUND / str(number), *found())


def _texts_by_chunk(folder: str, number: int) -> Iterator[tuple[int, tuple[int, list[str]]]]:
    """The texts of a source that stay: for each chunk the number of the first, and all of them."""
    filters, plan = _shared(folder, "filters"), _shared(folder, "plan")

    def texts() -> Iterator[str]:
        documents, _ = _documents(folder, number)
        for text, kept in zip(documents, np.unpackbits(plan.kept[number])):
            if kept:
                yield look_at(filters, [text])[0].text

    def chunk(item: tuple[int, str]) -> int:
        return int(np.searchsorted(plan.starts, item[0], "right")) - 1

    with _errors_told(folder, number):
        for key, group in itertools.groupby(enumerate(texts(), plan.firsts[number]), chunk):
            (first, text), *rest = group
            yield key, (first, [text, *(text for _, text in rest)])


def _of_chunk(
    folder: str,
    stage: Callable[[str, int, list[str]], Any],
    number: int,
    parts: Iterable[tuple[int, list[str]]],
) -> tuple[int, Any]:
    """What a stage makes of a chunk, with its number."""
    texts = [text for _, part in sorted(parts, key=lambda part: part[0]) for text in part]
    with _errors_told(folder, number):
        return number, stage(folder, number, texts)


def _count(
    folder: str, number: int, texts: list[str], *, kind: str, bound: float, tail: float
) -> None:
    """Writes how often each piece occurs, and the texts, in case that pieces are too many."""
    texts = list(training_texts(texts, bound, tail))
    counts = Counter(itertools.chain.from_iterable(map(finds_pieces(kind), texts)))
    _save(epath.Path(folder) / _COUNTS / str(number), counts, texts)


class _Size(NamedTuple):
    """See `bert_jax.data.store_writer.Size`."""

    tokens: int
    has_documents: bool


def _encode(folder: str, number: int, texts: list[str]) -> _Size:
    """Writes a chunk as ids."""
    chunk: EncodedChunk = _shared(folder, "encoder")(texts)
    _save(epath.Path(folder) / _ENCODED / str(number), chunk)
    return _Size(chunk.tokens, chunk.has_documents)


def _keep(folder: str, results: list[Any]) -> None:
    _save(epath.Path(folder) / "results", results)


def _write(folder: str, number: int, *, first: int, target: str) -> None:
    """Writes a shard into the folder of the store, by way of this machine's disk."""
    chunks, encoder = _shared(folder, "shards"), _shared(folder, "encoder")
    with tempfile.TemporaryDirectory() as temporary, _errors_told(folder, number):
        local = epath.Path(temporary)
        writer = ShardWriter(local, first + number, encoder)
        for chunk in range(chunks[number], chunks[number + 1]):
            writer.append(*_items(epath.Path(folder) / _ENCODED / str(chunk)))
        written = writer.finish()
        for file in files_below(local):
            path = epath.Path(target) / file.relative_to(local)
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as new, file.open("rb") as reader, new.open("wb") as copy:
                shutil.copyfileobj(reader, copy, 2**24)
    _save(epath.Path(folder) / _WRITTEN / str(number), written)


def _documents(folder: str, number: int) -> tuple[Iterator[str], Refuse]:
    """The documents of a source, and what is called with records that cannot be read."""
    source, refuse = pickle.loads(_shared(folder, "sources")[number])
    if isinstance(refuse, SkippedRecords):
        refuse.count = 0  # the launcher has read some
    return read_documents([source], refuse=refuse), refuse


@contextlib.contextmanager
def _errors_told(folder: str, number: int) -> Iterator[None]:
    """Writes a file for the launcher if there is an error of the user's: Beam tells only text."""
    try:
        yield
    except UserError as error:
        write_text(epath.Path(folder) / _ERRORS / f"{number:09}", str(error))
        raise


def _save(path: epath.Path, *items: Any) -> None:
    with whole_file(path) as whole, whole.open("wb") as file:
        for item in items:
            pickle.dump(item, file)


def _items(path: epath.Path) -> Iterator[Any]:
    """What `_save` wrote, read as it is taken."""
    with path.open("rb") as file, contextlib.suppress(EOFError):
        while True:
            yield pickle.load(file)


@functools.lru_cache(maxsize=8)
def _shared(folder: str, name: str) -> Any:
    (item,) = _items(epath.Path(folder) / name)
    return item
