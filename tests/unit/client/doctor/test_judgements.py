"""What `wardround site check` makes of what it saw: each finding on both sides of its limits."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from toy_plans import toy_plan

from wardround.client.doctor import judge_network as net
from wardround.client.doctor import judge_plan as planned
from wardround.client.doctor import judge_site as own
from wardround.client.doctor.findings import Finding, exit_code, fails, of_error, passes, unseen, warns, worst
from wardround.core.errors import ConfigError, StorageError
from wardround.core.plan import DataContract, StrategySpec
from wardround.core.privacy_rules import PrivacyRules
from wardround.runtime.roster import Expiring
from wardround.runtime.server_about import ServerAbout, Spoken

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
WAY = net.Way("server.example", 9443)
PROXIED = net.Way("server.example", 9443, "proxy.example:3128")
SPOKEN = Spoken(version="1.0", messages=4, offers=2, plans=1)
GB = 10**9


def is_like(finding: Finding, status: str, *words: str) -> None:
    """Its status, what stands in it, and that what does not pass has a remedy."""
    assert finding.status == status, finding
    for word in words:
        assert word in finding.found + finding.remedy, finding
    assert bool(finding.remedy) == (status != "passes"), finding


# ---- findings


def test_only_a_failure_makes_the_exit_code() -> None:
    """Warnings do not."""
    assert exit_code([passes("dns", "x"), warns("tcp", "x", "y")]) == 0
    assert exit_code([passes("dns", "x"), fails("tcp", "x", "y")]) == 1


def test_the_worst_of_several_comes_first() -> None:
    """With every remedy, each once."""
    several = [
        passes("data", "a"),
        warns("data", "b", "do"),
        fails("data", "c", "undo"),
        warns("data", "d", "do"),
    ]
    assert worst("data", several) == fails("data", "c; b; d; a", "undo; do")
    with pytest.raises(ConfigError):
        worst("data", [])


def test_an_error_that_is_none_of_ours_tells_its_kind_alone() -> None:
    """It may hold a value of somebody's rows."""
    assert "secret" not in str(of_error("data", ValueError("secret")))
    is_like(of_error("data", ValueError("secret")), "fails", "ValueError")
    ours = of_error("disk", StorageError("no room", found="0 B", expected="1 GB"))
    is_like(ours, "fails", "no room: 0 B", "1 GB")
    assert unseen("clock", "tls").status == "warns"


# ---- the way to the server


@pytest.mark.parametrize("way", [WAY, PROXIED])
def test_a_name_that_is_not_resolved_fails(way: net.Way) -> None:
    """The first one on the way: behind a proxy the server's is the proxy's affair."""
    first = way.proxy or way.host
    is_like(net.judge_name(way, "Name or service not known"), "fails", first, "not known")
    is_like(net.judge_name(way, ("192.0.2.1",)), "passes", first, "192.0.2.1")


def test_a_proxy_is_named_and_the_loopback_takes_none() -> None:
    """A kind that Flower's client cannot use fails."""
    is_like(net.judge_proxy(WAY), "passes", "none")
    is_like(net.judge_proxy(PROXIED), "passes", "proxy.example:3128")
    wrong = net.Way("server.example", 9443, None, loopback="proxy.example:3128")
    is_like(net.judge_proxy(wrong), "fails", "loopback", "NO_PROXY")
    socks = net.Way("server.example", 9443, "p:1", unusable="a proxy of the kind 'socks5' is not used")
    is_like(net.judge_proxy(socks), "fails", "socks5", "HTTPS_PROXY")


def test_a_port_that_does_not_answer_fails() -> None:
    """The server's, or the proxy's."""
    is_like(net.judge_tcp(WAY, "Connection refused"), "fails", "server.example:9443", "refused", "firewall")
    is_like(net.judge_tcp(PROXIED, "Connection refused"), "fails", "proxy.example:3128")
    is_like(net.judge_tcp(WAY, ""), "passes", "server.example:9443")


def test_an_inspecting_proxy_is_named() -> None:
    """By the issuer of what it shows; the consortium's own faults are told apart from it."""
    shown = net.Presented(
        False, "self-signed certificate in certificate chain", "Zscaler Root CA", "Zscaler Inc."
    )
    is_like(
        net.judge_tls(PROXIED, shown),
        "fails",
        "Zscaler Root CA",
        "Zscaler Inc.",
        "never put its CA into ca.pem",
    )
    other = net.Presented(False, "unable to get local issuer", "northern lights", net.OURS)
    is_like(net.judge_tls(WAY, other), "fails", "site server update")
    expired = net.Presented(False, "certificate has expired", "northern lights", net.OURS, ours=True)
    is_like(net.judge_tls(WAY, expired), "fails", "certificate has expired", "consortium rotate server")
    good = net.Presented(True, "", "northern lights", net.OURS, True, NOW)
    is_like(net.judge_tls(WAY, good), "passes", "northern lights", "2026-11-27")


def test_no_handshake_at_all_fails() -> None:
    """The proxy's doing where there is one."""
    is_like(
        net.judge_tls(PROXIED, "it answers 403 Forbidden"), "fails", "proxy.example:3128", "403", "CONNECT"
    )
    is_like(net.judge_tls(WAY, "TLS: WRONG_VERSION_NUMBER"), "fails", "server.example:9443")


@pytest.mark.parametrize(
    ("skew_s", "trip_s", "status"),
    [
        (0, 0, "passes"), (30, 0, "passes"), (-31, 0, "passes"), (31.5, 0, "warns"), (-200, 0, "warns"),
        (301, 0, "warns"), (301.5, 0, "fails"), (-600, 0, "fails"), (33, 2, "passes"), (303, 2, "warns"),
    ],
)  # fmt: skip
def test_a_clock_is_judged_by_flowers_limit(skew_s: float, trip_s: float, status: str) -> None:
    """What the round trip and the date's whole second hide is let pass."""
    finding = net.judge_clock(skew_s, trip_s)
    assert finding.status == status
    if status != "passes":
        assert ("ahead of" if skew_s > 0 else "behind") in finding.found
    assert net.judge_clock(None, 0).status == "warns"


def about(**changes: Any) -> ServerAbout:
    """What a server says of itself."""
    fields: dict[str, Any] = {"spoken": SPOKEN, "roster": 3, "transport": "02ab", "admitted": True}
    return ServerAbout(**(fields | changes))


def test_versions_fail_where_a_protocol_differs() -> None:
    """The package's version alone is a warning, and so is a server that does not say."""
    is_like(net.judge_versions(SPOKEN, about()), "passes", "1.0")
    other = SPOKEN.model_copy(update={"version": "1.1"})
    is_like(net.judge_versions(SPOKEN, about(spoken=other)), "warns", "site 1.0, server 1.1")
    later = other.model_copy(update={"messages": 5})
    is_like(net.judge_versions(SPOKEN, about(spoken=later)), "fails", "messages 4 and 5")
    is_like(net.judge_versions(SPOKEN, None), "warns", "does not say")


def test_admitted_is_identity_and_node() -> None:
    """Each way in which it is not has its words."""

    def judged(said: ServerAbout | None, refused: str = "") -> Finding:
        return net.judge_admitted(said, refused, transport="02ab", roster=3)

    is_like(judged(about()), "passes", "version 3")
    is_like(judged(about(roster=4)), "warns", "version 4", "roster update")
    is_like(judged(about(transport="03cd")), "fails", "another transport key")
    is_like(judged(about(admitted=False)), "fails", "does not let the node in")
    is_like(judged(None, "401 the request is not signed by a member"), "fails", "401", "operator")
    is_like(judged(None), "warns", "does not say")


def test_a_slow_line_warns_and_one_too_slow_for_the_plan_fails() -> None:
    """By the bytes of a round and its deadline; without a plan by 1 Mbit/s."""
    moved = net.RoundBytes(up=1e6, down=2e6, deadline_s=100.0)
    is_like(net.judge_bandwidth(net.Rates(1e6, 1e6), moved), "passes", "3 s of its 100")
    is_like(net.judge_bandwidth(net.Rates(1e5, 1e5), moved), "warns", "30 s of its 100")
    is_like(net.judge_bandwidth(net.Rates(2e4, 1e6), moved), "warns", "52 s")
    is_like(net.judge_bandwidth(net.Rates(1e4, 1e5), moved), "fails", "120 s of its 100")
    is_like(net.judge_bandwidth(net.Rates(1e6, 1e6), None), "passes")
    is_like(net.judge_bandwidth(net.Rates(1e6, 1e5), None), "warns", "100.0 kB/s down")
    is_like(net.judge_bandwidth("the server answers 429", moved), "warns", "429", "wait a minute")
    is_like(net.judge_round_trip([0.1, 0.2, 9.0]), "passes", "200 ms")
    is_like(net.judge_round_trip([2.0, 2.0, 0.1]), "warns", "2000 ms")


# ---- the site


def guarded(
    name: str = "keys/identity.key", *, folder: bool = False, mode: int | None = 0o600, **more: Any
) -> Any:
    """A file or folder."""
    return own.Guarded(name, folder, mode, **more)


def keys(*files: Any, faults: Any = (), ends: Any = ()) -> Finding:
    """Judged today."""
    return own.judge_keys(files or (guarded(),), faults, ends, NOW)


def test_keys_are_closed_to_others() -> None:
    """A file that is open, missing or another user's fails; each is named, all at once."""
    is_like(keys(guarded(), guarded("keys", folder=True, mode=0o700)), "passes", "2 files")
    both = keys(guarded(mode=0o640), guarded("keys", folder=True, mode=0o755))
    is_like(both, "fails", "keys/identity.key has mode 0640", "keys has mode 0755", "chmod 600", "chmod 700")
    is_like(keys(guarded(mode=None)), "fails", "not there")
    assert keys(guarded(mode=None, needed=False)).status == "passes"
    is_like(keys(guarded(own=False)), "fails", "another user's")
    is_like(keys(guarded(mode=0o400)), "warns", "0400")


def test_what_ends_soon_warns_and_what_has_ended_fails() -> None:
    """30 days before."""
    ends = {days: (Expiring("the membership", NOW + timedelta(days=days)),) for days in (-1, 29, 31)}
    is_like(keys(ends=ends[31]), "passes", "in 31 days")
    is_like(keys(ends=ends[29]), "warns", "the membership", "29 days")
    is_like(keys(ends=ends[-1]), "fails", "expired")
    is_like(
        keys(faults=[StorageError("not its key", remedy="put it back")]),
        "fails",
        "not its key",
        "put it back",
    )


def private_plan(held_back: float = 0.1, unit: Any = "patient") -> Any:
    """A plan that trains privately."""
    return toy_plan(
        privacy=PrivacyRules(unit=unit, sigma=1.0), strategy=StrategySpec(weighting="uniform"),
        data=DataContract(columns={"text": "t"}, unit_column="p", validation_fraction=held_back),
        local={"steps": 1, "max_grad_norm": None},
    )  # fmt: skip


def test_a_ledger_is_needed_by_a_private_plan_alone() -> None:
    """No cap, or nothing left under it, warns."""
    is_like(own.judge_ledger(None, None), "passes", "none")
    is_like(own.judge_ledger(None, toy_plan()), "passes")
    is_like(own.judge_ledger(None, private_plan()), "fails", "ledger create")
    is_like(
        own.judge_ledger(own.LedgerSeen(5, 8.0, 2.0, 1e-5), private_plan(0)), "passes", "5 rows", "2", "of 8"
    )
    is_like(own.judge_ledger(own.LedgerSeen(5, 8.0, 8.0, 1e-5), None), "warns", "nothing is left")
    is_like(own.judge_ledger(own.LedgerSeen(5, 8.0, 2.0, 1e-5), toy_plan()), "fails", "no privacy")
    allowing = own.LedgerSeen(5, 8.0, 2.0, 1e-5, allows_release=True)
    is_like(own.judge_ledger(allowing, toy_plan()), "passes", "of 8")
    is_like(own.judge_ledger(allowing, private_plan()), "passes", "of 8")
    rows = own.judge_ledger(own.LedgerSeen(5, 8.0, 2.0, 1e-5), private_plan(0, "example"))
    is_like(rows, "fails", "bounds no patient's rows", "--allow-release")
    strict = own.judge_ledger(own.LedgerSeen(5, 8.0, 2.0, 1e-5), private_plan())
    is_like(strict, "fails", "holds patients back", "validation_fraction=0", "--allow-release")
    is_like(own.judge_ledger(own.LedgerSeen(5, 8.0, math.inf, 1e-5), None), "warns", "bounds some")
    is_like(own.judge_ledger(own.LedgerSeen(5, None, math.inf, 1e-5), None), "warns", "∞", "no cap")


def test_the_disk_holds_what_a_run_keeps() -> None:
    """By the adapter's size; twice that passes."""
    needed = own.disk_needed(10_000_000)
    assert needed == own.LEAST_DISK + 64 * 10_000_000
    is_like(own.judge_disk(2 * needed, 10_000_000), "passes")
    is_like(own.judge_disk(2 * needed, 10_000_000, writable=False), "fails", "cannot be written")
    is_like(own.judge_disk(2 * needed - 1, 10_000_000), "warns", "at the most")
    is_like(own.judge_disk(needed - 1, 10_000_000), "fails", "make room")
    assert [own.judge_disk(free, None).status for free in (2**26, 2**29, 2**31)] == [
        "fails",
        "warns",
        "passes",
    ]


def test_a_device_says_its_memory() -> None:
    """Less than a gigabyte warns."""
    is_like(own.judge_device("cpu", 8 * GB), "passes", "cpu", "8.0 GB")
    is_like(own.judge_device("cpu", GB // 2), "warns", "500.0 MB")
    is_like(own.judge_device("mps", None), "passes", "not known")


def test_a_plan_is_refused_for_all_its_faults_at_once() -> None:
    """One that nobody signed is a warning."""
    faults = [ConfigError("too long", remedy="shorten"), ConfigError("too wide", found=9)]
    is_like(own.judge_plan("p", faults, signed=True), "fails", "too long", "too wide: 9", "shorten")
    is_like(own.judge_plan("p", [], signed=False), "warns", "nobody has signed")
    is_like(own.judge_plan("p", [], signed=True), "passes", "p: signed")


def model(state: str, name: str = "base", **more: str) -> planned.FoundModel:
    """An entry of site.yaml."""
    return planned.FoundModel.model_validate({"path": f"/models/{name}", "state": state, **more})


def test_one_model_has_to_be_the_plans() -> None:
    """Others may be beside it, but none whose digest is a lie or that is not there."""
    is_like(
        own.judge_models([model("plans"), model("other", "b")], of_plan=True), "passes", "b is another plan's"
    )
    is_like(own.judge_models([model("differs"), model("other")], of_plan=True), "fails", "none is the plan's")
    is_like(
        own.judge_models([model("plans"), model("wrong", "b")], of_plan=True), "fails", "b has other weights"
    )
    is_like(
        own.judge_models([model("plans"), model("absent", "b", found="no folder")], of_plan=True),
        "fails",
        "b: no folder",
    )
    is_like(own.judge_models([model("unfit", found="device cuda")], of_plan=True), "fails", "device cuda")
    is_like(
        own.judge_models([], of_plan=True, why="killed", remedy="more memory"),
        "fails",
        "killed",
        "more memory",
    )
    is_like(own.judge_models([model("plans")], of_plan=False), "passes", "is there")


def test_rows_are_told_in_counts() -> None:
    """None that can be read fails; broken ones, doubles and too few for a batch warn."""
    is_like(own.judge_data(own.RowsSeen(0, 0), None), "fails", "0 of 0")
    is_like(own.judge_data(own.RowsSeen(10, 10), None), "passes", "10 of 10")
    is_like(own.judge_data(own.RowsSeen(10, 8, 0, {"broken_json": 2}), None), "warns", "2 × broken_json")
    is_like(own.judge_data(own.RowsSeen(10, 10, 3), None), "warns", "3 equal an earlier row")
    is_like(own.judge_data(own.RowsSeen(10, 10), own.RowsOfPlan(9, 5, True)), "passes", "9 rows of 5 units")
    is_like(own.judge_data(own.RowsSeen(10, 10), own.RowsOfPlan(9, 5, False)), "warns", "fill a batch")
    noticed = own.RowsOfPlan(9, 5, True, ("1 of 10 rows quarantined",))
    is_like(own.judge_data(own.RowsSeen(10, 10), noticed), "warns", "quarantined")


# ---- what a plan takes

STEP = planned.Measured(
    seconds=2.0, peak_bytes=4 * GB, device="cpu", rows=16, tokens=512, made_up=True, private=False
)
TRIED = planned.Tried(models=(model("plans"),), step=STEP)


def test_a_step_is_held_against_the_memory_that_was_free() -> None:
    """One that takes nearly all of it warns; one that was killed fails with what makes it smaller."""
    is_like(planned.judge_step(TRIED, 8 * GB, 512), "passes", "2.00 s", "4.0 GB", "16 rows of 512 tokens")
    is_like(planned.judge_step(TRIED, 4 * GB, 512), "warns", "that were free", "microbatch_size")
    is_like(planned.judge_step(TRIED, None, 512), "passes")
    halved = planned.Tried(models=TRIED.models, step=STEP.model_copy(update={"at_once": 4}))
    is_like(planned.judge_step(halved, None, 512), "warns", "4 rows at once", "microbatch_size")
    killed = planned.Tried(models=(model("plans"),), why="the system killed it")
    is_like(planned.judge_step(killed, 8 * GB, 512), "fails", "killed", "gradient_checkpointing")
    is_like(
        planned.judge_step(planned.Tried(models=(model("differs"),)), None, 512),
        "warns",
        "'models' comes first",
    )
    private = planned.Tried(models=TRIED.models, step=STEP.model_copy(update={"private": True}))
    is_like(planned.judge_step(private, None, 512), "passes", "clipped and noised")


def test_the_sites_own_rows_say_less_than_the_plans_length() -> None:
    """Where no text can be made up."""
    own_rows = planned.Tried(
        models=TRIED.models, step=STEP.model_copy(update={"made_up": False, "tokens": 80})
    )
    is_like(planned.judge_step(own_rows, None, 512), "warns", "16 rows of 80 tokens", "the plan allows 512")


def test_a_round_has_to_end_within_its_deadline() -> None:
    """Half of it passes, more warns, beyond it fails."""
    is_like(planned.judge_estimate(STEP, 50, 200.0), "passes", "100 s", "50 steps")
    is_like(planned.judge_estimate(STEP, 51, 200.0), "warns", "102 s")
    is_like(planned.judge_estimate(STEP, 101, 200.0), "fails", "202 s", "deadline")
    assert planned.judge_estimate(None, 5, 1.0) == unseen("estimate", "dry step")
    assert planned.judge_estimate(STEP, None, 1.0) == unseen("estimate", "data")
