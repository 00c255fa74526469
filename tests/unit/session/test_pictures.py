"""Saved pictures: allowed addresses, file types, file names and file modes."""

from __future__ import annotations

import os
import stat
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from sora_chars import downloads
from sora_chars.downloads import RejectedLinkError, is_public
from sora_chars.models import Character
from sora_chars.session.pictures import _file_name, _write

if TYPE_CHECKING:
    from pathlib import Path

PNG = b"\x89PNG\r\n\x1a\n rest"


def name(character_id: str, data: bytes = PNG, *, provider: str = "kie") -> str:
    """Return the file name of a character."""
    return _file_name(Character(id=character_id, provider=provider), data)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses(address: str) -> None:
    """An address on the public internet is public, also as an IPv4-mapped IPv6 address."""
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.0.1", "100.64.0.1"),
        *("169.254.169.254", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1"),
        *(
            "::",
            "::1",
            "::1%lo",
            "fe80::1",
            "fe80::1%eth0",
            "fc00::1",
            "fd00:ec2::254",
            "fec0::1",
            "ff02::1",
            "ff0e::1",
        ),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:224.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1"),
        *("2002:7f00:1::", "2001::1", "2001:db8::1"),
    ],
)
def test_non_public_addresses(address: str) -> None:
    """Private, link-local, multicast, reserved, tunnelled and similar addresses are not public."""
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    ("data", "suffix"),
    [
        (PNG, ".png"),
        (b"\xff\xd8\xff\xe0 JFIF", ".jpg"),
        (b"RIFF\n\0\0\0WEBPVP8 ", ".webp"),
        (b"GIF87a.", ".gif"),
        (b"GIF89a.", ".gif"),
    ],
)
def test_extension_follows_the_first_bytes(data: bytes, suffix: str) -> None:
    """The first bytes of a picture decide its extension."""
    assert name("cameo_1", data).endswith(suffix)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x89PNG", b"<html>", b"<svg xmlns=", b"\x1f\x8b\x08", b" " + PNG, b"RIFF\n\0\0\0WAVE", b"GIF88a", b"MZ"],
)
def test_rejects_other_types(data: bytes) -> None:
    """Data that starts like none of the four types is rejected."""
    with pytest.raises(RejectedLinkError, match="neither"):
        name("cameo_1", data)


@pytest.mark.parametrize(
    ("character_id", "start"),
    [
        ("cameo_69-B", "cameo_69-B-"),
        ("../../etc/x", "______etc_x-"),
        ("a\0b\\c:d\ne", "a_b_c_d_e-"),
        ("ünï\ud800", "_n__-"),
        ("..", "__-"),
        ("", "-"),
        ("x" * 100_000, "x" * 64 + "-"),
    ],
)
def test_file_names_are_safe(character_id: str, start: str) -> None:
    """A file name contains no separator, no control character and one dot, and is short."""
    file_name = name(character_id)
    assert file_name.startswith(start)
    assert len(file_name) == len(start) + 16 + len(".png")
    assert file_name.removesuffix(".png").replace("-", "").replace("_", "").isalnum()
    assert file_name.isascii()


def test_file_names_are_unique() -> None:
    """Similar ids, and one id at two providers, have different names, always the same."""
    names = [name("a/b"), name("a\\b"), name("a_b"), name("a_b", provider="kkiai"), name("x" * 65), name("x" * 66)]
    assert len(set(names)) == len(names)
    assert name("a/b") == names[0]


def test_files_are_private_and_replaced(tmp_path: Path) -> None:
    """Only the owner has access, whatever the umask, and a second write replaces the file."""
    path = tmp_path / "deep/pictures/x.png"
    before = os.umask(0)
    try:
        assert _write(path, b"first") == path
        assert _write(path, b"second") == path
    finally:
        os.umask(before)
    assert path.read_bytes() == b"second"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_failed_write_leaves_no_file(tmp_path: Path) -> None:
    """If the file cannot be replaced, the temporary file is removed."""
    (tmp_path / "x.png").mkdir()
    with pytest.raises(OSError, match=r"x\.png"):
        _write(tmp_path / "x.png", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RejectedLinkError("not https"), "not https"),
        (PermissionError(13, "Permission denied", "/secret/path"), "Permission denied"),
        (ValueError("https://host/?signature=SECRET"), "ValueError"),
        (OSError("https://host/?signature=SECRET"), "OSError"),
    ],
)
def test_reasons_contain_no_link(error: Exception, reason: str) -> None:
    """A logged reason is the package's own text or the operating system's."""
    assert downloads.reason(error) == reason
