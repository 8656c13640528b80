"""The DERP server."""

from __future__ import annotations

from iroh_anyio.derper.config import DerperConfig
from iroh_anyio.derper.config_file import load_config
from iroh_anyio.derper.pool import DerperPool
from iroh_anyio.derper.server import Derper

__all__ = ["Derper", "DerperConfig", "DerperPool", "load_config"]
