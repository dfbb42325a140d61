"""What a token store can be prepared with.

This module loads nothing, so options are checked before anything is loaded. The messages name the
flags of `bert-jax prepare`.
"""

from bert_jax.errors import UserError

# What a source can be: its form, what a document is, what it needs.
SOURCES = (
    (".txt", "lines up to a blank line; a line break ends a sentence", ""),
    (".jsonl", "an object on a line, its text in the field --text-field", ""),
    (".csv, .tsv", "a row, its text in the column --text-field of the header", ""),
    (".json", "an object of a list, or on a line, as in .jsonl", ""),
    (".parquet", "a row, its text in the column --text-field", "pyarrow"),
    (".arrow, .feather", "the same; or a folder that `datasets` saved to disk", "pyarrow"),
    (".tar", "what its .txt and .jsonl files have", ""),
    ("-", "standard input: text, or JSONL if its first line is an object", ""),
    (
        "hf:OWNER/DATASET[/FOLDER][:SPLIT]",
        "a row of a dataset of the Hugging Face Hub: its Parquet files in the cache on this "
        "machine, or downloaded by huggingface_hub; of other forms, as `datasets` reads them",
        "pyarrow",
    ),
    ("tfds:NAME[:SPLIT]", "an example of TensorFlow Datasets in ArrayRecord format", "the dataset"),
    ("corpus:sotu", "an address on the State of the Union, 1790-2026, 2 million words in all", ""),
    ("MODULE:NAME", "what a source of your own gives (docs/extending.md)", ""),
)
# A folder gives its files of the first of these groups that it has any of: beside texts there may
# be a table about them, a dataset may hold the same rows twice, and .json is often about others.
FORMATS = (
    (".txt", ".jsonl"),
    (".parquet", ".arrow", ".feather"),
    (".csv", ".tsv"),
    (".tar",),
    (".json",),
)
COMPRESSIONS = (".gz", ".xz", ".bz2", ".zst")  # of text and .tar
FILTERS = ("exact_duplicates", "near_duplicates", "length", "language")
TOKENIZERS = ("wordpiece", "bpe", "unigram", "characters")  # kinds that can be trained


# What runs `prepare` on many machines, and its class in Apache Beam.
RUNNERS = {
    "direct": "DirectRunner",
    "dataflow": "DataflowRunner",
    "flink": "FlinkRunner",
    "spark": "SparkRunner",
}


def check_heldout(share: float) -> None:
    """Raises UserError unless `share` is between 0 and 1."""
    if not 0 < share < 1:
        raise UserError(f"--heldout: {share} is not between 0 and 1; try 0.05")


def check_workers(workers: int) -> None:
    """Raises UserError unless `workers` is positive."""
    if workers < 1:
        raise UserError(f"--workers: {workers}; at least one is needed")
