"""What the server answers to members, beside Flower's fleet routes: the signed roster, and results of runs.

    GET /v1/wardround/about                what the server speaks, and whether it admits who asks
    GET /v1/wardround/roster               roster.json, as the consortium signed it
    GET /v1/wardround/results/RUN/FILE     result.signed.json, released.safetensors or last.safetensors,
                                           or in place of both shared.safetensors

Every request is signed by the identity key of a member of the present roster. Nothing is computed here: these
are files. `probe_route.py` has the one route that takes a body.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from wardround.core.errors import PeerError, WardroundError
from wardround.privacy.secagg.identity import Roster
from wardround.runtime.result_record import SHARED
from wardround.runtime.server_about import ServerAbout
from wardround.runtime.signed_requests import ABOUT, HEADER, ROUTES, Asked, check_request
from wardround.server.execution import LAST, RECORD, RELEASED, RESULT

FILES: Final = frozenset({RECORD, RELEASED, LAST, SHARED})
RUN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def member_routes(
    roster: Callable[[], Roster],
    roster_file: Path,
    runs: Path,
    now: Callable[[], float] = time.time,
    about: Callable[[str], ServerAbout | None] = lambda _: None,
) -> Starlette:
    """The application.

    Args:
        roster: The members' keys, as of now.
        roster_file: The signed roster.
        runs: Folder of the server's runs.
        now: Seconds since 1970.
        about: What the server says of itself to a member.
    """

    def guarded(answer: Callable[[Request, Asked], Response]) -> Callable[[Request], Response]:
        def checked(request: Request) -> Response:
            try:
                asked = check_request(request.headers.get(HEADER, ""), request.url.path, roster(), now())
            except PeerError as error:
                return PlainTextResponse(f"{error.what}\n", status_code=401)
            except WardroundError:
                return PlainTextResponse("the server cannot read its roster\n", status_code=503)
            return answer(request, asked)

        return checked

    def said(_: Request, asked: Asked) -> Response:
        try:
            found = about(asked.site)
        except WardroundError:
            return PlainTextResponse("the server cannot read its roster\n", status_code=503)
        if found is None:
            return PlainTextResponse("the server says nothing of itself\n", status_code=404)
        return JSONResponse(found.model_dump(mode="json"))

    def result(request: Request, _: Asked) -> Response:
        run, name = request.path_params["run"], request.path_params["file"]
        path = runs / run / RESULT / name
        # The record comes last: without it there is no result, whatever lies there.
        whole = RUN_ID.fullmatch(run) and name in FILES and (path.parent / RECORD).is_file()
        if not whole or not path.is_file():
            return PlainTextResponse("there is no such result\n", status_code=404)
        return FileResponse(path, media_type="application/octet-stream")

    return Starlette(
        routes=[
            Route(f"{ROUTES}{ABOUT}", guarded(said), methods=["GET"]),
            Route(f"{ROUTES}/roster", guarded(lambda *_: FileResponse(roster_file)), methods=["GET"]),
            Route(f"{ROUTES}/results/{{run}}/{{file}}", guarded(result), methods=["GET"]),
        ]
    )
