"""The process in which atheris runs one target: ``python -m fuzz.child TARGET ARGUMENTS``.

The arguments are libFuzzer's. Modules must be instrumented as they are imported, so nothing of
this project is imported before that.
"""

from __future__ import annotations

import sys

import atheris

INSTRUMENTED = ["iroh_proto", "iroh_anyio", "fuzz.planted", "h11", "wsproto"]


def main() -> None:
    """Fuzz until libFuzzer's limits are reached or a check raises; never returns."""
    program, name, *arguments = sys.argv
    with atheris.instrument_imports(include=INSTRUMENTED):
        from fuzz.targets import load

        check = load(name).check
    atheris.Setup([program, *arguments], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
