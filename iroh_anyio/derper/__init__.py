"""The DERP server."""

from __future__ import annotations

from iroh_anyio.derper.server import Derper

__all__ = ["Derper"]
