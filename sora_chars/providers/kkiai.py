"""kkiai.com and its siblings: `POST /sora/v1/characters`, synchronous. Source: contracts of kkiai's API page."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import attrs

from sora_chars.errors import (
    AuthenticationError,
    ConfigurationError,
    InsufficientCreditsError,
    MissingCharacterError,
    ModelUnavailableError,
    NoAnswerError,
    PermissionDeniedError,
    ProviderError,
    RateLimitedError,
    RequestRejectedError,
    ServiceUnavailableError,
    printable,
)
from sora_chars.ids import is_id
from sora_chars.models import SUCCESS, Character, CharacterRequest, TaskSnapshot
from sora_chars.ratelimit.window import Limits
from sora_chars.transport import GATEWAY_FAULTS, Response, Transport, clean_url, parse_json, resolve_key

from .base import HTTPProvider

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    import aiohttp

    from sora_chars.models import Request

_QUOTA = {"insufficient_user_quota", "pre_consume_token_quota_failed", "insufficient_quota"}
_SOURCE_GONE = {"get_origin_task_failed", "task_not_exist"}
_REQUEST_ID = re.compile(r"\(request id: ([^)\s]+)\)")
_HINTS = {
    "cameo_permission_denied": "The person in the clip has not allowed this: take another clip.",
    "sora_content_violation": "The clip breaks the content policy: take another clip.",
}


@attrs.frozen
class Gateway:
    """A host of the same protocol: what differs from kkiai. `extra_body` is sent with each request."""

    base_url: str
    extra_body: Mapping[str, Any] = attrs.field(factory=dict)
    note: str = ""


_SOUND = "The clip must have sound."
GATEWAYS: Mapping[str, Gateway] = {
    "kkiai": Gateway("https://www.kkiai.com"),
    "juxin": Gateway("https://api.jxincm.cn"),
    "t8star": Gateway("https://ai.t8star.cn", note=_SOUND),
    "comfly": Gateway("https://ai.comfly.chat", note=_SOUND),
    "gptbest": Gateway("https://api.gptbest.vip", note=_SOUND),
    "yunwu": Gateway("https://yunwu.ai"),
    "geekai": Gateway("https://api.geekai.pro"),
    "laozhang": Gateway("https://api.laozhang.ai", {"model": "sora-2-character"}),
    "apiyi": Gateway("https://api.apiyi.com", {"model": "sora-2-character"}, 'Some of its pages say "sora-character".'),
}


class Kkiai(HTTPProvider):
    """kkiai, or a gateway of the same protocol. The answer of the one POST is the character.

    `extra_body`: members that a gateway wants beside the contract's. `timeout`: seconds for the whole request, which
    makes the character meanwhile. `limits`: none are published. The other options are those of `Transport`.

    Raises:
        ConfigurationError: no key, or a base URL that is none.
    """

    synchronous = True

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str = GATEWAYS["kkiai"].base_url,
        extra_body: Mapping[str, Any] | None = None,
        name: str = "kkiai",
        key_variable: str = "KKIAI_API_KEY",
        limits: Limits | None = None,
        timeout: float = 300.0,
        http: aiohttp.ClientSession | None = None,
        proxy: str | None = None,
        ssl: ssl.SSLContext | bool = True,
    ) -> None:
        super().__init__(
            Transport(
                provider=name,
                base_url=clean_url(base_url, field="base_url").removesuffix("/v1").rstrip("/"),
                api_key=resolve_key(api_key, variable=key_variable, provider=name),
                limits=limits or Limits(),
                http=http,
                proxy=proxy,
                ssl=ssl,
                timeout=timeout,
            )
        )
        self.extra_body = dict(extra_body or {})

    @classmethod
    def gateway(cls, name: str, /, api_key: str | None = None, **options: Any) -> Kkiai:
        """A known gateway by its name, with what differs there. The key's variable is NAME_API_KEY.

        Raises:
            ConfigurationError: the name is none of `GATEWAYS`.
        """
        known = GATEWAYS.get(name)
        if known is None:
            raise ConfigurationError(f"gateway: must be one of {', '.join(GATEWAYS)}, got {printable(name)!r}.")
        settings: dict[str, Any] = {
            "base_url": known.base_url,
            "extra_body": known.extra_body,
            "name": name,
            "key_variable": f"{name.upper()}_API_KEY",
        }
        return cls(api_key, **(settings | options))

    def check(self, request: Request) -> Sequence[str]:
        """See `Provider.check`. The clip spans 1 to 3 seconds; prompts and local files are not taken."""
        if not isinstance(request, CharacterRequest):
            return ["request: characters from a clip only"]
        problems: list[str] = []
        if request.clip is None:
            problems.append("clip: is required")
        elif not 1 <= request.clip.seconds <= 3:  # noqa: PLR2004 # the contract's
            problems.append(f"clip: must span 1 to 3 s, got {request.clip} ({request.clip.seconds} s)")
        if request.video_path is not None:
            problems.append("video: a URL only, this provider takes no uploads")
        problems += [
            f"{field}: this provider has none, leave it out"
            for field, value in (("prompt", request.prompt), ("safety", request.safety))
            if value is not None
        ]
        return problems

    async def submit(
        self, request: Request, *, callback_url: str | None, on_send: Callable[[], AbstractAsyncContextManager[None]]
    ) -> TaskSnapshot:
        """See `Provider.submit`. Takes 30 s to minutes."""
        del callback_url
        if not isinstance(request, CharacterRequest):
            raise TypeError(type(request).__name__)
        character = await self._transport.request(
            "POST",
            f"{self._transport.base_url}/sora/v1/characters",
            lambda answer: read_character(answer, provider=self.name),
            kind="create",
            on_send=on_send,
            json=character_body(request) | self.extra_body,
        )
        return TaskSnapshot(
            task_id=character.id, provider=self.name, state=SUCCESS, character=character, raw=character.raw
        )


def character_body(request: CharacterRequest) -> dict[str, Any]:
    """The JSON that the contract asks for: the clip, and exactly one source."""
    source = {"url": request.video_url} if request.from_task is None else {"from_task": request.from_task}
    return {"timestamps": str(request.clip)} | source


def read_character(answer: Response, *, provider: str) -> Character:
    """The character of an answer.

    Raises:
        ProviderError: any of the seven shapes of errors.
        MissingCharacterError: success, and no id or user name in it.
    """
    try:
        body = parse_json(answer.body)
    except ValueError:
        raise _no_json(answer, provider) from None
    match body:
        case {"error": error} if error:
            raise _refusal(answer, body, provider)
        case {"id": str(id_), "username": str(username)} if answer.status // 100 == 2 and is_id(id_) and username:  # noqa: PLR2004
            return Character(
                id=id_,
                provider=provider,
                username=username,
                name=_text(body.get("display_name")),
                permalink=_text(body.get("permalink")),
                picture_url=_text(body.get("profile_picture_url")),
                raw=body,
            )
        case _ if answer.status // 100 == 2 and not (isinstance(body, dict) and _text(body.get("code"))):  # noqa: PLR2004
            raise MissingCharacterError(
                f"{provider} reported success without a character: {printable(answer.body.decode(errors='replace'))}",
                hint="It may have been charged; ask the provider before trying again.",
                provider=provider,
                task_id=None,
                payload=body,
            )
        case _:
            raise _refusal(answer, body, provider)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _no_json(answer: Response, provider: str) -> ProviderError:
    """A page or plain text. From 500 on, and where an answer is cut or garbled, nobody says what happened behind it."""
    text = printable(re.sub(r"<[^>]{0,500}>", " ", answer.body[:4000].decode(errors="replace")), limit=200)
    good = answer.status // 100 == 2  # noqa: PLR2004
    page = answer.body.lstrip().startswith(b"<")
    if answer.status == 404 or (good and page):  # noqa: PLR2004
        return ModelUnavailableError(
            f"{provider} does not serve characters any more: it answered HTTP {answer.status} with {text!r}.",
            hint="The route is gone there; try another gateway.",
            status=answer.status,
        )
    if good or answer.status >= 500:  # noqa: PLR2004
        return NoAnswerError(f"{provider} answered HTTP {answer.status}: {text}.", status=answer.status)
    return _refusal(answer, {"message": text}, provider)


def _message(body: Any, answer: Response) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    places: list[Any] = [error.get("message"), error.get("message_zh")] if isinstance(error, dict) else [error]
    if isinstance(body, dict):
        places += [body.get(name) for name in ("message", "msg", "detail", "description")]
    return next((p for p in places if _text(p)), None) or answer.body.decode(errors="replace")


def _words(body: Any) -> list[str]:
    """The codes and types that an error gives, the code first, whatever its shape."""
    error = body.get("error") if isinstance(body, dict) else None
    owners = [owner for owner in (error, body) if isinstance(owner, dict)]
    return [word for name in ("code", "type") for owner in owners if (word := _text(owner.get(name)))]


def _refusal(answer: Response, body: Any, provider: str) -> ProviderError:
    message, words = _message(body, answer), _words(body)
    kind, hint = _kind(answer.status, message, set(words))
    found = _REQUEST_ID.search(message)
    return kind(
        f"{provider} answered HTTP {answer.status}: {printable(message)}",
        hint=next((advice for word, advice in _HINTS.items() if word in words or word in message), hint),
        status=answer.status,
        code=words[0] if words else None,
        request_id=found.group(1) if found else None,
        retry_after=answer.retry_after,
    )


def _kind(status: int, message: str, words: set[str]) -> tuple[type[ProviderError], str]:
    if status in GATEWAY_FAULTS:
        return NoAnswerError, ""
    if words & _QUOTA or status == 402:  # noqa: PLR2004
        return InsufficientCreditsError, "Top up the account."
    if words & _SOURCE_GONE:
        return (
            RequestRejectedError,
            "The source task is unknown or expired: check from_task, exactly as it was returned.",
        )
    if "model_not_found" in words or status == 404 or message.startswith("Invalid URL"):  # noqa: PLR2004
        return ModelUnavailableError, "The route or the model is gone there; try another gateway."
    if status >= 500:  # noqa: PLR2004
        return ServiceUnavailableError, ""
    by_status: dict[int, tuple[type[ProviderError], str]] = {
        401: (AuthenticationError, "Check the API key."),
        403: (PermissionDeniedError, "The key may not use this model; use another key or group."),
        429: (RateLimitedError, ""),
    }
    return by_status.get(status, (RequestRejectedError, ""))
