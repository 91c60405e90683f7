"""What the sums cost, from the events of a run; how the card and the closing lines say it."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from toy_plans import toy_plan

from wardround.core.compression import Blocks
from wardround.core.plan import (
    Encoding,
    RoundRules,
    SecureRules,
    TrainingPlan,
)
from wardround.runtime.events import Event, RoundBurnt, RoundFolded, SiteReplied, SumOpened
from wardround.simulations.secure_costs import MODES, privacy_section, secure_record, secure_text

KEY = "0f" * 32


NONE = {"differential_privacy": "none"}


def plan_of(mode: Any = "real") -> TrainingPlan:
    """A plan; only its mode and its ring are looked at."""
    return toy_plan(
        encoding=Encoding(bits=20, largest=1.0, most_weight=1),
        secure=SecureRules(mode=mode, aggregator=KEY if mode == "trusted" else None),
        rounds=RoundRules(rounds=2),
    )


def opened(arm: str, round: int, name: str, cohort: int, attempt: int = 0) -> Event:
    """A sum of so many sites, each of which sends 100 bytes and gets 50 for it in a tenth of a second."""
    return SumOpened(
        arm, round, name, "real", cohort, cohort, 5 + attempt, 50 * cohort, 100 * cohort, 0.1 * cohort, 0.03,
        attempt=attempt,
    )  # fmt: skip


EVENTS: list[Event] = [
    SiteReplied("federated", 1, "a", "ok", local={"clipped": 3.0, "shortened_by": 1.0}),
    SiteReplied("federated", 1, "b", "ok", local={"clipped": 4.0, "shortened_by": 0.5}),
    SiteReplied("local/a", 1, "a", "ok", local={"clipped": 100.0, "shortened_by": 0.1}),
    opened("federated", 1, "training", 6),
    opened("federated", 1, "evaluation", 8),
    RoundFolded("federated", 1, ("a", "b"), (), 0.5, 0.1, 1400, 1.0, "d", 0.002),
    RoundBurnt("federated", 2, "lost"),
    opened("federated", 2, "evaluation", 8, attempt=1),
    RoundFolded("federated", 3, ("a", "b"), (), 0.5, 0.1, 1400, 1.0, "d", 0.001),
    opened("local/a", 1, "training", 1, attempt=2),
]


def test_the_record_counts_what_the_federations_events_say() -> None:
    """A mean over sites and rounds, both sums of a round together; other arms are not in it."""
    assert secure_record(plan_of(), EVENTS) == {
        "mode": "real", "groups": 1, "aggregator": "", "bits": 20, "compression": "", "exchanges": 6,
        "later_attempts": 1, "burnt_rounds": 1,
        "bytes_up_a_site": round(2200 / 16), "bytes_down_a_site": round(1100 / 16),
        "seconds_a_site": pytest.approx(2.2 / 16), "seconds_server": pytest.approx(0.09 / 2),
        "rounding": 0.002, "discarded_energy": None, "clipped": 7, "shortened": 1,
    }  # fmt: skip


def test_a_run_without_a_sum_has_a_record_of_nothing() -> None:
    """Nothing is divided by nothing."""
    record = secure_record(plan_of(), [])
    assert (record["mode"], record["bits"]) == ("real", 20)
    assert not any(value for name, value in record.items() if name not in {"mode", "bits"})


@pytest.mark.parametrize("mode", sorted(MODES))
def test_every_mode_says_what_the_server_saw(mode: str) -> None:
    """In the words of that mode; what did not happen is not mentioned."""
    text = secure_text(secure_record(plan_of(mode), []))
    assert text.startswith(f"Secure aggregation {mode} ({MODES[mode]}):")
    for words in ("clipped", "shortened", "attempts", "lost"):
        assert words not in text


def test_a_trusted_aggregator_is_named_by_the_digest_of_its_key() -> None:
    """In the closing line and in the card; in no other mode is one spoken of."""
    short = hashlib.sha256(bytes.fromhex(KEY)).hexdigest()[:16]
    record = secure_record(plan_of("trusted"), EVENTS)
    assert record["aggregator"] == short
    said = f"Sealed to a simulated aggregator, whose key has the SHA-256 {short}…."
    assert secure_text(record).endswith(said)
    assert said in privacy_section(NONE, record)
    for mode in MODES.keys() - {"trusted"}:
        assert "Sealed" not in secure_text(secure_record(plan_of(mode), EVENTS))


def test_what_travelled_compressed_is_told() -> None:
    """What rounding adds to the ring's is in no figure: the form is named. Older records lack it."""
    encoding = Encoding(bits=20, largest=1.0, most_weight=1, compression=Blocks(bits=4))
    record = secure_record(plan_of("off").model_copy(update={"encoding": encoding}), EVENTS)
    assert "(contributions travel as 4 bits a coordinate, in blocks of 64" in secure_text(record)
    del record["compression"]
    assert "travel" not in secure_text(record)


def test_what_truncation_cut_off_is_told_where_something_was_truncated() -> None:
    """The most of any round; under other strategies it is not spoken of."""
    folded = [
        RoundFolded("federated", round, ("a",), (), 0.5, 0.1, 9, 1.0, "d", 0.0, share)
        for round, share in ((1, 0.0123), (2, 0.004))
    ]
    record = secure_record(plan_of(), [*EVENTS, *folded])
    assert record["discarded_energy"] == 0.0123
    assert "cut off at most 1.23% of the products' energy in a round." in secure_text(record)
    assert "energy" not in secure_text(secure_record(plan_of(), EVENTS))


def test_what_happened_is_told_with_its_number() -> None:
    """In the closing line and in the card, which also says what was not protected."""
    record = secure_record(plan_of(), EVENTS) | {"shortened": 2, "later_attempts": 3, "burnt_rounds": 4}
    text = secure_text(record)
    for words in (
        "6 exchanges", "sends 138 B", "gets 69 B", "spends 138 ms", "server 45 ms", "20 bits", "2.0e-03",
        "7 coordinates were clipped", "2 contributions were shortened", "3 more attempts",
        "4 rounds were lost",
    ):  # fmt: skip
        assert words in text, words
    card = privacy_section(NONE, record)
    assert card.startswith("## Privacy\n\nNo differential privacy: ")
    assert "\n\nSecure aggregation real" in card
    assert text in card
    assert "nothing protected them from its operator" in card


def test_the_sums_of_groups_count_as_one_cohort() -> None:
    """Three groups of five are fifteen sites, and the text says that the server saw their sums."""
    events = [opened("federated", 1, f"training.{group}", 5) for group in range(3)]
    record = secure_record(plan_of(), events)
    assert (record["groups"], record["bytes_up_a_site"], record["bytes_down_a_site"]) == (3, 100, 50)
    assert "the server saw the sums of 3 groups" in secure_text(record)
    assert "groups" not in secure_text(secure_record(plan_of(), EVENTS))
