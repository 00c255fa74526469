from __future__ import annotations

import pytest

from sora_chars.tokens import CallbackTokens


@pytest.fixture
def tokens() -> CallbackTokens:
    """Make the tokens of one session, which remembers two that were retired."""
    return CallbackTokens(most_retired=2)


def test_tokens_cannot_be_guessed(tokens: CallbackTokens) -> None:
    """Tokens are long, made of letters that need no escaping in a URL, and never the same."""
    minted = {tokens.mint("kie") for _ in range(100)}
    assert len(minted) == 100
    assert all(len(token) == 32 and token.replace("-", "").replace("_", "").isalnum() for token in minted)


def test_no_token_shows(tokens: CallbackTokens) -> None:
    """The repr shows no token, and none is kept in clear."""
    token = tokens.mint("kie")
    assert token not in repr(tokens)
    assert token not in str(tokens._owners)


def test_a_token_belongs_to_its_task_only(tokens: CallbackTokens) -> None:
    """Once createTask has answered, a callback with the token and another task's id is nobody's."""
    token = tokens.mint("kie")
    assert tokens.bind(token, "t-1") is False
    owner = tokens.claim(token, "t-1")
    assert owner is not None
    assert (owner.provider, owner.task_id) == ("kie", "t-1")
    assert tokens.claim(token, "t-2") is None


@pytest.mark.parametrize("token", ["", "unknown", "ü\ud800"])
def test_an_unknown_token_is_nobodys(tokens: CallbackTokens, token: str) -> None:
    """Whatever was not minted here belongs to nobody, whatever characters it has."""
    tokens.mint("kie")
    assert tokens.claim(token, "t-1") is None
    assert tokens.owner(token) is None


def test_a_callback_may_come_before_the_answer(tokens: CallbackTokens) -> None:
    """Binding tells that the callback of this id has come already, and only of this one."""
    early, other = tokens.mint("kie"), tokens.mint("kie")
    assert tokens.claim(early, "t-1") is not None
    assert tokens.claim(other, "forged") is not None
    assert tokens.bind(early, "t-1") is True
    assert tokens.bind(other, "t-2") is False


def test_early_claims_are_bounded(tokens: CallbackTokens) -> None:
    """A sender that knows a token cannot fill the memory with claims."""
    token = tokens.mint("kie")
    for number in range(100):
        assert tokens.claim(token, f"t-{number}") is not None
    owner = tokens.owner(token)
    assert owner is not None
    assert owner.claims == {f"t-{number}" for number in range(8)}


def test_late_duplicates_are_known_for_a_while(tokens: CallbackTokens) -> None:
    """A retired token is still known, until newer retired ones have pushed it out."""
    minted = [tokens.mint("kie") for _ in range(4)]
    for number, token in enumerate(minted[:3]):
        tokens.bind(token, f"t-{number}")
        tokens.retire(token)
    assert [tokens.owner(token) is not None for token in minted] == [False, True, True, True]
    assert tokens.claim(minted[1], "t-1") is not None
    assert tokens.claim(minted[1], "t-2") is None


def test_retiring_twice_changes_nothing(tokens: CallbackTokens) -> None:
    """A token that was retired already, or never was one, can be retired again."""
    token = tokens.mint("kie")
    tokens.bind(token, "t-1")
    tokens.retire(token)
    tokens.retire(token)
    tokens.retire("unknown")
    assert tokens.claim(token, "t-1") is not None
    assert len(tokens._retired) == 1
