from __future__ import annotations

import pytest

from .both import Async, Blocking, Flavour


@pytest.fixture(params=[Async, Blocking], ids=["async", "sync"])
def flavour(request: pytest.FixtureRequest) -> Flavour:
    made: Flavour = request.param()
    return made
