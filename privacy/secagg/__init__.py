"""Secure aggregation: the relay learns the sum over the survivors, and nothing else.

One attempt, as each file sees it:

    offer.py      what the relay proposes: who, with which plan, broadcast, ring and threshold
    admission.py  what a site refuses before it takes part, and must not forget    phase 0
    site.py       what a site answers                                             phases 1 advertise, 2 deal,
    relay.py      what the untrusted relay collects, passes on and opens          3 mask, 4 confirm, 5 unmask
    messages.py   the messages between them, and how they become bytes
    policy.py     what a site demands of a cohort and of a set of survivors

They stand on `shamir.py` (shares), `masks.py` (keystreams), `graph.py` (who masks with whom), `odds.py` (what
that risks), `transcript.py` and `hashing.py` (what binds the phases together), `identity.py` (signatures) and
`secret.py` (bytes that do not show).

After Bonawitz et al. 2017 (doi:10.1145/3133956.3133982: double masking, recovery by shares, consistency)
and Bell et al. 2020 (doi:10.1145/3372297.3417885: k-regular graphs), for members that know each other's
identity keys, and with signatures, transcripts and rules for retries against a relay that lies.
"""
