"""Uses a trained BERT: texts in, vectors and predictions out."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, overload

import numpy as np
from etils import epath

from bert_jax.data.packing import Example
from bert_jax.errors import UserError
from bert_jax.inference.attributions import Attribution
from bert_jax.inference.choices import COMPUTE_DTYPES
from bert_jax.inference.exported import is_exported, read_exported
from bert_jax.inference.functions import Function
from bert_jax.inference.runner import Runner
from bert_jax.inference.texts import Text
from bert_jax.inference.uses.answer import answer
from bert_jax.inference.uses.attribute import attributions, explained_task
from bert_jax.inference.uses.classify import classify, text_task
from bert_jax.inference.uses.encode import attention, encode, tokens_of
from bert_jax.inference.uses.extract import extract
from bert_jax.inference.uses.fill_mask import Guess, fill_mask
from bert_jax.inference.uses.generate import generate
from bert_jax.inference.uses.next_sentence import next_sentence
from bert_jax.inference.uses.score import Score, default_method, score
from bert_jax.inference.uses.tag import Words, tag
from bert_jax.interop.formats import read
from bert_jax.interop.portable import Portable
from bert_jax.tasks import TextTask
from bert_jax.tasks.answering.decoding import Prediction
from bert_jax.tasks.classification.decoding import Verdict
from bert_jax.tasks.extraction.task import Extract
from bert_jax.tasks.protocol import AnyTask
from bert_jax.tasks.tagging.plain_text import Entity
from bert_jax.train.weights import TRAINED

T = TypeVar("T")


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
        self._runner = Runner(model, functions)
        self.method = method
        self.architecture, self.tokenizer = model.architecture, model.tokenizer
        self.labels = model.labels
        self.functions, self.params = self._runner.functions, self._runner.params

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
        several = not isinstance(layers, int)
        chosen = [layers] if isinstance(layers, int) else layers
        found = encode(self._runner, texts, pooling, chosen)
        vectors = _like(texts, found if several else (each[..., 0, :] for each in found))
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
        found = _like(pairs, next_sentence(self._runner, pairs))
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
        return _like(texts, fill_mask(self._runner, texts, top_k))

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
        return _like(texts, score(self._runner, texts, self.method if method is None else method))

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
        return _like(texts, classify(self._runner, texts, max_seq_length))

    def text_task(self, max_seq_length: int | None = None, **options: Any) -> TextTask:
        """The task of the classifier: how it reads texts, and from when it predicts a class.

        Args:
          max_seq_length: as for `classify`.
          **options: fields of the task, such as `thresholds`, to set otherwise than in fine-tuning.

        Raises:
          UserError: an option does not exist, or has a wrong value.
        """
        return text_task(self._runner, max_seq_length, **options)

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
        return _like(texts, tag(self._runner, texts, max_seq_length))

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
        return _like(texts, extract(self._runner, texts, max_seq_length, **options))

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
        return _like(questions, answer(self._runner, questions, max_seq_length, **options))

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
        return _like(texts, generate(self._runner, texts, max_seq_length, **search))

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
        found = attributions(
            self._runner,
            texts,
            target,
            steps=steps,
            baseline=baseline,
            max_seq_length=max_seq_length,
        )
        return _like(texts, found)

    def explained_task(self, max_seq_length: int | None = None) -> AnyTask:
        """The task whose predictions `attributions` explains: of texts, words or questions.

        Raises:
          UserError: the model has no head of such a task.
        """
        return explained_task(self._runner, max_seq_length)

    def attention(self, text: Text) -> np.ndarray:
        """How much each token of a text or pair attends to each other, in every attention head.

        Returns:
          fp32 [num_layers, heads, query, key], which sums to 1 over `key`; queries and keys are the
          `tokens` of the text.
        """
        return attention(self._runner, text)

    def tokenize(self, text: Text) -> Example:
        """A text or pair as `encode` takes it, cut to its positions."""
        return tokens_of(self._runner, text)

    def tokens(self, text: Text) -> list[str]:
        """The tokens of a text or pair, [CLS] and [SEP] included; `encode` has a vector of each."""
        return [self.tokenizer.vocab[token] for token in self.tokenize(text).ids]

    def require(self, *parts: str) -> None:
        """Raises UserError if the model lacks one of `bert_jax.model.heads.PARTS`."""
        self._runner.require(*parts)


def _like(texts: Iterable[Any], results: Iterator[T]) -> list[T] | Iterator[T]:
    """An iterator of results if the texts are an iterator, else a list."""
    return results if isinstance(texts, Iterator) else list(results)
