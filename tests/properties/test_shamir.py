"""Secret sharing: any t shares give the secret, wrong ones are corrected and named up to the bound."""

from __future__ import annotations

import itertools
import pickle
import secrets

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround.core.errors import InternalError, PeerError
from wardround.privacy.secagg.secret import Secret
from wardround.privacy.secagg.shamir import PRIME, SHARE_BYTES, combine, repair, split, weights_at_zero


def is_prime(number: int) -> bool:
    """Miller–Rabin with forty bases."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for _ in range(40):
        x = pow(secrets.randbelow(number - 3) + 2, odd, number)
        if x in (1, number - 1):
            continue
        if not any((x := x * x % number) == number - 1 for _ in range(twos - 1)):
            return False
    return True


def test_the_modulus_is_prime() -> None:
    """2^256 + 297, and the smallest above 2^256 (which every secret has to be below)."""
    assert is_prime(PRIME)
    assert not any(is_prime(2**256 + offset) for offset in range(1, 297, 2))


def test_every_set_of_t_shares_gives_the_secret() -> None:
    """All of them, for the secrets at both ends as well."""
    for value in (bytes(32), bytes([255]) * 32, secrets.token_bytes(32)):
        shares = split(Secret(value), 3, [1, 2, 5, 9])
        for chosen in itertools.permutations(range(4), 3):
            weights = weights_at_zero([[1, 2, 5, 9][index] for index in chosen])
            assert combine(weights, [shares[index] for index in chosen]) == Secret(value)


def test_fewer_shares_fit_every_secret() -> None:
    """With t − 1 shares and any guess of the secret there is a polynomial: f(0) of t points is onto."""
    shares = split(Secret.fresh(), 3, [1, 2, 3])
    guess = secrets.token_bytes(32)
    weights = weights_at_zero([1, 2, 3])
    known = sum(w * int.from_bytes(s.reveal(), "big") for w, s in zip(weights[:2], shares[:2], strict=True))
    third = (int.from_bytes(guess, "big") - known) * pow(weights[2], -1, PRIME) % PRIME
    fitting = [*shares[:2], Secret(third.to_bytes(SHARE_BYTES, "big"))]
    assert combine(weights, fitting) == Secret(guess)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_wrong_shares_are_corrected_and_named(data: st.DataObject) -> None:
    """As many as the bound allows, at any place."""
    count = data.draw(st.integers(1, 12))
    threshold = data.draw(st.integers(1, count))
    places = sorted(data.draw(st.sets(st.integers(1, 40), min_size=count, max_size=count)))
    secret = Secret.fresh()
    shares = dict(zip(places, split(secret, threshold, places), strict=True))
    most = (count - threshold) // 2
    liars = data.draw(st.sets(st.sampled_from(places), max_size=most))
    for place in liars:
        original = int.from_bytes(shares[place].reveal(), "big")
        shares[place] = Secret(
            ((original + data.draw(st.integers(1, PRIME - 1))) % PRIME).to_bytes(33, "big")
        )
    found, wrong = repair(shares, threshold)
    assert found == secret
    assert wrong == sorted(liars)


def test_too_many_wrong_shares_are_refused_and_never_another_secret() -> None:
    """Random shares of seven holders at t = 3: beyond two liars the decoder says so."""
    for _ in range(50):
        shares = dict(enumerate(split(Secret.fresh(), 3, range(1, 8)), start=1))
        for place in (1, 4, 6):
            shares[place] = Secret(secrets.randbelow(PRIME).to_bytes(33, "big"))
        with pytest.raises(PeerError, match="too many shares are wrong"):
            repair(shares, 3)


def test_a_malformed_share_is_refused_by_its_size_and_range() -> None:
    """Short, long, not below the prime."""
    shares = dict(enumerate(split(Secret.fresh(), 2, [1, 2, 3]), start=1))
    for bad in (bytes(32), bytes(34), PRIME.to_bytes(33, "big")):
        with pytest.raises(PeerError, match="malformed"):
            repair({**shares, 2: Secret(bad)}, 2)


@pytest.mark.parametrize(("threshold", "places"), [(0, [1]), (3, [1, 2]), (2, [1, 1, 2]), (1, [0, 1])])
def test_impossible_sharings_are_refused(threshold: int, places: list[int]) -> None:
    """The place 0 would hand out the secret itself."""
    with pytest.raises(InternalError):
        split(Secret.fresh(), threshold, places)


def test_a_secret_does_not_show() -> None:
    """Neither printed nor pickled, nor a key of a table."""
    secret = Secret(b"patient's key, 32 bytes long, ok")
    for text in (repr(secret), str(secret), f"{secret}", f"{secret!r}", str([secret])):
        assert "patient" not in text
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        hash(secret)
    assert secret != b"patient's key, 32 bytes long, ok"
