"""The package without what its extra installs, in processes where that is hidden."""

from __future__ import annotations

import subprocess
import sys

import pytest

HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
"""


def run(code: str, *hidden: str) -> str:
    """Run code in a Python that cannot import some modules."""
    done = subprocess.run(
        [sys.executable, "-c", HIDE.format(hidden=set(hidden)) + code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("missing", ["anyio", "aioquic", "psutil"])
def test_a_missing_extra_is_named(missing: str) -> None:
    output = run("import iroh_anyio; iroh_anyio.MagicEndpoint", missing)
    assert f"iroh_anyio.MagicEndpoint needs {missing}: install the extra" in output
    assert "pip install 'iroh-proto[anyio]'" in output


@pytest.mark.parametrize(
    ("module", "missing", "extra"),
    [
        ("iroh_anyio.testing", "aioquic", "anyio"),
        ("iroh_proto.testing.strategies", "hypothesis", "testing"),
        ("iroh_proto.testing.contract", "hypothesis", "testing"),
    ],
)
def test_tools_for_tests_name_their_extra(module: str, missing: str, extra: str) -> None:
    output = run(f"import {module}", missing)
    assert f"{module} needs {missing}: install the extra" in output
    assert f"pip install 'iroh-proto[{extra}]'" in output


def test_the_pure_part_needs_no_anyio() -> None:
    code = "import iroh_anyio.quic.endpoint_machine as m; print(m.EndpointMachine.__name__)"
    assert run(code, "anyio", "psutil", "trio") == "EndpointMachine\n"


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert run("import iroh_anyio; print('anyio' in sys.modules)") == "False\n"


def test_every_public_name_is_there() -> None:
    code = "import iroh_anyio as m; print([n for n in dir(m) if not hasattr(m, n)])"
    assert run(code) == "[]\n"


def test_other_names_are_not() -> None:
    output = run("import iroh_anyio; iroh_anyio.Nothing")
    assert "AttributeError: module 'iroh_anyio' has no attribute 'Nothing'" in output
