"""Pre-masked examples in TFRecord files, as Google's create_pretraining_data.py writes them.

A folder of them with `vocab.txt` and `tokenizer_config.json` can replace a token store. Every
record is a `tf.train.Example` with the features in `FEATURES`, as in
https://github.com/google-research/bert and in NVIDIA's and MLPerf's data. A file stores each as
uint64 length, uint32 checksum of the length, the record's bytes, uint32 checksum of these, all
little-endian (https://www.tensorflow.org/tutorials/load_data/tfrecord). TensorFlow is not needed.

Records are read in place. Files that are compressed (GZIP) or in object storage are first copied,
unpacked, below $XDG_CACHE_HOME (default ~/.cache), once for all processes of a host.
"""

import array
import bisect
import dataclasses
import functools
import gzip
import hashlib
import itertools
import mmap
import pathlib
import re
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import google_crc32c
import numpy as np
from etils import epath
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import DecodeError

from bert_jax.data.batches import (
    HELDOUT_SEED,
    Batch,
    BatchStream,
    HostRows,
    PremaskedBatches,
    one_epoch,
)
from bert_jax.data.sampling import Sampling
from bert_jax.data.tokenizer import CONFIG_FILE, TOKENIZER_FILE, Tokenizer
from bert_jax.data.tokenizer_json import load_tokenizer
from bert_jax.errors import UserError
from bert_jax.locks import locked
from bert_jax.storage import cache_folder, is_remote, whole_file
from bert_jax.terminal import progress

# Feature of a record -> its name in a batch.
FEATURES = {
    "input_ids": "input_ids",
    "input_mask": "segment_ids",
    "segment_ids": "token_type_ids",
    "masked_lm_positions": "masked_lm_positions",
    "masked_lm_ids": "masked_lm_ids",
    "masked_lm_weights": "masked_lm_weights",
    "next_sentence_labels": "next_sentence_label",
}
RECORD_FILE = re.compile(r"[^.].*tf[-_]?record.*|(part|eval|heldout)[^.]*(\.gz)?", re.IGNORECASE)
HELDOUT_FILE = re.compile(r"eval|heldout", re.IGNORECASE)
HELDOUT_SHARE = 0.01
# Enough for word frequencies; counting all of a large corpus would take hours.
MAX_COUNTED_EXAMPLES = 10_000
MAX_MAPPED_FILES = 512  # each takes a file descriptor
_VERIFIED_AT_ONCE = 1000  # records

_WEIGHTS = "masked_lm_weights"
_LENGTH_BYTES = 8
_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_GZIP = b"\x1f\x8b\x08"
_COPY_BYTES = 2**22
# The part of tensorflow/core/example/{example,feature}.proto used here. A separate descriptor pool
# avoids conflicts in a process that also loads TensorFlow.
_SCHEMA = """
name: "example.proto" package: "tensorflow" syntax: "proto3"
message_type { name: "FloatList"
  field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_FLOAT } }
message_type { name: "Int64List"
  field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_INT64 } }
message_type { name: "Feature"
  field { name: "float_list" number: 2 label: LABEL_OPTIONAL type_name: "FloatList" }
  field { name: "int64_list" number: 3 label: LABEL_OPTIONAL type_name: "Int64List" } }
message_type { name: "Features"
  nested_type { name: "FeatureEntry" options { map_entry: true }
    field { name: "key" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "value" number: 2 label: LABEL_OPTIONAL type_name: "Feature" } }
  field { name: "feature" number: 1 label: LABEL_REPEATED type_name: "FeatureEntry" } }
message_type { name: "Example"
  field { name: "features" number: 1 label: LABEL_OPTIONAL type_name: "Features" } }
"""
_POOL = descriptor_pool.DescriptorPool()
_POOL.Add(text_format.Parse(_SCHEMA, descriptor_pb2.FileDescriptorProto()))
Example = message_factory.GetMessageClass(_POOL.FindMessageTypeByName("tensorflow.Example"))


class PremaskedSplit:
    """One split, whose examples are read on demand. Thread-safe.

    Attributes:
      name: 'train' or 'heldout'.
      max_seq_length: tokens of every example, including padding.
      max_predictions_per_seq: prediction slots of every example.
    """

    def __init__(self, name: str, records: "_Records", numbers: np.ndarray, tokenizer: Tokenizer):
        """Parses the first example; the others must have the same lengths.

        Args:
          name: name of the split.
          records: records of all splits.
          numbers: numbers of the records in this split; at least one.
          tokenizer: vocabulary of the ids.

        Raises:
          UserError: the first record is damaged or not such an example.
        """
        self.name = name
        self._records, self._numbers, self._tokenizer = records, numbers, tokenizer
        self.max_seq_length, self.max_predictions_per_seq = records.shape(int(numbers[0]))

    def __len__(self) -> int:
        return len(self._numbers)

    def read(self, examples: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Reads examples by their number in the split.

        Returns:
          Arrays named as in `Batches.batch`, with S = max_seq_length and P =
          max_predictions_per_seq: input_ids (masked), segment_ids, token_type_ids [n, S] int32,
          masked_lm_positions, masked_lm_ids [n, P] int32, masked_lm_weights [n, P] fp32 (0 in
          unused slots), next_sentence_label [n, 1] int32.

        Raises:
          UserError: a record is damaged, lacks a feature, has a feature whose length is not that of
            the first record, a value out of range, or padding before tokens.
        """
        length, slots = self.max_seq_length, self.max_predictions_per_seq
        vocab_size = len(self._tokenizer.vocab)
        width_and_limit = {
            "input_ids": (length, vocab_size),
            "input_mask": (length, 2),
            "segment_ids": (length, 2),
            "masked_lm_positions": (slots, length),
            "masked_lm_ids": (slots, vocab_size),
            _WEIGHTS: (slots, np.inf),
            "next_sentence_labels": (1, 2),
        }
        numbers = self._numbers[np.asarray(examples, np.int64)].tolist()
        columns = {
            name: np.empty((len(numbers), width), np.float32 if name == _WEIGHTS else np.int64)
            for name, (width, limit) in width_and_limit.items()
        }
        for row, number in enumerate(numbers):
            for name, values in self._records.features(number).items():
                if len(values) != columns[name].shape[1]:
                    raise UserError(
                        f"{self._records.where(number)}: {name} has length {len(values)}, but "
                        f"{columns[name].shape[1]} in the first record; lengths must be equal"
                    )
                columns[name][row] = values
        for name, (_, limit) in width_and_limit.items():
            wrong = ~((columns[name] >= 0) & (columns[name] < limit))
            if wrong.any():
                row, column = np.argwhere(wrong)[0]
                hint = "; is this the vocabulary of the records?" if limit == vocab_size else ""
                raise UserError(
                    f"{self._records.where(numbers[row])}: {name} has {columns[name][row, column]},"
                    f" which is not in [0, {limit}){hint}"
                )
        mask = columns["input_mask"]
        after_padding = mask[:, 1:] > mask[:, :-1]
        if after_padding.any():
            row, column = np.argwhere(after_padding)[0]
            raise UserError(
                f"{self._records.where(numbers[row])}: input_mask has a token at {column + 1} "
                "after padding; padding must be at the end"
            )
        return {
            FEATURES[name]: values.astype(np.int32) if values.dtype == np.int64 else values
            for name, values in columns.items()
        }

    @functools.cached_property
    def token_counts(self) -> np.ndarray:
        """int64 [vocab_size], how often each token but [CLS] and [SEP] occurs in the examples.

        Masked tokens are restored. In a large split, `MAX_COUNTED_EXAMPLES` evenly spaced examples
        are counted.
        """
        num_counted = min(len(self), MAX_COUNTED_EXAMPLES)
        examples = self.read(np.linspace(0, len(self) - 1, num_counted).astype(np.int64))
        input_ids = examples["input_ids"]
        rows, slots = np.nonzero(examples["masked_lm_weights"])
        positions = examples["masked_lm_positions"][rows, slots]
        input_ids[rows, positions] = examples["masked_lm_ids"][rows, slots]
        tokens = input_ids[examples["segment_ids"] > 0]
        counts = np.bincount(tokens, minlength=len(self._tokenizer.vocab))
        counts[[self._tokenizer.cls_id, self._tokenizer.sep_id]] = 0
        return counts


@dataclass(frozen=True)
class PremaskedStore:
    """A `bert_jax.data.stores.Store` of pre-masked records.

    Attributes:
      path: the folder.
      tokenizer: the vocabulary in the folder.
      train, heldout: the two splits; of several lengths the shortest, until `of_length` chooses.
      fingerprint: identifies the vocabulary, the records, their order and their splits.
      summary: a description, printed when a run starts.
      longer: the splits of each other length of examples.
    """

    path: epath.Path
    tokenizer: Tokenizer
    train: PremaskedSplit
    heldout: PremaskedSplit
    fingerprint: str
    summary: str
    longer: Mapping[int, tuple[PremaskedSplit, PremaskedSplit]] = dataclasses.field(
        default_factory=dict
    )

    is_masked = True

    @property
    def token_counts(self) -> np.ndarray:
        """See `PremaskedSplit.token_counts` of the training split."""
        return self.train.token_counts

    def of_length(self, max_seq_length: int) -> "PremaskedStore":
        """The examples of that length; itself if there are none."""
        if max_seq_length not in self.longer:
            return self
        train, heldout = self.longer[max_seq_length]
        return dataclasses.replace(self, train=train, heldout=heldout)

    def check(self, sampling: Sampling, max_predictions_per_seq: int, path: str) -> None:
        """Raises UserError if the sampling differs from that of the examples."""
        if sampling.packing:
            raise UserError(
                f"{path}.data.packing=True, but {self.path} has pre-masked examples, which take a "
                f"row each: set {path}.data.packing to False"
            )
        configured = {
            "data.max_seq_length": sampling.max_seq_length,
            "masking.max_predictions_per_seq": max_predictions_per_seq,
        }
        chosen = self.of_length(sampling.max_seq_length)
        for split in (chosen.train, chosen.heldout):
            for name, value in configured.items():
                found = getattr(split, name.partition(".")[2])
                if value != found:
                    lengths = self.longer if name == "data.max_seq_length" else ()
                    there = " or ".join(map(str, (found, *lengths)))
                    raise UserError(
                        f"{path}.{name}={value}, but the {split.name} examples in {self.path} are "
                        f"masked already and have {there}: set {path}.{name} to {there}"
                    )

    def training_batches(
        self, sampling: Sampling, *, seed: int, host_rows: HostRows, first_row: int = 0
    ) -> BatchStream:
        """Every example of the sampling's length once per epoch, in random order."""
        train = self.of_length(sampling.max_seq_length).train
        return PremaskedBatches(
            train, sampling, seed=seed, first_row=first_row, host_rows=host_rows
        )

    def heldout_batches(
        self, sampling: Sampling, *, num_batches: int, host_rows: np.ndarray
    ) -> Iterable[Batch]:
        stream = PremaskedBatches(
            self.of_length(sampling.max_seq_length).heldout,
            sampling,
            seed=HELDOUT_SEED,
            num_epochs=1,
            host_rows=lambda _: host_rows,
        )
        return one_epoch(stream, sampling.batch_size, num_batches)


def is_premasked(path: epath.PathLike) -> bool:
    """Whether `path` is a folder with record files; a token store has none."""
    path = epath.Path(path)
    return path.is_dir() and bool(_record_files(path))


def open_premasked(path: epath.PathLike) -> PremaskedStore:
    """Opens a folder of records after checking the framing of each.

    Files whose name begins with `heldout` or `eval` are held out. Without any, one record in a
    hundred is held out, by its checksum, so that copies of a record are in the same split. Files
    may differ in the length of their examples, for phases of a run; a batch is of one length.

    Raises:
      UserError: the folder has no usable vocabulary, has a file that is truncated or of another
        kind, or has no record for one of the splits of a length.
    """
    path = epath.Path(path)
    tokenizer = _load_vocabulary(path)
    records = _Records(_record_files(path), cache_folder("records"))
    lengths = np.repeat(records.lengths, records.counts)
    heldout_files = [bool(HELDOUT_FILE.match(file.name)) for file in records.files]
    is_heldout = np.repeat(heldout_files, records.counts)
    splits: dict[int, tuple[PremaskedSplit, PremaskedSplit]] = {}
    summaries = []
    for length in np.unique(lengths).tolist() or [0]:
        is_here = lengths == length
        if not any(heldout_files):
            least = records.checksums[is_here].min(initial=2**32 - 1)
            is_heldout |= is_here & (records.checksums <= max(least, HELDOUT_SHARE * 2**32))
        numbers = {
            "train": np.flatnonzero(is_here & ~is_heldout),
            "heldout": np.flatnonzero(is_here & is_heldout),
        }
        of_tokens = f" of {length} tokens" if len(np.unique(lengths)) > 1 else ""
        for name in numbers:
            if not len(numbers[name]):
                raise UserError(
                    f"{path}: no record{of_tokens} for the {name} split in its TFRecord files"
                )
        train, heldout = (PremaskedSplit(n, records, numbers[n], tokenizer) for n in numbers)
        splits[length] = (train, heldout)
        summaries.append(f"{len(train):,} pre-masked training examples{of_tokens}")
    summary = ", ".join(summaries)
    if not any(heldout_files):
        summary += (
            f", {int(is_heldout.sum()):,} more held out at random. If they were made with "
            "dupe_factor above 1, both splits share documents and held-out scores are too high: "
            "put held-out documents into files named heldout*"
        )
    fingerprint = hashlib.sha256(tokenizer.vocab_hash.encode())
    fingerprint.update(records.checksums.data)
    fingerprint.update(is_heldout.data)
    (train, heldout), *_ = splits.values()
    del splits[train.max_seq_length]
    return PremaskedStore(
        path, tokenizer, train, heldout, fingerprint.hexdigest(), summary, longer=splits
    )


def damaged_record_files(path: epath.PathLike) -> Iterator[tuple[str, str]]:
    """Reads every record of a folder: the name of each file and what is wrong, or "".

    Raises:
      UserError: as `open_premasked`, but for the records of its files.
    """
    path = epath.Path(path)
    tokenizer = _load_vocabulary(path)
    for file in _record_files(path):
        problem = ""
        try:
            with tempfile.TemporaryDirectory() as folder:
                records = _Records([file], epath.Path(folder))
                if num_records := len(records.checksums):
                    split = PremaskedSplit(file.name, records, np.arange(num_records), tokenizer)
                    for first in range(0, num_records, _VERIFIED_AT_ONCE):
                        split.read(range(first, min(num_records, first + _VERIFIED_AT_ONCE)))
        except UserError as error:
            problem = str(error).removeprefix(f"{file}: ")
        yield file.name, problem


def _record_files(path: epath.Path) -> list[epath.Path]:
    return sorted(f for f in path.iterdir() if RECORD_FILE.fullmatch(f.name) and not f.is_dir())


def _load_vocabulary(path: epath.Path) -> Tokenizer:
    if not any((path / name).exists() for name in (CONFIG_FILE, TOKENIZER_FILE)):
        raise UserError(
            f"{path / CONFIG_FILE}: missing; "
            'write {"do_lower_case": true} into it if the records are uncased, false if cased'
        )
    return load_tokenizer(path)


class _Records:
    """The records of several files, numbered consecutively.

    Attributes:
      files: the files, in order.
      counts: number of records in each file.
      checksums: uint32 [num_records], masked CRC-32C of each record, as stored in its file.
    """

    def __init__(self, files: Sequence[epath.Path], copies: epath.Path):
        """Reads the frames of all records.

        Args:
          files: local or remote, plain or compressed.
          copies: where to keep copies of files that cannot be read in place.
        """
        self.files = files
        self._local = [_local(file, copies) for file in files]
        self._starts, checksums = zip(*map(_index, self._local, files))
        self.checksums = np.concatenate(checksums)
        self.counts = [len(each) for each in checksums]
        self._first_numbers = [0, *itertools.accumulate(self.counts)]
        self._map = functools.lru_cache(MAX_MAPPED_FILES)(_map)

    @functools.cached_property
    def lengths(self) -> list[int]:
        """Tokens of the first example of each file, 0 if it has none."""
        firsts = zip(self._first_numbers, self.counts)
        return [self.shape(first)[0] if count else 0 for first, count in firsts]

    def shape(self, number: int) -> tuple[int, int]:
        """Tokens and prediction slots of an example.

        Raises:
          UserError: there are none, or as `features`.
        """
        values = self.features(number)
        shape = len(values["input_ids"]), len(values["masked_lm_positions"])
        if not all(shape):
            raise UserError(
                f"{self.where(number)}: input_ids and masked_lm_positions must be lists of "
                "integers that are not empty"
            )
        return shape

    def features(self, number: int) -> Mapping[str, Sequence[float]]:
        """The values of each of `FEATURES` in a record.

        Raises:
          UserError: the record is damaged, is not a `tf.train.Example`, or lacks a feature.
        """
        file, index = self._locate(number)
        start, stop = self._starts[file][index : index + 2].tolist()
        data = self._map(self._local[file])[start + _HEADER.size : stop - _CHECKSUM.size]
        if _masked_crc(data) != self.checksums[number]:
            raise UserError(f"{self.where(number)}: damaged, its checksum is wrong; copy it again")
        try:
            found = Example.FromString(data).features.feature
        except DecodeError:
            raise UserError(f"{self.where(number)}: not a tf.train.Example") from None
        if missing := [name for name in FEATURES if name not in found]:
            raise UserError(
                f"{self.where(number)}: lacks {', '.join(missing)}; it has {', '.join(found)}"
            )
        features = {}
        for name in FEATURES:
            floats, integers = found[name].float_list.value, found[name].int64_list.value
            features[name], other = (floats, integers) if name == _WEIGHTS else (integers, floats)
            if other:
                kind = "floats" if name == _WEIGHTS else "integers"
                raise UserError(f"{self.where(number)}: {name} must be a list of {kind}")
        return features

    def where(self, number: int) -> str:
        """The name of a record in messages: its file, and its number there, from 1."""
        file, index = self._locate(number)
        return f"{self.files[file]}: record {index + 1}"

    def _locate(self, number: int) -> tuple[int, int]:
        file = bisect.bisect_right(self._first_numbers, number) - 1
        return file, number - self._first_numbers[file]


def _local(file: epath.Path, copies: epath.Path) -> pathlib.Path:
    """The file, or a copy of it in `copies` if it is remote or compressed."""
    with file.open("rb") as opened:
        is_compressed = opened.read(len(_GZIP)) == _GZIP
    if not is_compressed and not is_remote(file):
        return pathlib.Path(file)
    stat = file.stat()
    version = f"{file if is_remote(file) else file.resolve()}\n{stat.length}\n{stat.mtime}"
    copy = copies / f"{hashlib.sha256(version.encode()).hexdigest()[:32]}.tfrecord"
    copies.mkdir(parents=True, exist_ok=True)
    with locked(copy.with_suffix(".lock"), str(file), wait=True):
        if not copy.exists():
            with (
                file.open("rb") as opened,
                whole_file(copy) as unfinished,
                unfinished.open("wb") as writer,
                progress(f"copying {file}", None) as bar,
            ):
                content = gzip.GzipFile(fileobj=opened) if is_compressed else opened
                try:
                    while block := content.read(_COPY_BYTES):
                        writer.write(block)
                        bar.update(len(block))
                except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                    raise UserError(f"{file}: damaged or cut short ({error})") from error
    return pathlib.Path(copy)


def _index(data_file: pathlib.Path, file: epath.Path) -> tuple[np.ndarray, np.ndarray]:
    """Offsets of the records and of the end, int64 [n + 1]; their checksums, uint32 [n].

    Args:
      data_file: where the records are.
      file: its name in messages.
    """
    starts, checksums = array.array("q", [0]), array.array("I")
    data = _map(data_file) if data_file.stat().st_size else b""
    while (start := starts[-1]) < len(data):
        where = f"{file}: record {len(starts)}"
        stop = start + _HEADER.size
        if stop <= len(data):
            length, length_crc = _HEADER.unpack_from(data, start)
            if length_crc != _masked_crc(data[start : start + _LENGTH_BYTES]):
                raise UserError(
                    f"{where}: the checksum of its length is wrong; "
                    "is this a complete TFRecord file?"
                )
            stop += length
        if stop + _CHECKSUM.size > len(data):
            raise UserError(f"{where}: the file ends within it; copy it again")
        checksums.extend(_CHECKSUM.unpack_from(data, stop))
        starts.append(stop + _CHECKSUM.size)
    return np.array(starts), np.array(checksums)


def _map(file: pathlib.Path) -> mmap.mmap:
    with file.open("rb") as opened:
        return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)


def _masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and offset: a plain CRC of data that contains CRCs is weak."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
