"""`wardround site`: a thin, lazy table of a site's commands on keys and members."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Optional

import typer

site_app = typer.Typer(help="A site's keys, and the members that it trusts.", no_args_is_help=True)
roster_app = typer.Typer(help="The members: look, update, confirm.", no_args_is_help=True)
site_app.add_typer(roster_app, name="roster")
server_app = typer.Typer(help="The server that this site trusts.", no_args_is_help=True)
site_app.add_typer(server_app, name="server")
data_app = typer.Typer(help="The rows that this site brings to a plan.", no_args_is_help=True)
site_app.add_typer(data_app, name="data")
model_app = typer.Typer(help="The base models that this site has.", no_args_is_help=True)
site_app.add_typer(model_app, name="model")

FOLDER = Annotated[Path, typer.Option(help="The site's folder.")]
HERE = Path("site")


@site_app.command("join")
def site_join(
    invitation: Annotated[Path, typer.Argument(help="The file that the operator sent.")],
    folder: Annotated[Path, typer.Option(help="Folder to make for the site.")] = HERE,
    fingerprint: Annotated[
        Optional[str],  # noqa: UP045 - typer reads Optional
        typer.Option(help="The consortium's fingerprint as you heard it; another one is refused."),
    ] = None,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Ask for a passphrase, and lock the keys with it.")
    ] = False,
    beside: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads Optional
        typer.Option(help="Folder of this hospital's site in another consortium: both have one ledger then."),
    ] = None,
) -> None:
    """Answer an invitation: check it, make this site's keys, write the request for the operator."""
    from wardround.client.membership.commands import join_consortium

    join_consortium(invitation, folder, _now(), pinned=fingerprint, lock=passphrase, beside=beside)


@site_app.command("passphrase")
def site_passphrase(
    folder: FOLDER = HERE,
    remove: Annotated[bool, typer.Option("--remove", help="Let the keys lie open.")] = False,
    file: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads Optional
        typer.Option("--new", help="File whose first line is the new passphrase; else it is asked for."),
    ] = None,
) -> None:
    """Lock the site's keys with a passphrase, change it, or take it off. The site has to be stopped."""
    from wardround.client.membership.commands import lock_keys

    lock_keys(folder, remove=remove, file=file)


@site_app.command("start")
def site_start(
    folder: FOLDER = HERE,
    deadline: Annotated[
        float, typer.Option(help="Seconds that one message may take before the worker is started anew.")
    ] = 6 * 3600.0,
) -> None:
    """Run the site: its node, its worker, and the supervisor that holds the keys. Ends on SIGTERM."""
    from wardround.client.site_commands import start_site

    start_site(folder, deadline)


@site_app.command("status")
def site_status(
    folder: FOLDER = HERE,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Show the site's processes, and the runs that it was offered."""
    from wardround.client.site_commands import show_site

    show_site(folder, as_json=as_json)


@site_app.command("check")
def site_check(
    folder: FOLDER = HERE,
    plan: Annotated[
        Optional[Path],  # noqa: UP045 - as above
        typer.Option(help="A plan's folder or file: looks at what only a plan decides as well."),
    ] = None,
    run: Annotated[
        Optional[str],  # noqa: UP045 - as above
        typer.Option(help="Or a run that was offered to this site."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The findings, as JSON.")] = False,
) -> None:
    """Look whether this site could take part: keys, clock, machine, models, rows, the way to the server."""
    from wardround.client.doctor.command import check_site

    raise typer.Exit(check_site(folder, plan=plan, run=run, as_json=as_json))


@site_app.command("approve")
def site_approve(
    run: Annotated[str, typer.Argument(help="Id of the run, as status shows it.")],
    who: Annotated[str, typer.Option(help="The person who approves; on record.")],
    folder: FOLDER = HERE,
    digest: Annotated[
        Optional[str],  # noqa: UP045 - as above
        typer.Option(help="The plan's digest as you know it; another one is refused, and nothing is asked."),
    ] = None,
) -> None:
    """Show what an offered plan asks of this site, and let it take part."""
    from wardround.client.site_commands import approve_run

    approve_run(folder, run, who, said=digest, ask=typer.confirm)


@site_app.command("deny")
def site_deny(
    run: Annotated[str, typer.Argument(help="Id of the run, as status shows it.")],
    who: Annotated[str, typer.Option(help="The person who declines; on record.")],
    folder: FOLDER = HERE,
    digest: Annotated[
        Optional[str],  # noqa: UP045 - as above
        typer.Option(help="The plan's digest as you know it; another one is refused, and nothing is asked."),
    ] = None,
) -> None:
    """Show what an offered plan asks of this site, and keep the site out of it; it holds for good."""
    from wardround.client.site_commands import decline_run

    decline_run(folder, run, who, said=digest, ask=typer.confirm)


@site_app.command("fetch")
def site_fetch(
    run: Annotated[str, typer.Argument(help="Id of a run that this site took part in.")],
    folder: FOLDER = HERE,
    merge: Annotated[
        Optional[Path],  # noqa: UP045 - as above
        typer.Option(help="Folder to make: the adapter merged into this site's base model."),
    ] = None,
) -> None:
    """Fetch the result of a run from the server, check it, and keep it with the run."""
    from wardround.client.site_commands import fetch_run

    fetch_run(folder, run, merge=merge)


@site_app.command("preview")
def site_preview(
    plan: Annotated[
        str, typer.Argument(help="A plan's folder, the file plan.signed.json, or the id of an offered run.")
    ],
    folder: FOLDER = HERE,
    fields: Annotated[
        bool, typer.Option("--fields", help="Every field of every message, and what it is.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Show what would leave this site in a run of a plan: messages, names, shapes, bytes, ε."""
    from wardround.client.preview.commands import show_preview

    show_preview(folder, plan, as_json=as_json, fields=fields)


@site_app.command("history")
def site_history(
    folder: FOLDER = HERE,
    run: Annotated[
        Optional[str],  # noqa: UP045 - as above
        typer.Option(help="Leave out all others."),
    ] = None,
    noted: Annotated[
        Optional[str],  # noqa: UP045 - as above
        typer.Option(help="A head that you noted; a history that has lost it is refused."),
    ] = None,
    last: Annotated[int, typer.Option(help="So many rows at the most; 0 shows all.", min=0)] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Check the signed record of what left this site, and show it."""
    from wardround.client.history.commands import show_history

    show_history(folder, run, noted=noted, last=last, as_json=as_json)


@site_app.command("stop")
def site_stop(folder: FOLDER = HERE) -> None:
    """End the site's processes; a round that it trains goes on at the next start."""
    from wardround.client.site_commands import stop_site

    stop_site(folder)


@site_app.command("leave")
def site_leave(
    folder: Annotated[Path, typer.Argument(help="The site's folder.")] = HERE,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing.")] = False,
) -> None:
    """Leave the consortium: destroy this site's keys and what its runs had kept. The ledger stays."""
    from wardround.client.membership.commands import leave_consortium

    leave_consortium(folder, _now(), ask=None if yes else typer.confirm)


@site_app.command("rotate")
def site_rotate(folder: FOLDER = HERE) -> None:
    """Make new keys, and the request for the operator to put them on the roster."""
    from wardround.client.membership.commands import rotate_keys

    rotate_keys(folder, _now())


@roster_app.command("show")
def roster_show(
    folder: FOLDER = HERE,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Show the pinned roster, and which members count for this site."""
    from wardround.client.membership.commands import show_roster

    show_roster(folder, _now(), as_json=as_json)


@roster_app.command("update")
def roster_update(
    file: Annotated[Path, typer.Argument(help="The signed roster.")], folder: FOLDER = HERE
) -> None:
    """Pin a newer roster; an older one, or one that contradicts the pinned one, is refused."""
    from wardround.client.membership.commands import take_roster

    take_roster(folder, file, _now())


@roster_app.command("confirm")
def roster_confirm(
    folder: FOLDER = HERE,
    digest: Annotated[
        Optional[str],  # noqa: UP045 - as above
        typer.Option(help="The digest as you heard it; another one is refused, and nothing is asked."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Digest and changes as JSON; asks nothing.")
    ] = False,
) -> None:
    """Show the roster's digest and what changed, and record that you compared it with the other sites."""
    from wardround.client.membership.commands import confirm_members

    confirm_members(folder, _now(), said=digest, as_json=as_json, ask=typer.confirm)


@server_app.command("update")
def server_update(
    file: Annotated[Path, typer.Argument(help="The operator's server-notice.json.")], folder: FOLDER = HERE
) -> None:
    """Take the server's new certificate, address or authority, as the consortium key signed it."""
    from wardround.client.membership.commands import take_server_notice

    take_server_notice(folder, file, _now())


@data_app.command("add")
def data_add(
    plan: Annotated[str, typer.Argument(help="Id of an offered run, a plan's folder, or plan.signed.json.")],
    folder: FOLDER = HERE,
    path: Annotated[
        Optional[str],  # noqa: UP045 - typer reads Optional
        typer.Option(help="File or folder of the rows; without it the source in site.yaml."),
    ] = None,
    kind: Annotated[Optional[str], typer.Option(help="Source kind, where the ending does not tell.")] = None,  # noqa: UP045 - as above
    option: Annotated[
        Optional[list[str]],  # noqa: UP045 - as above
        typer.Option(help="NAME=VALUE of the source, such as delimiter=;."),
    ] = None,
    column: Annotated[
        Optional[list[str]],  # noqa: UP045 - as above
        typer.Option(help="PLAN=LOCAL: a column as the plan calls it, and as the rows do."),
    ] = None,
    where: Annotated[
        Optional[list[str]],  # noqa: UP045 - as above
        typer.Option(help="COLUMN=VALUE: only rows that equal it; of one column twice: either."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Ask nothing; what does not fit is not written.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="What was found, as JSON; writes nothing.")] = False,
) -> None:
    """Bind a plan's columns to this site's rows, show what is in them, and write it to site.yaml."""
    from wardround.client.data_commands import add_data

    add_data(
        folder, plan, path=path, kind=kind, options=dict(_pairs("--option", option)),
        columns=dict(_pairs("--column", column)), where=_pairs("--where", where),
        ask=None if yes else typer.confirm, as_json=as_json,
    )  # fmt: skip


@model_app.command("import")
def model_import(
    source: Annotated[Path, typer.Argument(help="Folder of the base model.")],
    folder: FOLDER = HERE,
    name: Annotated[Optional[str], typer.Option(help="In the site's models/; else the folder's own.")] = None,  # noqa: UP045 - as above
    plan: Annotated[
        Optional[str],  # noqa: UP045 - as above
        typer.Option(help="Whose base model it has to be: a run's id, a plan's folder, or plan.signed.json."),
    ] = None,
    digest: Annotated[Optional[str], typer.Option(help="Digest that it has to have.")] = None,  # noqa: UP045 - as above
    task: Annotated[
        Optional[str],  # noqa: UP045 - as above
        typer.Option(help="Without a plan: the task that it is loaded for; else what its config says."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Without a plan: float32, bfloat16 or float16.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="What was done, as JSON.")] = False,
) -> None:
    """Take a base model into the site's folder: safetensors alone, never code, checked by digest."""
    from wardround.client.model_commands import import_model

    import_model(
        folder, source, name=name, plan=plan, digest=digest, task=task, dtype=dtype,
        ask=None if yes else partial(typer.confirm, err=True), as_json=as_json,
    )  # fmt: skip


@site_app.command("evaluate")
def site_evaluate(
    run: Annotated[str, typer.Argument(help="Id of a run whose result was fetched.")],
    folder: FOLDER = HERE,
    rows: Annotated[
        Optional[str],  # noqa: UP045 - as above
        typer.Option(help="File or folder of test rows; else the rows that the site holds back."),
    ] = None,
    kind: Annotated[Optional[str], typer.Option(help="Source kind of --rows.")] = None,  # noqa: UP045 - as above
    initial: Annotated[
        Optional[Path],  # noqa: UP045 - as above
        typer.Option(help="The plan's folder, where it starts from a saved adapter."),
    ] = None,
    without_local: Annotated[bool, typer.Option("--without-local", help="Do not train alone.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Compare base, trained alone and federated on this site's own rows; nothing leaves, nothing is kept."""
    from wardround.client.evaluation_commands import evaluate_run

    evaluate_run(folder, run, rows=rows, kind=kind, initial=initial, alone=not without_local, as_json=as_json)


@site_app.command("logs")
def site_logs(
    folder: FOLDER = HERE,
    since: Annotated[
        Optional[str],  # noqa: UP045 - as above
        typer.Option(help="Such as 30m, 1h, 2d, or a time as 2026-11-01T12:00; else everything."),
    ] = None,
    level: Annotated[str, typer.Option(help="The least: debug, info, warning, error.")] = "info",
    run: Annotated[Optional[str], typer.Option(help="Only what names this run.")] = None,  # noqa: UP045 - as above
    more: Annotated[bool, typer.Option("--follow", help="Go on as lines come, until Ctrl-C.")] = False,
    tracebacks: Annotated[
        bool, typer.Option("--tracebacks", help="Those of faults as well; they may hold anything.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line an entry.")] = False,
) -> None:
    """Show what this site's processes logged, in order of time."""
    from wardround.client.log_commands import show_logs

    show_logs(folder, since=since, level=level, run=run, more=more, tracebacks=tracebacks, as_json=as_json)


@site_app.command("support-bundle")
def site_support_bundle(
    file: Annotated[Path, typer.Argument(help="Archive to write; a new one.")], folder: FOLDER = HERE
) -> None:
    """Write an archive for whoever helps: figures, digests and our own words, nothing of the site's data."""
    from wardround.client.log_commands import make_bundle

    make_bundle(folder, file)


def _pairs(what: str, given: list[str] | None) -> list[tuple[str, str]]:
    """NAME=VALUE arguments, in order; what is wrong with one is said without its value."""
    pairs = []
    for text in given or []:
        name, separator, value = text.partition("=")
        if not (name and separator and value):
            raise typer.BadParameter("each is NAME=VALUE", param_hint=what)
        pairs.append((name, value))
    return pairs


def _now() -> datetime:
    return datetime.now(UTC)
