"""The OpenAPI document says what the daemon does: made from the table, valid, committed, and served as committed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
from openapi_spec_validator import validate
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from engine.service import openapi, problems
from engine.service.access import Scope
from engine.service.routes.table import ROUTES
from engine.service.routing import SPEC
from engine.wire import shapes
from tests.support import api_page
from tests.support.asking import asking

DOCUMENT = openapi.document(ROUTES)
SHOWN = [route for route in ROUTES if route.media_type not in ("text/html", "*/*")]
HERE = Resource(DOCUMENT, DRAFT202012)


def operation(route):
    return DOCUMENT["paths"][route.path][route.method.lower()]


def validator(name):
    registry = Registry().with_resource("urn:api", HERE)
    return jsonschema.Draft202012Validator({"$ref": f"urn:api#/components/schemas/{name}"}, registry=registry)


def test_the_document_is_valid_openapi():
    validate(DOCUMENT)
    assert DOCUMENT["openapi"].startswith("3.1")


@pytest.mark.parametrize("name", sorted(api_page.made()))
def test_the_committed_copy_is_what_the_code_makes(name):
    assert (api_page.FOLDER / name).read_text() == api_page.made()[name], "make openapi"


async def test_what_the_daemon_serves_is_what_is_committed():
    [route] = [route for route in ROUTES if route.path == "/openapi.json"]
    answer = await asking(route).client.get("/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.text == (api_page.FOLDER / "openapi.json").read_text()


def test_every_route_but_the_page_is_in_the_document_under_a_name_of_its_own():
    described = {(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert described == {(route.path, route.method.lower()) for route in SHOWN}
    names = [route.name for route in ROUTES]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("route", SHOWN, ids=lambda route: route.name)
def test_an_operation_says_which_scope_it_demands(route):
    described = operation(route)
    if route.scope is None:
        assert described["security"] == [] and "x-required-scope" not in described
        assert not {"401", "403"} & set(described["responses"])
    else:
        assert described["x-required-scope"] == route.scope
        assert described["security"] == [{"token": [route.scope]}, {"certificate": [route.scope]}]
        assert {"401", "403"} <= set(described["responses"])


@pytest.mark.parametrize("route", SHOWN, ids=lambda route: route.name)
def test_an_operation_describes_all_that_it_takes(route):
    described = operation(route)
    given = {(parameter["in"], parameter["name"]) for parameter in described["parameters"]}
    assert {name for place, name in given if place == "path"} == set(re.findall(r"\{(\w+)\}", route.path))
    assert {name for place, name in given if place == "query"} == {parameter.name for parameter in route.parameters}
    assert (("header", "If-Match") in given) == route.takes_if_match
    assert (("header", "Idempotency-Key") in given) == route.takes_idempotency_key
    assert ("requestBody" in described) == (route.request is not None)
    assert described["summary"] and described["tags"][0] in {tag["name"] for tag in DOCUMENT["tags"]}
    assert all(parameter["description"] for parameter in described["parameters"])


@pytest.mark.parametrize("route", SHOWN, ids=lambda route: route.name)
def test_every_code_that_a_route_lists_is_one_that_there_is(route):
    assert set(route.problems) <= set(openapi.codes())


def test_every_example_of_a_problem_is_a_problem():
    problem = validator("ProblemDetails")
    seen = set()
    for route in SHOWN:
        for status, response in operation(route)["responses"].items():
            for code, example in response.get("content", {}).get(problems.MEDIA_TYPE, {}).get("examples", {}).items():
                problem.validate(example["value"])
                assert example["value"]["status"] == int(status) and example["value"]["code"] == code
                seen.add(code)
    assert {"unauthenticated", "forbidden", "unknown_job", "changed_meanwhile", "spec_invalid"} <= seen


def test_a_problem_as_it_is_sent_fits_its_schema():
    for error in (
        problems.Unprocessable("x", errors=(shapes.Detail(pointer="/a", message="b"),)),
        problems.TookTooLong("x"),
        problems.Overloaded("x", retry_after_s=3),
    ):
        validator("ProblemDetails").validate(json.loads(problems.reply(error, "0").content))


def test_the_body_of_a_submission_is_a_spec_by_the_specs_own_schema():
    [route] = [route for route in ROUTES if route.request == SPEC and route.path == "/v1/jobs"]
    described = operation(route)["requestBody"]
    assert described["required"] and set(described["content"]) == {"application/json"}
    assert described["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/JobSpec"}
    spec = validator("JobSpec")
    spec.validate({"source": {"connection": "main", "table": "public.orders"}, "set": {"a": "b + 1"}})
    for wrong in (
        {"source": {"connection": "main", "table": "public.orders"}, "set": {}},
        {"source": {"connection": "main", "table": "public.orders"}, "set": {"a": "b"}, "colour": 1},
        {"source": {"connection": "main", "table": "t"}, "set": {"a": "b"}, "pace": {"signals": [{"nonsense": {}}]}},
    ):
        assert list(spec.iter_errors(wrong)), wrong


def test_no_reference_leads_nowhere():
    text = json.dumps(DOCUMENT)
    wanted = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    assert wanted <= set(DOCUMENT["components"]["schemas"])
    assert not re.search(r'"\$ref": "#/\$defs', text)


def test_scopes_are_explained_where_they_are_named():
    assert all(f"`{scope}`" in DOCUMENT["info"]["description"] for scope in Scope)


def test_the_page_of_the_api_names_every_route_and_every_code():
    text = Path(api_page.FOLDER / "api.md").read_text()
    for route in SHOWN:
        assert f"`{route.method} {route.path}`" in text
        for code in openapi.codes_of(route):
            assert f"`{code}`" in text
