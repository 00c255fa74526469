from __future__ import annotations

import os
import stat
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from sora_chars.models import Character
from sora_chars.session.pictures import _file_name, _RejectedError, _why, _write, is_public

if TYPE_CHECKING:
    from pathlib import Path

PNG = b"\x89PNG\r\n\x1a\n rest"


def name(character_id: str, data: bytes = PNG, *, provider: str = "kie") -> str:
    """The file name of a character."""
    return _file_name(Character(id=character_id, provider=provider), data)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses(address: str) -> None:
    """An address on the open internet is public, also when IPv6 wraps it."""
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
def test_addresses_that_are_not_public(address: str) -> None:
    """Loopback, private, shared, link-local, multicast, reserved and tunnelled addresses are not public."""
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
def test_the_first_bytes_tell_the_type(data: bytes, suffix: str) -> None:
    """The extension follows the first bytes."""
    assert name("cameo_1", data).endswith(suffix)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x89PNG", b"<html>", b"<svg xmlns=", b"\x1f\x8b\x08", b" " + PNG, b"RIFF\n\0\0\0WAVE", b"GIF88a", b"MZ"],
)
def test_other_types_are_refused(data: bytes) -> None:
    """What does not begin as one of the four is no picture."""
    with pytest.raises(_RejectedError, match="neither"):
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
def test_any_id_makes_a_harmless_name(character_id: str, start: str) -> None:
    """A name holds no separator, no dot but the extension's, no control character, and is short."""
    made = name(character_id)
    assert made.startswith(start)
    assert len(made) == len(start) + 16 + len(".png")
    assert made.removesuffix(".png").replace("-", "").replace("_", "").isalnum()
    assert made.isascii()


def test_two_ids_never_share_a_name() -> None:
    """Ids that look alike once harmless, and one id at two providers, have names of their own, always the same."""
    names = [name("a/b"), name("a\\b"), name("a_b"), name("a_b", provider="kkiai"), name("x" * 65), name("x" * 66)]
    assert len(set(names)) == len(names)
    assert name("a/b") == names[0]


def test_a_file_is_private_and_replaced_whole(tmp_path: Path) -> None:
    """Folder and file are the owner's alone, whatever the umask, and a second write takes the place of the first."""
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


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """When the file cannot take its place, the temporary one goes."""
    (tmp_path / "x.png").mkdir()
    with pytest.raises(OSError, match=r"x\.png"):
        _write(tmp_path / "x.png", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (_RejectedError("not https"), "not https"),
        (PermissionError(13, "Permission denied", "/secret/path"), "Permission denied"),
        (ValueError("https://host/?signature=SECRET"), "ValueError"),
        (OSError("https://host/?signature=SECRET"), "OSError"),
    ],
)
def test_reasons_hold_no_link(error: Exception, why: str) -> None:
    """Only our own words and the system's are told."""
    assert _why(error) == why
