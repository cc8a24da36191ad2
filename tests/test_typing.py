"""What type checkers of users see."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).parent / "typing" / "cases.py"


@pytest.mark.parametrize("checker", [["mypy", "--strict"], ["pyright"]], ids=["mypy", "pyright"])
def test_streams_and_results_are_typed(checker: list[str]) -> None:
    """`match` on events type-checks in mypy and pyright, exhaustively."""
    command = [sys.executable, "-m", *checker, str(CASES)]
    told = subprocess.run(command, check=False, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout
