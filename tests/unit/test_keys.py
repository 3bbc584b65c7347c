import pytest

from agentprm.keys import Keys, Scope, is_loopback, own_key, sent_key
from agentprm.settings import ServiceSettings

A, B, C = "a" * 16, "b" * 40, "c-._~+/=c-._~+/="


def keys(text: str) -> Keys:
    return Keys.from_environment({"AGENTPRM_API_KEYS": text})


def test_several_keys_a_scope() -> None:
    found = keys(f" read:{A}, admin:{B}\nread:{C},")
    assert [found.scope_of(k) for k in (A, B, C)] == [Scope.READ, Scope.ADMIN, Scope.READ]
    for other in ("", A[:-1], A + "a", A.upper(), f"read:{A}", "é"):
        assert found.scope_of(other) is None


def test_no_keys_is_false() -> None:
    assert not Keys.from_environment({})
    assert not keys(" ")
    assert keys(f"read:{A}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (A, "entry 1 is neither"),
        (f"read:{A},root:{B}", "entry 2 is neither"),
        (f"read:{A[1:]}", "entry 1: a key has 16"),
        (f"read:{A}!", "entry 1: a key has 16"),
        ("admin:", "entry 1: a key has 16"),
        (f"read:{A},admin:{A}", "entry 2: this key was given before"),
    ],
)
def test_malformed_keys_are_refused_without_repeating_them(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        keys(text)
    assert A[1:] not in str(refused.value)


def test_services_call_one_another_with_their_most_able_key() -> None:
    given = {"AGENTPRM_API_KEYS": f"read:{A},admin:{B}"}
    assert own_key(given) == {"AGENTPRM_API_KEY": B}
    assert own_key({"AGENTPRM_API_KEYS": f"read:{A}"}) == {"AGENTPRM_API_KEY": A}
    assert own_key(given | {"AGENTPRM_API_KEY": C}) == {}
    assert own_key({}) == {}


def test_the_key_to_send_is_a_secret() -> None:
    assert sent_key({}) is None
    assert B not in repr(sent_key({"AGENTPRM_API_KEY": B}))
    with pytest.raises(ValueError, match="AGENTPRM_API_KEY") as refused:
        sent_key({"AGENTPRM_API_KEY": "two words, 16 long"})
    assert "two words" not in str(refused.value)


def test_where_keys_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        assert is_loopback(host)
        ServiceSettings(host=host, port=1)
    for host in ("0.0.0.0", "::", "192.168.1.1", "example.org", ""):
        assert not is_loopback(host)
        with pytest.raises(ValueError, match="keys are needed"):
            ServiceSettings(host=host, port=1)
        ServiceSettings(host=host, port=1, no_auth=True)
    monkeypatch.setenv("AGENTPRM_API_KEYS", f"read:{A}")
    ServiceSettings(host="0.0.0.0", port=1)
    with pytest.raises(ValueError, match="unset one"):
        ServiceSettings(host="127.0.0.1", port=1, no_auth=True)
