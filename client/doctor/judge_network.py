"""What the way to the server comes to: values of the probes in, findings out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Final

from wardround.client.doctor.findings import Finding, fails, passes, unseen, warns
from wardround.runtime.server_about import ServerAbout, Spoken
from wardround.runtime.sizes import size_text

CLOCK_WARN_S: Final = 30.0
CLOCK_FAIL_S: Final = 300.0
"""Flower takes no signature whose time is further from the server's (±300 s)."""
SLOW_S: Final = 1.0
"""Of a round trip: an idle site's questions are half a minute apart, a round has about a dozen of them."""
SHARE_OF_DEADLINE: Final = 0.25
"""Of a round's deadline that its bytes may take before it is worth a word."""
LEAST_RATE: Final = 125_000.0
"""Bytes a second: 1 Mbit/s. Below it, without a plan to hold it against, is worth a word."""
OURS: Final = "Wardround consortium"
"""Organisation in the subject of a consortium's authority (`runtime/certificates.py`)."""


@dataclass(frozen=True)
class Way:
    """How a connection to the server goes.

    Attributes:
        host: Of the server.
        port: Of the server.
        proxy: `host:port` of the proxy, without name and password; None: straight.
        loopback: The same for the site's own loopback, as the worker sees it: None, or something is wrong.
        unusable: Why the proxy that the environment names cannot be used; empty: it can.
    """

    host: str
    port: int
    proxy: str | None = None
    loopback: str | None = None
    unusable: str = ""

    @property
    def server(self) -> str:
        """For people."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Presented:
    """What the other end showed in its TLS handshake.

    Attributes:
        verified: Whether it holds under the site's pinned CA, for this host, now.
        why: What does not hold, in OpenSSL's words; empty where it does.
        issuer: Common name (or organisation) of who issued the certificate.
        organisation: Of the issuer, "" where it names none.
        ours: Whether one of the pinned authorities signed it.
        ends: Its last moment.
    """

    verified: bool
    why: str = ""
    issuer: str = ""
    organisation: str = ""
    ours: bool = False
    ends: datetime | None = None


@dataclass(frozen=True)
class Rates:
    """Bytes a second, as one connection had them."""

    up: float
    down: float


@dataclass(frozen=True)
class RoundBytes:
    """What one round of a plan moves at this site, at the least.

    Attributes:
        up: Bytes of the contribution.
        down: Bytes of the broadcast.
        deadline_s: Of the round.
    """

    up: float
    down: float
    deadline_s: float


def judge_name(way: Way, addresses: Sequence[str] | str) -> Finding:
    """Of the name that this machine has to resolve: addresses, or why there are none."""
    name = way.proxy or way.host
    whose = "the proxy" if way.proxy else "the server"
    if isinstance(addresses, str):
        return fails(
            "dns", f"{whose}'s name {name} is not resolved: {addresses}",
            f"ask your network for an entry of {name}"
            + ("" if way.proxy else ", or name a proxy in HTTPS_PROXY that resolves it"),
        )  # fmt: skip
    told = f"{whose}'s name {name} is {', '.join(addresses[:3])}"
    return passes("dns", told + (f"; {way.host} is for the proxy to resolve" if way.proxy else ""))


def judge_proxy(way: Way) -> Finding:
    """Of the environment's proxy, as Flower's clients read it."""
    if way.unusable:
        return fails(
            "proxy", way.unusable, "set HTTPS_PROXY to http://HOST:PORT of a proxy that knows CONNECT"
        )
    if way.loopback is not None:
        return fails(
            "proxy", f"the worker would reach its node on the loopback by the proxy {way.loopback}",
            "put 127.0.0.1 and localhost into NO_PROXY",
        )  # fmt: skip
    if way.proxy is None:
        return passes("proxy", "none for the server; the loopback takes none")
    return passes("proxy", f"{way.proxy} for the server (CONNECT); the loopback takes none")


def judge_tcp(way: Way, refused: str) -> Finding:
    """Of a connection to the first hop; `refused` says why there was none, empty: there was."""
    target = way.proxy or way.server
    if refused:
        return fails(
            "tcp", f"no connection to {target}: {refused}",
            f"let this machine out to {target} in the firewall"
            + ("" if way.proxy else "; ask the operator whether the server runs and listens there"),
        )  # fmt: skip
    return passes("tcp", f"{target} answers")


def judge_tls(way: Way, shown: Presented | str) -> Finding:
    """Of the certificate at the other end; a text says why there was no handshake at all."""
    if isinstance(shown, str):
        who = (
            f"the proxy {way.proxy} does not let {way.server} through"
            if way.proxy
            else f"{way.server} speaks no TLS"
        )
        return fails(
            "tls", f"{who}: {shown}",
            f"have CONNECT to {way.server} allowed on the proxy" if way.proxy
            else "ask the operator which address the server has",
        )  # fmt: skip
    if shown.verified:
        until = "" if shown.ends is None else f", until {shown.ends:%Y-%m-%d}"
        return passes("tls", f"issued by the consortium's authority {shown.issuer!r}{until}")
    if shown.ours:
        return fails(
            "tls", f"the consortium's own certificate does not hold: {shown.why}",
            "tell the operator: wardround consortium rotate server makes a new one; --host for each name",
        )  # fmt: skip
    if shown.organisation == OURS:
        return fails(
            "tls", f"the certificate is of another authority of a consortium, {shown.issuer!r}",
            "take the operator's server-notice.json: wardround site server update; else the address is "
            "another consortium's",
        )  # fmt: skip
    return fails(
        "tls",
        f"something on the way opens TLS: the certificate was issued by {shown.issuer!r}"
        + (f" of {shown.organisation!r}" if shown.organisation else "") + ", not by the consortium",
        f"have {way.server} taken out of TLS inspection there; never put its CA into ca.pem",
    )  # fmt: skip


def judge_clock(skew_s: float | None, round_trip_s: float) -> Finding:
    """Of this machine's clock less the server's; what the round trip and a whole second hide is let pass."""
    if skew_s is None:
        return warns("clock", "the server names no time", "compare this machine's clock by hand; keep NTP on")
    off = max(0.0, abs(skew_s) - round_trip_s - 1.0)
    told = f"{abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} the server's"
    remedy = "set the clock that is wrong, this machine's or the server's; keep NTP on"
    if off > CLOCK_FAIL_S:
        return fails("clock", f"{told}: beyond {CLOCK_FAIL_S:.0f} s no signature counts", remedy)
    if off > CLOCK_WARN_S:
        return warns("clock", f"{told}: beyond {CLOCK_FAIL_S:.0f} s no signature would count", remedy)
    return passes("clock", f"within {CLOCK_WARN_S:.0f} s of the server's")


def judge_versions(ours: Spoken, about: ServerAbout | None) -> Finding:
    """Of both sides' versions; None: the server does not say."""
    if about is None:
        return warns(
            "versions", f"this site is Wardround {ours.version}; the server does not say what it is",
            "the server is older than this question: ask the operator for its version",
        )  # fmt: skip
    theirs, told = about.spoken, f"site {ours.version}, server {about.spoken.version}"
    differ = ours.differences(theirs)
    if differ:
        return fails(
            "versions", f"{told}: they do not understand each other ({'; '.join(differ)}: site and server)",
            "install the version that the consortium has agreed on",
        )  # fmt: skip
    if ours.version != theirs.version:
        return warns("versions", f"{told}; the protocols are the same", "agree on one version between runs")
    return passes("versions", f"both Wardround {ours.version}")


def judge_admitted(about: ServerAbout | None, refused: str, *, transport: str, roster: int) -> Finding:
    """Of what the server knows of this site.

    Args:
        about: Its answer to a signed question.
        refused: Why there is none; empty: it is older than the question, and the key was good for the roster.
        transport: This site's transport key, as rosters write it.
        roster: Version of the pinned roster.
    """
    if refused:
        return fails(
            "admitted", f"the server refuses this site's signature: {refused}",
            "ask the operator whether this site is admitted and its keys are the roster's "
            "(wardround consortium list)",
        )  # fmt: skip
    if about is None:
        return warns("admitted", "its identity; the server does not say of the node's key", "see 'versions'")
    if about.transport != transport:
        return fails(
            "admitted", "the server knows another transport key of this site",
            "take the present roster: wardround site roster update; if it has these keys, tell the operator",
        )  # fmt: skip
    if not about.admitted:
        return fails(
            "admitted", "the server's roster has this site, and its door does not let the node in",
            "tell the operator: the server's log says why",
        )  # fmt: skip
    if about.roster != roster:
        return warns(
            "admitted", f"yes; the server's roster is version {about.roster}, this site's {roster}",
            "wardround site roster update, then wardround site roster confirm",
        )  # fmt: skip
    return passes("admitted", f"identity and node, under roster version {roster}")


def judge_round_trip(seconds: Sequence[float]) -> Finding:
    """Of several round trips on one connection."""
    middle = median(seconds)
    told = f"{1000 * middle:.0f} ms, median of {len(seconds)}"
    if middle > SLOW_S:
        return warns(
            "round trip", told, "a round takes longer by about a dozen of these, and nothing is lost; look "
            "whether the way by the proxy is the short one",
        )  # fmt: skip
    return passes("round trip", told)


def judge_bandwidth(rates: Rates | str, moved: RoundBytes | None) -> Finding:
    """Of what a line carries, held against what a plan's round moves; a text says why it was not measured."""
    if isinstance(rates, str):
        return warns(
            "bandwidth", f"not measured: {rates}",
            "429: it was asked too often, wait a minute; 404 or 405: the server is older than this question",
        )  # fmt: skip
    told = f"{size_text(rates.up)}/s up, {size_text(rates.down)}/s down"
    remedy = "ask for a plan with a smaller adapter, fewer bits or a longer deadline, or for a faster line"
    if moved is None:
        if min(rates.up, rates.down) < LEAST_RATE:
            return warns("bandwidth", told, remedy)
        return passes("bandwidth", told)
    seconds = moved.up / rates.up + moved.down / rates.down
    told += (
        f"; a round moves {size_text(moved.up)} up and {size_text(moved.down)} down at the least, "
        f"{seconds:.0f} s of its {moved.deadline_s:.0f}"
    )
    if seconds > moved.deadline_s:
        return fails("bandwidth", told, remedy)
    return (warns("bandwidth", told, remedy) if seconds > SHARE_OF_DEADLINE * moved.deadline_s
            else passes("bandwidth", told))  # fmt: skip


def after_tls() -> tuple[Finding, ...]:
    """What cannot be looked at where no connection holds."""
    return tuple(
        unseen(check, "tls") for check in ("clock", "versions", "admitted", "round trip", "bandwidth")
    )
