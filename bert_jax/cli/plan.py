"""`bert-jax plan`: compiles a training step for TPUs without having any."""

from collections.abc import Sequence

from bert_jax.cli import flags
from bert_jax.storage import write_json
from bert_jax.terminal import say


def main(argv: Sequence[str]) -> int:
    parser = flags.Parser(
        prog="bert-jax plan",
        description="Compiles the training step of a recipe for TPU slices, none of which needs "
        "to be present, and prints memory, FLOPs, estimated step time, collectives and input "
        "rate. One plan for each phase of the recipe.",
        formatter_class=flags.HelpFormatter,
        epilog=flags.FIELDS_HELP
        + "\n\nexample:\n  bert-jax plan --config=bert:large --topology=v5e:4x8 "
        "--config.data.batch_size=1024",
        allow_abbrev=False,
    )
    flags.add_config(
        parser,
        "the recipe of a pretraining run, by name or as a file; --config.FIELD=VALUE overrides a "
        "field. No store is needed",
    )
    parser.add_argument(
        "--topology",
        required=True,
        metavar="GENERATION:SHAPE",
        help="one TPU slice: v5e:2x4, v6e:16x16, v4:4x4x4, v5p:2x2x1, tpu7x:4x4x4 ...",
    )
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="slices (default: 1)")
    parser.add_argument(
        "--search",
        action="store_true",
        help="find the largest batch that fits, for each rematerialisation policy, and plan the "
        "one with the fastest estimate; takes about a dozen compiles of minutes each",
    )
    parser.add_argument("--output", metavar="FILE.json", help="also write the plans to this file")
    arguments, overrides = parser.parse_known_args(argv)
    given = flags.config_arguments(arguments.config, overrides)

    import jax

    from bert_jax.api.plan import plan_stages
    from bert_jax.config.pretraining import PretrainConfig
    from bert_jax.config.recipes import load_config
    from bert_jax.interop.initial import follow_weights

    config = load_config(PretrainConfig, given)
    # Little is computed here, so leave any accelerator free for others. JAX's own cache cannot read
    # back programs compiled for absent devices.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)

    config, lines = follow_weights(config, overrides)
    print(*lines, sep="\n", end="\n" if lines else "")
    for stage in config.stages():
        if mixture := stage.config.data.mixture_summary:
            say(f"{stage.name or 'run'}: tokens from {mixture}")
    plans = []
    for name, plan in plan_stages(
        config, arguments.topology, arguments.slices, largest_batch=arguments.search
    ):
        for line in ("", name or "plan", "", *plan.table().splitlines(), ""):
            say(line)
        plans.append({"phase": name} | plan.to_dict())
    if arguments.output:
        write_json(arguments.output, plans)
        say(f"{arguments.output}: the plans as JSON")
    return 0 if all(plan["fits"] for plan in plans) else 1
