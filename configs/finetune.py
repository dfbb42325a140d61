"""Fine-tuning by BERT's recipe: 3 epochs, warmup over a tenth, then a linear decay to 0.

    bert-jax finetune --config=finetune:classification --workdir=runs/mine \\
        --config.init_from=runs/base --config.task.train=train.tsv --config.task.dev=dev.tsv

The argument is the task: classification, multi_label, tagging, answering, multiple_choice,
similarity, generation, extraction, or a GLUE task such as glue/sst2, which reads TFDS unless other
data are named. Devlin et al. 2019 (appendix A.3) search learning rates of 2e-5, 3e-5 and 5e-5,
batches of 16 and 32, and 2 to 4 epochs.
"""

from ml_collections import ConfigDict

from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.config.recipes import defaults
from bert_jax.tasks import Task


def get_config(task: str = "classification") -> ConfigDict:
    config = defaults(FinetuneConfig)
    config.task = defaults(Task.kind(task, "task"))
    config.log_every = 50
    config.numerics.scan_layers = False
    config.numerics.remat = "none"
    config.optimizer.learning_rate = 3e-5
    config.optimizer.bias_correction = True  # without it small sets diverge: Mosbach et al. 2021
    config.mesh.zero1 = False
    if task == "generation":
        config.optimizer.learning_rate = 1e-4  # the cross-attention is new
    if task == "answering":
        config.epochs = 2.0
    return config
