"""A web app that makes characters: POST /characters waits for the character and answers with it.

Run it with `python -m uvicorn app_fastapi:app`. Settings come from the environment: KIE_API_KEY, KIE_HMAC_KEY
(optional), PUBLIC_URL (where the world, and so kie.ai, reaches this app), KIE_BASE_URL (for tests).
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
    """Keep the session open for as long as the app runs."""
    async with session:
        yield


app = FastAPI(lifespan=lifespan)
app.mount("/hooks/kie", receiver.asgi)


class Wish(BaseModel):
    """What to make: `clip` is "start,end" in seconds of the finished video task `from_task`."""

    from_task: str
    clip: str
    prompt: str


class Made(BaseModel):
    """The character. `woken_by` tells what ended the wait: a callback or a poll."""

    id: str
    task_id: str
    woken_by: str


@app.post("/characters")
async def create_character(wish: Wish) -> Made:
    """Make a character and wait for it."""
    try:
        handle = await session.submit(**wish.model_dump())
        character = await handle.result(timeout=600)
    except InvalidRequestError as error:
        raise HTTPException(422, error.problems) from error
    except WaitTimeoutError as error:
        raise HTTPException(504, {"task_id": error.handle.task_id}) from error
    except SoraCharsError as error:
        raise HTTPException(502, str(error)) from error
    return Made(id=character.id, task_id=handle.task_id, woken_by=handle.woken_by)
