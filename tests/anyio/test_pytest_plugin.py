"""The pytest plugin, as projects that install this one see it."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
LIMIT = 60.0
"""Seconds for a run of pytest; they take a few."""

# On both backends, as projects do it that support both.
BACKENDS = """
import pytest

@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(BACKENDS)
    return pytester


def run(project: pytest.Pytester, program: str) -> pytest.RunResult:
    project.makepyfile(program)
    options = ("--strict-markers", "-W", "error", "-p", "no:cacheprovider")
    return project.runpytest_subprocess(*options, timeout=LIMIT)


def test_a_pair_meets_at_the_derper_on_both_backends(project: pytest.Pytester) -> None:
    result = run(
        project,
        """
        import pytest

        pytestmark = pytest.mark.anyio

        async def test_pair(iroh_endpoint_pair, iroh_derper):
            pair = iroh_endpoint_pair
            assert str(pair.first_addr.derp_url) == iroh_derper.url + "/"
            assert pair.first_addr.node_id == pair.first.node_id
            ours, theirs = await pair.connect()
            assert ours.remote_node_id == pair.second.node_id
            assert theirs.remote_node_id == pair.first.node_id
            stream = await ours.open_bi()
            await stream.send(b"hello")
            await stream.send_eof()
            answer = await theirs.accept_bi()
            assert b"".join([chunk async for chunk in answer]) == b"hello"
            assert len(iroh_derper.machine.clients) == 2

        @pytest.mark.iroh_alpns(b"one/0", b"other/0")
        async def test_protocols(iroh_endpoint_pair):
            ours, theirs = await iroh_endpoint_pair.connect(alpn=b"other/0")
            assert ours.alpn == theirs.alpn == b"other/0"

        async def test_derper(iroh_derper):
            from iroh_anyio import MagicEndpoint
            from iroh_proto import DerpMap

            derp_map = DerpMap.from_urls([iroh_derper.url])
            async with await MagicEndpoint.bind(derp_map=derp_map) as endpoint:
                addr = await endpoint.node_addr()
                assert addr.derp_url is not None
        """,
    )
    result.assert_outcomes(passed=6)


def test_a_plain_test_is_told_that_nothing_would_serve_it(project: pytest.Pytester) -> None:
    result = run(
        project,
        """
        def test_plain(iroh_derper):
            pass
        """,
    )
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*the fixture iroh_derper is for async tests, of anyio's plugin"])


def test_a_plain_test_is_told_the_name_that_it_knows(project: pytest.Pytester) -> None:
    result = run(project, "def test_plain(iroh_endpoint_pair): pass")
    result.stdout.fnmatch_lines(["*the fixture iroh_endpoint_pair is for async tests, *"])


def test_a_pair_that_serves_nothing_is_refused(project: pytest.Pytester) -> None:
    result = run(
        project,
        """
        import pytest

        @pytest.mark.anyio
        @pytest.mark.iroh_alpns()
        async def test_pair(iroh_endpoint_pair):
            pass
        """,
    )
    result.stdout.fnmatch_lines(["*the marker iroh_alpns names one protocol or more"])


def test_a_simulated_network_has_the_seed_that_it_is_given(project: pytest.Pytester) -> None:
    result = run(
        project,
        """
        import pytest

        def draw(network):
            return network.chance().random()

        def test_first(simulated_network):
            assert (simulated_network.now, simulated_network.hosts) == (0.0, {})
            test_first.drawn = draw(simulated_network)

        def test_second(simulated_network):
            assert draw(simulated_network) == test_first.drawn

        seen = set()

        @pytest.mark.parametrize("simulated_network", range(3), indirect=True)
        def test_many(simulated_network):
            seen.add(draw(simulated_network))

        def test_all():
            assert len(seen) == 3
            assert test_first.drawn in seen
        """,
    )
    result.assert_outcomes(passed=6)


def site_without(folder: Path, missing: set[str]) -> Path:
    """Make a folder of all that is installed but some packages, as if they had never been."""
    folder.mkdir()
    for item in Path(sysconfig.get_path("purelib")).iterdir():
        name = item.name.partition("-")[0].partition(".")[0].lower()
        if name not in missing:
            (folder / item.name).symlink_to(item)
    for package in ("iroh_proto", "iroh_anyio"):
        if not (folder / package).exists():
            (folder / package).symlink_to(ROOT / package)
    return folder


@pytest.mark.parametrize("missing", ["anyio", "aioquic"])
def test_without_the_extra_the_fixtures_name_it_and_the_network_works(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str
) -> None:
    absent = {missing, "hypothesis", "_hypothesis_globals", "_hypothesis_pytestplugin"}
    monkeypatch.setenv("PYTHONPATH", str(site_without(tmp_path / "site", absent)))
    program = pytester.makepyfile(
        """
        def test_network(simulated_network):
            host = simulated_network.add_host("host", ip="192.0.2.1")
            assert host.ips == ["192.0.2.1"]

        def test_derper(iroh_derper):
            pass

        def test_pair(iroh_endpoint_pair):
            pass

        def test_nothing():
            pass
        """
    )
    options = ("-S", "-m", "pytest", "-p", "no:cacheprovider")
    result = pytester.run(sys.executable, *options, program, timeout=LIMIT)
    result.assert_outcomes(passed=2, errors=2)
    text = f"needs {missing}: install the extra, pip install 'iroh-proto[[]anyio]'"
    result.stdout.fnmatch_lines(
        [f"the fixture iroh_derper {text}", f"the fixture iroh_endpoint_pair {text}"]
    )


def test_loading_it_loads_nothing_else(pytester: pytest.Pytester) -> None:
    result = pytester.run(
        sys.executable,
        "-c",
        "import sys, iroh_anyio.pytest_plugin\n"
        "print([name for name in sys.modules"
        " if name.partition('.')[0] in ('anyio', 'aioquic', 'iroh_proto', 'nacl', 'psutil')])",
        timeout=LIMIT,
    )
    result.stdout.fnmatch_lines(["[[]]"])


def test_it_is_found_by_its_entry_point(pytester: pytest.Pytester) -> None:
    assert "PYTEST_DISABLE_PLUGIN_AUTOLOAD" not in os.environ
    result = pytester.runpytest_subprocess("--fixtures", timeout=LIMIT)
    result.stdout.fnmatch_lines(["*iroh_derper*", "*iroh_endpoint_pair*", "*simulated_network*"])
