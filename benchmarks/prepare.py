"""Compares `bert-jax prepare` with other ways from text to training data, on one corpus.

    python benchmarks/prepare.py [--copies N] [--rounds N] [--datasets PYTHON]

The corpus is State of the Union, 12 MB, with a WordPiece vocabulary of 8,192 tokens. In every round
the ways take turns:

- `prepare` with 1 and 2 workers, from a JSONL file to a store with its checksums;
- `tokenizers.Tokenizer.encode_batch` alone on 1 and 2 threads, of the documents in memory. It is
  the bound of what uses that library: nothing is read, split into sentences or written;
- plain Python, as Devlin et al. 2019 describe their data: basic tokens, greedy WordPiece, pairs,
  masks, tf.train.Example in TFRecords, one process, each document used once. It reads a twelfth of
  the corpus;
- with --datasets, `datasets.map` on 2 processes, in an environment with `datasets` and
  `transformers`: a fast tokenizer, then blocks of 128 tokens.

With --copies, `prepare` also reads that many copies of the corpus, each document with a number of
its own, and the largest memory of every process is told.
"""

import argparse
import json
import lzma
import os
import random
import subprocess
import sys
import tempfile
import time
import unicodedata
from importlib.resources import files
from pathlib import Path

from tensorboardX.record_writer import RecordWriter

from bert_jax.data.sentences import split_sentences
from bert_jax.data.tfrecords import Example
from bert_jax.data.tokenizer_json import load_tokenizer

ENCODE = """
import sys, time
from tokenizers import Tokenizer
import json
tokenizer = Tokenizer.from_str(open(sys.argv[1]).read())
texts = [json.loads(line)["text"] for line in open(sys.argv[2])]
start = time.perf_counter()
count = sum(len(e.ids) for e in tokenizer.encode_batch(texts, add_special_tokens=False))
print(time.perf_counter() - start, count)
"""
MAP = """
import itertools, sys, time
import datasets, transformers
datasets.disable_progress_bars()
tokenizer = transformers.BertTokenizerFast(vocab_file=sys.argv[1], do_lower_case=True)
texts = datasets.load_dataset("json", data_files=sys.argv[2], split="train", cache_dir=sys.argv[3])
def group(batch):
    ids = list(itertools.chain.from_iterable(batch["input_ids"]))
    return {"input_ids": [ids[i : i + 128] for i in range(0, len(ids), 128)]}
start = time.perf_counter()
options = {"batched": True, "num_proc": 2}
tokenize = lambda batch: tokenizer(batch["text"], add_special_tokens=False, verbose=False)
tokens = texts.map(tokenize, remove_columns=texts.column_names, **options)
blocks = tokens.map(group, remove_columns=tokens.column_names, **options)
print(time.perf_counter() - start, sum(map(len, blocks["input_ids"])))
"""


def documents():
    with lzma.open(files("bert_jax") / "corpora" / "sotu.jsonl.xz", "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def write_jsonl(path, texts):
    with path.open("w") as file:
        for text in texts:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


def peaks(process):
    """Largest memory of a process and of each of its children, in MB, once it has ended."""
    found = {}
    while process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        try:
            pids = [process.pid, *map(int, children.read_text().split())]
            for pid in pids:
                status = Path(f"/proc/{pid}/status").read_text()
                peak = [line for line in status.splitlines() if line.startswith("VmHWM")]
                if peak:
                    found[pid] = int(peak[0].split()[1]) / 1000
        except OSError:
            pass
        time.sleep(0.02)
    return sorted(found.values(), reverse=True)


def run_prepare(source, vocab, workers):
    """Seconds, tokens, and megabytes of every process."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "store"
        command = [sys.executable, "-m", "bert_jax", "prepare", source, f"--output={output}"]
        command += [f"--vocab={vocab}", f"--workers={workers}"]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        memory = peaks(process)
        seconds = time.perf_counter() - start
        assert process.returncode == 0
        splits = json.loads((output / "manifest.json").read_text())["splits"]
        return seconds, sum(split["tokens"] for split in splits.values()), memory


def run_program(python, program, *arguments, threads=""):
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "true"}
    environment |= {"RAYON_NUM_THREADS": threads} if threads else {}
    command = [python, "-c", program, *map(str, arguments)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds, tokens = run.stdout.split()[-2:]
    return float(seconds), int(tokens)


class PlainPython:
    """Text to masked examples, one step after another, without a library."""

    def __init__(self, vocab):
        self.vocab = vocab
        self.ids = {token: id_ for id_, token in enumerate(vocab)}

    def basic_tokens(self, text):
        words = []
        for word in text.split():
            stripped = [
                character
                for character in unicodedata.normalize("NFD", word.lower())
                if unicodedata.category(character) != "Mn"
            ]
            start_new = True
            for character in stripped:
                is_ascii_mark = character.isascii() and not character.isalnum()
                if is_ascii_mark or unicodedata.category(character).startswith("P"):
                    words.append([character])
                    start_new = True
                else:
                    if start_new:
                        words.append([])
                    start_new = False
                    words[-1].append(character)
        return ["".join(word) for word in words]

    def pieces(self, word):
        found, start = [], 0
        while start < len(word):
            end = len(word)
            while end > start:
                piece = word[start:end] if start == 0 else f"##{word[start:end]}"
                if piece in self.ids:
                    break
                end -= 1
            if end == start:
                return ["[UNK]"]
            found.append(piece)
            start = end
        return found

    def tokenize(self, text):
        return [piece for word in self.basic_tokens(text) for piece in self.pieces(word)]

    def __call__(self, texts, path, length=128, most=20):
        rng = random.Random(0)
        tokenized = [[self.tokenize(s) for s in split_sentences(text)] for text in texts]
        tokenized = [document for document in tokenized if document]
        writer = RecordWriter(str(path))
        for document in tokenized:
            for a, b, is_random in self.pairs(document, tokenized, rng, length - 3):
                writer.write(self.example(a, b, is_random, rng, length, most))
        writer.close()
        return sum(len(sentence) for document in tokenized for sentence in document)

    def pairs(self, document, every, rng, room):
        chunk, size, i = [], 0, 0
        target = rng.randint(2, room) if rng.random() < 0.1 else room
        while i < len(document):
            chunk.append(document[i])
            size += len(document[i])
            if i == len(document) - 1 or size >= target:
                cut = rng.randint(1, len(chunk) - 1) if len(chunk) > 1 else 1
                a = [token for sentence in chunk[:cut] for token in sentence]
                b, is_random = [], len(chunk) == 1 or rng.random() < 0.5
                if is_random:
                    other = every[rng.randrange(len(every))]
                    for sentence in other[rng.randrange(len(other)) :]:
                        b += sentence
                        if len(b) >= target - len(a):
                            break
                    i -= len(chunk) - cut
                else:
                    b = [token for sentence in chunk[cut:] for token in sentence]
                while len(a) + len(b) > room:
                    longer = a if len(a) > len(b) else b
                    longer.pop(0 if rng.random() < 0.5 else -1)
                if a and b:
                    yield a, b, is_random
                chunk, size = [], 0
            i += 1

    def example(self, a, b, is_random, rng, length, most):
        tokens = ["[CLS]", *a, "[SEP]", *b, "[SEP]"]
        types = [0] * (len(a) + 2) + [1] * (len(b) + 1)
        places = [i for i, token in enumerate(tokens) if token not in ("[CLS]", "[SEP]")]
        rng.shuffle(places)
        places = sorted(places[: min(most, max(1, round(0.15 * len(tokens))))])
        true = [self.ids[tokens[place]] for place in places]
        for place in places:
            if rng.random() < 0.8:
                tokens[place] = "[MASK]"
            elif rng.random() < 0.5:
                tokens[place] = self.vocab[rng.randrange(len(self.vocab))]
        pad, spare = [0] * (length - len(tokens)), [0] * (most - len(places))
        example = Example()
        for name, values in {
            "input_ids": [self.ids[token] for token in tokens] + pad,
            "input_mask": [1] * len(tokens) + pad,
            "segment_ids": types + pad,
            "masked_lm_positions": places + spare,
            "masked_lm_ids": true + spare,
            "next_sentence_labels": [int(is_random)],
        }.items():
            example.features.feature[name].int64_list.value.extend(values)
        weights = [1.0] * len(places) + [0.0] * len(spare)
        example.features.feature["masked_lm_weights"].float_list.value.extend(weights)
        return example.SerializeToString()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--copies", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--datasets", metavar="PYTHON")
    arguments = parser.parse_args()
    texts = documents()
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, made = folder / "sotu.jsonl", folder / "made"
        write_jsonl(source, texts)
        command = [sys.executable, "-m", "bert_jax", "prepare", source, f"--output={made}"]
        subprocess.run([*command, "--vocab-size=8192"], check=True, capture_output=True)
        tokenizer = load_tokenizer(made)
        (folder / "tokenizer.json").write_text(tokenizer.to_tokenizer().to_str())
        part = texts[::12]
        plain = PlainPython(tokenizer.vocab)

        def run_plain():
            start = time.perf_counter()
            count = plain(part, folder / "plain.tfrecord")
            share = sum(len(text.encode()) for text in part) / 1e6 / megabytes
            return (time.perf_counter() - start) / share, count / share

        encode = (sys.executable, ENCODE, folder / "tokenizer.json", source)
        ways = {
            "prepare, 1 worker": lambda: run_prepare(source, made, 1),
            "prepare, 2 workers": lambda: run_prepare(source, made, 2),
            "encode_batch alone, 1 thread": lambda: run_program(*encode, threads="1"),
            "encode_batch alone, 2 threads": lambda: run_program(*encode, threads="2"),
            "plain Python": run_plain,
        }
        if arguments.datasets:
            options = (made / "vocab.txt", source)
            ways["datasets.map, 2 processes"] = lambda: run_program(
                arguments.datasets, MAP, *options, tempfile.mkdtemp(dir=folder)
            )
        best = {}
        for _ in range(arguments.rounds):
            for way, run in ways.items():
                found = run()
                best[way] = min(best.get(way, found), found)
        print(f"{megabytes:.1f} MB, best of {arguments.rounds} rounds")
        for way, (seconds, tokens, *memory) in best.items():
            line = (
                f"{way:<32}{megabytes / seconds:8.2f} MB/s{tokens / seconds / 1e6:8.3f} M tokens/s"
            )
            print(line, *(f"  MB of each process: {[*map(round, each)]}" for each in memory))
        if arguments.copies:
            many = folder / "many.jsonl"
            write_jsonl(many, (f"{i} {text}" for i in range(arguments.copies) for text in texts))
            for workers in (1, 2):
                seconds, tokens, memory = run_prepare(many, made, workers)
                size = many.stat().st_size / 1e6
                print(
                    f"{size:.0f} MB, {workers} worker(s): {size / seconds:.2f} MB/s, "
                    f"{tokens / seconds / 1e6:.3f} M tokens/s, MB of each process: "
                    f"{[*map(round, memory)]}"
                )


if __name__ == "__main__":
    main()
