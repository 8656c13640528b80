"""How many files a server may have open, of which each connection is one."""

from __future__ import annotations

import logging
import resource
import sys

logger = logging.getLogger("iroh_anyio.derper")


def descriptor_limit() -> int:
    """Return how many files this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def raise_descriptor_limit() -> None:
    """Raise the soft limit of this process, and of those it starts, to the hard one.

    The soft one is 1,024 on most systems, for programs that use ``select(2)``. A server would be
    out of descriptors before its own limits let it choose which connections to close.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft in (hard, resource.RLIM_INFINITY):
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        logger.info("no more than %d open files: %s", soft, error)
    else:
        logger.info("up to %d open files, where the limit was %d", hard, soft)
