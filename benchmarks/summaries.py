"""Writes documents with summaries that a rule has made, to try `extraction` and `generation` on.

    python benchmarks/summaries.py OUTPUT [--train 1000] [--sentences 8]

The documents are passages of the State of the Union addresses, SENTENCES in a row. The summary of
a passage is three of its sentences: those nearest, by the cosine of TF-IDF vectors, to the sum of
the vectors of the whole address (a centroid, as in Radev et al. 2004). No person wrote it: it shows
that the machinery works, and how far a model finds a rule that depends on a text it does not see.
OUTPUT gets train.jsonl, dev.jsonl and test.jsonl, of different addresses.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from bert_jax.data.documents import find_sources, read_documents
from bert_jax.data.sentences import split_sentences


def passages(address: list[str], scores: np.ndarray, size: int) -> list[dict[str, str]]:
    """The passages of an address, each with its three sentences of the highest scores."""
    found = []
    for start in range(0, len(address) - size + 1, size):
        nearest = np.sort(np.argsort(-scores[start : start + size], kind="stable")[:3])
        document, summary = (
            " ".join(address[start + index] for index in indices)
            for indices in (range(size), nearest.tolist())
        )
        found.append({"document": document, "summary": summary})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--sentences", type=int, default=8)
    arguments = parser.parse_args()
    addresses = [split_sentences(text) for text in read_documents(find_sources(["corpus:sotu"]))]
    tfidf = TfidfVectorizer(stop_words="english", sublinear_tf=True)
    tfidf.fit(sentence for address in addresses for sentence in address)
    random.Random(0).shuffle(addresses)
    splits = {"dev": addresses[:20], "test": addresses[20:50], "train": addresses[50:]}
    most = {"dev": 200, "test": 500, "train": arguments.train}
    arguments.output.mkdir(parents=True, exist_ok=True)
    for split, some in splits.items():
        rows = []
        for address in some:
            vectors = tfidf.transform(address)
            scores = np.asarray(vectors @ vectors.sum(axis=0).T).ravel()
            rows += passages(address, scores, arguments.sentences)
        random.Random(1).shuffle(rows)
        rows = rows[: most[split]]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (arguments.output / f"{split}.jsonl").write_text(lines)
        print(f"{split}: {len(rows):,} passages")


if __name__ == "__main__":
    main()
