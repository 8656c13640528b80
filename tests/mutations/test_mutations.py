"""The table of mutations fits the code. Whether tests notice them is for the long runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.mutations.table import MUTATIONS, Mutation

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_each_mutation_changes_the_code_and_names_tests(mutation: Mutation, tmp_path: Path) -> None:
    broken = tmp_path / mutation.file
    broken.parent.mkdir(parents=True)
    shutil.copy(ROOT / mutation.file, broken)
    mutation.apply(tmp_path)
    compile(broken.read_text(), mutation.file, "exec")
    assert broken.read_text() != (ROOT / mutation.file).read_text()
    for test in mutation.tests:
        name, _, function = test.partition("::")
        assert f"def {function}" in (ROOT / "tests/proto" / name).read_text()


def test_no_mutation_is_listed_twice() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)
