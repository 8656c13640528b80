"""Releases of the ``iroh`` package side by side, each in a folder of a cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

CACHE_VARIABLE = "IROH_PEER_CACHE"
REQUIRE_VARIABLE = "IROH_REQUIRE_PEERS"

INSTALL_LIMIT = 600.0
"""Seconds for one release of about 35 MB."""


class PeerUnavailableError(Exception):
    """A release cannot be installed here; the text says why."""


def installed(version: str) -> Path:
    """Return the folder to put on ``PYTHONPATH`` for a release, installing it if it is not there.

    It is tried once; what came of it holds for the rest of the run.

    :raises PeerUnavailableError: if it cannot be installed.
    """
    outcome = _try_to_install(version)
    if isinstance(outcome, PeerUnavailableError):
        raise outcome
    return outcome


@cache
def _try_to_install(version: str) -> Path | PeerUnavailableError:
    folder = cache_folder() / f"iroh-{version}"
    try:
        if not folder.exists():
            _install(version, folder)
    except PeerUnavailableError as error:
        return error
    return folder


def cache_folder() -> Path:
    """Return the folder of all releases."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "iroh-proto" / "peers"


def _install(version: str, folder: Path) -> None:
    """Install into a temporary folder and rename it, so that a half-made one is never seen."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as name:
        made = Path(name) / "package"
        _run_pip("install", "--no-deps", "--target", str(made), f"iroh=={version}")
        try:
            made.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            # Another run was faster; its copy is as good.
            shutil.rmtree(made)


def _run_pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    try:
        subprocess.run(
            command,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=INSTALL_LIMIT,
        )
    except subprocess.CalledProcessError as error:
        output = error.output.decode(errors="replace").strip()
        raise PeerUnavailableError(f"{' '.join(command)} failed: {output[-600:]}") from None
    except subprocess.TimeoutExpired:
        raise PeerUnavailableError(
            f"{' '.join(command)} did not end within {INSTALL_LIMIT:.0f} s"
        ) from None
