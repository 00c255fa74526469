"""With which keys, and at which address, the asset library is used: by icover or by Ark."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import attrs

from sora_chars.errors import ConfigurationError, printable

from .base import resolve_key, resolve_url
from .seedance_ark import HOSTS, INTERNATIONAL, ark_signer
from .seedance_icover import HOST, bearer

if TYPE_CHECKING:
    from sora_chars.signing import Sign

_URL_VARIABLE = "SEEDANCE_BASE_URL"


@attrs.frozen
class Access:
    """Where requests go, and what authenticates them."""

    base_url: str
    secret: str = attrs.field(repr=False)
    sign: Sign = attrs.field(repr=False)


def uses_ark(api_key: str | None, access_key: str | None, secret_key: str | None, ark: bool | None) -> bool:  # noqa: FBT001 # an option of the caller
    """Return whether Ark itself is used: by the option, by the keys that were passed, or by the environment.

    Raises:
        ConfigurationError: Keys of both were passed, or those of the other one.
    """
    pair = access_key is not None or secret_key is not None
    if pair and api_key is not None:
        raise ConfigurationError("api_key is icover's, and access_key and secret_key are Ark's. Pass the keys of one.")
    if ark is False and pair:
        raise ConfigurationError("ark=False uses icover, so access_key and secret_key must be omitted.")
    if ark and api_key is not None:
        raise ConfigurationError("ark=True uses Ark, so api_key must be omitted. Pass access_key and secret_key.")
    if ark is not None:
        return ark
    in_environment = bool(os.environ.get("ARK_ACCESS_KEY")) and not os.environ.get("ICOVER_API_KEY")
    return pair or (api_key is None and in_environment)


def icover_access(api_key: str | None, base_url: str | None, *, provider: str) -> Access:
    """Return the access by icover.

    Raises:
        ConfigurationError: The key is missing, or the base URL is invalid.
    """
    key = resolve_key(api_key, variable="ICOVER_API_KEY", provider=provider)
    address = resolve_url(base_url, variable=_URL_VARIABLE, default=HOST).removesuffix("/api")
    return Access(address, key, bearer(address, key))


def ark_access(
    access_key: str | None, secret_key: str | None, region: str | None, base_url: str | None, *, provider: str
) -> Access:
    """Return the access to Ark.

    Raises:
        ConfigurationError: A key is missing, or the region or the base URL is invalid.
    """
    access = resolve_key(access_key, variable="ARK_ACCESS_KEY", provider=provider, option="access_key")
    secret = resolve_key(secret_key, variable="ARK_SECRET_KEY", provider=provider, option="secret_key")
    given: object = os.environ.get("ARK_REGION") or INTERNATIONAL if region is None else region
    if not isinstance(given, str) or given not in HOSTS:
        shown = printable(repr(given), limit=60)
        raise ConfigurationError(f"region (or ARK_REGION) must be {' or '.join(HOSTS)}, got {shown}.")
    address = resolve_url(base_url, variable=_URL_VARIABLE, default=HOSTS[given])
    return Access(address, secret, ark_signer(access, secret, given))
