"""Models in int8 beside fp32, here and in ONNX Runtime: size, speed and scores.

    python benchmarks/int8.py ENCODER STS CLASSIFIER SENTENCES TAGGER WORDS

ENCODER is a Hugging Face directory of a BertModel whose vectors are means of tokens, STS a TSV of
score and two texts. CLASSIFIER and TAGGER are fine-tuned, and SENTENCES and WORDS are files of
examples as they were trained on. All of it runs on one core. In every round each way encodes the
same texts of STS, sorted by length, from tokens to mean vectors, one way after the other. Processor
seconds are counted, because the machine may be shared. Prints JSON.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
from scipy.stats import spearmanr  # noqa: E402

import bert_jax  # noqa: E402

ROUNDS = 3
TIMED = 512  # texts of a round
BATCH = 16


def size_of(path):
    """Bytes of the weights: of the parameters in memory, or of the file."""
    if path.suffix == ".onnx":
        return path.stat().st_size
    params = bert_jax.load(path).params
    import jax

    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def ours(path):
    bert = bert_jax.load(path)
    return lambda texts: bert.encode(texts, "mean")


def theirs(path, bert):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def encode(texts):
        tokens = [bert.tokenize(text).ids for text in texts]
        order = sorted(range(len(texts)), key=lambda i: len(tokens[i]))
        vectors = np.empty((len(texts), bert.architecture.hidden_size), np.float32)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            ids = np.zeros((len(chosen), max(len(tokens[i]) for i in chosen)), np.int64)
            for row, i in enumerate(chosen):
                ids[row, : len(tokens[i])] = tokens[i]
            mask = (ids > 0).astype(np.int64)
            rows = {"input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * ids}
            (states,) = session.run(["last_hidden_state"], rows)
            weights = mask[:, :, None].astype(np.float32)
            vectors[chosen] = (states * weights).sum(axis=1) / weights.sum(axis=1)
        return vectors

    return encode


def score_of(path, data):
    """The first metric of a task, in percent."""
    return 100 * next(iter(bert_jax.evaluate(path, data=data).scores.values()))


def main():
    encoder, sts, classifier, sentences, tagger, words = map(Path, sys.argv[1:])
    rows = [line.rstrip("\n").split("\t") for line in sts.open(encoding="utf-8")]
    rows = [row for row in rows if row[0].strip()]
    scores = [float(score) for score, _, _ in rows]
    first, second = ([row[column] for row in rows] for column in (1, 2))
    timed = first[:TIMED]

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        quiet = {"report": lambda line: None}
        found = {"tasks": {}, "ways": {}}
        for name, model in {"encoder": encoder, "sst2": classifier, "wikigold": tagger}.items():
            bert_jax.convert(model, folder / name, to="bert_jax", quantize="int8", **quiet)
        for name, model, data in (("sst2", classifier, sentences), ("wikigold", tagger, words)):
            pair = {"fp32": score_of(model, str(data)), "int8": score_of(folder / name, str(data))}
            found["tasks"][name] = pair
        for name, model in (("fp32", encoder), ("int8", folder / "encoder")):
            bert_jax.export(model, folder / f"onnx-{name}", to="onnx", **quiet)
        bert = bert_jax.load(encoder)
        files = {name: folder / f"onnx-{name}" / "model.onnx" for name in ("fp32", "int8")}
        ways = {
            "bert_jax fp32": (encoder, ours(encoder)),
            "bert_jax int8": (folder / "encoder", ours(folder / "encoder")),
            "ONNX Runtime fp32": (files["fp32"], theirs(files["fp32"], bert)),
            "ONNX Runtime int8": (files["int8"], theirs(files["int8"], bert)),
        }
        for name, (path, encode) in ways.items():
            vectors = encode(first + second)  # compiles, too
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            cosines = (vectors[: len(rows)] * vectors[len(rows) :]).sum(axis=1)
            found["ways"][name] = {
                "megabytes": size_of(path) / 1e6,
                "sts": 100 * spearmanr(cosines, scores).statistic,
                "seconds": [],
            }
        for _ in range(ROUNDS):
            for name, (_, encode) in ways.items():
                start = time.process_time()
                encode(timed)
                found["ways"][name]["seconds"].append(time.process_time() - start)
    for way in found["ways"].values():
        way["texts_per_second"] = TIMED / float(np.median(way.pop("seconds")))
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
