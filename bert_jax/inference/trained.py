"""Uses a trained BERT: texts in, vectors and predictions out."""

import dataclasses
import functools
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, overload

import jax
import numpy as np
from etils import epath

from bert_jax.data.masked_copies import Copy, Tokens, masked_copies, pack_copies, tokens_of
from bert_jax.data.packing import Batch, Example
from bert_jax.errors import UserError
from bert_jax.fields import build, to_plain
from bert_jax.inference import programs
from bert_jax.inference.attributions import (
    FAR,
    Attribution,
    Explained,
    Layout,
    Target,
    answer_target,
    check_target,
    class_targets,
    entity_targets,
)
from bert_jax.inference.choices import COMPUTE_DTYPES, METHODS, POOLINGS
from bert_jax.inference.devices import Devices
from bert_jax.inference.exported import is_exported, read_exported
from bert_jax.inference.fine_tuned import known_task, task_as, text_kind
from bert_jax.inference.functions import Function, live_functions, writing_function
from bert_jax.inference.scores import Score, by_text, default_method
from bert_jax.inference.texts import Text, checked, excerpt
from bert_jax.interop.formats import read
from bert_jax.interop.portable import Portable
from bert_jax.model.heads import (
    CROSS_ATTENTION,
    MASKED_LM,
    NEXT_SENTENCE,
    SEQUENCE_CLASSIFIER,
    WRITING,
    Head,
)
from bert_jax.model.int8 import is_int8
from bert_jax.model.parameters import Params
from bert_jax.model.search import Search
from bert_jax.parallel import rules
from bert_jax.tasks import AnsweringTask, ExtractionTask, GenerationTask, TaggingTask, TextTask
from bert_jax.tasks.answering.decoding import Prediction
from bert_jax.tasks.answering.example import Question
from bert_jax.tasks.classification.decoding import Verdict, verdict
from bert_jax.tasks.classification.example import Example as TextExample
from bert_jax.tasks.extraction.task import Extract
from bert_jax.tasks.features import ONE_TYPE, check_token_types, lacks_types, pair_ids
from bert_jax.tasks.generation.features import text_of
from bert_jax.tasks.protocol import AnyTask
from bert_jax.tasks.tagging.example import Sentence
from bert_jax.tasks.tagging.plain_text import Entity, join_words
from bert_jax.train.weights import TRAINED

T = TypeVar("T")
Words = str | list[str] | Sentence
# Texts or questions that are cut into windows together.
EXAMPLES_PER_CHUNK = 256
# The task whose fine-tuning trains a part.
FINE_TUNED = {
    "sequence_classifier": "classification",
    "token_classifier": "tagging",
    "answer_span": "answering",
    "multiple_choice": "multiple_choice",
    CROSS_ATTENTION: "generation",
}

_log = logging.getLogger(__name__)


class Guess(NamedTuple):
    """A word for a mask, with its probability.

    The text of the token tells where words begin: "##ing" in WordPiece continues one, and " of" in
    tokenizers whose pieces hold spaces begins one.
    """

    token: str
    probability: float


class _Outputs(NamedTuple):
    """What the model says of examples: windows, the logits of each, predictions of the examples."""

    features: Any
    logits: list[np.ndarray]
    predictions: Sequence[Any]

    def windows_of_examples(self) -> list[list[int]]:
        """The windows of each example."""
        starts = np.flatnonzero(np.diff(self.features.example)) + 1
        return [each.tolist() for each in np.split(np.arange(len(self.logits)), starts)]

    def explained(self, window: int, target: Target) -> Explained:
        """What to explain in a window."""
        return Explained(self.features.input_ids[window], self.features.b_start[window], target)


def load(
    path: epath.PathLike,
    step: int | None = None,
    *,
    weights: str = TRAINED,
    compute_dtype: str | None = None,
) -> "TrainedBert":
    """Loads a trained BERT onto the devices of this process.

    Args:
      path: workdir of a training run or a converted model, local or gs://; Hugging Face directory;
        Google checkpoint; output of `bert-jax export`.
      step: checkpoint of a workdir to read; None for the newest.
      weights: which of a workdir, "trained", "ema" or "average:N"; see `bert_jax.train.weights`.
      compute_dtype: dtype of matrix products and activations, "float32" or "bfloat16"; None for
        that of the training run, or float32 for weights from elsewhere.

    Raises:
      UserError: there is no model, or it is damaged.
    """
    path = epath.Path(path)
    if is_exported(path):
        if step is not None or compute_dtype is not None or weights != TRAINED:
            raise UserError(f"{path}: an exported model has one step, weights and compute_dtype")
        return TrainedBert(*read_exported(path))
    if compute_dtype not in (None, *COMPUTE_DTYPES):
        use = " or ".join(COMPUTE_DTYPES)
        raise UserError(f"compute_dtype={compute_dtype!r}: use {use}")
    model = read(path, step, weights=weights)
    if compute_dtype is not None:
        numerics = dataclasses.replace(model.numerics, compute_dtype=compute_dtype)
        model = model._replace(numerics=numerics)
    return TrainedBert(model, method=default_method(path))


class TrainedBert:
    """A model on the devices of this process, which share the rows of every batch.

    Texts are strings, or pairs of strings (A, B) for `[CLS] A [SEP] B [SEP]`. Texts longer than the
    model's positions are cut (in a pair, the longer side), and a warning counts them.

    A method for many texts takes a sequence and returns all results, or it takes an iterator, such
    as a generator, and returns an iterator. The latter reads some ten thousand tokens ahead, keeps
    the order and holds no more than that in memory.

    Attributes:
      architecture: architecture of the model.
      tokenizer: its vocabulary.
      labels: names of the classes of a classifier.
      method: how `score` scores texts, unless it is told otherwise.
      functions: see `bert_jax.inference.functions.part_functions`.
      params: first argument of the functions.
    """

    def __init__(
        self,
        model: Portable,
        functions: Mapping[str, Function] | None = None,
        method: str = "pll",
    ):
        """Puts the parameters onto the devices.

        Args:
          model: model to use.
          functions: the model's functions, if they are already compiled; default: built from its
            architecture and numerics.
          method: how it scores texts; see `score`.
        """
        self.method = method
        self.architecture, self.tokenizer = model.architecture, model.tokenizer
        self.labels = model.labels
        self.functions = dict(live_functions(model) if functions is None else functions)
        limit = model.architecture.max_position_embeddings
        self._devices = Devices(model.tokenizer.pad_id, limit)
        self.params = self._devices.put_params(model.params)
        self._model = model._replace(params={}, generator=None)
        self._is_export = functions is not None

        def program(function: Callable[..., Any], *static: str) -> Callable[..., Any]:
            return jax.jit(functools.partial(function, self.functions), static_argnames=static)

        self._vectors = {name: program(f, "layers") for name, f in programs.VECTORS.items()}
        self._vectors["pooled"] = program(
            functools.partial(programs.pooled_vectors, pooling=self.architecture.pooling), "layers"
        )
        follows, logits = (
            functools.partial(function, architecture=self.architecture)
            for function in (programs.follows, programs.logits)
        )
        self._follows, self._logits = program(follows), program(logits, "head")
        self._attention = program(programs.attention)
        self._best_words = program(programs.best_words, "mesh", "top_k")

    @overload
    def encode(
        self, texts: Iterator[Text], pooling: str | None = ..., layers: int | Sequence[int] = ...
    ) -> Iterator[np.ndarray]: ...
    @overload
    def encode(
        self, texts: Sequence[Text], pooling: str | None = ..., layers: int | Sequence[int] = ...
    ) -> np.ndarray | list[np.ndarray]: ...
    def encode(
        self,
        texts: Iterable[Text],
        pooling: str | None = None,
        layers: int | Sequence[int] = -1,
    ) -> np.ndarray | list[np.ndarray] | Iterator[np.ndarray]:
        """Turns texts into vectors.

        Args:
          texts: strings or pairs.
          pooling: vector of a text: "mean", the mean of all its tokens' vectors, [CLS] and [SEP]
            included; "max", their largest values; "cls", that of [CLS]; "pooled", the pooler's
            result for the last layer's [CLS]; or "tokens", a vector for each token (see `tokens`).
            None: the pooling and normalisation in the files of sentence-transformers, else "mean".
            The length in these files cuts texts with any pooling.
          layers: layer from 0 (embeddings) to `num_layers`, or negative, from the end; a sequence
            gives a vector for each layer.

        Returns:
          fp32 [texts, hidden_size], or [texts, layers, hidden_size] for a sequence of layers. For
          "tokens", a list of such arrays, [tokens, ...], one for each text. For an iterator, one
          array after the other, without the axis of the texts.

        Raises:
          UserError: the pooling or a layer does not exist, or the model has no pooler.
        """
        normalize, settings = False, self._model.vectors
        if pooling is None and settings is not None:
            pooling, normalize = settings.pooling, settings.normalize
            if pooling not in POOLINGS:
                raise UserError(
                    f"the model's own pooling is {pooling}, which is not available: choose a "
                    f"pooling, one of {', '.join(POOLINGS)}"
                )
        pooling = pooling or "mean"
        several = not isinstance(layers, int)
        chosen = self._layers([layers] if isinstance(layers, int) else layers)
        if pooling not in POOLINGS:
            raise UserError(f"pooling={pooling!r}: use one of {', '.join(POOLINGS)}")
        if pooling == "pooled":
            self.require("pooler")
            if chosen != (self.architecture.num_layers,):
                raise UserError("pooling='pooled' takes only the last layer: leave layers at -1")

        def start(batch: Batch) -> jax.Array:
            return self._vectors[pooling](self.params, self._devices.put(batch), layers=chosen)

        def finish(batch: Batch, found: np.ndarray) -> Iterable[np.ndarray]:
            found = found if several else found[:, :, 0]
            if pooling != "tokens":
                vectors = found[batch.row, batch.slot]
                if normalize:
                    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
                    vectors = vectors / np.maximum(norms, 1e-12)
                return vectors
            return [found[r, i:j] for r, i, j in zip(batch.row, batch.start, batch.stop)]

        vectors = _like(
            texts, self._devices.run(self._tokenized(checked(texts), self._encoded), start, finish)
        )
        if isinstance(vectors, Iterator) or pooling == "tokens":
            return vectors
        shape = (len(vectors), *[len(chosen)] * several, self.architecture.hidden_size)
        return np.array(vectors, np.float32).reshape(shape)

    @overload
    def next_sentence(self, pairs: Iterator[tuple[str, str]]) -> Iterator[float]: ...
    @overload
    def next_sentence(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray: ...
    def next_sentence(self, pairs: Iterable[tuple[str, str]]) -> np.ndarray | Iterator[float]:
        """Probability that B follows A, fp32 [pairs]; for an iterator, one float after the other.

        Raises:
          UserError: the model has no next_sentence head, or a text is not a pair.
        """
        self.require(*NEXT_SENTENCE.parts(self.architecture))

        def start(batch: Batch) -> jax.Array:
            return self._follows(self.params, self._devices.put(batch))

        def finish(batch: Batch, found: np.ndarray) -> Iterable[float]:
            return found[batch.row, batch.slot].tolist()

        examples = self._tokenized(checked(pairs, text=False))
        found = _like(pairs, self._devices.run(examples, start, finish))
        return found if isinstance(found, Iterator) else np.array(found, np.float32)

    @overload
    def fill_mask(self, texts: Iterator[str], top_k: int = ...) -> Iterator[list[list[Guess]]]: ...
    @overload
    def fill_mask(self, texts: Sequence[str], top_k: int = ...) -> list[list[list[Guess]]]: ...
    def fill_mask(
        self, texts: Iterable[str], top_k: int = 5
    ) -> list[list[list[Guess]]] | Iterator[list[list[Guess]]]:
        """Guesses the words behind every "[MASK]" of every text.

        Args:
          texts: each with at least one "[MASK]", or as the model's tokenizer spells it ("<mask>").
            "[CLS]", "[SEP]", "[PAD]" and "[UNK]" are these tokens too, as in transformers;
            everywhere else they are plain text.
          top_k: number of guesses for each mask, most probable first.

        Returns:
          For each text, for each mask, the guesses.

        Raises:
          UserError: the model has no masked_lm head; a text has no "[MASK]", or more tokens than
            the model has positions.
        """
        self.require(*MASKED_LM.parts(self.architecture))
        pieces, mask_id = self.tokenizer.pieces, self.tokenizer.mask_id
        if not 1 <= top_k <= len(pieces):
            raise UserError(f"top_k={top_k}: must be from 1 to {len(pieces)}")

        def start(batch: Batch) -> tuple[jax.Array, jax.Array]:
            row, column = np.nonzero(batch.rows["input_ids"] == mask_id)
            slot = np.arange(len(row)) - np.searchsorted(row, row)
            # As many slots as for texts, unless a row has more masks than that.
            slots = max(batch.rows["cls_positions"].shape[1], 1 << int(slot.max()).bit_length())
            positions = np.zeros((len(batch.rows["input_ids"]), slots), np.int32)
            positions[row, slot] = column
            rows = self._devices.put(batch, positions=positions)
            return self._best_words(self.params, rows, mesh=self._devices.mesh, top_k=top_k)

        def finish(
            batch: Batch, found: tuple[np.ndarray, np.ndarray]
        ) -> Iterator[list[list[Guess]]]:
            masks = batch.rows["input_ids"] == mask_id
            before = np.cumsum(masks, axis=1) - masks  # masks in the row before a token
            probabilities, tokens = found
            for row, start, stop in zip(batch.row, batch.start, batch.stop):
                first = before[row, start]
                slots = range(first, first + masks[row, start:stop].sum())
                yield [
                    [
                        Guess(pieces[token], float(probability))
                        for token, probability in zip(tokens[row, slot], probabilities[row, slot])
                    ]
                    for slot in slots
                ]

        examples = map(self._tokenize_masked, checked(texts, pair=False))
        return _like(texts, self._devices.run(examples, start, finish))

    @overload
    def score(self, texts: Iterator[str], method: str | None = ...) -> Iterator[Score]: ...
    @overload
    def score(self, texts: Sequence[str], method: str | None = ...) -> list[Score]: ...
    def score(
        self, texts: Iterable[str], method: str | None = None
    ) -> list[Score] | Iterator[Score]:
        """Pseudo-log-likelihoods: how probable the model finds each token, given all others.

        They are computed in fp32, whatever the model's compute_dtype. A text of n tokens takes the
        time of n texts; by "causal", of one.

        Args:
          texts: strings.
          method: what is masked to score a token: "pll", the token alone (Salazar et al. 2020,
            https://arxiv.org/abs/1910.14659), or "within-word", also the later pieces of its word
            (Kauf and Ivanova 2023, https://arxiv.org/abs/2305.10588). "mntp" is "pll" for models
            that were trained to predict the next token: the masked one is read one place earlier.
            "causal" masks nothing: each token is predicted from those before it, by models that
            were trained on causal examples. None: `method` of the model, which is "mntp" or
            "causal" for runs of the objective `hybrid`, else "pll".

        Returns:
          For each text, its sum and the log probability of each token.

        Raises:
          UserError: the model has no masked_lm head, or it is an export that computes in bf16, or
            any export by "causal".
        """
        method = self.method if method is None else method
        if method not in METHODS:
            raise UserError(f"method={method!r}: use one of {', '.join(METHODS)}")
        self.require(*MASKED_LM.parts(self.architecture))
        if method == "causal":
            return _like(texts, self._causal_scores(texts))
        log_probabilities, tokenizer = self._log_probabilities, self.tokenizer
        masks = {"within_word": method == "within-word", "from_before": method == "mntp"}
        waiting: deque[Tokens] = deque()

        def copies() -> Iterator[Copy]:
            for tokens in self._scored(checked(texts, pair=False)):
                waiting.append(tokens)
                yield from masked_copies(tokenizer, tokens, **masks)

        def pack(some: Sequence[Copy]) -> list[Batch]:
            return pack_copies(some, self._devices.batches)

        def start(batch: Batch) -> jax.Array:
            return log_probabilities(self.params, self._devices.put(batch))

        def finish(batch: Batch, found: np.ndarray) -> Iterable[float]:
            return found[batch.row, batch.slot].tolist()

        found = self._devices.run_packed(copies(), pack, start, finish)
        return _like(texts, by_text(waiting, found, tokenizer))

    def _causal_scores(self, texts: Iterable[str]) -> Iterator[Score]:
        if self._is_export:
            raise UserError("an export has no causal scores: use the model that it was made from")
        program, tokenizer = self._next_log_probabilities, self.tokenizer
        waiting: deque[Tokens] = deque()

        def examples() -> Iterator[Example]:
            for tokens in self._scored(checked(texts, pair=False)):
                waiting.append(tokens)
                ids = np.array([tokenizer.cls_id, *tokens.ids, tokenizer.sep_id], np.int32)
                yield Example(ids, len(ids))

        def start(batch: Batch) -> jax.Array:
            return program(self.params, self._devices.put(batch))

        def finish(batch: Batch, found: np.ndarray) -> list[np.ndarray]:
            places = zip(batch.row, batch.start, batch.stop)
            return [found[row, first : stop - 2] for row, first, stop in places]

        of_texts = self._devices.run(examples(), start, finish)
        log_probs = (float(x) for of_text in of_texts for x in of_text)
        return by_text(waiting, log_probs, tokenizer)

    @overload
    def classify(
        self, texts: Iterator[Text], max_seq_length: int | None = ...
    ) -> Iterator[Verdict]: ...
    @overload
    def classify(
        self, texts: Sequence[Text], max_seq_length: int | None = ...
    ) -> list[Verdict]: ...
    def classify(
        self, texts: Iterable[Text], max_seq_length: int | None = None
    ) -> list[Verdict] | Iterator[Verdict]:
        """Classifies texts or pairs with a fine-tuned classifier.

        Args:
          texts: strings or pairs; only what the model was fine-tuned on, if that is known.
          max_seq_length: tokens to which longer texts are cut; None = as in fine-tuning, or the
            model's positions if that is not known.

        Returns:
          For each text the probability of every class by name, the most probable first. They sum
          to 1, unless the model's classes are independent (the task `multi_label`, or
          `problem_type` in Hugging Face's config.json). For a regression, which is a model without
          labels, its score. `text_task().said(found)` tells which classes are predicted.

        Raises:
          UserError: the model has no sequence_classifier.
        """
        self.require(*SEQUENCE_CLASSIFIER.parts(self.architecture))
        task = self.text_task(max_seq_length)
        examples = self._text_examples(task, texts)
        logits, meant = self.logits_stream(SEQUENCE_CLASSIFIER, examples), self._model.problem_type
        return _like(texts, (verdict(each, self.labels, meant) for each in logits))

    def _text_examples(self, task: TextTask, texts: Iterable[Any]) -> Iterator[Example]:
        """Texts or pairs, whichever the classifier was fine-tuned on, as its task reads them."""
        known = isinstance(known_task(self._model), TextTask)
        takes_pairs = bool(task.text_b)
        some = checked(texts, text=not (known and takes_pairs), pair=takes_pairs or not known)
        return self._tokenized(some, self._limit(task))

    def text_task(self, max_seq_length: int | None = None, **options: Any) -> TextTask:
        """The task of the classifier: how it reads texts, and from when it predicts a class.

        Args:
          max_seq_length: as for `classify`.
          **options: fields of the task, such as `thresholds`, to set otherwise than in fine-tuning.

        Raises:
          UserError: an option does not exist, or has a wrong value.
        """
        kind = text_kind(self._model)
        return task_as(self._model, kind, max_seq_length=max_seq_length, **options)

    @overload
    def tag(
        self, texts: Iterator[Words], max_seq_length: int | None = ...
    ) -> Iterator[list[Entity]]: ...
    @overload
    def tag(
        self, texts: Sequence[Words], max_seq_length: int | None = ...
    ) -> list[list[Entity]]: ...
    def tag(
        self, texts: Iterable[Words], max_seq_length: int | None = None
    ) -> list[list[Entity]] | Iterator[list[Entity]]:
        """The entities that a fine-tuned tagger finds, with their characters and scores.

        Args:
          texts: strings, whose words are split as in the training examples, or at white space and
            punctuation; or lists of words, which count as a text with a space between them; or a
            task's `Sentence`s.
          max_seq_length: tokens of the windows that a longer text is cut into; None = as in
            fine-tuning, or 128 if that is not known.

        Raises:
          UserError: the model has no token_classifier.
        """

        def entities() -> Iterator[list[Entity]]:
            for some in _chunks(checked(texts, pair=False, words=True)):
                of_each = [self._words(task, item) for item in some]
                found = self._outputs(task, [sentence for *_, sentence in of_each]).predictions
                for (text, spans, _), prediction in zip(of_each, found):
                    yield task.find_entities(text, spans, prediction)

        task = task_as(self._model, TaggingTask, max_seq_length=max_seq_length)
        self.require(*task.head.parts(self.architecture))
        return _like(texts, entities())

    @overload
    def extract(
        self, texts: Iterator[str], max_seq_length: int | None = ..., **options: Any
    ) -> Iterator[Extract]: ...
    @overload
    def extract(
        self, texts: Sequence[str], max_seq_length: int | None = ..., **options: Any
    ) -> list[Extract]: ...
    def extract(
        self, texts: Iterable[str], max_seq_length: int | None = None, **options: Any
    ) -> list[Extract] | Iterator[Extract]:
        """Summaries of documents, each a few of its sentences.

        Args:
          texts: documents.
          max_seq_length: tokens to which longer documents are cut; None = as in fine-tuning, or 128
            if that is not known.
          **options: other fields of `ExtractionTask`: `num_sentences`, `trigram_blocking`; those
            that are None or missing are as in fine-tuning.

        Raises:
          UserError: the model was not fine-tuned on extraction, or an argument is wrong.
        """

        def extracts() -> Iterator[Extract]:
            for some in _chunks(checked(texts, pair=False)):
                documents = [TextExample(text, None, None, "", "") for text in some]
                yield from self._outputs(task, documents).predictions

        if not isinstance(known_task(self._model), ExtractionTask):
            raise UserError("the model chooses no sentences: fine-tune it on the task extraction")
        task = task_as(self._model, ExtractionTask, max_seq_length=max_seq_length, **options)
        return _like(texts, extracts())

    @overload
    def answer(
        self,
        questions: Iterator[tuple[str, str]],
        max_seq_length: int | None = ...,
        **options: Any,
    ) -> Iterator[Prediction]: ...
    @overload
    def answer(
        self,
        questions: Sequence[tuple[str, str]],
        max_seq_length: int | None = ...,
        **options: Any,
    ) -> list[Prediction]: ...
    def answer(
        self,
        questions: Iterable[tuple[str, str]],
        max_seq_length: int | None = None,
        **options: Any,
    ) -> list[Prediction] | Iterator[Prediction]:
        """Answers to questions from their contexts, with their characters and probabilities.

        Args:
          questions: pairs of a question and the context to find its answer in.
          max_seq_length: tokens of the windows that a longer context is cut into; None = as in
            fine-tuning, or 384 if that is not known.
          **options: fields of `bert_jax.tasks.AnsweringTask`, such as `unanswerable`, to set
            otherwise than in fine-tuning.

        Raises:
          UserError: the model has no answer_span, or an option does not exist.
        """

        def answers() -> Iterator[Prediction]:
            for some in _chunks(checked(questions, text=False)):
                asked = [Question(str(number), *pair) for number, pair in enumerate(some)]
                yield from self._outputs(task, asked).predictions

        task = task_as(self._model, AnsweringTask, max_seq_length=max_seq_length, **options)
        self.require(*task.head.parts(self.architecture))
        return _like(questions, answers())

    def _limit(self, task: AnyTask) -> int:
        """Tokens of the task's sequences: no more than the model's positions."""
        return min(task.max_seq_length, self.architecture.max_position_embeddings)

    def logits_stream(self, head: Head, examples: Iterable[Example]) -> Iterator[np.ndarray]:
        """Yields the logits of a head that reads texts or their tokens, one text after the other.

        Args:
          head: one of the model's heads.
          examples: texts, none longer than the model's positions.

        Returns:
          For each text fp32 [outputs] of a pooled head, else [tokens, outputs].

        Raises:
          UserError: the model has no such head.
        """
        self.require(*head.parts(self.architecture))

        def start(batch: Batch) -> jax.Array:
            return self._logits(self.params, self._devices.put(batch), head=head)

        def finish(batch: Batch, found: np.ndarray) -> list[np.ndarray]:
            return head.by_example(found, batch)

        return self._devices.run(examples, start, finish)

    def _words(self, task: TaggingTask, item: Words) -> tuple[str, list[tuple[int, int]], Sentence]:
        """A text, the characters of its words, and the words as a task takes them."""
        if isinstance(item, str):
            spans = task.split_words(self.tokenizer, item)
            words = [item[start:end] for start, end in spans]
            return item, spans, Sentence(words, None, excerpt(item))
        sentence = item if isinstance(item, Sentence) else Sentence(item, None, excerpt(item))
        return *join_words(sentence.words), sentence

    def _outputs(self, task: AnyTask, examples: Sequence[Any]) -> _Outputs:
        features = task.features(examples, self.tokenizer, self._limit(task))
        check_token_types(features, self.architecture.type_vocab_size, self.tokenizer)
        windows = map(Example, features.input_ids, features.b_start)
        logits = list(self.logits_stream(task.head, windows))
        return _Outputs(features, logits, task.predictions(logits, features, examples))

    @functools.cached_property
    def _log_probabilities(self) -> Callable[..., jax.Array]:
        """`programs.log_probabilities` in fp32, compiled."""
        return jax.jit(functools.partial(programs.log_probabilities, self._exact_functions))

    @functools.cached_property
    def _next_log_probabilities(self) -> Callable[..., jax.Array]:
        """`programs.next_log_probabilities` in fp32, compiled."""
        return jax.jit(functools.partial(programs.next_log_probabilities, self._exact_functions))

    @functools.cached_property
    def _attributions(self) -> Callable[..., dict[str, jax.Array]]:
        """`programs.attributions` in fp32, compiled."""
        program = functools.partial(
            programs.attributions, self._exact_functions, architecture=self.architecture
        )
        return jax.jit(program, static_argnames=("head", "from_zero"))

    @functools.cached_property
    def _exact_functions(self) -> Mapping[str, Function]:
        """The functions of the model in fp32."""
        numerics = self._model.numerics
        if numerics.compute_dtype == "float32":
            return self.functions
        if self._is_export:
            raise UserError(
                f"the export computes in {numerics.compute_dtype}, which is too coarse for "
                "scores: use the model that it was made from"
            )
        exact = dataclasses.replace(numerics, compute_dtype="float32")
        return live_functions(self._model._replace(params=self.params, numerics=exact))

    @overload
    def generate(
        self, texts: Iterator[str], max_seq_length: int | None = ..., **search: float | None
    ) -> Iterator[str]: ...
    @overload
    def generate(
        self, texts: Sequence[str], max_seq_length: int | None = ..., **search: float | None
    ) -> list[str]: ...
    def generate(
        self, texts: Iterable[str], max_seq_length: int | None = None, **search: float | None
    ) -> list[str] | Iterator[str]:
        """Writes a text for each one, such as its summary, with a fine-tuned decoder.

        Args:
          texts: strings.
          max_seq_length: tokens to which longer texts are cut; None = as in fine-tuning, or the
            model's positions if that is not known.
          **search: fields of `bert_jax.model.search.Search`: `beams`, `max_length`, `min_length`,
            `length_penalty`, `no_repeat_ngram`; those that are None or missing are as in
            fine-tuning.

        Returns:
          The texts, each in one line.

        Raises:
          UserError: the model has no decoder, or an argument is wrong.
        """
        self.require(CROSS_ATTENTION)
        task = task_as(self._model, GenerationTask, max_seq_length=max_seq_length)
        given = {name: value for name, value in search.items() if value is not None}
        chosen = build(Search, to_plain(task.search) | given, "search")
        dataclasses.replace(task, search=chosen).check_positions("task", self.architecture)

        def start(batch: Batch) -> jax.Array:
            return self._write(self.params, self._devices.put(batch), search=chosen)

        def finish(batch: Batch, tokens: np.ndarray) -> Iterable[str]:
            return [text_of(tokens[row].tolist(), self.tokenizer) for row in batch.row]

        pack = functools.partial(self._devices.batches, packing=False)
        examples = self._tokenized(checked(texts, pair=False), self._limit(task))
        return _like(texts, self._devices.run_packed(examples, pack, start, finish))

    @functools.cached_property
    def _write(self) -> Callable[..., jax.Array]:
        """`writing_function`, compiled; each device searches for the texts of its rows."""
        write = writing_function(self._model._replace(params=self.params))
        by_row = rules.spec(("batch",))

        def of_all(params: Params, rows: dict[str, jax.Array], search: Search) -> jax.Array:
            return jax.shard_map(
                lambda params, rows: write(params, rows, search),
                mesh=self._devices.mesh,
                in_specs=(jax.P(), by_row),
                out_specs=by_row,
                check_vma=False,
            )(params, rows)

        return jax.jit(of_all, static_argnames="search")

    @overload
    def attributions(
        self,
        texts: Iterator[Any],
        target: str | None = ...,
        *,
        steps: int = ...,
        baseline: str = ...,
        max_seq_length: int | None = ...,
    ) -> Iterator[list[Attribution]]: ...
    @overload
    def attributions(
        self,
        texts: Sequence[Any],
        target: str | None = ...,
        *,
        steps: int = ...,
        baseline: str = ...,
        max_seq_length: int | None = ...,
    ) -> list[list[Attribution]]: ...
    def attributions(
        self,
        texts: Iterable[Any],
        target: str | None = None,
        *,
        steps: int = 50,
        baseline: str = "pad",
        max_seq_length: int | None = None,
    ) -> list[list[Attribution]] | Iterator[list[Attribution]]:
        """How much each token contributes to a prediction; see `bert_jax.inference.attributions`.

        Everything is computed in fp32, whatever the model's compute_dtype.

        Args:
          texts: what `classify`, `tag` or `answer` takes, by the head that the model has.
          target: class whose logit is explained, None for the predicted one (of `multi_label`, for
            all predicted classes); of a tagger, type of the entities, None for all.
          steps: points of the integral of integrated gradients.
          baseline: where the integral begins: "pad", the text with [PAD] instead of each token but
            [CLS] and [SEP]; "mask", the same with [MASK]; or "zero", the vector 0 for every token.
          max_seq_length: as for `classify`, `tag` and `answer`.

        Returns:
          For each text, what is explained: a class or score; each of its entities, by the logits of
          its words' tags; or an answer, by the logits of its two ends.

        Raises:
          UserError: the model has no head of these tasks, is an export or in int8; or an argument
            is wrong.
        """
        task = self.explained_task(max_seq_length)
        check_target(task, target)
        if self._is_export or is_int8(self.params):
            kind = "an export" if self._is_export else "a model in int8"
            raise UserError(f"{kind} has no gradients: use the model that it was made of")
        layout = Layout(
            task.head,
            task.num_labels,
            self.architecture,
            self.tokenizer,
            steps=steps,
            baseline=baseline,
            num_rows=self._devices.mesh.size,
            tokens_at_once=self._devices.tokens_per_device,
        )
        pieces, points = self.tokenizer.pieces, functools.cache(layout.points)

        def start(batch: Batch) -> dict[str, jax.Array]:
            length = batch.rows["input_ids"].shape[1]
            return self._attributions(
                self.params,
                self._devices.put(batch),
                *points(length),
                head=task.head,
                from_zero=baseline == "zero",
            )

        def finish(batch: Batch, found: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
            for row, stop in zip(batch.row, batch.stop):
                of_row = {name: values[row] for name, values in found.items()}
                yield {name: x[:stop] if x.ndim else float(x) for name, x in of_row.items()}

        def attributions() -> Iterator[list[Attribution]]:
            far, worst = 0, 0.0
            for of_texts in self._targets(task, texts, target):
                flat = itertools.chain.from_iterable(of_texts)
                results = self._devices.run_packed(flat, layout.pack, start, finish)
                for items in of_texts:
                    found = [
                        Attribution(
                            item.target,
                            tokens=[pieces[id_] for id_ in item.ids],
                            b_start=int(item.b_start),
                            **next(results),
                        )
                        for item in items
                    ]
                    errors = [each.completeness_error for each in found]
                    far += sum(error > FAR for error in errors)
                    worst = max(worst, *errors, 0.0)
                    yield found
            if far:
                _log.warning(
                    f"{far} attributions have a completeness error above {FAR:.0%}, up to "
                    f"{worst:.0%}: take more steps than {steps}"
                )

        return _like(texts, attributions())

    def explained_task(self, max_seq_length: int | None = None) -> AnyTask:
        """The task whose predictions `attributions` explains: of texts, words or questions.

        Raises:
          UserError: the model has no head of such a task.
        """
        kinds: tuple[type[AnyTask], ...] = (text_kind(self._model), TaggingTask, AnsweringTask)
        known = known_task(self._model)
        fitting = [kind for kind in kinds if isinstance(known, kind)]
        fitting += [kind for kind in kinds if kind().head.part in self.functions]
        task = task_as(self._model, [*fitting, *kinds][0], max_seq_length=max_seq_length)
        self.require(*task.head.parts(self.architecture))
        return task

    def _targets(
        self, task: AnyTask, texts: Iterable[Any], target: str | None
    ) -> Iterator[list[list[Explained]]]:
        """Sequences of some texts at a time, with what to explain in each."""
        if isinstance(task, TextTask):
            for examples in _chunks(self._text_examples(task, texts)):
                logits = self.logits_stream(task.head, examples)
                yield [
                    [Explained(*example, found) for found in class_targets(task, each, target)]
                    for example, each in zip(examples, logits)
                ]
        elif isinstance(task, TaggingTask):
            for some in _chunks(checked(texts, pair=False, words=True)):
                of_each = [self._words(task, item) for item in some]
                found = self._outputs(task, [sentence for *_, sentence in of_each])
                places = zip(of_each, found.predictions, found.windows_of_examples())
                yield [
                    [
                        found.explained(*each)
                        for each in entity_targets(
                            task, text, words, prediction, found.features, windows, target
                        )
                    ]
                    for (text, words, _), prediction, windows in places
                ]
        else:
            for some in _chunks(checked(texts, text=False)):
                asked = [Question(str(number), *pair) for number, pair in enumerate(some)]
                found = self._outputs(task, asked)
                yield [
                    [found.explained(*answer_target(each, found.features, windows, found.logits))]
                    for each, windows in zip(found.predictions, found.windows_of_examples())
                ]

    def attention(self, text: Text) -> np.ndarray:
        """How much each token of a text or pair attends to each other, in every attention head.

        Returns:
          fp32 [num_layers, heads, query, key], which sums to 1 over `key`; queries and keys are the
          `tokens` of the text.
        """
        (batch,) = self._devices.batches([*self._tokenized(checked([text]), self._encoded)])
        found = self._attention(self.params, self._devices.put(batch))
        (row,), (length,) = batch.row, batch.stop
        return jax.device_get(found[:, row])[..., :length, :length]

    def tokenize(self, text: Text) -> Example:
        """A text or pair as `encode` takes it, cut to its positions."""
        return self._tokenize(text, self._encoded)[0]

    @property
    def _encoded(self) -> int:
        """Tokens of a text that `encode` uses."""
        positions, settings = self.architecture.max_position_embeddings, self._model.vectors
        return min(positions, (settings and settings.max_seq_length) or positions)

    def tokens(self, text: Text) -> list[str]:
        """The tokens of a text or pair, [CLS] and [SEP] included; `encode` has a vector of each."""
        return [self.tokenizer.vocab[token] for token in self.tokenize(text).ids]

    def require(self, *parts: str) -> None:
        """Raises UserError if the model lacks one of `bert_jax.model.heads.PARTS`."""
        there = (*self.functions, *(part for part in WRITING if part in self.params))
        if missing := [part for part in parts if part not in there]:
            names = " and no ".join(missing)
            if tasks := [FINE_TUNED[part] for part in missing if part in FINE_TUNED]:
                raise UserError(
                    f"the model has no {names}: fine-tune it with `bert-jax finetune "
                    f"--config=finetune:{tasks[0]} --config.init_from=MODEL`"
                )
            raise UserError(
                f"the model has no {names}: use one that has, or add it "
                f"with `bert-jax convert --initialise={','.join(missing)}` and train it"
            )

    def _layers(self, layers: Sequence[int]) -> tuple[int, ...]:
        """The layers, counted from 0."""
        count = self.architecture.num_layers + 1
        if wrong := [layer for layer in layers if not -count <= layer < count]:
            raise UserError(f"layer {wrong[0]}: there are 0 (embeddings) to {count - 1}")
        return tuple(layer % count for layer in layers)

    def _tokenize(self, text: Text, limit: int) -> tuple[Example, int]:
        """The text, and how many of its tokens were cut off."""
        if not isinstance(text, str) and lacks_types(
            self.architecture.type_vocab_size, self.tokenizer
        ):
            raise UserError(ONE_TYPE)
        a_ids, *others = self.tokenizer.encode([text] if isinstance(text, str) else text)
        ids, b_start, lost = pair_ids(self.tokenizer, a_ids, others[0] if others else None, limit)
        return Example(ids, b_start), lost

    def _tokenize_masked(self, text: str) -> Example:
        tokenizer, limit = self.tokenizer, self.architecture.max_position_embeddings
        ids = [tokenizer.cls_id, *tokenizer.encode_marked(text), tokenizer.sep_id]
        if tokenizer.mask_id not in ids:
            mask = tokenizer.vocab[tokenizer.mask_id]
            raise UserError(f"no {mask} in {text!r}: put one where a word is to be guessed")
        if len(ids) > limit:
            raise UserError(
                f"{text[:40]!r}... has {len(ids)} tokens, the model has {limit} positions: "
                f"shorten it"
            )
        return Example(np.array(ids, np.int32), len(ids))

    def _tokenized(self, texts: Iterable[Text], limit: int | None = None) -> Iterator[Example]:
        limit = self.architecture.max_position_embeddings if limit is None else limit
        return self._reported(texts, limit, lambda text: self._tokenize(text, limit))

    def _scored(self, texts: Iterable[str]) -> Iterator[Tokens]:
        """The tokens of texts, between [CLS] and [SEP]."""
        limit = self.architecture.max_position_embeddings

        def tokenize(text: str) -> tuple[Tokens, int]:
            ids, continues = tokens_of(self.tokenizer, text)
            kept = limit - 2
            return Tokens(ids[:kept], continues[:kept]), max(0, len(ids) - kept)

        return self._reported(texts, limit, tokenize)

    def _reported(
        self, texts: Iterable[Any], limit: int, tokenize: Callable[[Any], tuple[T, int]]
    ) -> Iterator[T]:
        """Texts as tokens; a warning counts those that `tokenize` cuts to `limit` tokens."""
        cut, first, marked = 0, "", ""
        tokenizer = self.tokenizer
        ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id)
        special = [tokenizer.vocab[id_] for id_ in (*ids, tokenizer.mask_id)]
        for number, text in enumerate(texts, 1):
            whole = text if isinstance(text, str) else " ".join(text)
            if not marked and any(token in whole for token in special):
                marked = f"text number {number}, {excerpt(text)}"
            tokens, lost = tokenize(text)
            if lost:
                cut += 1
                first = first or f"number {number}, {excerpt(text)}"
            yield tokens
        if marked:
            _log.warning(f"{', '.join(special)} are plain text here, as in {marked}")
        if cut:
            _log.warning(f"{cut} of {number} texts cut to {limit} tokens; the first is {first}")


def _like(texts: Iterable[Any], results: Iterator[T]) -> list[T] | Iterator[T]:
    """An iterator of results if the texts are an iterator, else a list."""
    return results if isinstance(texts, Iterator) else list(results)


def _chunks(items: Iterator[T]) -> Iterator[list[T]]:
    while chunk := list(itertools.islice(items, EXAMPLES_PER_CHUNK)):
        yield chunk
