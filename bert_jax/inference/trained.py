"""A trained BERT in use: texts in, vectors and guesses out."""

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from bert_jax.data.packing import Batch, Example
from bert_jax.data.wordpiece import MASK
from bert_jax.errors import UserError
from bert_jax.fields import build
from bert_jax.inference.batching import make_batches
from bert_jax.inference.exported import is_exported, read_exported
from bert_jax.inference.functions import part_functions
from bert_jax.interop.formats import read
from bert_jax.interop.portable import Portable
from bert_jax.model.bert import gather_positions
from bert_jax.model.heads import parts_of
from bert_jax.parallel import rules
from bert_jax.parallel.mesh import make_mesh
from bert_jax.tasks.answering.decoding import Prediction
from bert_jax.tasks.answering.example import Question
from bert_jax.tasks.answering.task import AnsweringTask
from bert_jax.tasks.features import pair_ids
from bert_jax.tasks.protocol import AnyTask
from bert_jax.tasks.tagging.example import Sentence
from bert_jax.tasks.tagging.plain_text import Entity, find_entities, split_words
from bert_jax.tasks.tagging.task import TaggingTask
from bert_jax.train.build import build_model

Text = str | tuple[str, str]  # a pair is A and B

POOLINGS = ("mean", "cls", "pooled", "tokens")
# Small batches keep activations in a CPU's caches; an accelerator needs more to do.
TOKENS_PER_DEVICE = {"cpu": 1024}
TOKENS_PER_ACCELERATOR = 16_384
# Packed and sorted together; more would fill rows no better.
TOKENS_PER_WINDOW = 65_536

_log = logging.getLogger(__name__)


class Guess(NamedTuple):
    """A word for a mask, with its probability."""

    token: str
    probability: float


def load(
    path: epath.PathLike, step: int | None = None, *, compute_dtype: str | None = None
) -> "TrainedBert":
    """Loads a trained BERT onto the devices of this process.

    Args:
      path: workdir of a training run or a converted model, local or gs://; directory of Hugging
        Face; Google's checkpoint; what `bert-jax export` wrote.
      step: which checkpoint of a workdir; None for the newest.
      compute_dtype: of matrix products and activations, "float32" or "bfloat16"; None for that of
        the training run, float32 for weights from elsewhere.

    Raises:
      UserError: nothing of the kind is there, or it is damaged.
    """
    path = epath.Path(path)
    if is_exported(path):
        if step is not None or compute_dtype is not None:
            raise UserError(f"{path}: an exported model has one step and one compute_dtype")
        return TrainedBert(*read_exported(path))
    if compute_dtype not in (None, "float32", "bfloat16"):
        raise UserError(f"compute_dtype={compute_dtype!r}: use float32 or bfloat16")
    model = read(path, step)
    if compute_dtype is not None:
        model = model._replace(
            config=dataclasses.replace(model.config, compute_dtype=compute_dtype)
        )
    return TrainedBert(model)


class TrainedBert:
    """A model on the devices of this process, which share the rows of every batch.

    Texts are strings, or pairs of strings (A, B) for `[CLS] A [SEP] B [SEP]`. What is longer than
    the model's positions is cut, of a pair the longer side, and a warning counts that. Every method
    for many texts has a twin `..._stream`, from any iterable to an iterator: it reads some ten
    thousand tokens ahead, keeps the order and holds no more than that in memory.

    Attributes:
      config: of the model.
      wordpiece: its vocabulary.
      labels: names of the classes of a classifier.
      functions: see `bert_jax.inference.functions.part_functions`.
      params: what they take as first argument.
    """

    def __init__(self, model: Portable, functions: Mapping[str, Callable] | None = None):
        """Puts the parameters onto the devices.

        Args:
          model: anything in the form of interchange.
          functions: those of the model, if they are compiled already; default: made of its config.
        """
        mesh = make_mesh(devices=jax.local_devices())
        self.config, self.wordpiece, params, self.labels = model
        self.functions = _live_functions(model) if functions is None else functions
        self.params = jax.device_put(params, rules.replicated(mesh))
        self._sharding = rules.batch_sharding(mesh)
        self._mesh = mesh
        platform = mesh.devices.flat[0].platform
        self._tokens_per_device = TOKENS_PER_DEVICE.get(platform, TOKENS_PER_ACCELERATOR)
        self._vectors, self._follows, self._logits, self._attention, self._best_words = (
            jax.jit(functools.partial(function, self.functions), static_argnames=names)
            for function, names in (
                (_vectors, ("pooling", "layers")),
                (_follows, ()),
                (_logits, ("head",)),
                (_attention, ()),
                (_best_words, ("mesh", "top_k")),
            )
        )

    def encode(
        self, texts: Sequence[Text], pooling: str = "mean", layers: int | Sequence[int] = -1
    ) -> np.ndarray | list[np.ndarray]:
        """Turns texts into vectors.

        Args:
          texts: strings or pairs.
          pooling: what a text becomes: "mean", the mean of all its tokens' vectors, [CLS] and [SEP]
            included; "cls", that of [CLS]; "pooled", what the pooler makes of the last layer's
            [CLS]; or "tokens", a vector for each token (see `tokens`).
          layers: from 0, the embeddings, to `num_layers`, or negative, from the end; several of
            them give vectors side by side.

        Returns:
          fp32 [texts, hidden_size], or [texts, layers, hidden_size] of several layers. Of "tokens"
          a list of such arrays, [tokens, ...], one for each text.

        Raises:
          UserError: there is no such pooling, layer, or pooler.
        """
        vectors = list(self.encode_stream(texts, pooling, layers))
        if pooling == "tokens":
            return vectors
        if not vectors:
            several = () if isinstance(layers, int) else (len(layers),)
            return np.empty((0, *several, self.config.hidden_size), np.float32)
        return np.stack(vectors)

    def encode_stream(
        self, texts: Iterable[Text], pooling: str = "mean", layers: int | Sequence[int] = -1
    ) -> Iterator[np.ndarray]:
        """As `encode`, one text after the other."""
        several = not isinstance(layers, int)
        chosen = self._layers(layers if several else [layers])
        if pooling not in POOLINGS:
            raise UserError(f"pooling={pooling!r}: use one of {', '.join(POOLINGS)}")
        if pooling == "pooled":
            self.require("pooler")
            if chosen != (self.config.num_layers,):
                raise UserError("pooling='pooled' is of the last layer alone: leave layers at -1")

        def start(batch: Batch) -> jax.Array:
            return self._vectors(self.params, self._put(batch), pooling=pooling, layers=chosen)

        def finish(batch: Batch, found: np.ndarray) -> Iterable[np.ndarray]:
            found = found if several else found[:, :, 0]
            if pooling != "tokens":
                return found[batch.row, batch.slot]
            return [found[r, i:j] for r, i, j in zip(batch.row, batch.start, batch.stop)]

        return self._run(self._tokenized(_checked(texts)), start, finish)

    def next_sentence(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Probability that B follows A, fp32 [pairs].

        Raises:
          UserError: the model has no next_sentence head, or a text is no pair.
        """
        return np.array(list(self.next_sentence_stream(pairs)), np.float32)

    def next_sentence_stream(self, pairs: Iterable[tuple[str, str]]) -> Iterator[float]:
        """As `next_sentence`, one pair after the other."""
        self.require("pooler", "next_sentence")

        def start(batch: Batch) -> jax.Array:
            return self._follows(self.params, self._put(batch))

        def finish(batch: Batch, found: np.ndarray) -> Iterable[float]:
            return found[batch.row, batch.slot].tolist()

        return self._run(self._tokenized(_checked(pairs, text=False)), start, finish)

    def fill_mask(self, texts: Sequence[str], top_k: int = 5) -> list[list[list[Guess]]]:
        """Guesses the words behind every "[MASK]" of every text.

        Args:
          texts: each with at least one "[MASK]".
          top_k: guesses for each mask, most probable first.

        Returns:
          For each text, for each mask, the guesses.

        Raises:
          UserError: the model has no masked_lm head; a text has no "[MASK]", or more tokens than
            the model has positions.
        """
        return list(self.fill_mask_stream(texts, top_k))

    def fill_mask_stream(self, texts: Iterable[str], top_k: int = 5) -> Iterator[list[list[Guess]]]:
        """As `fill_mask`, one text after the other."""
        self.require("masked_lm")
        vocab, mask_id = self.wordpiece.vocab, self.wordpiece.mask_id
        if not 1 <= top_k <= len(vocab):
            raise UserError(f"top_k={top_k}: from 1 to {len(vocab)}")

        def start(batch: Batch) -> jax.Array:
            row, column = np.nonzero(batch.rows["input_ids"] == mask_id)
            slot = np.arange(len(row)) - np.searchsorted(row, row)
            # As many as there is room for texts, unless somewhere masks crowd.
            slots = max(batch.rows["cls_positions"].shape[1], 1 << int(slot.max()).bit_length())
            positions = np.zeros((len(batch.rows["input_ids"]), slots), np.int32)
            positions[row, slot] = column
            rows = self._put(batch, positions=positions)
            return self._best_words(self.params, rows, mesh=self._mesh, top_k=top_k)

        def finish(batch: Batch, found: tuple[np.ndarray, np.ndarray]) -> Iterator:
            masks = batch.rows["input_ids"] == mask_id
            before = np.cumsum(masks, axis=1) - masks  # masks of the row up to a token
            probabilities, tokens = found
            for row, start, stop in zip(batch.row, batch.start, batch.stop):
                first = before[row, start]
                slots = range(first, first + masks[row, start:stop].sum())
                yield [
                    [
                        Guess(vocab[token], float(probability))
                        for token, probability in zip(tokens[row, slot], probabilities[row, slot])
                    ]
                    for slot in slots
                ]

        return self._run(map(self._tokenize_masked, _checked(texts, pair=False)), start, finish)

    def classify(self, texts: Sequence[Text]) -> list[dict[str, float]] | list[float]:
        """What a fine-tuned classifier says of texts or pairs.

        Returns:
          For each text the probability of every class by name, the most probable first; of a
          regression its score.

        Raises:
          UserError: the model has no sequence_classifier.
        """
        return list(self.classify_stream(texts))

    def classify_stream(self, texts: Iterable[Text]) -> Iterator[dict[str, float] | float]:
        """As `classify`, one text after the other."""
        for logits in self.logits_stream("sequence_classifier", self._tokenized(_checked(texts))):
            if len(logits) == 1:
                yield float(logits[0])
                continue
            odds = np.exp(logits - logits.max())
            named = zip(self.labels, (odds / odds.sum()).tolist(), strict=True)
            yield dict(sorted(named, key=lambda item: -item[1]))

    def tag(self, texts: Sequence[str], max_seq_length: int = 128) -> list[list[Entity]]:
        """The entities that a fine-tuned tagger finds, with their characters and scores.

        Args:
          texts: strings; words are what white space and punctuation separate.
          max_seq_length: of the windows that a longer text is cut into, best as in training.

        Raises:
          UserError: the model has no token_classifier.
        """
        return list(self.tag_stream(texts, max_seq_length))

    def tag_stream(self, texts: Iterable[str], max_seq_length: int = 128) -> Iterator[list[Entity]]:
        """As `tag`, one text after the other."""
        scheme = "BIOES" if any(label.startswith("S-") for label in self.labels) else "BIO"
        task = TaggingTask(labels=self.labels, scheme=scheme)
        for some in _chunks(_checked(texts, pair=False)):
            words = [split_words(self.wordpiece, text) for text in some]
            sentences = [
                Sentence([text[start:end] for start, end in spans], None, _excerpt(text))
                for text, spans in zip(some, words)
            ]
            predictions = self._predictions(task, sentences, max_seq_length)
            yield from map(find_entities, some, words, predictions)

    def answer(
        self, questions: Sequence[tuple[str, str]], max_seq_length: int = 384, **options: Any
    ) -> list[Prediction]:
        """Answers in a text, with their characters and probabilities.

        Args:
          questions: pairs of a question and the context in which its answer is.
          max_seq_length: of the windows that a longer context is cut into, best as in training.
          **options: fields of `AnsweringTask`, such as `unanswerable`.

        Raises:
          UserError: the model has no answer_span, or the options are none of the task's.
        """
        return list(self.answer_stream(questions, max_seq_length, **options))

    def answer_stream(
        self, questions: Iterable[tuple[str, str]], max_seq_length: int = 384, **options: Any
    ) -> Iterator[Prediction]:
        """As `answer`, one question after the other."""
        task = build(AnsweringTask, options, "options", AnsweringTask())
        for some in _chunks(_checked(questions, text=False)):
            asked = [Question(str(number), *pair) for number, pair in enumerate(some)]
            yield from self._predictions(task, asked, max_seq_length)

    def logits_stream(self, head: str, examples: Iterable[Example]) -> Iterator[np.ndarray]:
        """What the head of a task makes of tokenised texts.

        Args:
          head: "sequence_classifier", "token_classifier" or "answer_span".
          examples: none longer than the model's positions.

        Returns:
          fp32 [classes] for each, but [tokens, classes] of the latter two.
        """
        of_text = head == "sequence_classifier"
        self.require(*(("pooler", head) if of_text else (head,)))

        def start(batch: Batch) -> jax.Array:
            return self._logits(self.params, self._put(batch), head=head)

        def finish(batch: Batch, found: np.ndarray) -> Iterable[np.ndarray]:
            if of_text:
                return found[batch.row, batch.slot]
            return [found[r, i:j] for r, i, j in zip(batch.row, batch.start, batch.stop)]

        return self._run(examples, start, finish)

    def _predictions(
        self, task: AnyTask, examples: Sequence[Any], max_seq_length: int
    ) -> list[Any]:
        limit = min(max_seq_length, self.config.max_position_embeddings)
        features = task.features(examples, self.wordpiece, limit)
        windows = map(Example, features.input_ids, features.b_start)
        return task.predictions(list(self.logits_stream(task.head, windows)), features, examples)

    def attention(self, text: Text) -> np.ndarray:
        """How much each token of a text or pair takes of each other one, in every head.

        Returns:
          fp32 [num_layers, heads, query, key], which sums to 1 over `key`; queries and keys are the
          `tokens` of the text.
        """
        (batch,) = self._batches([*self._tokenized(_checked([text]))])
        found = self._attention(self.params, self._put(batch))
        (row,), (length,) = batch.row, batch.stop
        return jax.device_get(found[:, row])[..., :length, :length]

    def tokenize(self, text: Text) -> Example:
        """A text or pair as the model takes it, cut to its positions."""
        return self._tokenize(text)[0]

    def tokens(self, text: Text) -> list[str]:
        """The tokens of a text or pair, [CLS] and [SEP] included: what `encode` has vectors of."""
        return [self.wordpiece.vocab[token] for token in self.tokenize(text).ids]

    def require(self, *parts: str) -> None:
        """Raises UserError if the model lacks one of `bert_jax.model.heads.PARTS`."""
        if missing := [part for part in parts if part not in self.functions]:
            raise UserError(
                f"the model has no {' and no '.join(missing)}: take one that has, or let "
                f"`bert-jax convert --initialise={','.join(missing)}` add it, and train it"
            )

    def _layers(self, layers: Sequence[int]) -> tuple[int, ...]:
        """Counted from 0."""
        count = self.config.num_layers + 1
        if wrong := [layer for layer in layers if not -count <= layer < count]:
            raise UserError(f"layer {wrong[0]}: there are 0 (embeddings) to {count - 1}")
        return tuple(layer % count for layer in layers)

    def _tokenize(self, text: Text) -> tuple[Example, int]:
        """The text, and how many of its tokens were cut off."""
        texts = [text] if isinstance(text, str) else text
        a_ids, b_ids = (*self.wordpiece.encode(texts), None)[:2]
        ids, b_start, lost = pair_ids(
            self.wordpiece, a_ids, b_ids, self.config.max_position_embeddings
        )
        return Example(ids, b_start), lost

    def _tokenize_masked(self, text: str) -> Example:
        wordpiece, limit = self.wordpiece, self.config.max_position_embeddings
        first, *others = wordpiece.encode(text.split(MASK))
        if not others:
            raise UserError(f"no {MASK} in {text!r}: put one where a word is to be guessed")
        ids = [wordpiece.cls_id, *first]
        for piece in others:
            ids += [wordpiece.mask_id, *piece]
        ids.append(wordpiece.sep_id)
        if len(ids) > limit:
            raise UserError(
                f"{text[:40]!r}... has {len(ids)} tokens, the model has {limit} positions: "
                f"shorten it"
            )
        return Example(np.array(ids, np.int32), len(ids))

    def _tokenized(self, texts: Iterable[Text]) -> Iterator[Example]:
        cut, first = 0, ""
        for number, text in enumerate(texts, 1):
            example, lost = self._tokenize(text)
            if lost:
                cut += 1
                first = first or f"number {number}, {_excerpt(text)}"
            yield example
        if cut:
            limit = self.config.max_position_embeddings
            _log.warning(f"{cut} of {number} texts cut to {limit} tokens; the first is {first}")

    def _run(
        self,
        examples: Iterable[Example],
        start: Callable[[Batch], Any],
        finish: Callable[[Batch, Any], Iterable[Any]],
    ) -> Iterator[Any]:
        """Results in the order of the examples.

        A thread tokenises and packs a window of texts while the devices are at the window before,
        and the results of one are fetched while they are at the next.

        Args:
          examples: of one text each.
          start: sends a batch to the devices and returns what will be there, without waiting.
          finish: from a batch and what was there, as numpy arrays, to a result for each text.
        """
        smallest = self._tokens_per_device * self._mesh.size
        windows = _ahead(
            (len(window), self._batches(window))
            for window in _windows(examples, max(TOKENS_PER_WINDOW, 4 * smallest))
        )
        running = ((size, [(b, start(b)) for b in batches]) for size, batches in windows)
        for (size, calls), _ in itertools.pairwise(itertools.chain(running, [None])):
            results = [None] * size
            for batch, found in calls:
                for index, result in zip(batch.examples, finish(batch, jax.device_get(found))):
                    results[index] = result
            yield from results

    def _batches(self, examples: Sequence[Example]) -> list[Batch]:
        return make_batches(
            examples,
            pad_id=self.wordpiece.pad_id,
            longest_row=self.config.max_position_embeddings,
            tokens_per_device=self._tokens_per_device,
            num_devices=self._mesh.size,
        )

    def _put(self, batch: Batch, **more: np.ndarray) -> dict[str, jax.Array]:
        return jax.device_put(batch.rows | more, self._sharding)


def _live_functions(model: Portable) -> dict[str, Callable]:
    # Unrolled layers would each copy their slice of the stacked parameters in every call.
    config = dataclasses.replace(model.config, scan_layers=True, remat="none")
    parts = parts_of(model.params)
    graphdef = build_model(config, None, parts, len(model.labels)).graphdef
    functions = part_functions(graphdef, parts)
    if config.compute_dtype == "float32":
        return {name: _exact(function) for name, function in functions.items()}
    return functions


def _exact(function: Callable) -> Callable:
    """Multiplies in full fp32, also where hardware would round the factors to bf16."""

    def exact(*arguments):
        with jax.default_matmul_precision("float32"):
            return function(*arguments)

    return exact


def _hidden_states(functions, params, rows):
    names = ("input_ids", "token_type_ids", "position_ids", "segment_ids")
    return functions["encoder"](params, *(rows[name] for name in names))


def _vectors(functions, params, rows, *, pooling, layers):
    """[rows, slots, layers, hidden] of texts or [rows, length, layers, hidden] of tokens."""
    hidden = _hidden_states(functions, params, rows)
    hidden = jnp.stack([hidden[layer] for layer in layers], axis=2)
    if pooling == "tokens":
        return hidden
    cls_positions = rows["cls_positions"]
    if pooling == "mean":
        slots = 1 + jnp.arange(cls_positions.shape[1])
        member = (rows["segment_ids"][:, None] == slots[:, None]).astype(jnp.float32)
        share = member / jnp.maximum(member.sum(axis=-1, keepdims=True), 1)
        return jnp.einsum("ret,rtlh->relh", share, hidden, precision="highest")
    cls = jnp.take_along_axis(hidden, cls_positions[:, :, None, None], axis=1)
    return cls if pooling == "cls" else _on_last_axis(functions["pooler"], params, cls)


def _follows(functions, params, rows):
    """[rows, slots]: probability that B follows A."""
    pooled = _vectors(functions, params, rows, pooling="pooled", layers=(-1,))[:, :, 0]
    logits = _on_last_axis(functions["next_sentence"], params, pooled)
    return jax.nn.softmax(logits)[..., 0]


def _logits(functions, params, rows, *, head):
    """[rows, slots, classes] of texts or [rows, length, classes] of tokens."""
    of_text = head == "sequence_classifier"
    pooling = "pooled" if of_text else "tokens"
    hidden = _vectors(functions, params, rows, pooling=pooling, layers=(-1,))[:, :, 0]
    return _on_last_axis(functions[head], params, hidden)


def _attention(functions, params, rows):
    """[num_layers, rows, heads, query, key]."""
    hidden = _hidden_states(functions, params, rows)
    return functions["attention"](params, hidden, rows["segment_ids"])


def _best_words(functions, params, rows, *, mesh, top_k):
    """Probabilities and ids [rows, slots, top_k] of the words at `positions` [rows, slots]."""
    hidden = gather_positions(_hidden_states(functions, params, rows)[-1], rows["positions"])
    logits = _on_last_axis(functions["masked_lm"], params, hidden)
    # Left to XLA, every device would gather the logits of all rows.
    spec = rules.spec(("batch",))
    best = functools.partial(jax.lax.top_k, k=top_k)
    best = jax.shard_map(best, mesh=mesh, in_specs=spec, out_specs=spec)
    return best(jax.nn.softmax(logits))


def _on_last_axis(function, params, x):
    """A function of [n, hidden] on [..., hidden]."""
    return function(params, x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


def _checked(texts: Iterable[Any], *, text: bool = True, pair: bool = True) -> Iterator[Text]:
    """The texts as they are, if they are strings and pairs of strings as wanted."""
    wanted = " or ".join(["a string"] * text + ["a pair of strings"] * pair)
    if isinstance(texts, str):
        raise UserError(f"{_excerpt(texts)}: a list of texts is due, each {wanted}")
    for number, item in enumerate(texts, 1):
        is_text = isinstance(item, str)
        is_pair = isinstance(item, (tuple, list)) and [*map(type, item)] == [str, str]
        if not ((text and is_text) or (pair and is_pair)):
            raise UserError(f"text number {number} is {_excerpt(item)}: {wanted} is due")
        yield item


def _excerpt(text: Any) -> str:
    shown = repr(text)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."


def _chunks(texts: Iterator[Any]) -> Iterator[list[Any]]:
    """So many texts at a time as are cut into windows together."""
    while chunk := list(itertools.islice(texts, 256)):
        yield chunk


def _windows(examples: Iterable[Example], tokens: int) -> Iterator[list[Example]]:
    """Stretches of at least so many tokens; the last may have less."""
    window, size = [], 0
    for example in examples:
        window.append(example)
        size += len(example.ids)
        if size >= tokens:
            yield window
            window, size = [], 0
    if window:
        yield window


def _ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The items, each made by a thread while the one before is in use."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        upcoming = thread.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = thread.submit(next, items, None)
            yield item
