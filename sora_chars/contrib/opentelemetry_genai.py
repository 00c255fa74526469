"""The attributes of OpenTelemetry's conventions for generative AI, which are still in development.

They are added with OTEL_SEMCONV_STABILITY_OPT_IN=gen_ai_latest_experimental, and may change
in any version. Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

    from sora_chars.events import Ended

_VARIABLE = "OTEL_SEMCONV_STABILITY_OPT_IN"
_OPT_IN = "gen_ai_latest_experimental"


def genai_attributes(event: Ended) -> dict[str, AttributeValue | None]:
    """Return the attributes of a request that has ended, or none unless the user has opted in."""
    chosen = {name.strip() for name in os.environ.get(_VARIABLE, "").split(",")}
    if _OPT_IN not in chosen:
        return {}
    return {
        "gen_ai.operation.name": f"create_{event.kind}",
        "gen_ai.provider.name": event.provider,
        "gen_ai.response.id": event.task_id,
    }
