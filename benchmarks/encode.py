"""Compares the throughput of `encode` with the transformers library on a CPU.

    python benchmarks/encode.py MODEL [ROUNDS]

MODEL is a Hugging Face directory. In every round both sides turn the same 2,000 new sentences of
mixed length from text into mean vectors, in fp32 on all cores, one side after the other.
Transformers runs in its fastest setup: sentences sorted by length, padded to the longest of a
batch, `inference_mode`, scaled_dot_product_attention, the best of several batch sizes, and dense
layers by MKL, PyTorch's default, or by oneDNN, which is faster on AMD processors.

On a shared machine CPU seconds tell more than wall seconds; `taskset -c 0` gives both sides one
core.
"""

import functools
import json
import lzma
import os
import sys
import time
from importlib.resources import files

import numpy as np
import torch
import transformers
from torch.utils.mkldnn import to_mkldnn

from bert_jax import load
from bert_jax.data.sentences import split_sentences

SENTENCES = 2000
BATCH_SIZES = (16, 32, 64)


def corpus_sentences():
    with lzma.open(files("bert_jax") / "corpora" / "sotu.jsonl.xz", "rt", encoding="utf-8") as file:
        documents = [json.loads(line)["text"] for line in file]
    return [sentence for document in documents for sentence in split_sentences(document)]


class Peer:
    def __init__(self, path, onednn, limit):
        self.limit = limit
        torch.set_num_threads(len(os.sched_getaffinity(0)))  # so that taskset is respected
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        model = transformers.BertModel.from_pretrained(path, attn_implementation="sdpa")
        self.model = to_mkldnn(model.eval()) if onednn else model.eval()

    @torch.inference_mode()
    def encode(self, texts, batch_size):
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        vectors = np.empty((len(texts), self.model.config.hidden_size), np.float32)
        for chosen in (order[i : i + batch_size] for i in range(0, len(order), batch_size)):
            inputs = self.tokenizer(
                [texts[i] for i in chosen],
                padding=True,
                truncation=True,
                max_length=self.limit,
                return_tensors="pt",
            )
            hidden = self.model(**inputs).last_hidden_state
            mask = inputs["attention_mask"][..., None]
            vectors[chosen] = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
        return vectors


def main():
    path, rounds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3
    bert = load(path)
    ways = {"bert_jax": functools.partial(bert.encode, pooling="mean")}
    limit = len(bert.tokenize("and so on " * 1000).ids)  # to which both cut texts
    for library in ("MKL", "oneDNN"):
        peer = Peer(path, library == "oneDNN", limit)
        for size in BATCH_SIZES:
            name = f"transformers, {library}, {size} at once"
            ways[name] = functools.partial(peer.encode, batch_size=size)
    sentences, random = corpus_sentences(), np.random.default_rng(0)
    seconds = {name: [] for name in ways}
    ways["bert_jax"](sentences[:SENTENCES])  # compiles
    for _ in range(rounds):
        chosen = random.choice(len(sentences), SENTENCES, replace=False)
        texts, vectors = [sentences[i] for i in chosen], {}
        for name, encode in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            vectors[name] = encode(texts)
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        worst = max(np.abs(v - vectors["bert_jax"]).max() for v in vectors.values())
        assert worst < 1e-4, worst

    best = np.min([seconds[name] for name in ways if name != "bert_jax"], axis=0)
    for title, column in (("wall", 0), ("CPU", 1)):
        print(f"{title + ' seconds':<36}{'median':>8}{'least':>8}{'most':>8}   sentences/s")
        for name, times in seconds.items():
            times = np.array(times)[:, column]
            median = np.median(times)
            spread = f"{median:8.2f}{times.min():8.2f}{times.max():8.2f}"
            print(f"{name:<36}{spread}{SENTENCES / median:14.0f}")
        ratios = best[:, column] / np.array(seconds["bert_jax"])[:, column]
        print(f"best of transformers / bert_jax, each round: {ratios.round(2).tolist()}\n")


if __name__ == "__main__":
    main()
