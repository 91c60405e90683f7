"""Random words: a fresh key for every call, another stream after a fork, and never in the open."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from wardround.core.errors import InternalError
from wardround.core.packed import Array
from wardround.core.seeds import Purpose
from wardround.privacy.noise import source
from wardround.privacy.noise.source import RandomSource, RepeatableSource, SystemSource

FIRST_WORDS = [9631801735750521060, 13643070172643216833]
_FORKS = """
import os
from wardround.privacy.noise.source import SystemSource

secret = SystemSource("noise")
secret.words(3)
drawn = []
for _ in range(2):
    inside, outside = os.pipe()
    child = os.fork()
    if child == 0:
        # A grandchild as well, from a source that the child has not yet used.
        inner, outer = os.pipe()
        grandchild = os.fork()
        if grandchild == 0:
            os.write(outer, secret.words(4).tobytes())
            os._exit(0)
        os.waitpid(grandchild, 0)
        os.write(outside, os.read(inner, 32) + secret.words(4).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    found = os.read(inside, 64)
    assert len(found) == 64
    drawn += [found[:32], found[32:], secret.words(4).tobytes()]
print(len({word[start : start + 8] for word in drawn for start in range(0, 32, 8)}))
"""


def test_a_fork_never_repeats_a_word() -> None:
    """Two children, their children and the parent between them: 24 words, all different."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FORKS],
        check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "24"


@pytest.mark.parametrize("count", [0, 1, 1000, source._CHUNK // 8, 3 * source._CHUNK // 8 + 5])
def test_words_are_a_keystream_of_aes_256(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a slow twin: the whole stream at once, in CTR mode from zero."""
    asked: list[int] = []

    def urandom(size: int) -> bytes:
        asked.append(size)
        return bytes(range(len(asked), len(asked) + size))

    monkeypatch.setattr(source.os, "urandom", urandom)
    secret = SystemSource("noise")
    for call in (1, 2):
        words = secret.words(count)
        key = bytes(range(call, call + 32))
        stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(8 * count))
        assert words.dtype == np.uint64
        assert words.tobytes() == stream
    assert asked == [32, 32]


def test_no_words_come_twice() -> None:
    """From two sources of one purpose, and in two calls: 40,000 words are all different."""
    first, second = SystemSource("noise"), SystemSource("noise")
    drawn = np.concatenate([s.words(10_000) for s in (first, second, first, second)])
    assert np.unique(drawn).size == drawn.size


def test_threads_may_share_a_source() -> None:
    """Each call has a stream of its own."""
    secret, drawn = SystemSource("noise"), list[Array]()
    threads = [threading.Thread(target=lambda: drawn.append(secret.words(50_000))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.unique(np.concatenate(drawn)).size == 200_000


def test_a_secret_source_holds_no_secret() -> None:
    """Its repr is its purpose; there is no state to leak, to pickle or to copy."""
    secret = SystemSource("noise of round 3")
    before = repr(secret)
    secret.words(10)
    assert repr(secret) == before == "SystemSource('noise of round 3')"
    assert not secret.repeatable
    assert not hasattr(secret, "__dict__")
    for way in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="neither pickled nor copied"):
            way(secret)


def place(
    *, root: int = 5, purpose: Purpose = Purpose.NOISE, round: int = 2, site: str = "mercy"
) -> RepeatableSource:
    """One place of the seed tree."""
    return RepeatableSource(root, purpose, round=round, site=site)


def test_a_repeatable_source_repeats_itself() -> None:
    """Equal places, equal words, in one call or in many."""
    whole = place().words(1000)
    again = place()
    assert np.array_equal(np.concatenate([again.words(n) for n in (0, 1, 99, 900)]), whole)
    assert place().repeatable
    assert repr(place()) == "RepeatableSource(noise, round 2, site 'mercy'; not private)"


def test_repeatable_words_are_the_same_on_every_machine() -> None:
    """The first two, written down."""
    assert place().words(2).tolist() == FIRST_WORDS


def test_no_two_places_share_words() -> None:
    """Root, purpose, round and site all count."""
    places = [place(), place(root=6), place(purpose=Purpose.BATCH), place(round=3), place(site="grace")]
    drawn = np.concatenate([other.words(1000) for other in places])
    assert np.unique(drawn).size == drawn.size


@pytest.mark.parametrize("some", [SystemSource("noise"), place()], ids=["system", "repeatable"])
def test_nobody_draws_fewer_than_no_words(some: RandomSource) -> None:
    """A negative count is a fault of ours; none is none."""
    with pytest.raises(InternalError, match="no such number of random words"):
        some.words(-1)
    assert some.words(0).size == 0
