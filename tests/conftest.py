"""Property tests look at the same cases every time; `--hypothesis-profile=search` looks for new ones.

They judge values, never time: a machine that is busy with something else must not fail them.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", settings.get_profile("search"), derandomize=True)
settings.load_profile("same")
