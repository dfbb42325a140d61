"""BERT-large as in MLPerf Training: 512 tokens, to a masked LM accuracy of 72 %.

    bert-jax pretrain --config=mlperf_large:448 --workdir=runs/mlperf_large \\
        --config.data.store=stores/mlperf --config.init_from=mlperf_checkpoint

The argument picks the batch size: 256, 448 (default), 1536, 3072, 4096 or 4608. The run ends at the
first evaluation that reaches the target and prints the rows that it took beside those of the
reference, `REFERENCE`.

MLPerf starts from a TensorFlow checkpoint trained on 128 tokens, which `init_from` reads; without
it the run starts from random weights, and the reference's numbers do not apply.

Source: hyperparameters and samples to target are MLPerf's reference convergence points,
https://github.com/mlcommons/logging/blob/master/mlperf_logging/rcp_checker/training_5.0.0/rcps_bert.json
(20 or more runs each). Larger batches, whose warmup begins before step 0, are left out.

Cost: 2.5e18 FLOPs to the target for 2.4 million rows (`bert_jax.report.flops`, full rows). At the
137 sequences a second and chip published for 8 v4 this is an estimated 5 chip-hours.
"""

from bert import get_config as bert
from ml_collections import ConfigDict

# Batch size: peak rate, steps of the schedule, warmup steps, b1, b2, and the samples in which the
# reference reaches the target: the mean without the fastest and the slowest run.
REFERENCE = {
    256: (3.5e-4, 13_700, 0, 0.9, 0.999, 2_549_220),
    448: (4.25e-4, 6_700, 0, 0.9, 0.999, 2_414_421),
    1536: (2e-3, 2_254, 0, 0.66, 0.996, 2_776_278),
    3072: (2e-3, 1_141, 100, 0.66, 0.998, 2_764_499),
    4096: (2.4e-3, 855, 0, 0.66, 0.998, 2_843_989),
    4608: (3.5e-3, 700, 0, 0.62, 0.9, 2_798_080),
}


def get_config(batch_size: str = "448") -> ConfigDict:
    if batch_size not in map(str, REFERENCE):
        known = ", ".join(map(str, REFERENCE))
        raise ValueError(f"no reference for batch size {batch_size!r}: use one of {known}")
    rate, steps, warmup, b1, b2, samples = REFERENCE[int(batch_size)]
    config = bert("large")
    config.rng = "rbg"  # cheapest random bits; threefry has the same dropout on every mesh
    config.steps = steps
    config.log_every = 10
    config.eval_every = round(25_000 / int(batch_size))  # as often as the reference
    config.checkpoint_every = 500
    config.target_mlm_accuracy = 0.72
    config.target_rows = samples
    config.model.hidden_act = "gelu"

    data = config.data
    data.batch_size = int(batch_size)
    data.max_seq_length = 512
    data.packing = False
    config.masking.max_predictions_per_seq = 76

    optimizer = config.optimizer
    optimizer.name = "lamb"
    optimizer.schedule.name = "poly"
    optimizer.learning_rate = rate
    optimizer.warmup_steps = config.get_oneway_ref("steps") * warmup // steps
    optimizer.b1 = b1
    optimizer.b2 = b2
    return config
