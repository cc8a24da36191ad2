from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from .both import Async, Blocking, Flavour

# make fuzz: the same properties, a hundred times as long.
settings.register_profile(
    "long",
    max_examples=100 * settings().max_examples,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.fixture(params=[Async, Blocking], ids=["async", "sync"])
def flavour(request: pytest.FixtureRequest) -> Flavour:
    made: Flavour = request.param()
    return made
