"""What kie.ai answers about the account: uploaded files, credits, and the models on offer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sora_chars.models import ModelInfo
from sora_chars.responses import as_number

from .kie_envelope import read_data, unreadable

if TYPE_CHECKING:
    from sora_chars.responses import Response


def read_upload(response: Response) -> str:
    """Return the URL of an uploaded file."""
    match read_data(response):
        case {"downloadUrl": str(url)} if url:
            return url
        case _:
            raise unreadable(response, "no downloadUrl")


def read_credit(response: Response) -> float:
    """Return the number of credits left."""
    credit = as_number(read_data(response))
    if credit is None:
        raise unreadable(response, "no number")
    return credit


def read_models(response: Response) -> list[ModelInfo]:
    """Return the models on offer; entries without a name are skipped."""
    match read_data(response):
        case {"models": list(models)}:
            return [
                ModelInfo(
                    model=model["model"],
                    title=_text(model.get("title")),
                    provider=_text(model.get("provider")),
                    task_type=_text(model.get("taskType")),
                    raw=model,
                )
                for model in models
                if isinstance(model, dict) and isinstance(model.get("model"), str)
            ]
        case _:
            raise unreadable(response, "no list of models")


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)
