from dataclasses import dataclass
from bert_jax.fields import Choice, field
@dataclass(frozen=True)
class Task(Choice):
    train: str = field("", "t")
    dev: str = field("", "t")
    test: str = field("", "t")
    test_labelled: bool = field(True, "t")
    max_seq_length: int = field(128, "t")
@dataclass(frozen=True)
class ClassificationTask(Task, name="classification"):
    text_a: str | tuple[str, ...] = field("text", "x")
