"""What makes training on a CPU faster."""

import os
import platform

import jax

from bert_jax.parallel import hosts

HUGE_PAGES = "glibc.malloc.hugetlb=1"


def advise() -> None:
    """Prints how to start the program so that memory is in huge pages, if it is not.

    XLA maps its buffers again in every step, which takes a good part of it with pages of 4 KiB. The
    GNU C library reads its variable only when a process starts.
    """
    library, version = platform.libc_ver()
    knows = library == "glibc" and tuple(map(int, version.split("."))) >= (2, 35)
    is_set = "glibc.malloc.hugetlb" in os.environ.get("GLIBC_TUNABLES", "")
    if jax.default_backend() == "cpu" and knows and not is_set:
        hosts.print_once(
            f"training is faster on this CPU after  export GLIBC_TUNABLES={HUGE_PAGES}"
        )
