"""Releases of the ``iroh`` crate as programs, built by whoever runs the tests.

No package on the Python index has them. Their paths come from the environment, since building one
takes minutes; see the README here.
"""

from __future__ import annotations

import os
from pathlib import Path

VARIABLES = {
    "0.90.0": "IROH_PEER_0_90",
    "0.92.0": "IROH_PEER_0_92",
    "0.95.1": "IROH_PEER_0_95",
}
"""The variable that names the program of each release."""


class PeerNotBuiltError(Exception):
    """The environment names no program of a release; the text says which variable would."""


def program(version: str) -> Path:
    """Return the program of a release.

    :raises PeerNotBuiltError: if nobody has said where it is.
    """
    value = os.environ.get(VARIABLES[version])
    if not value:
        raise PeerNotBuiltError(f"{VARIABLES[version]} does not name a peer of iroh {version}")
    return Path(value)
