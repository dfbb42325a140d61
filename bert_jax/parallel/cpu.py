"""What makes training on a CPU faster."""

import os
import platform

import jax

from bert_jax import freed_memory
from bert_jax.parallel import hosts

HUGE_PAGES = "glibc.malloc.hugetlb=1"


def advise(compute_dtype: str) -> None:
    """Prints what would make training on a CPU faster; nothing on other platforms.

    XLA allocates its buffers in every step, which takes a good part of it with pages of 4 KiB. The
    verbs of the command line keep them (`freed_memory.keep`). In Python it is too late for that, as
    there are threads, and the GNU C library reads its variable only when a process starts. Steps in
    bf16 are slower than in fp32, also where the processor multiplies bf16 (docs/benchmarks.md).

    Args:
      compute_dtype: that of the model.
    """
    if jax.default_backend() != "cpu":
        return
    if compute_dtype == "bfloat16":
        hosts.print_once("training is faster on a CPU with --config.numerics.compute_dtype=float32")
    library, version = platform.libc_ver()
    knows = library == "glibc" and tuple(map(int, version.split("."))) >= (2, 35)
    is_set = "glibc.malloc.hugetlb" in os.environ.get("GLIBC_TUNABLES", "")
    if knows and not is_set and not freed_memory.is_kept():
        hosts.print_once(
            f"training is faster on this CPU after  export GLIBC_TUNABLES={HUGE_PAGES}"
        )
