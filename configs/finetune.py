"""Fine-tuning by BERT's recipe: 3 epochs, warmup over a tenth, then a linear decay to 0.

    bert-jax finetune --config=configs/finetune.py:classification --workdir=runs/mine \\
        --config.init_from=runs/base --config.task.train=train.tsv --config.task.dev=dev.tsv

The argument is the task: classification, tagging, answering, or one of GLUE such as glue/sst2,
whose data are those of TFDS unless others are named. Devlin et al. 2019 (appendix A.3) search
learning rates of 2e-5, 3e-5 and 5e-5, batches of 16 and 32, and 2 to 4 epochs.
"""

from ml_collections import ConfigDict

OPTIONS = {
    "classification": {
        "text_a": "text",
        "text_b": "",
        "label": "label",
        "labels": (),
        "regression": False,
        "metric_names": ("accuracy",),
        "format": "",
        "encoding": "utf-8",
    },
    "tagging": {
        "scheme": "BIO",
        "word_column": 1,
        "tag_column": -1,
        "repair": False,
        "encoding": "utf-8",
    },
    "answering": {
        "unanswerable": False,
        "null_threshold": 0.0,
        "doc_stride": 128,
        "max_query_length": 64,
        "max_answer_length": 30,
        "n_best_size": 20,
        "repair": False,
    },
}


def get_config(task: str = "classification") -> ConfigDict:
    config = ConfigDict()
    config.init_from = ""
    config.random_weights = False
    config.freeze = False
    config.layer_decay = 1.0
    config.reinit_layers = 0
    config.seed = 0
    config.seeds = 1
    config.rng = "threefry"
    config.batch_size = 32
    config.packing = True
    config.epochs = 3.0
    config.warmup_share = 0.1
    config.evals_per_epoch = 1
    config.log_every = 50

    config.task = ConfigDict()
    config.task.name = task
    glue = f"tfds:{task}" if task.startswith("glue/") else ""
    matched = "_matched" if task == "glue/mnli" else ""
    config.task.train = glue and f"{glue}:train"
    config.task.dev = glue and f"{glue}:validation{matched}"
    config.task.test = glue and f"{glue}:test{matched}"
    config.task.test_labelled = not glue
    config.task.max_seq_length = 128
    config.task.options = ConfigDict(OPTIONS.get(task, {}))

    config.model = model = ConfigDict()
    model.hidden_dropout = 0.1
    model.attention_dropout = 0.1
    model.compute_dtype = "bfloat16"
    model.attention = "auto"
    model.scan_layers = False
    model.remat = "none"

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "adamw"
    optimizer.learning_rate = 3e-5
    optimizer.warmup_steps = 0
    optimizer.schedule = "linear"
    optimizer.poly_power = 1.0
    optimizer.b1 = 0.9
    optimizer.b2 = 0.999
    optimizer.eps = 1e-6
    optimizer.bias_correction = True  # without it small sets diverge: Mosbach et al. 2021
    optimizer.weight_decay = 0.01
    optimizer.clip_norm = 1.0
    optimizer.gradient_accumulation = 1

    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "zero1": False})
    if task == "answering":
        config.epochs = 2.0
        config.task.max_seq_length = 384
    return config
