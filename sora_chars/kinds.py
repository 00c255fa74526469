"""The kinds of requests to a provider. Each kind has its own limits, time-outs and connections."""

from __future__ import annotations

from typing import Literal

Kind = Literal["create", "poll", "other"]
"""Kind of a request. Only a create costs money."""

KINDS: tuple[Kind, ...] = ("create", "poll", "other")
