"""Calls of Ark's asset library, their signature, and how its keys are chosen."""

from __future__ import annotations

import calendar
import time
from typing import TYPE_CHECKING, Any

import pytest

from sora_chars import CharacterRequest, ConfigurationError, Limits, NoAnswerError, SeedanceAssets
from sora_chars.providers.seedance import ARK_LIMITS
from sora_chars.providers.seedance_ark import Ark, ark_signer, read_group, read_groups
from sora_chars.providers.seedance_codec import Call
from sora_chars.responses import Response
from sora_chars.signing import sign_request
from tests.support.asset_account import ACCESS_KEY, IMAGE, SECRET_KEY, VIDEO

if TYPE_CHECKING:
    from pathlib import Path

HOST = "https://ark.ap-southeast-1.byteplusapi.com"
HEADERS = {"Content-Type": "application/json"}
BODY = b'{"Id":"asset-1","ProjectName":"project-x"}'


def at() -> float:
    """Return the time of the contract's vector."""
    return calendar.timegm((2026, 9, 16, 12, 34, 56))


def signed(**changes: Any) -> dict[str, str]:
    """Return the headers of the vector's request, or of one that differs."""
    options: dict[str, Any] = {
        "access_key": "AKIDEXAMPLE",
        "secret_key": "secret-key-value",
        "region": "ap-southeast-1",
        "method": "POST",
        "url": f"{HOST}/?Action=GetAsset&Version=2024-01-01",
        "body": BODY,
        "clock": at,
    } | changes
    sign = ark_signer(options["access_key"], options["secret_key"], options["region"], clock=options["clock"])
    return dict(sign(options["method"], options["url"], HEADERS, options["body"]))


def test_vector() -> None:
    """The signature is the one that was computed from the pages of Ark."""
    assert signed() == {
        "Authorization": "HMAC-SHA256 Credential=AKIDEXAMPLE/20260916/ap-southeast-1/ark/request, "
        "SignedHeaders=content-type;host;x-content-sha256;x-date, "
        "Signature=306556bb6bbd5c0637327f62167dbe6d5fd16cce65a380c85a7e256d9f330ebd",
        "X-Date": "20260916T123456Z",
        "X-Content-Sha256": "fb786b4d0ffea9037643aa59199af0d97a20c50ebd306b3125fb05444ba9b6bd",
    }


@pytest.mark.parametrize(
    "change",
    [
        {"secret_key": "another"},
        {"region": "cn-beijing"},
        {"method": "GET"},
        {"url": f"{HOST}/?Action=DeleteAsset&Version=2024-01-01"},
        {"url": f"{HOST}/x?Action=GetAsset&Version=2024-01-01"},
        {"url": f"{HOST}:8443/?Action=GetAsset&Version=2024-01-01"},
        {"body": BODY + b" "},
        {"clock": lambda: at() + 1},
    ],
)
def test_signature_covers(change: dict[str, Any]) -> None:
    """Every part of a request changes its signature."""
    assert signed(**change)["Authorization"][-64:] != signed()["Authorization"][-64:]


def test_signature_ignores() -> None:
    """The order of the query does not matter, and neither does a default port."""
    for url in (f"{HOST}/?Version=2024-01-01&Action=GetAsset", f"{HOST}:443/?Action=GetAsset&Version=2024-01-01"):
        assert signed(url=url) == signed()


def test_keys_and_signatures_are_secrets() -> None:
    """The access key and the signature are removed from responses and errors, like the secret key."""
    options: dict[str, Any] = {"headers": {}, "json": {}, "params": {"Action": "GetAsset"}}
    secrets = sign_request(ark_signer(ACCESS_KEY, SECRET_KEY, "cn-beijing"), "POST", HOST, options)
    assert ACCESS_KEY in secrets
    assert options["headers"]["Authorization"][-64:] in secrets


def test_calls() -> None:
    """Each action is a POST to one path, in the project if there is one; what was not given is left out."""

    def call(action: str, **body: object) -> Call:
        return Call("POST", "/", {"params": {"Action": action, "Version": "2024-01-01"}, "json": body})

    ark = Ark("project-x")
    project = {"ProjectName": "project-x"}
    made = ark.create(url=VIDEO, asset_type="Video", name="Rex_1", group_id="group-1")
    assert made == call("CreateAsset", GroupId="group-1", URL=VIDEO, AssetType="Video", Name="Rex_1", **project)
    assert ark.fetch("asset-1") == call("GetAsset", Id="asset-1", **project)
    assert ark.delete("asset-1") == call("DeleteAsset", Id="asset-1", **project)
    page = {"PageNumber": 2, "PageSize": 100}
    assert Ark().list(2, name="", group_id=None) == call("ListAssets", Filter={}, **page)
    found = {"Name": "_1", "GroupIds": ["group-1"]}
    assert Ark().list(2, name="_1", group_id="group-1") == call("ListAssets", Filter=found, **page)
    made = Ark().create_group("Rex", "")
    assert made == call("CreateAssetGroup", Name="Rex", GroupType="AIGC")
    made = Ark().create_group("Rex", "A dog")
    assert made == call("CreateAssetGroup", Name="Rex", Description="A dog", GroupType="AIGC")


def test_groups() -> None:
    """A group counts only by its whole name."""
    items = [{"Id": "group-1", "Name": "sora-chars-2"}, 5, {"Id": "group-2", "Name": "sora-chars"}]
    assert read_groups(Response(200, {}, b'{"Result": {"Items": %s}}' % str(items).replace("'", '"').encode())) == (
        "group-2"
    )
    assert read_groups(Response(200, {}, b'{"Result": {"Items": null}}')) is None
    assert read_group(Response(200, {}, b'{"Result": {"Id": "group-3"}}')) == "group-3"
    with pytest.raises(NoAnswerError, match="no group id"):
        read_group(Response(200, {}, b'{"Result": {"Id": ""}}'))


ARK_KEYS = {"ARK_ACCESS_KEY": "ak", "ARK_SECRET_KEY": "sk"}


@pytest.mark.parametrize(
    ("options", "environment", "host"),
    [
        ({"access_key": "ak", "secret_key": "sk"}, {}, "ark.ap-southeast-1.byteplusapi.com"),
        ({"access_key": "ak", "secret_key": "sk", "region": "cn-beijing"}, {}, "ark.cn-beijing.volcengineapi.com"),
        ({"ark": True}, ARK_KEYS | {"ICOVER_API_KEY": "key"}, "ark.ap-southeast-1.byteplusapi.com"),
        ({}, ARK_KEYS | {"ARK_REGION": "cn-beijing"}, "ark.cn-beijing.volcengineapi.com"),
        ({}, ARK_KEYS | {"ICOVER_API_KEY": "key"}, "icover.ai"),
        ({"ark": False}, ARK_KEYS | {"ICOVER_API_KEY": "key"}, "icover.ai"),
        ({"api_key": "key"}, ARK_KEYS, "icover.ai"),
        ({"access_key": "ak"}, ARK_KEYS, "ark.ap-southeast-1.byteplusapi.com"),
        ({}, ARK_KEYS | {"SEEDANCE_BASE_URL": "https://proxy.example"}, "proxy.example"),
    ],
)
def test_choice(
    options: dict[str, Any], environment: dict[str, str], host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ark is used if its keys were passed, or are the only ones in the environment, or if the option says so."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert f"base_url='https://{host}'" in repr(SeedanceAssets(**options))


@pytest.mark.parametrize(
    ("options", "environment", "text"),
    [
        ({"ark": True}, {}, "needs an access key. Set ARK_ACCESS_KEY, or pass access_key="),
        ({"access_key": "ak"}, {}, "needs a secret key. Set ARK_SECRET_KEY, or pass secret_key="),
        ({"secret_key": "sk"}, {}, "Set ARK_ACCESS_KEY"),
        ({"access_key": 5, "secret_key": "sk"}, {}, "access_key must be text"),
        ({"api_key": "k", "access_key": "ak"}, {}, "Pass the keys of one"),
        ({"api_key": "k", "ark": True}, {}, "api_key must be omitted"),
        ({"secret_key": "sk", "ark": False}, {}, "access_key and secret_key must be omitted"),
        ({"ark": False}, ARK_KEYS, "Set ICOVER_API_KEY"),
        ({"ark": True, "region": "eu"}, ARK_KEYS, "must be cn-beijing or ap-southeast-1, got 'eu'"),
        ({}, ARK_KEYS | {"ARK_REGION": "eu"}, "ARK_REGION"),
        ({"ark": True, "region": ["x"]}, ARK_KEYS, "region"),
        ({"ark": True, "base_url": "ark"}, ARK_KEYS, "base_url"),
    ],
)
def test_rejects_invalid_options(
    options: dict[str, Any], environment: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing key and options that exclude each other are errors before anything is sent."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=text):
        SeedanceAssets(**options)


def test_limits() -> None:
    """Ark's documented limits are the default there, and can be switched off; icover publishes none."""
    keys: dict[str, Any] = {"access_key": "ak", "secret_key": "sk"}
    found = [
        SeedanceAssets(**keys)._transport.limits,
        SeedanceAssets(**keys, limits=Limits())._transport.limits,
        SeedanceAssets("key")._transport.limits,
    ]
    assert found == [ARK_LIMITS, Limits(), Limits()]


def test_local_files_need_hosting(tmp_path: Path) -> None:
    """Ark takes URLs only, for images too; with hosting, local files are checked."""

    async def host(path: Path) -> str:
        return f"https://files.example/{path.name}"

    keys: dict[str, Any] = {"access_key": "ak", "secret_key": "sk"}
    request = CharacterRequest(images=[tmp_path / "none.png"])
    (problem,) = SeedanceAssets(**keys).check(request)
    assert problem.endswith("host the file, or pass hosting=")
    (problem,) = SeedanceAssets(**keys, hosting=host).check(request)
    assert problem.startswith("images[0] must be an http(s) URL or an existing file")
    assert not SeedanceAssets(**keys).check(CharacterRequest(images=[IMAGE]))


def test_repr_hides_keys() -> None:
    """No key stands in the repr."""
    provider = SeedanceAssets(access_key="AK-SECRET-1", secret_key="SK-SECRET-2")
    assert "SECRET" not in repr(provider) + repr(provider._transport)


def test_signs_with_the_present_time() -> None:
    """Each request is signed anew, with the time at which it is sent."""
    sign = ark_signer("ak", "sk", "cn-beijing")
    date = sign("POST", HOST, HEADERS, b"{}")["X-Date"]
    assert abs(calendar.timegm(time.strptime(date, "%Y%m%dT%H%M%SZ")) - time.time()) < 5
