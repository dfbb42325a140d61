"""ModernBERT in three phases: 1.7 T tokens in short rows, 250 B in long ones, 50 B of decay.

    bert-jax pretrain --config=modernbert --workdir=runs/modernbert --config.data.store=stores/web

The argument picks the size: base (default) or large. Rows are packed; there are no sentence pairs.
The global layers' RoPE base grows from 10,000 to 160,000 when rows grow to 8,192 tokens.

Source: Warner et al. 2024, https://arxiv.org/abs/2412.13663, and
https://github.com/AnswerDotAI/ModernBERT, yamls/modernbert/modernbert-base-pretrain.yaml (blocks,
first phase). Later phases: https://github.com/JHU-CLSP/ettin-encoder-vs-decoder,
pretraining/configs/standard/base (their rows have 7,999 tokens). The paper's large model was
restarted at a tenth of its rate after 900 B tokens, which this recipe does not repeat. Batches
grow over the first 50 B tokens (10 B in large), from a microbatch of each of 8 devices; theirs by a
row a device, ours by 256 rows at a time. Their warmup is linear in tokens, ours in steps, and as
long. Their decay is a share of the parameters in each step, ours of the learning rate, so it is
divided by the peak.

Cost: 1.8e21 FLOPs for base (`bert_jax.report.flops`, full rows).
"""

from bert import get_config as bert
from bert import set_phases
from ml_collections import ConfigDict

SIZES = {  # layers, hidden, heads, features inside the gated feed-forward
    "base": (22, 768, 12, 1152),
    "large": (28, 1024, 16, 2624),
}
PEAK = {"base": 8e-4, "large": 5e-4}
WARMUP = {"base": 3e9, "large": 2e9}  # tokens
ROWS = 4_608  # of 1,024 tokens; later phases have as many tokens in a batch
GROWTH = {"base": (768, 50e9), "large": (448, 10e9)}  # rows of the first batch, tokens until ROWS
GROWTH_ROWS = 256


def get_config(size: str = "base") -> ConfigDict:
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}: use one of {', '.join(SIZES)}")
    config = blocks(*SIZES[size])
    train(
        config,
        peak=PEAK[size],
        warmup_tokens=WARMUP[size],
        growth=GROWTH[size],
        decay=1e-5,
        long_local_theta=10_000.0,
    )
    return config


def blocks(layers: int, hidden: int, heads: int, inner: int) -> ConfigDict:
    """The model and the objective: masked words in packed rows, of which 30 % are predicted."""
    config = bert()
    model = config.model
    model.vocab_size = 50_368
    model.num_layers, model.hidden_size, model.num_heads = layers, hidden, heads
    model.intermediate_size = inner
    model.max_position_embeddings = 8_192
    model.type_vocab_size = 0
    model.hidden_act = "gelu"
    model.feed_forward = "glu"
    model.norm_position = "pre"
    model.norm_bias = False
    model.layer_norm_eps = 1e-5
    model.first_norm = False
    model.final_norm = True
    model.attention_bias = False
    model.feed_forward_bias = False
    model.head_bias = False
    model.pooler = "transform"
    model.global_every = 3
    model.local_window = 128
    model.scaled_output_init = True
    model.position_embedding.name = "rope"

    config.numerics.embedding_dropout = 0.0
    config.numerics.attention_dropout = 0.0
    config.numerics.feed_forward_dropout = 0.0

    config.data.pairs = "none"
    config.data.short_seq_prob = 0.0
    config.masking.masked_lm_prob = 0.3
    config.masking.heldout_masked_lm_prob = 0.15
    config.rng = "rbg"  # cheapest random bits; threefry has the same dropout on every mesh
    return config


def growing_batches(start: int, tokens: float) -> dict[str, int]:
    """Fields of a phase whose batches grow from `start` rows to `ROWS` in so many tokens."""
    return {
        "batch_size": ROWS,
        "max_seq_length": 1_024,
        "start_batch_size": start,
        "growth_steps": round(steps_of(tokens, start, tokens)),
        "growth_rows": GROWTH_ROWS,
    }


def steps_of(tokens: float, start: int, growth_tokens: float) -> float:
    """The steps that so many tokens take, if batches grow from `start` rows in a line."""
    rows, growth_rows = tokens / 1_024, growth_tokens / 1_024
    growth_steps = growth_rows / ((start + ROWS) / 2)
    if rows > growth_rows:
        return growth_steps + (rows - growth_rows) / ROWS
    slope = (ROWS - start) / growth_steps
    return ((start**2 + 2 * slope * rows) ** 0.5 - start) / slope


def begin(first: ConfigDict, warmup_tokens: float, growth: tuple[int, float]) -> None:
    """Lets warmup and growth of the first phase follow its number of steps."""
    steps, warmup = first.get_oneway_ref("steps"), round(steps_of(warmup_tokens, *growth))
    first.optimizer.warmup_steps = steps * warmup // first.steps
    first.data.growth_steps = steps * first.data.growth_steps // first.steps


def train(
    config: ConfigDict,
    *,
    peak: float,
    warmup_tokens: float,
    growth: tuple[int, float],
    decay: float,
    long_local_theta: float,
) -> None:
    """Sets the optimizer and the three phases.

    Args:
      config: config to change.
      peak: learning rate of the first two phases.
      warmup_tokens: tokens in which it is reached.
      growth: rows of the first batch, and the tokens in which batches grow to `ROWS`.
      decay: share of the parameters that a step at the peak takes away.
      long_local_theta: RoPE base of local layers when rows are long.
    """
    optimizer = config.optimizer
    optimizer.name = "stable_adamw"
    optimizer.weight_decay = decay / peak
    optimizer.clip_norm = 0.0
    batch = ROWS * 1_024
    long_rows = {
        "data": {"batch_size": ROWS // 8, "max_seq_length": 8_192},
        "model": {"position_embedding": {"theta": 160_000.0, "local_theta": long_local_theta}},
    }
    set_phases(
        config,
        {
            "steps": round(steps_of(1_719e9, *growth)),
            "data": growing_batches(*growth),
            "optimizer": {"learning_rate": peak, "schedule": {"name": "constant"}},
        },
        {
            "steps": round(250e9 / batch),
            **long_rows,
            "optimizer": {
                "learning_rate": peak,
                "schedule": {"name": "one_minus_sqrt", "floor": 0.5},
            },
        },
        {
            "steps": round(50e9 / batch),
            **long_rows,
            "masking": {"masked_lm_prob": 0.15},
            "optimizer": {
                "learning_rate": peak / 2,
                "schedule": {"name": "one_minus_sqrt", "floor": 0.04},
            },
        },
    )
    first, second, third = config.phases
    begin(first, warmup_tokens, growth)
    second.optimizer.warmup_steps = third.optimizer.warmup_steps = 0
    for phase, percent in zip(config.phases, (30, 30, 15)):
        length = phase.data.get_oneway_ref("max_seq_length")
        phase.masking.max_predictions_per_seq = length * percent // 100
