"""A web application whose route POST /characters creates a character and returns it.

Run it with `python -m uvicorn app_fastapi:app`. It reads its settings from the
environment: KIE_API_KEY, KIE_HMAC_KEY (optional), PUBLIC_URL (the public address
of this application), KIE_BASE_URL (for tests).
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from sora_chars import CallbackReceiver, CharacterSession, InvalidRequestError, Kie, SoraCharsError, WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

KIE_URL = os.environ.get("KIE_BASE_URL", "https://api.kie.ai")
session = CharacterSession(Kie(base_url=KIE_URL, callback_url=f"{os.environ['PUBLIC_URL']}/hooks/kie"))
receiver = CallbackReceiver(session, os.environ.get("KIE_HMAC_KEY"))


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
    """Keep the session open while the application runs."""
    async with session:
        yield


app = FastAPI(lifespan=lifespan)
app.mount("/hooks/kie", receiver.asgi)


class CharacterFields(BaseModel):
    """The fields of a request; `clip` is "start,end" in seconds of the video of the task `from_task`."""

    from_task: str
    clip: str
    prompt: str


class CreatedCharacter(BaseModel):
    """The character; `woken_by` is "callback" or "poll", whichever ended the wait."""

    id: str
    task_id: str
    woken_by: str


@app.post("/characters")
async def create_character(fields: CharacterFields) -> CreatedCharacter:
    """Create a character and wait for it."""
    try:
        handle = await session.submit(**fields.model_dump())
        character = await handle.result(timeout=600)
    except InvalidRequestError as error:
        raise HTTPException(422, error.problems) from error
    except WaitTimeoutError as error:
        raise HTTPException(504, {"task_id": error.handle.task_id}) from error
    except SoraCharsError as error:
        raise HTTPException(502, str(error)) from error
    return CreatedCharacter(id=character.id, task_id=handle.task_id, woken_by=handle.woken_by)
