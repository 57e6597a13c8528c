"""Who may call what: every route, by every kind of caller, with every scope.  Generated from the table of routes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest

from engine.service.access import ALL_SCOPES, Peer, Scope
from engine.service.routes.table import ROUTES
from engine.service.routing import SPEC, Reply, Route
from engine.service.tokens import digest, make_token
from engine.wire import shapes
from tests.support.asking import asking, config_with
from tests.support.daemon import client_for, running_daemon

PUBLIC = {"/", "/page/{file}", "/livez", "/readyz", "/openapi.json"}
"""All that anybody may see: it holds no data.  Whoever adds a path here says in a review why."""

CONTROL = {
    ("POST", "/v1/jobs/{job}/pause"),
    ("POST", "/v1/jobs/{job}/resume"),
    ("POST", "/v1/jobs/{job}/cancel"),
    ("POST", "/v1/jobs/{job}/verify"),
    ("POST", "/v1/jobs/{job}/quarantine/retry"),
    ("PATCH", "/v1/jobs/{job}/pace"),
}
"""What somebody with ``control`` may do; every other change needs ``submit``."""

PATHS = {"{job}": "orders", "{name}": "main", "{file}": "page.css"}
FAR = Peer(address="203.0.113.9")
NEAR = Peer(address="127.0.0.1")
STRANGER = 4_000_111  # a user of this machine that nobody listed
LISTED = 4_000_222


@dataclass(frozen=True)
class Caller:
    """Somebody.  ``scopes``: what he may; None where the daemon must not know him at all."""

    name: str
    peer: Peer
    scopes: frozenset[Scope] | None
    token: str | None = None


TOKENS = {f"only-{scope}": {"scopes": [scope.value]} for scope in Scope} | {
    "all": {"scopes": list(map(str, Scope))},
    "none": {"scopes": ["read"], "connections": ["other"]},
    "expired": {"scopes": list(map(str, Scope)), "expires": datetime.now(UTC) - timedelta(seconds=1)},
}
SECRETS = {name: make_token() for name in TOKENS}

CALLERS = [
    Caller("nobody from afar", FAR, None),
    Caller("nobody nearby", NEAR, frozenset({Scope.READ})),
    Caller("an unknown token", FAR, None, make_token()),
    Caller("an expired token", FAR, None, SECRETS["expired"]),
    Caller("an unknown certificate", Peer(address=FAR.address, certificate=("mallory",)), None),
    Caller("a listed certificate", Peer(address=FAR.address, certificate=("ci",)), frozenset({Scope.CONTROL})),
    Caller("a stranger at the socket", Peer(uid=STRANGER, gid=STRANGER), None),
    Caller("a listed user at the socket", Peer(uid=LISTED, gid=LISTED), frozenset({Scope.SUBMIT})),
    Caller("root at the socket", Peer(uid=0, gid=0), ALL_SCOPES),
    *(Caller(f"a token to {scope}", FAR, frozenset({scope}), SECRETS[f"only-{scope}"]) for scope in Scope),
    Caller("a token for everything", FAR, ALL_SCOPES, SECRETS["all"]),
    Caller("a token of another connection", FAR, frozenset({Scope.READ}), SECRETS["none"]),
    Caller("root, with a token that may less", Peer(uid=0, gid=0), frozenset({Scope.READ}), SECRETS["only-read"]),
    Caller("root, with an unknown token", Peer(uid=0, gid=0), None, make_token()),
]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    file = tmp_path_factory.mktemp("access") / "tokens.toml"
    lines = []
    for name, entry in TOKENS.items():
        lines += [f"[tokens.{name}]", f'sha256 = "{digest(SECRETS[name])}"', f"scopes = {entry['scopes']}"]
        lines += [f"{key} = {entry[key]}" for key in ("connections", "expires") if key in entry]
    file.write_text("\n".join(lines))
    file.chmod(0o600)
    return config_with(
        auth={
            "tokens_file": str(file),
            "loopback": ["read"],
            "users": {str(LISTED): ["submit"]},
            "certificates": {"ci": ["control"]},
        }
    )


async def reached(route: Route, caller: Caller, config) -> tuple[int, str | None, bool]:
    """Ask for the route as that caller: status, code, and whether the handler was called."""

    async def handler(call):
        return Reply(shapes.Health(status="ok"))

    asked = asking(replace(route, handler=handler, body_required=False), as_peer=caller.peer, config=config)
    path = route.path
    for template, value in PATHS.items():
        path = path.replace(template, value)
    headers = {"authorization": f"Bearer {caller.token}"} if caller.token is not None else {}
    body = {"json": {}} if route.request is not None else {}
    answer = await asked.client.request(route.method, path, headers=headers, **body)
    code = answer.json().get("code") if answer.status_code >= 400 else None
    return answer.status_code, code, bool(asked.calls)


@pytest.mark.parametrize("caller", CALLERS, ids=lambda caller: caller.name)
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
async def test_a_route_lets_in_who_has_its_scope_and_nobody_else(route, caller, config):
    status, code, was_reached = await reached(route, caller, config)
    if route.scope is None:
        assert was_reached
    elif caller.scopes is None:
        assert (status, code, was_reached) == (401, "unauthenticated", False)
    elif route.scope not in caller.scopes:
        assert (status, code, was_reached) == (403, "forbidden", False)
    else:
        # Whoever is let in may still have sent a body that does not fit.
        assert was_reached or status == 422


def test_what_is_public_is_known_by_name():
    assert {route.path for route in ROUTES if route.scope is None} <= PUBLIC
    assert all(route.method == "GET" for route in ROUTES if route.scope is None)


def test_a_scope_is_what_its_name_says():
    for route in ROUTES:
        if route.scope is None:
            continue
        if route.method == "GET":
            assert route.scope is Scope.READ, route.name
        elif (route.method, route.path) in CONTROL:
            assert route.scope is Scope.CONTROL, route.name
        else:
            assert route.scope is Scope.SUBMIT, route.name


async def test_a_route_that_says_no_scope_is_found_out():
    with pytest.raises(TypeError, match="scope"):
        Route("GET", "/v1/secrets", "secrets", "All of them", handler=ROUTES[0].handler)


async def test_nobody_learns_what_is_there_by_asking_without_a_name(config):
    """Whether a job is there is asked only after who asks."""
    for route in ROUTES:
        if route.scope is not None:
            status, code, _ = await reached(route, CALLERS[0], config)
            assert (status, code) == (401, "unauthenticated")


# -- bound to connections ---------------------------------------------------------------------------------------------


def spec_on(connection: str) -> dict:
    return {
        "name": "orders",
        "source": {"connection": connection, "table": "public.orders"},
        "set": {"cents": "amount * 100"},
        "pace": {"signals": "off", "max_rows_per_s": 1},
    }


BODIES = {
    shapes.PaceChange: {"workers": 2},
    shapes.Rows: {"all": True},
    shapes.DualWriteChange: {"action": "install"},
}


@pytest.fixture
async def bound(databases, tmp_path):
    """A daemon of two databases, a job on ``main``, and a client that may do everything on ``other`` only."""
    token = make_token()
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(
        f'[tokens.bound]\nsha256 = "{digest(token)}"\nscopes = ["read", "control", "submit"]\nconnections = ["other"]\n'
    )
    tokens.chmod(0o600)
    databases.source.sql("CREATE TABLE orders (id int PRIMARY KEY, amount int, cents bigint)")
    databases.source.sql("INSERT INTO orders SELECT g, g FROM generate_series(1, 100) g")
    settings = {
        "auth": {"tokens_file": str(tokens)},
        "allow": {"expressions": True, "dual_write": True},
        "connections": {
            "main": {"dsn": databases.source.dsn, "tables": ["*.*"]},
            "other": {"dsn": databases.target.dsn, "tables": ["*.*"]},
        },
    }
    async with running_daemon(settings) as daemon:
        assert (await daemon.client.post("/v1/jobs", json=spec_on("main"))).status_code == 201
        async with client_for(daemon.url, token=token) as client:
            yield daemon.client, client


async def test_of_a_connection_that_is_not_theirs_a_caller_sees_nothing_and_changes_nothing(bound):
    ours, theirs = bound
    before = (await ours.get("/v1/jobs/orders")).json()
    for route in ROUTES:
        if "job" not in route.names:
            continue
        body = {"json": BODIES.get(route.request, {})} if route.request is not None else {}
        for connection in ("", "?connection=main"):
            path = route.path.replace("{job}", "orders") + connection
            answer = await theirs.request(route.method, path, **body)
            assert (answer.status_code, answer.json()["code"]) == (404, "unknown_job"), (route.name, answer.text)
    assert (await ours.get("/v1/jobs/orders")).json()["revision"] == before["revision"]


async def test_a_connection_that_is_not_theirs_is_to_a_caller_as_one_that_is_not_there(bound):
    _, theirs = bound
    assert [one["name"] for one in (await theirs.get("/v1/connections")).json()["connections"]] == ["other"]
    assert (await theirs.get("/v1/me")).json()["connections"] == ["other"]
    assert (await theirs.get("/v1/jobs")).json()["jobs"] == []
    for method, path, body in (
        ("GET", "/v1/connections/{}/doctor", None),
        ("GET", "/v1/jobs?connection={}", None),
        ("POST", "/v1/jobs", spec_on),
        ("POST", "/v1/plans", spec_on),
        ("POST", "/v1/rehearsals", spec_on),
    ):
        told = []
        for name in ("main", "nowhere"):
            answer = await theirs.request(method, path.format(name), json=body(name) if body else None)
            told.append((answer.status_code, answer.text.replace(name, "…").partition('"instance"')[0]))
        assert told[0] == told[1], (method, path)


async def test_metrics_name_jobs_of_all_connections_and_are_for_whoever_may_see_all(bound):
    ours, theirs = bound
    assert (await ours.get("/metrics")).status_code == 200
    assert (await theirs.get("/metrics")).status_code == 403


async def test_no_answer_tells_where_a_database_is_or_how_one_gets_in():
    """Of a database that is away, too: its address is in the log, and the name of the connection in the answer."""
    dsn = "postgresql://canary_user:canary_word@127.0.0.1:1/canary_name"
    settings = {
        "connections": {"away": {"dsn": dsn, "tables": ["*.*"], "work": True}},
        "allow": {"expressions": True, "dual_write": True},
    }
    async with running_daemon(settings) as daemon:
        for route in ROUTES:
            path = route.path.replace("{job}", "orders").replace("{name}", "away").replace("{file}", "page.css")
            body = spec_on("away") if route.request == SPEC else BODIES.get(route.request, {})
            answer = await daemon.client.request(
                route.method, path, **({"json": body} if route.request is not None else {})
            )
            assert "canary" not in answer.text and "127.0.0.1:1" not in answer.text, (route.name, answer.text)
            assert answer.status_code in (200, 404, 503), (route.name, answer.text)
