"""Texts for docs/distillation.md, and a comparison of a student with its teacher.

    python benchmarks/distillation.py texts DATA OUTPUT
    python benchmarks/distillation.py parts DATA OUTPUT
    python benchmarks/distillation.py compare DATA TEACHER STUDENT ...

DATA holds `mrpc/`, `sst2/`, `sts/`, `trec/`, `cola/` and `multi30k/` as their authors publish them.
"""

import argparse
import csv
import gzip
import json
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

import bert_jax

WORDS = range(3, 41)  # words of the sentences that are kept
ROUNDS, SAMPLE = 5, 600


def sentences(data: Path) -> Iterator[str]:
    """Sentences of the training parts, without their labels."""
    for line in (data / "sst2/stsa.binary.train").read_text().splitlines():
        yield line.partition(" ")[2]
    for line in (data / "trec/raw_TREC.train").read_text(encoding="latin-1").splitlines():
        yield line.partition(" ")[2]
    for line in (data / "mrpc/msr-para-train.tsv").read_text("utf-8-sig").splitlines()[1:]:
        yield from line.split("\t")[3:5]
    for line in (data / "sts/2015.train.tsv").read_text().splitlines():
        yield from line.split("\t")[1:3]
    for line in (data / "cola/in_domain_train.tsv").read_text().splitlines():
        yield line.split("\t")[3]
    with gzip.open(data / "multi30k/train.en.gz", "rt", encoding="utf-8") as file:
        yield from file


def pairs(data: Path) -> tuple[list[float], list[tuple[str, str]]]:
    """Scores and sentences of the STS 2015 test pairs that have a score."""
    with (data / "sts/2015.test.tsv").open() as file:
        rows = [row for row in csv.reader(file, "excel-tab", quoting=csv.QUOTE_NONE) if row[0]]
    return [float(row[0]) for row in rows], [(row[1], row[2]) for row in rows]


def write_texts(data: Path, output: Path) -> None:
    """Writes a document for each sentence, in random order; none of the STS 2015 test pairs."""
    tested = {text.strip() for pair in pairs(data)[1] for text in pair}
    kept = {text.strip() for text in sentences(data)} - tested
    chosen = sorted(text for text in kept if len(text.split()) in WORDS)
    random.Random(0).shuffle(chosen)
    output.write_text("".join(json.dumps({"text": text}) + "\n" for text in chosen))
    print(f"{len(chosen):,} sentences")


def write_parts(data: Path, output: Path) -> None:
    """Writes the labelled sentences of SST-2, and without a label both parts of each longer one."""
    cut, lines = random.Random(0), []
    for line in (data / "sst2/stsa.binary.train").read_text().splitlines():
        words = line.split(" ")[1:]
        lines.append(line)
        if len(words) >= 2 * WORDS.start:
            at = cut.randint(WORDS.start, len(words) - WORDS.start)
            lines += [" ".join(("-", *part)) for part in (words[:at], words[at:])]
    output.write_text("".join(f"{line}\n" for line in lines))
    print(f"{len(lines):,} examples")


def compare(data: Path, paths: list[str]) -> None:
    """Prints Spearman's correlation on STS 2015 test, and sentences a second, in turns."""
    scores, found = pairs(data)
    texts = [text for pair in found for text in pair]
    models = {path: bert_jax.load(path) for path in paths}
    for path, model in models.items():
        vectors = model.encode(texts)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        cosines = np.sum(vectors[0::2] * vectors[1::2], axis=1)
        print(f"{path}: Spearman {100 * spearmanr(cosines, scores).statistic:.2f}", flush=True)
    rates: dict[str, list[float]] = {path: [] for path in paths}
    for number in range(ROUNDS):
        chosen = random.Random(number).sample(texts, SAMPLE)
        for path, model in models.items():
            model.encode(chosen)  # shapes that are new are compiled
            start = time.process_time()
            model.encode(chosen)
            rates[path].append(len(chosen) / (time.process_time() - start))
    first = statistics.median(rates[paths[0]])
    for path, each in rates.items():
        rate = statistics.median(each)
        print(f"{path}: {rate:,.0f} sentences a second of the processor, {rate / first:.2f} times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=("texts", "parts", "compare"))
    parser.add_argument("data", type=Path)
    parser.add_argument("paths", nargs="+")
    arguments = parser.parse_args()
    if arguments.verb == "texts":
        write_texts(arguments.data, Path(arguments.paths[0]))
    elif arguments.verb == "parts":
        write_parts(arguments.data, Path(arguments.paths[0]))
    else:
        compare(arguments.data, arguments.paths)


if __name__ == "__main__":
    main()
