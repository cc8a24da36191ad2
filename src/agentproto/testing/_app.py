"""The endpoints of the Runs API."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ._json import dump, encode
from ._problems import ProblemError
from ._responses import LiveResponse, waited
from ._runs import HostedRun
from ._store import RunStore
from ._validation import cancel_query, run_create, run_search, run_update

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]


def runs_app(store: RunStore, heartbeat: float) -> Starlette:
    api = _RunsApi(store, heartbeat)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        yield
        await store.close()

    app = Starlette(
        routes=[
            _route("/runs", POST=api.create),
            _route("/runs/search", POST=api.search),
            _route("/runs/wait", POST=api.create_and_wait),
            _route("/runs/stream", POST=api.create_and_stream),
            _route("/runs/{run_id}", GET=api.get, DELETE=api.delete),
            _route("/runs/{run_id}/wait", GET=api.wait, POST=api.update_and_wait),
            _route("/runs/{run_id}/stream", GET=api.stream, POST=api.update_and_stream),
            _route("/runs/{run_id}/cancel", POST=api.cancel),
        ],
        exception_handlers={ProblemError: _answer_problem, HTTPException: _answer_http_exception},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


class _RunsApi:
    def __init__(self, store: RunStore, heartbeat: float) -> None:
        self._store = store
        self._heartbeat = heartbeat

    async def create(self, request: Request) -> Response:
        return _json((await self._created(request)).described())

    async def create_and_wait(self, request: Request) -> Response:
        return self._waiting(await self._created(request), is_owner=True)

    async def create_and_stream(self, request: Request) -> Response:
        run = await self._created(request)
        return self._streaming(run, run.log.streamed(0, self._heartbeat), is_owner=True)

    async def update_and_wait(self, request: Request) -> Response:
        run = self._store.get(request.path_params["run_id"])
        run.update(run_update(await request.body()))
        return self._waiting(run, is_owner=True)

    async def update_and_stream(self, request: Request) -> Response:
        run = self._store.get(request.path_params["run_id"])
        command = run_update(await request.body())
        position = len(run.log)
        run.update(command)
        return self._streaming(run, run.log.streamed(position, self._heartbeat), is_owner=True)

    async def wait(self, request: Request) -> Response:
        return self._waiting(self._store.get(request.path_params["run_id"]), is_owner=False)

    async def stream(self, request: Request) -> Response:
        run = self._store.get(request.path_params["run_id"])
        position = run.log.position_after(request.headers.get("last-event-id"))
        events = run.log.streamed(position, self._heartbeat, through_updates=True)
        return self._streaming(run, events, is_owner=False)

    async def get(self, request: Request) -> Response:
        return _json(self._store.get(request.path_params["run_id"]).described())

    async def delete(self, request: Request) -> Response:
        self._store.delete(request.path_params["run_id"])
        return Response(status_code=204)

    async def search(self, request: Request) -> Response:
        found = self._store.search(run_search(await request.body()))
        return _json([run.described() for run in found])

    async def cancel(self, request: Request) -> Response:
        run_id = request.path_params["run_id"]
        wait, action = cancel_query(request.query_params)
        run = self._store.cancel(run_id)
        if wait:
            await run.stopped()
        if action == "rollback":
            self._store.delete(run_id)
        return Response(status_code=204)

    async def _created(self, request: Request) -> HostedRun:
        return self._store.create(run_create(await request.body()))

    def _waiting(self, run: HostedRun, *, is_owner: bool) -> Response:
        chunks = waited(run.turn, self._heartbeat)
        return self._live(run, chunks, "application/json", is_owner=is_owner)

    def _streaming(
        self, run: HostedRun, events: AsyncGenerator[bytes, None], *, is_owner: bool
    ) -> Response:
        return self._live(run, events, "text/event-stream", is_owner=is_owner)

    def _live(
        self,
        run: HostedRun,
        chunks: AsyncGenerator[bytes, None],
        media_type: str,
        *,
        is_owner: bool,
    ) -> Response:
        turn = run.turn

        async def on_hang_up() -> None:
            is_kept = run.fields.get("on_disconnect", "cancel") == "continue"
            if is_owner and not is_kept and not turn.done():
                run.cancel()
                await run.stopped()

        return LiveResponse(
            chunks,
            location=f"/runs/{run.context.run_id}",
            media_type=media_type,
            on_hang_up=on_hang_up,
        )


def _route(path: str, **endpoints: Endpoint) -> Route:
    async def endpoint(request: Request) -> Response:
        return await endpoints[request.method](request)

    route = Route(path, endpoint)
    route.methods = set(endpoints)  # as an argument, GET would bring HEAD with it
    return route


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(encode(dump(value)), status, headers, media_type="application/json")


async def _answer_problem(_: Request, error: Exception) -> Response:
    problem = cast("ProblemError", error)
    return _json({"code": problem.code, "message": problem.message}, problem.status)


async def _answer_http_exception(request: Request, exception: Exception) -> Response:
    error = cast("HTTPException", exception)
    code = error.detail.lower().replace(" ", "_")
    message = f"{request.method} {request.url.path}: {error.detail}"
    headers = dict(error.headers) if error.headers else None
    return _json({"code": code, "message": message}, error.status_code, headers)
