"""The peers of secure_aggregation.py: Flower's SecAgg+ and TenSEAL's CKKS, on the same vectors.

Flower: the functions of `secaggplus_mod` for the measured clients, and the server's part as
`SecAggPlusWorkflow` has it, over the complete graph. Its message objects and their encoding are left out,
which is to its advantage. The other clients are played as in `_secure_extras.py`: real keys, shares of the
one secret that the server will ask for, and no masks that cancel.

CKKS: a client encrypts 4,096 coordinates a ciphertext (parameters of NVFlare), the server adds, a client
decrypts. Its client does not depend on the number of sites; its server is linear in it, and measured by site.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from _secure_case import MOST_WEIGHT, Case, Clock, Times, middle, peak_bytes, repeated
from flwr.app import ConfigRecord
from flwr.client.mod.secure_aggregation.secaggplus_mod import (
    SecAggPlusState,
    _collect_masked_vectors,
    _setup,
    _share_keys,
    _unmask,
)
from flwr.common import bytes_to_ndarray, ndarray_to_bytes, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, encrypt, generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_combine,
    factor_extract,
    get_parameters_shape,
    parameters_addition,
    parameters_mod,
    parameters_multiply,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize, quantize
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import (
    pseudo_rand_gen,
    share_keys_plaintext_concat,
    share_keys_plaintext_separate,
)
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key

from wardround.core.packed import Array

TARGET_RANGE, MOD_RANGE = 1 << 22, 1 << 32
"""Flower's defaults."""
SLOTS, MODULI, SCALE = 4096, [60, 40, 40], 2.0**40
ADDED = 3
"""Vectors that the CKKS server adds under the clock."""
Arrays = list[Array]


class Federation:
    """Flower's clients 1, 2, … and its server, taken through one round."""

    def __init__(self, case: Case, measured: int) -> None:
        self.case = case
        nids = range(1, case.sites + 1)
        self.alive, self.dead = nids[: case.sites - case.lost_sites], nids[case.sites - case.lost_sites :]
        self.clocks = {nid: Clock() for nid in nids[:measured]}
        self.states = {nid: SecAggPlusState(nid=nid) for nid in nids}
        self.sent: dict[tuple[int, int], bytes] = {}
        self.shares: dict[int, list[bytes]] = {}
        self.server = Clock()
        self.up = self.down = self.vector_bytes = 0
        self.plain: Arrays = [np.zeros(1, dtype=np.int64), np.zeros(case.parameters, dtype=np.int64)]

    def asked(self, nid: int, phase: str, config: Mapping[str, Any], step: Any, *rest: Any) -> dict[str, Any]:
        """One exchange with a client; the first one's bytes are counted."""
        with self.clocks.get(nid, Clock()).lap(phase):
            answer: dict[str, Any] = step(self.states[nid], config, *rest)
        if nid == 1:
            self.down += _size(config)
            self.up += _size(answer)
        return answer

    def to_deliveries(self) -> None:
        """Keys, and shares of secrets."""
        case = self.case
        terms = {
            Key.SAMPLE_NUMBER: case.sites, Key.SHARE_NUMBER: case.sites, Key.THRESHOLD: case.threshold,
            Key.CLIPPING_RANGE: case.largest, Key.TARGET_RANGE: TARGET_RANGE, Key.MOD_RANGE: MOD_RANGE,
            Key.MAX_WEIGHT: float(MOST_WEIGHT),
        }  # fmt: skip
        for nid in self.states:
            self.asked(nid, "setup", terms, _setup)
        keys = {str(nid): [state.pk1, state.pk2] for nid, state in self.states.items()}
        for nid, state in self.states.items():
            if nid in self.clocks:
                said = self.asked(nid, "share keys", keys, _share_keys)
                boxes = zip(said[Key.DESTINATION_LIST], said[Key.CIPHERTEXT_LIST], strict=True)
                self.sent |= {(nid, to): box for to, box in boxes}
                continue
            state.rd_seed = os.urandom(32)
            secret, other = (state.rd_seed, state.sk1)[:: 1 if nid in self.alive else -1]
            self.shares[nid] = create_shares(secret, case.threshold, case.sites)
            unread = bytes(4 + 16 * (len(other) // 16 + 1))
            for to in self.clocks:
                pair = (self.shares[nid][to - 1], unread)[:: 1 if nid in self.alive else -1]
                plaintext = share_keys_plaintext_concat(nid, to, *pair)
                self.sent[nid, to] = encrypt(_agreed(state.sk2, self.states[to].pk2), plaintext)

    def masked(self, nid: int, vector: Any, weight: int) -> list[bytes]:
        """A measured client's masked vector."""
        sources = [source for source in self.states if source != nid]
        received = [self.sent[source, nid] for source in sources]
        boxes = {Key.CIPHERTEXT_LIST: received, Key.SOURCE_LIST: sources}
        said = self.asked(nid, "mask", boxes, _collect_masked_vectors, weight, vector)
        found: list[bytes] = said[Key.MASKED_PARAMETERS]
        return found

    def to_answers(self) -> dict[int, list[bytes]]:
        """Masked vectors, added as they come; the shares of every client's secret."""
        rng, total = np.random.default_rng(0), None
        for nid in self.alive:
            if nid in self.clocks:
                vector, weight = self.case.vector(nid - 1), self.case.weight(nid - 1)
                np.random.seed(nid)  # noqa: NPY002  # what their stochastic rounding draws from
                said = self.masked(nid, ndarrays_to_parameters([vector]), weight)
                self.vector_bytes = len(said[1])
                plain = self._quantised(nid, vector, weight)
            else:
                whole = rng.integers(0, TARGET_RANGE, size=self.case.parameters, dtype=np.int32)
                plain = factor_combine(TARGET_RANGE // MOST_WEIGHT, [whole])
                said = self._extra(nid, plain)
            self.plain = parameters_addition(self.plain, plain)
            with self.server.lap("add"):
                theirs = [bytes_to_ndarray(part) for part in said]
                total = theirs if total is None else parameters_addition(total, theirs)
        assert total is not None
        with self.server.lap("add"):
            self.total: Arrays = parameters_mod(total, MOD_RANGE)
        asked = {Key.ACTIVE_NODE_ID_LIST: list(self.alive), Key.DEAD_NODE_ID_LIST: list(self.dead)}
        collected: dict[int, list[bytes]] = {nid: [] for nid in self.states}
        for holder in self.alive:
            if holder in self.clocks:
                said_shares = self.asked(holder, "unmask", asked, _unmask)
                found = zip(said_shares[Key.NODE_ID_LIST], said_shares[Key.SHARE_LIST], strict=True)
            else:
                found = zip(self.states, map(self._held(holder), self.states), strict=True)
            for owner, share in found:
                collected[owner].append(share)
        return collected

    def opened(self, collected: Mapping[int, list[bytes]], clock: Clock) -> Arrays:
        """The unmasking of `SecAggPlusWorkflow.unmask_stage`, up to the sum in the ring."""
        vector = self.total
        with clock.lap("open"):
            shapes = get_parameters_shape(vector)
            for nid, shares in collected.items():
                secret = combine_shares(shares)
                if nid in self.alive:
                    vector = parameters_subtraction(vector, pseudo_rand_gen(secret, MOD_RANGE, shapes))
                    continue
                for peer in set(self.states) - {nid}:
                    mask = pseudo_rand_gen(_agreed(secret, self.states[peer].pk1), MOD_RANGE, shapes)
                    vector = (parameters_addition if nid > peer else parameters_subtraction)(vector, mask)
            return parameters_mod(vector, MOD_RANGE)

    def mean(self, total: Arrays) -> Array:
        """The weighted mean that the workflow makes of a sum."""
        q_total, values = factor_extract(total)
        mean = dequantize(values, self.case.largest, TARGET_RANGE)[0]
        mean -= (len(self.alive) - 1) * self.case.largest
        return np.asarray(mean * (TARGET_RANGE / q_total))

    def _quantised(self, nid: int, vector: Array, weight: int) -> Arrays:
        ratio = round(weight / MOST_WEIGHT * TARGET_RANGE)
        np.random.seed(nid)  # noqa: NPY002 - Flower draws from the global generator
        scaled = parameters_multiply([vector], ratio / TARGET_RANGE)
        return factor_combine(ratio, quantize(scaled, self.case.largest, TARGET_RANGE))

    def _extra(self, nid: int, plain: Arrays) -> list[bytes]:
        shapes, state = get_parameters_shape(plain), self.states[nid]
        vector = parameters_addition(plain, pseudo_rand_gen(state.rd_seed, MOD_RANGE, shapes))
        for peer in {*self.clocks, *self.dead} - {nid}:
            mask = pseudo_rand_gen(_agreed(state.sk1, self.states[peer].pk1), MOD_RANGE, shapes)
            vector = (parameters_addition if nid > peer else parameters_subtraction)(vector, mask)
        return [ndarray_to_bytes(part) for part in parameters_mod(vector, MOD_RANGE)]

    def _held(self, holder: int) -> Any:
        def share(owner: int) -> bytes:
            if owner not in self.clocks:
                return self.shares[owner][holder - 1]
            key = _agreed(self.states[holder].sk2, self.states[owner].pk2)
            pair = share_keys_plaintext_separate(decrypt(key, self.sent[owner, holder]))[2:]
            return pair[0 if owner in self.alive else 1]

        return share


def _size(record: Mapping[str, Any]) -> int:
    # Their count fails on an empty list.
    return ConfigRecord({key: value for key, value in record.items() if value != []}).count_bytes()


def _agreed(secret: bytes, public: bytes) -> bytes:
    return generate_shared_key(bytes_to_private_key(secret), bytes_to_public_key(public))


def flower(case: Case) -> dict[str, Any]:
    """One round of SecAgg+: the sum is right, and what it took."""
    round = Federation(case, min(case.repeats, case.sites - case.lost_sites))
    round.to_deliveries()
    collected = round.to_answers()
    total, openings = repeated(case.repeats, lambda clock: round.opened(collected, clock))
    expected = parameters_mod(round.plain, MOD_RANGE)
    assert all(map(np.array_equal, total, expected)), "the sum is not the plain sum"
    return {
        "client": asdict(middle(list(round.clocks.values()))),
        "server": asdict(round.server.joined(middle(openings))),
        "vector_bytes": round.vector_bytes,
        "up_bytes": round.up,
        "down_bytes": round.down,
    }


def flower_memory(case: Case) -> dict[str, Any]:
    """Peak of the masking phase, in bytes beyond what was there before the vector; that counts."""
    round = Federation(case, 1)
    round.to_deliveries()
    quantize([np.ones(1)], 1.0, TARGET_RANGE)  # what loads late, loads
    before = peak_bytes()
    update = ndarrays_to_parameters([case.vector(0)])
    peaks = {"vector": peak_bytes() - before}
    said = round.masked(1, update, case.weight(0))
    assert len(said[1]) > case.parameters
    return {"peak_bytes": {**peaks, "mask": peak_bytes() - before}}


def quantum(case: Case) -> float:
    """What one integer of Flower's ring stands for, in units of weight · value."""
    return 2 * case.largest / TARGET_RANGE * MOST_WEIGHT


def flower_mean(case: Case) -> Array:
    """The mean, all clients real."""
    round = Federation(case, case.sites)
    round.to_deliveries()
    return round.mean(round.opened(round.to_answers(), Clock()))


def _ckks_context(case: Case) -> Any:
    import tenseal

    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS, poly_modulus_degree=2 * SLOTS, coeff_mod_bit_sizes=MODULI,
        n_threads=case.threads,
    )  # fmt: skip
    context.global_scale = SCALE
    return context


def _encrypted(context: Any, vector: Array, weight: int) -> list[bytes]:
    import tenseal

    parts = (vector[start : start + SLOTS] for start in range(0, vector.size, SLOTS))
    return [tenseal.ckks_vector(context, part * np.float32(weight)).serialize() for part in parts]


def _added(context: Any, vectors: list[list[bytes]]) -> list[bytes]:
    import tenseal

    total = []
    for parts in zip(*vectors, strict=True):
        first, *others = (tenseal.ckks_vector_from(context, part) for part in parts)
        for other in others:
            first += other
        total.append(first.serialize())
    return total


def _decrypted(context: Any, total: list[bytes]) -> Array:
    import tenseal

    return np.concatenate([tenseal.ckks_vector_from(context, part).decrypt() for part in total])


def ckks(case: Case) -> dict[str, Any]:
    """Encrypt, add `ADDED` times, decrypt; the server's time is that of one site's vector."""
    import tenseal

    context, vector, weight = _ckks_context(case), case.vector(0), case.weight(1)
    public = tenseal.context_from(context.serialize(save_secret_key=False), n_threads=case.threads)

    def client(clock: Clock) -> tuple[list[bytes], list[bytes], Array, Times]:
        with clock.lap("encrypt"):
            said = _encrypted(context, vector, weight)
        server = Clock()
        with server.lap("add"):
            total = _added(public, [said] * ADDED)
        with clock.lap("decrypt"):
            plain = _decrypted(context, total)
        return said, total, plain, middle([server])

    (said, total, plain, server), clocks = repeated(case.repeats, client)
    error = np.abs(plain - ADDED * weight * vector.astype(np.float64)).max()
    assert error < 1e-5, "the sum is not the plain sum"
    up = sum(map(len, said))
    return {
        "client": asdict(middle(clocks)),
        "server_of_a_site": {"cpu_s": server.cpu_s / ADDED, "wall_s": server.wall_s / ADDED},
        "vector_bytes": up,
        "up_bytes": up,
        "down_bytes": sum(map(len, total)),
    }


def ckks_memory(case: Case) -> dict[str, Any]:
    """Peak of encryption, in bytes beyond what was there before the vector; that counts."""
    context = _ckks_context(case)
    _encrypted(context, np.ones(1, dtype=np.float32), 1)  # what loads late, loads
    before = peak_bytes()
    vector = case.vector(0)
    peaks = {"vector": peak_bytes() - before}
    said = _encrypted(context, vector, case.weight(0))
    assert len(said) * SLOTS >= case.parameters
    return {"peak_bytes": {**peaks, "encrypt": peak_bytes() - before}}


def ckks_mean(case: Case) -> Array:
    """The mean over the survivors."""
    context, alive = _ckks_context(case), range(case.sites - case.lost_sites)
    vectors = [_encrypted(context, case.vector(site), case.weight(site)) for site in alive]
    total = _decrypted(context, _added(context, vectors))
    return np.asarray(total / sum(map(case.weight, alive)))
