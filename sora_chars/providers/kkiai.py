"""kkiai.com and the gateways of the same protocol: one synchronous route, `POST /sora/v1/characters`.

Source: kkiai docs, "Create character"; pages of the gateways for what differs there,
and for the shapes of errors, which vary by gateway.
"""

from __future__ import annotations

import re
from functools import partial
from http import HTTPStatus
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
from sora_chars.ids import as_id
from sora_chars.models import SUCCESS, Accepts, Character, CharacterRequest, ClipRule, MediaRule, TaskSnapshot, TextRule
from sora_chars.ratelimit.window import Limits
from sora_chars.responses import GATEWAY_FAULTS, Response, parse_json
from sora_chars.transport import Transport

from .base import REDIRECTS, HTTPProvider, blocked, resolve_key, resolve_url
from .local_files import request_problems

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    import aiohttp

    from sora_chars.models import Request

ACCEPTS = Accepts(
    from_task=True,
    video=MediaRule(),
    clip=ClipRule(seconds=(1, 3), sources=("from_task", "video")),
    name=TextRule(),
)
"""What kkiai and the gateways accept; the name is kept here. Source: kkiai docs, "Create character"."""
_QUOTA_CODES = {"insufficient_user_quota", "pre_consume_token_quota_failed", "insufficient_quota"}
# The gateway had sent the request on when it failed, whatever the status is.
_UNPROVEN_CODES = {"do_request_failed", "bad_response_body", "read_response_body_failed"}
_SOURCE_TASK_CODES = {"get_origin_task_failed", "task_not_exist"}
_DEEPEST_MEMBER = 4  # of an envelope, in which a character is looked for
_REQUEST_ID = re.compile(r"\(request id: ([^)\s]+)\)")
_HINTS = {
    "cameo_permission_denied": "Use another clip. The person in this one has not permitted it.",
    "sora_content_violation": "Use another clip. This one violates the content policy.",
}
_ERRORS_BY_STATUS: Mapping[int, tuple[type[ProviderError], str]] = {
    401: (AuthenticationError, "Check the API key."),
    403: (PermissionDeniedError, "Use a key or a group that may use this model."),
    429: (RateLimitedError, ""),
}


@attrs.frozen
class Gateway:
    """A host that serves the protocol of kkiai.

    Attributes:
        base_url: Base URL, without the path of the route.
        extra_body: Members that the gateway requires in the body of each request.
        note: What else differs from kkiai.
    """

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
"""The known gateways by name. Source: the API pages of each gateway."""


class Kkiai(HTTPProvider):
    """The provider kkiai, or a gateway of the same protocol.

    It is synchronous: the response to the only request holds the character.

    Args:
        api_key: The API key. Defaults to the environment variable `key_variable`.
        base_url: Base URL of the API. Defaults to KKIAI_BASE_URL, or else to
            https://www.kkiai.com. A trailing "/v1" is removed.
        extra_body: Members that a gateway requires in the body of each request.
        name: Name of the provider in requests, results and the ledger.
        key_variable: Environment variable of the key.
        limits: Rate limits of the account. None are published, and none is the default.
        timeout: Seconds for the whole request, during which the character is created.
        http: An aiohttp session of yours, which is not closed here.
        proxy: URL of an HTTP proxy. Defaults to HTTPS_PROXY or HTTP_PROXY of the
            environment, except for the hosts of NO_PROXY.
        ssl: Certificate verification, as in aiohttp.

    Raises:
        ConfigurationError: The key is missing, or the base URL is invalid.
    """

    synchronous = True
    accepts = ACCEPTS

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        extra_body: Mapping[str, Any] | None = None,
        name: str = "kkiai",
        key_variable: str = "KKIAI_API_KEY",
        limits: Limits | None = None,
        timeout: float = 300.0,
        http: aiohttp.ClientSession | None = None,
        proxy: str | None = None,
        ssl: ssl.SSLContext | bool = True,
    ) -> None:
        base_url = resolve_url(base_url, variable="KKIAI_BASE_URL", default=GATEWAYS["kkiai"].base_url)
        super().__init__(
            Transport(
                provider=name,
                base_url=base_url.removesuffix("/v1").rstrip("/"),
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
        """Return the provider for a known gateway.

        Its key comes from the environment variable NAME_API_KEY, and another base URL
        from NAME_BASE_URL.

        Args:
            name: A name in `GATEWAYS`.
            api_key: The API key.
            **options: Options of `Kkiai`, which override those of the gateway.

        Raises:
            ConfigurationError: There is no gateway of this name.
        """
        known = GATEWAYS.get(name)
        if known is None:
            raise ConfigurationError(f"gateway must be one of {', '.join(GATEWAYS)}, got {printable(name)!r}.")
        settings: dict[str, Any] = {
            "base_url": resolve_url(
                options.pop("base_url", None), variable=f"{name.upper()}_BASE_URL", default=known.base_url
            ),
            "extra_body": known.extra_body,
            "name": name,
            "key_variable": f"{name.upper()}_API_KEY",
        }
        return cls(api_key, **(settings | options))

    def check(self, request: Request) -> Sequence[str]:
        """See `Provider.check`."""
        return request_problems(ACCEPTS, request)

    async def submit(
        self,
        request: Request,
        *,
        key: str,
        callback_url: str | None,
        on_send: Callable[[], AbstractAsyncContextManager[None]],
    ) -> TaskSnapshot:
        """See `Provider.submit`. It takes from 30 seconds to several minutes."""
        del key, callback_url
        if not isinstance(request, CharacterRequest):
            raise TypeError(type(request).__name__)
        character = await self._transport.request(
            "POST",
            f"{self._transport.base_url}/sora/v1/characters",
            partial(read_character, provider=self.name),
            kind="create",
            on_send=on_send,
            json=character_body(request) | self.extra_body,
        )
        return TaskSnapshot(
            task_id=character.id, provider=self.name, state=SUCCESS, character=character, raw=character.raw
        )


def character_body(request: CharacterRequest) -> dict[str, Any]:
    """Return the body of the request: the clip, and exactly one source. Source: kkiai docs, "Create character"."""
    source = {"url": request.video_url} if request.from_task is None else {"from_task": request.from_task}
    return {"timestamps": str(request.clip)} | source


def read_character(response: Response, *, provider: str) -> Character:
    """Return the character in a response.

    Raises:
        MissingCharacterError: The response reports success, but holds no id.
        ProviderError: The response has one of the known shapes of errors.
    """
    try:
        body = parse_json(response.body)
    except ValueError:
        raise _text_error(response, provider) from None
    found = _unwrapped(body)
    id_ = (as_id(found.get("id")) or as_id(found.get("character_id"))) if isinstance(found, dict) else None
    match found:
        case {"error": error} if error:
            raise _json_error(response, body, provider)
        # An id is enough, whatever the status is: it was paid for.
        case dict() if id_ and (response.is_success or not _describes_error(found)):
            username = _text(found.get("username"))
            return Character(
                id=id_,
                provider=provider,
                username=username,
                name=_text(found.get("display_name")) or _text(found.get("name")),
                permalink=_text(found.get("permalink")),
                picture_url=_text(found.get("profile_picture_url")),
                usage={"prompt": f"@{username}"} if username else None,  # Source: kkiai docs, "Create character"
                raw=body,
            )
        case _ if response.is_success and not (isinstance(body, dict) and _text(body.get("code"))):
            raise _missing_character(response, body, provider)
        case _:
            raise _json_error(response, body, provider)


def _unwrapped(body: Any) -> Any:
    """Return the object that holds the character: the body, a member of an envelope, or the only item of a list."""
    found = body
    for _ in range(_DEEPEST_MEMBER):
        match found:
            case {"id": _} | {"character_id": _}:
                return found
            case {"data": inner} | {"character": inner} | {"result": inner} | [inner]:
                found = inner
            case _:
                break
    return body


def _missing_character(response: Response, body: Any, provider: str) -> MissingCharacterError:
    return MissingCharacterError(
        f"{provider} reported success without a character: {printable(response.body.decode(errors='replace'))}",
        hint=f"Ask {provider} whether the request was charged before you send it again.",
        provider=provider,
        task_id=None,
        payload=body,
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _text_error(response: Response, provider: str) -> ProviderError:
    """Return the error for a body that is not JSON: an HTML page, plain text or a damaged response.

    With a status from 500, or after damage, the outcome of the request is unknown. The gateways also send plain text
    for rejections; a redirect, and a page with the status of one, were written in front of them.
    """
    text = printable(re.sub(r"<[^>]{0,500}>", " ", response.body[:4000].decode(errors="replace")), limit=200)
    is_page = response.body.lstrip().startswith(b"<")
    rejection = blocked(response, provider)
    if rejection and (is_page or not text or rejection.status in REDIRECTS):
        return rejection
    if response.is_success and is_page:
        return ModelUnavailableError(
            f"{provider} answered HTTP {response.status} with a page instead of a character: {text!r}.",
            hint="Try another gateway: this one has no such route. If the page is your network's, log in to it first.",
            status=response.status,
        )
    if response.status == HTTPStatus.NOT_FOUND:
        return ModelUnavailableError(
            f"{provider} does not serve characters any more: it answered HTTP {response.status} with {text!r}.",
            hint="Try another gateway.",
            status=response.status,
        )
    if response.is_success or response.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return NoAnswerError(f"{provider} answered HTTP {response.status}: {text}.", status=response.status)
    return _json_error(response, {"message": text}, provider)


def _message(body: Any, response: Response) -> str:
    """Return the first text among the members that the gateways use for messages, else the whole body."""
    error = body.get("error") if isinstance(body, dict) else None
    texts: list[Any] = [error.get("message"), error.get("message_zh")] if isinstance(error, dict) else [error]
    if isinstance(body, dict):
        texts += [body.get(name) for name in ("message", "msg", "detail", "description")]
    return next((text for text in texts if _text(text)), None) or response.body.decode(errors="replace")


def _codes(body: Any) -> list[str]:
    """Return the codes and types in the body of an error, codes first."""
    error = body.get("error") if isinstance(body, dict) else None
    objects = [value for value in (error, body) if isinstance(value, dict)]
    return [code for name in ("code", "type") for value in objects if (code := _text(value.get(name)))]


def _json_error(response: Response, body: Any, provider: str) -> ProviderError:
    message = _message(body, response)
    codes = _codes(body)
    kind, hint = _classify(response.status, message, set(codes))
    found = _REQUEST_ID.search(message)
    if kind is ServiceUnavailableError and not (found or _is_own(body)):
        kind = NoAnswerError
    return kind(
        f"{provider} answered HTTP {response.status}: {printable(message)}",
        hint=next((advice for code, advice in _HINTS.items() if code in codes or code in message), hint),
        status=response.status,
        code=codes[0] if codes else None,
        request_id=found.group(1) if found else None,
        retry_after=response.retry_after,
        charged="maybe" if kind is ServiceUnavailableError else "no",
    )


def _describes_error(body: Any) -> bool:
    """Return whether a body has members of an error, beside which an id may be that of the HTTP request."""
    return bool(body.keys() & {"code", "type", "message", "msg", "detail", "description"})


def _is_own(body: Any) -> bool:
    """Return whether an error has the provider's own shape. Frameworks and gateways in front of it write others."""
    return isinstance(body, dict) and (isinstance(body.get("error"), dict) or _text(body.get("code")) is not None)


def _classify(status: int, message: str, codes: set[str]) -> tuple[type[ProviderError], str]:
    """Return the error class and the hint. Codes decide before the status, which varies by gateway."""
    if status in GATEWAY_FAULTS or status < HTTPStatus.OK or status == HTTPStatus.SEE_OTHER:
        return NoAnswerError, ""
    if codes & _QUOTA_CODES or status == HTTPStatus.PAYMENT_REQUIRED:
        return InsufficientCreditsError, "Top up the account."
    if codes & _SOURCE_TASK_CODES:
        hint = "Check from_task, which must be exactly as the provider returned it. The task may also have expired."
        return RequestRejectedError, hint
    if "model_not_found" in codes or status == HTTPStatus.NOT_FOUND or message.startswith("Invalid URL"):
        return ModelUnavailableError, "Try another gateway. This one no longer serves the route or the model."
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or codes & _UNPROVEN_CODES:
        return ServiceUnavailableError, ""
    return _ERRORS_BY_STATUS.get(status, (RequestRejectedError, ""))
