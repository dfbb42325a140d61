"""Filters: which documents a store leaves out, and how texts are cleaned, before tokenisation.

A filter is given as NAME or NAME:OPTION=VALUE,..., such as `length:minimum=200`, or as MODULE:NAME
for a function or class of your own. Filters work in the order in which they are given, each on what
those before it left. What depends on a text alone is done by worker processes; which document is a
copy of another is decided in the order of the documents. So the result does not depend on the
number of workers, and every reading of the same documents gives the same.
"""

import functools
import hashlib
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bert_jax.data.workers import in_chunks, in_workers
from bert_jax.errors import UserError
from bert_jax.fields import (
    POSITIVE,
    Choice,
    Plain,
    build,
    field,
    fields_of,
    import_object,
    to_plain,
)

_WITH_OPTIONS = re.compile(r"(.*?):([a-z_]+=.*)", re.DOTALL)
_SEPARATOR = "+"  # of the languages in an option
_LANGUAGE_CHARACTERS = 1000  # of a text that tell its language
_PERMUTATIONS = 128


@dataclass(frozen=True)
class Filter(Choice):
    """Base class of filters, whose fields are their options."""

    def apply(self, text: str) -> str | None:
        """What is kept of a text: a pure function. None, or no text, leaves the document out."""
        return text

    def keys(self, text: str) -> Sequence[int]:
        """Numbers of a text: a document that has one in common with an earlier one is left out."""
        return ()


@dataclass(frozen=True)
class ExactDuplicates(Filter, name="exact_duplicates"):
    """Leaves out every document whose text an earlier one has, white space at its ends aside.

    Takes about 70 bytes of memory for each document that is kept.
    """

    def keys(self, text: str) -> Sequence[int]:
        return (_hash(text.strip().encode("utf-8", "surrogatepass")),)


@dataclass(frozen=True)
class NearDuplicates(Filter, name="near_duplicates"):
    """Leaves out documents that are much like an earlier one, by MinHash with banding.

    Texts are compared as sets of runs of `words` words, in lower case, by the share that two sets
    have in common (Broder 1997). Takes about a kilobyte of memory for each document that is kept.
    """

    threshold: float = field(
        0.8, "share of the runs of words that makes a document a copy", bounds="(0, 1)"
    )
    words: int = field(5, "words of a run", bounds=POSITIVE)

    def check(self, path: str) -> None:
        """Raises UserError if the library is not installed."""
        self._bands()

    def keys(self, text: str) -> Sequence[int]:
        words = re.findall(r"\w+", text.lower())
        runs = {
            " ".join(words[start : start + self.words]).encode()
            for start in range(max(1, len(words) - self.words + 1))
        }
        sketch = _empty_sketch().copy()
        sketch.update_batch(sorted(runs))
        num_bands, rows = self._bands()
        values = sketch.hashvalues
        return [
            _hash(bytes([band]) + values[band * rows : (band + 1) * rows].tobytes())
            for band in range(num_bands)
        ]

    def _bands(self) -> tuple[int, int]:
        """Number of bands, and hash values in each, that tell sets apart at the threshold."""
        return _bands(self.threshold)


@dataclass(frozen=True)
class Length(Filter, name="length"):
    """Leaves out documents that are too short or too long."""

    minimum: int = field(1, "least characters, white space at the ends aside", bounds=POSITIVE)
    maximum: int | None = field(None, "most characters; None for no limit", bounds=POSITIVE)

    def check(self, path: str) -> None:
        """Raises UserError if no length is left."""
        if self.maximum is not None and self.maximum < self.minimum:
            raise UserError(f"{path}: maximum={self.maximum} is below minimum={self.minimum}")

    def apply(self, text: str) -> str | None:
        size = len(text.strip())
        return text if self.minimum <= size and (not self.maximum or size <= self.maximum) else None


@dataclass(frozen=True)
class Language(Filter, name="language"):
    """Keeps documents in some languages, as py3langid tells them by the first 1,000 characters."""

    languages: str = field("en", "codes of ISO 639, several as en+de")
    probability: float = field(
        0.5, "least probability of these languages together", bounds="[0, 1]"
    )

    def check(self, path: str) -> None:
        """Raises UserError if a language is unknown, or the library is not installed."""
        known = _identifier().labels
        for language in self.languages.split(_SEPARATOR):
            if language not in known:
                raise UserError(f"{path}: unknown language {language!r}; use {', '.join(known)}")

    def apply(self, text: str) -> str | None:
        ranked = _identifier().rank(text.strip()[:_LANGUAGE_CHARACTERS])
        wanted = self.languages.split(_SEPARATOR)
        found = sum(probability for language, probability in ranked if language in wanted)
        return text if found >= self.probability else None


@dataclass(frozen=True)
class _Function(Filter):
    """A function of somebody else's, from a text to what is kept of it."""

    function: str = ""

    def apply(self, text: str) -> str | None:
        kept = _load(self.function)(text)
        if kept is not None and not isinstance(kept, str):
            kind = type(kept).__name__
            raise UserError(f"--filter={self.function} must return a text or None, not {kind}")
        return kept


def find_filters(names: Sequence[str | Filter]) -> list[Filter]:
    """The filters that `names` stand for, in order.

    Args:
      names: each NAME, NAME:OPTION=VALUE,... or MODULE:NAME, see above; or a `Filter` itself.

    Raises:
      UserError: no such filter or option, or a library that it needs is not installed.
    """
    return [_find(name) if isinstance(name, str) else name for name in names]


class Filtering:
    """Filters, and what they left out of the documents that were read last.

    Attributes:
      counts: for each filter its name and options (`filter`) and, once all documents are read,
        `documents` and `characters` that it left out, those of cleaned texts counted.
    """

    def __init__(self, filters: Sequence[Filter]):
        self._filters = filters
        self.counts: list[Plain] = [{"filter": describe(each)} for each in filters]

    def __call__(self, documents: Iterable[str], workers: int = 1) -> Iterator[str]:
        """The documents that are left, in order; those without text as they are.

        Args:
          documents: texts; up to three million characters per worker are read ahead.
          workers: processes that filter; any number gives the same.
        """
        if not self._filters:
            yield from documents
            return
        look = functools.partial(look_at, self._filters)
        chunks = in_workers(look, in_chunks(documents), workers)
        for each in self.decide(itertools.chain.from_iterable(chunks)):
            if each is not None:
                yield each.text

    def decide(self, documents: Iterable["Found"]) -> Iterator["Found | None"]:
        """Each document, in order; None for one that is left out."""
        for count in self.counts:
            count |= {"documents": 0, "characters": 0}
        seen: list[set[int]] = [set() for _ in self._filters]
        for each in documents:
            yield each if self._is_kept(each, seen) else None

    def _is_kept(self, found: "Found", seen: list[set[int]]) -> bool:
        size = found.size
        for count, keys, step in zip(self.counts, seen, found.steps):
            if step is None or not keys.isdisjoint(step.keys):
                count["documents"] += 1
                count["characters"] += size
                return False
            keys.update(step.keys)
            count["characters"] += size - step.size
            size = step.size
        return True


def describe(filter: Filter) -> str:
    """A filter with all its options, as `find_filters` reads it."""
    if isinstance(filter, _Function):
        return filter.function
    name, *options = to_plain(filter).items()
    given = ",".join(f"{option}={value}" for option, value in options if value is not None)
    return f"{name[1]}:{given}" if given else str(name[1])


class _Step(NamedTuple):
    """What a filter makes of a text: its characters, and the keys of the document."""

    size: int
    keys: Sequence[int]


class Found(NamedTuple):
    """What filters make of a document: its characters, each filter's step, the text at the end.

    The step of the filter that leaves the document out is None, and there are none after it.
    """

    size: int
    steps: list[_Step | None]
    text: str


def look_at(filters: Sequence[Filter], texts: Sequence[str]) -> list[Found]:
    """All that depends on each text alone."""
    return [_look_at(filters, text) for text in texts]


def _look_at(filters: Sequence[Filter], text: str) -> Found:
    found = Found(len(text), [], text)
    if not text.strip():
        return found
    for each in filters:
        kept = each.apply(text)
        if kept is None or not kept.strip():
            found.steps.append(None)
            break
        found.steps.append(_Step(len(kept), each.keys(kept)))
        text = kept
    return found._replace(text=text)


def _find(text: str) -> Filter:
    match = _WITH_OPTIONS.fullmatch(text)
    name, given = (match[1], match[2]) if match else (text, "")
    path = f"--filter={name}"
    if name in Filter.kinds() or ":" not in name:
        kind = Filter.kind(name, "--filter")
    else:
        found = import_object(name, "--filter")
        if not (isinstance(found, type) and issubclass(found, Filter)):
            if given or not callable(found) or isinstance(found, type):
                raise UserError(
                    f"{path}: must be a function from a text to a text or None, or a class derived "
                    "from bert_jax.data.filters.Filter"
                )
            return _Function(name)
        kind = found
    options: dict[str, Any] = {}
    for option in filter(None, given.split(",")):
        key, _, value = option.partition("=")
        if key not in fields_of(kind):
            known = ", ".join(fields_of(kind)) or "none"
            raise UserError(f"{path}: no option {key!r}; there are: {known}")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return build(Filter, {"name": kind.called()} | options, path)


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())


_load = functools.cache(functools.partial(import_object, path="--filter"))


@functools.cache
def _bands(threshold: float) -> tuple[int, int]:
    lsh = _datasketch().MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS)
    return lsh.b, lsh.r


@functools.cache
def _empty_sketch() -> Any:
    return _datasketch().MinHash(num_perm=_PERMUTATIONS, hashfunc=zlib.crc32)


def _datasketch() -> Any:
    try:
        import datasketch
    except ImportError as error:
        raise UserError("near_duplicates needs datasketch: pip install datasketch") from error
    return datasketch


@functools.cache
def _identifier() -> Any:
    try:
        from py3langid import langid
    except ImportError as error:
        raise UserError("language needs py3langid: pip install py3langid") from error
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
