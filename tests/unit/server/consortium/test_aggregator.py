"""The key of a server that is the trusted aggregator: made there once, read strictly, replaced by intent."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from toy_plans import toy_plan

from wardround.core.enrolment import EnrolmentRules, SignedPlan
from wardround.core.errors import ConfigError, PeerError, StorageError
from wardround.core.plan import SecureRules, TrainingPlan
from wardround.privacy.sealed import public_key
from wardround.privacy.secagg.secret import Secret
from wardround.runtime.signed_plan import sign_plan
from wardround.runtime.small_files import identity_pem
from wardround.server.consortium.aggregator import aggregator_key, show_aggregator_key
from wardround.server.consortium.creation import create
from wardround.server.consortium.operator_folder import OperatorFolder
from wardround.server.consortium.server_folder import AGGREGATOR_KEY, open_server_folder
from wardround.server.daemon import name_of
from wardround.server.execution import own_aggregator
from wardround.server.run_record import RunRecord, make_run
from wardround.server.run_states import RunStatus

NOW = datetime.now(UTC)
SPOILED = {
    "open to others": (lambda path: path.chmod(0o640), "can be used by others"),
    "empty": (lambda path: path.write_bytes(b""), "does not hold its key"),
    "garbage": (lambda path: path.write_bytes(b"\x00" * 119), "does not hold its key"),
    "of another kind": (
        lambda path: path.write_bytes(identity_pem(Ed25519PrivateKey.generate())), "does not hold its key",
    ),
    "a link": (lambda path: path.rename(path.with_name("x")) and path.symlink_to("x"), "cannot read"),
    "a link to nothing": (lambda path: path.unlink() or path.symlink_to("nowhere"), "cannot read"),
    "too large": (lambda path: path.write_bytes(b"x" * 9000), "is too large"),
}  # fmt: skip


@pytest.fixture
def operator(tmp_path: Path) -> OperatorFolder:
    """A consortium."""
    return create(tmp_path / "north", "northern lights", "server.example:9443", NOW)


def trusting(key: str | None) -> TrainingPlan:
    """A plan whose contributions are sealed to this key; None: to none."""
    if key is None:
        return toy_plan()
    return toy_plan(secure=SecureRules(mode="trusted", aggregator=key))


def signed(operator: OperatorFolder, plan: TrainingPlan) -> bytes:
    """It under the consortium's key."""
    return sign_plan(
        SignedPlan(plan=plan, enrolment=EnrolmentRules(least_sites=3)), operator.consortium_key(None)
    )


def queued(operator: OperatorFolder, plan: TrainingPlan, status: RunStatus) -> str:
    """The id of a run that lies in the server's folder."""

    def record(run_id: str) -> RunRecord:
        return RunRecord(
            run_id=run_id, name="one", plan_digest="", submission="s", place=1, submitted=0.0, changed=0.0,
            status=status,
        )  # fmt: skip

    return make_run(operator.server / "runs", signed(operator, plan), [b"initial"], record, 0.0).run_id


def test_the_key_is_made_once_and_nobody_else_may_read_it(operator: OperatorFolder) -> None:
    """The second time the same one is told; it opens what its public half sealed, and lies there alone."""
    folder = open_server_folder(operator.server)
    assert folder.aggregator() is None
    made, again = aggregator_key(operator.server), aggregator_key(operator.server)
    assert (made.made, again.made, made.public) == (True, False, again.public)
    file = operator.server / AGGREGATOR_KEY
    assert file.stat().st_mode & 0o777 == 0o600
    key = folder.aggregator()
    assert key is not None
    assert public_key(key) == made.public
    folder.check(NOW)
    assert not list(operator.path.glob("*aggregator*"))


def test_what_is_shown_is_the_public_half(
    operator: OperatorFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """For the plan, for the sites' policies, and to be read out; nothing of the private one."""
    show_aggregator_key(operator.server, new=False)
    shown = capsys.readouterr().out
    key = open_server_folder(operator.server).aggregator()
    assert key is not None
    public = public_key(key).hex()
    assert shown.count(public) == 2
    assert f"secure.mode=trusted secure.aggregator={public}" in shown
    assert public in re.sub(r"\s", "", shown.rpartition("read out:")[2])
    assert key.reveal().hex() not in re.sub(r"\s", "", shown)


@pytest.mark.parametrize("kind", sorted(SPOILED))
def test_a_key_that_cannot_be_trusted_is_refused_and_can_be_replaced(
    operator: OperatorFolder, kind: str
) -> None:
    """By the command, by the server before it starts, and where a run is to begin."""
    before, file = aggregator_key(operator.server).public, operator.server / AGGREGATOR_KEY
    spoil, said = SPOILED[kind]
    spoil(file)
    folder = open_server_folder(operator.server)
    for use in (lambda: aggregator_key(operator.server), folder.aggregator, lambda: folder.check(NOW)):
        with pytest.raises(StorageError, match=said) as refused:
            use()
        assert refused.value.remedy
    found = aggregator_key(operator.server, new=True)
    assert found.made
    assert found.public != before
    assert file.stat().st_mode & 0o777 == 0o600
    folder.check(NOW)


def test_a_new_key_destroys_the_old_one(operator: OperatorFolder) -> None:
    """Not while a run needs it; of stopped and failed ones that named it is said that they are lost."""
    first = aggregator_key(operator.server).public.hex()
    other = "ab" * 32
    for plan, status in (
        (trusting(first), RunStatus.FINISHED), (trusting(other), RunStatus.TRAINING),
        (trusting(None), RunStatus.QUEUED),
    ):  # fmt: skip
        queued(operator, plan, status)
    lost = queued(operator, trusting(first), RunStatus.STOPPED)
    content = (operator.server / AGGREGATOR_KEY).read_bytes()
    second = aggregator_key(operator.server, new=True)
    assert second.made
    assert second.lost == (lost,)
    assert (operator.server / AGGREGATOR_KEY).read_bytes() != content
    waits = queued(operator, trusting(second.public.hex()), RunStatus.QUEUED)
    with pytest.raises(ConfigError, match="needs the aggregator's key") as refused:
        aggregator_key(operator.server, new=True)
    assert waits in str(refused.value.found)
    assert aggregator_key(operator.server).public == second.public
    (operator.server / AGGREGATOR_KEY).chmod(0o644)  # whose it was cannot be told: any such run may need it
    with pytest.raises(ConfigError, match="needs the aggregator's key"):
        aggregator_key(operator.server, new=True)


def test_a_server_takes_the_plans_that_name_its_key_alone(operator: OperatorFolder) -> None:
    """Without the key, and with another one: what was found, what it should be, and what to do."""
    folder = open_server_folder(operator.server)
    assert name_of(signed(operator, trusting(None)), folder) == toy_plan().name
    with pytest.raises(ConfigError, match="cannot open what is sealed") as none:
        name_of(signed(operator, trusting("ab" * 32)), folder)
    assert (none.value.found, "ab" * 32 in str(none.value.expected)) == (
        "no aggregator.key in the server's folder", True,
    )  # fmt: skip
    own = aggregator_key(operator.server).public.hex()
    with pytest.raises(ConfigError, match="another aggregator than this server") as other:
        name_of(signed(operator, trusting("ab" * 32)), folder)
    assert (other.value.found, other.value.expected) == (f"secure.aggregator={'ab' * 32}", own)
    for error in (none.value, other.value):
        assert "wardround server aggregator-key" in str(error.remedy)
    assert name_of(signed(operator, trusting(own)), folder) == toy_plan().name
    with pytest.raises(PeerError):
        name_of(b"{}", folder)
    found = own_aggregator(trusting(own), folder.aggregator())
    assert found is not None
    assert found.public.hex() == own
    assert own_aggregator(trusting(None), Secret.fresh()) is None


def test_a_folder_that_is_no_servers_gets_no_key(operator: OperatorFolder, tmp_path: Path) -> None:
    """The operator's own, an empty one, one that others may enter; by the command line as well."""
    (tmp_path / "empty").mkdir()
    for path in (operator.path, tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(StorageError, match="no server's folder"):
            aggregator_key(path)
    done = subprocess.run(
        [sys.executable, "-m", "wardround.cli", "server", "aggregator-key", str(tmp_path / "empty")],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "no server's folder" in done.stderr
    operator.server.chmod(0o755)
    with pytest.raises(StorageError, match="open to others"):
        aggregator_key(operator.server)
