"""The tables of secure_aggregation.py, from its result lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from _secure_case import Case

OURS, FLOWER, CKKS = "wardround", "secagg+", "ckks"
NAMES = {FLOWER: "Flower SecAgg+", CKKS: "TenSEAL CKKS"}
HEAD = (
    "parameters × sites", "lost", "system", "client, CPU", "server, CPU", "client / server, wall, 2 threads",
    "peak ÷ vector", "vector up, bytes a parameter", "rest up / down", "masking ÷ ceiling (phase)",
    "SecAgg+ ÷ this: client / server / its opening", "CKKS ÷ this: client",
)  # fmt: skip
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Line:
    """One line of the results."""

    record: dict[str, Any]

    @cached_property
    def case(self) -> Case:
        """What was measured."""
        return Case(**self.record["case"])

    @property
    def system(self) -> str:
        """Whose."""
        return str(self.record["system"])

    @property
    def key(self) -> tuple[Any, ...]:
        """A later line of the same key replaces this one."""
        case = self.case
        return (
            self.system, case.parameters, case.sites, case.lost, case.degree, case.share_threshold, case.bits,
            case.threads,
        )  # fmt: skip

    def server(self, what: str, sites: int) -> float:
        """The server's seconds, for CKKS with so many sites."""
        if self.system == CKKS:
            return float(self.record["server_of_a_site"][what]) * sites
        return float(self.record["server"][what])

    @property
    def peak(self) -> float | None:
        """Peak memory over the vector's."""
        peaks = self.record.get("peak_bytes")
        return max(peaks.values()) / (FLOAT_BYTES * self.case.parameters) if peaks else None

    @property
    def masking(self) -> float:
        """Seconds for the masks over their ceiling."""
        return float(self.record["masking_s"] / self.record["masks"]["ceiling_s"])


@dataclass(frozen=True)
class Row:
    """A system in a configuration.

    Attributes:
        case: The configuration; of CKKS's the one that it stands beside.
        one: Measured with one thread.
        two: With two, where there is one.
        flower: SecAgg+ in the same configuration.
        ckks: CKKS on the same vector.
    """

    case: Case
    one: Line
    two: Line | None
    flower: Line | None
    ckks: Line | None

    @property
    def stayed(self) -> int:
        """Sites whose vectors are added."""
        return self.case.sites - self.case.lost_sites

    @property
    def client(self) -> float:
        """Processor seconds."""
        return float(self.one.record["client"]["cpu_s"])

    @property
    def server(self) -> float:
        """Processor seconds."""
        return self.one.server("cpu_s", self.stayed)

    @property
    def over(self) -> tuple[float, float, float] | None:
        """How many times slower SecAgg+ is: client, server, and of the server's work the opening alone."""
        if not self.flower:
            return None
        return (
            self.flower.record["client"]["cpu_s"] / self.client,
            self.flower.server("cpu_s", self.stayed) / self.server,
            self.flower.record["server"]["phases"]["open"] / self.one.record["server"]["phases"]["open"],
        )

    @property
    def ckks_over(self) -> float | None:
        """How many times slower a CKKS client is."""
        if not self.ckks or "absent" in self.ckks.record:
            return None
        return float(self.ckks.record["client"]["cpu_s"] / self.client)

    @property
    def where(self) -> str:
        """The configuration in words."""
        graph = f", degree {self.case.degree}" if self.case.degree else ""
        return f"{self.case.parameters / 1e6:g} M × {self.case.sites}{graph}"


def rows(lines: Sequence[Line]) -> Iterator[Row]:
    """By configuration: ours, then the peers."""
    known = {line.key: line for line in lines}
    for line in sorted(
        (line for line in known.values() if line.case.threads == 1), key=lambda line: line.key[1:]
    ):
        case = line.case
        if line.system != OURS:
            continue
        two = known.get((*line.key[:-1], 2))
        flower = known.get((FLOWER, *line.key[1:-2], 32, 1))
        ckks = known.get((CKKS, case.parameters, 0, 0.0, 0, 0, 32, 1))
        yield Row(case, line, two, flower, ckks)
        last = not any((*line.key[:-2], bits, 1) in known for bits in (20, 24, 32, 64) if bits > case.bits)
        for peer in (flower, ckks) if last else ():
            if peer:
                yield Row(case, peer, known.get((*peer.key[:-1], 2)), None, None)


def table(lines: Sequence[Line]) -> str:
    """All figures as Markdown."""
    out = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    out += ["| " + " | ".join(_cells(row)) + " |" for row in rows(lines)]
    seen = sorted({f"{line.record['date']}, {line.record['machine']}" for line in lines})
    return "\n".join([*out, "", *seen])


def _cells(row: Row) -> list[str]:
    one, case = row.one, row.case
    ours = one.system == OURS
    name = f"wardround, {case.bits} bits" if ours else NAMES[one.system]
    head = [row.where, str(case.lost_sites), name]
    if "absent" in one.record:
        return [*head, one.record["absent"], *[""] * (len(HEAD) - 4)]
    wall = ""
    if row.two:
        server = row.two.server("wall_s", row.stayed)
        wall = f"{_seconds(row.two.record['client']['wall_s'])} / {_seconds(server)}"
    rest = one.record["up_bytes"] - one.record["vector_bytes"]
    down = one.record["down_bytes"]
    masking = ""
    if ours:
        phase = one.record["client"]["phases"]["mask"] / one.record["masks"]["ceiling_s"]
        masking = f"{one.masking:.2f} ({phase:.2f})"
    return [
        *head,
        _seconds(row.client),
        _seconds(row.server),
        wall,
        "" if one.peak is None else f"{one.peak:.1f}",
        f"{one.record['vector_bytes'] / case.parameters:.2f}",
        f"{_kilobytes(rest)} / {_kilobytes(down)}",
        masking,
        " / ".join(f"{ratio:.1f}" for ratio in row.over or ()),
        f"{row.ckks_over:.0f}" if row.ckks_over else "",
    ]


def goals(lines: Sequence[Line]) -> str:
    """What was asked, the worst that was seen, and whether that is enough."""
    ours = [row for row in rows(lines) if row.one.system == OURS]
    out = ["| goal | bits | worst | where | met |", "|---|---|---|---|---|"]
    for bits in sorted({row.case.bits for row in ours}, reverse=True):
        mine = [row for row in ours if row.case.bits == bits]
        compared = [(row, row.over) for row in mine if row.over and row.case.sites in (10, 50)]
        width = bits / 8
        for goal, least, found in (
            ("client ≥ 8 × faster than SecAgg+, 10 and 50 sites", 8.0, [(o[0], r) for r, o in compared]),
            ("server ≥ 8 × faster than SecAgg+, 10 and 50 sites", 8.0, [(o[1], r) for r, o in compared]),
            ("of that its opening alone", 8.0, [(o[2], r) for r, o in compared]),
            ("client ≥ 50 × faster than CKKS", 50.0, [(r.ckks_over, r) for r in mine if r.ckks_over]),
            (f"vector ≤ {width:g} bytes a parameter", -width, [(-_up(r), r) for r in mine]),
            ("masks ≤ 2 × their ceiling", -2.0, [(-r.one.masking, r) for r in mine]),
            ("peak ≤ 3 × the vector", -3.0, [(-r.one.peak, r) for r in mine if r.one.peak]),
        ):
            if found:
                worst, row = min(found, key=lambda pair: pair[0])
                missed = sum(value < least for value, _ in found)
                met = "yes" if not missed else f"not in {missed} of {len(found)}"
                place = f"{row.where}, {row.case.lost_sites} lost"
                out.append(f"| {goal} | {bits} | {abs(worst):.2f} | {place} | {met} |")
    return "\n".join(out)


def _up(row: Row) -> float:
    return float(row.one.record["vector_bytes"] / row.case.parameters)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _kilobytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
