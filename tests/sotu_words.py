"""The State of the Union corpus, one id a word: real text for tests that need no WordPieces."""

import functools
import json
import lzma
import re
from importlib import resources

import numpy as np

from bert_jax.data.split import Split

PAD, CLS, SEP = "[PAD]", "[CLS]", "[SEP]"


@functools.cache
def sotu_words() -> tuple[Split, list[str]]:
    """The corpus and its vocabulary, whose first ids are [PAD] 0, [CLS] 1 and [SEP] 2."""
    ids = {PAD: 0, CLS: 1, SEP: 2}
    tokens, sentences, documents = [], [0], [0]
    with lzma.open(resources.files("bert_jax.corpora") / "sotu.jsonl.xz", "rt") as lines:
        for line in lines:
            for sentence in re.split(r"(?<=[.?!])\s+|\n+", json.loads(line)["text"]):
                words = re.findall(r"\w+|[^\w\s]", sentence.lower())
                tokens += [ids.setdefault(word, len(ids)) for word in words]
                if words:
                    sentences.append(len(tokens))
            documents.append(len(sentences) - 1)
    return make_split(np.array(tokens), sentences, documents), list(ids)


def make_split(tokens, sentences, documents, name="train") -> Split:
    return Split(
        name=name,
        tokens=np.asarray(tokens, np.uint16),
        sentences=np.asarray(sentences, np.int64),
        documents=np.asarray(documents, np.int64),
        token_counts=np.bincount(tokens),
    )
