"""The API's description, OpenAPI, as what the page of the API shows: sections of operations with examples."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dgg_ray.service.rendering import number

Schema = Mapping[str, Any]
TITLES = {"studies": "Studies", "results": "Results", "service": "The service"}
ANSWERS = {
    "200": "the answer, as JSON unless the description says otherwise",
    "201": "created",
    "204": "done; no content",
    "422": "a value breaks a rule; `faults` names each",
}
KINDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "array": "list",
    "object": "object",
    "boolean": "true or false",
}
PLACES = {  # examples of what stands in an address
    "name": "quickstart",
    "view": "summary",
    "figure": "stability_plasticity.svg",
    "table": "table.csv",
    "subject": "quickstart&subject=quickstart-2",
    "task": "digits",
    "example": "0",
}
EXAMPLES: dict[str, Any] = {  # examples of a body's fields
    "name": "quickstart-2",
    "text": "name: quickstart\n…",
    "role": "run",
    "limits": {"at_once": 2},
    "priority": 1,
    "changes": {"strategy.buffer": 50},
}


CLIENT = {  # what Python's client calls for a request (client.py)
    "POST /validate": 'validate(Path("study.yaml"))',
    "POST /plan": 'plan(Path("study.yaml"))',
    "GET /studies": 'studies(state="running")',
    "POST /studies": 'submit(Path("study.yaml"))',
    "GET /studies/{name}": 'study("quickstart")',
    "DELETE /studies/{name}": 'delete("quickstart")',
    "POST /studies/{name}/stop": 'stop("quickstart")',
    "POST /studies/{name}/resume": 'resume("quickstart")',
    "POST /studies/{name}/priority": 'set_priority("quickstart", 1)',
    "POST /studies/{name}/clone": 'clone("quickstart", "quickstart-2", {"strategy.buffer": 50})',
    "POST /studies/{name}/extend": 'extend("quickstart", {"menus": "menus"})',
    "GET /studies/{name}/logs": 'logs("quickstart")',
    "GET /studies/{name}/events": 'follow("quickstart")',
    "GET /studies/{name}/view/{view}": 'view("quickstart", "summary")',
    "GET /studies/{name}/examples": 'examples("quickstart", task="digits")',
    "GET /studies/{name}/tables/{table}": 'table("quickstart")',
    "GET /studies/{name}/report": 'report("quickstart", "report.html")',
    "GET /studies/{name}/adapter.zip": 'adapter("quickstart", "adapter.zip")',
    "GET /compare": 'compare("quickstart", "quickstart-2")',
    "GET /me": "me()",
    "GET /queue": "queue()",
    "GET /spending": 'spending(by="user")',
}


@dataclass(frozen=True)
class Parameter:
    """A parameter of a request, or a field of its body. place: path, query or body."""

    name: str
    place: str
    kind: str
    about: str
    required: bool


@dataclass(frozen=True)
class Operation:
    """A request that the API answers. answers: (status, meaning)."""

    id: str
    method: str
    path: str
    about: str
    parameters: list[Parameter]
    answers: list[tuple[str, str]]
    shell: str
    python: str


def sections(described: Schema, base: str) -> list[tuple[str, list[Operation]]]:
    """(title, operations) of each part of the API. base: the server's address."""
    found: dict[str, list[Operation]] = {}
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            tag = (operation.get("tags") or ["service"])[0]
            found.setdefault(tag, []).append(operation_of(described, base, path, method, operation))
    return [(TITLES.get(tag, tag), operations) for tag, operations in found.items()]


def operation_of(described: Schema, base: str, path: str, method: str, operation: Schema) -> Operation:
    body = body_of(described, operation)
    parameters = [*parameters_of(described, operation), *fields_of(described, body)]
    fields = [p for p in parameters if p.place == "body"]
    example = {p.name: EXAMPLES.get(p.name, "…") for p in fields if p.required or p.name in EXAMPLES}
    address = base + filled(path, parameters)
    return Operation(
        id="-".join([method, *re.findall(r"\w+", path.removeprefix("/api/v1/"))]),
        method=method.upper(),
        path=path,
        about=operation.get("description", "").strip(),
        parameters=parameters,
        answers=[(status, ANSWERS.get(status, "")) for status in operation["responses"]],
        shell=shell_example(method.upper(), address, example if body else None),
        python=client_example(f"{method.upper()} {path.removeprefix('/api/v1')}", base)
        or python_example(method.upper(), address, example if body else None),
    )


def filled(path: str, parameters: list[Parameter]) -> str:
    """The path with examples of its parameters, and of the query's that are required."""
    for parameter in parameters:
        if parameter.place == "path":
            path = path.replace(f"{{{parameter.name}}}", str(PLACES.get(parameter.name, parameter.name)))
    query = [f"{p.name}={PLACES.get(p.name, '…')}" for p in parameters if p.place == "query" and p.required]
    return path + (f"?{'&'.join(query)}" if query else "")


def body_of(described: Schema, operation: Schema) -> Schema:
    """The schema of a request's JSON body; empty where there is none."""
    content = operation.get("requestBody", {}).get("content", {})
    return resolved(described, content.get("application/json", {}).get("schema", {}))


def resolved(described: Schema, schema: Schema) -> Schema:
    """The schema that a reference names."""
    name = schema.get("$ref", "").rpartition("/")[2]
    return described["components"]["schemas"][name] if name else schema


def parameters_of(described: Schema, operation: Schema) -> Iterator[Parameter]:
    for found in operation.get("parameters", []):
        schema = resolved(described, found.get("schema", {}))
        about = found.get("description") or schema.get("description", "")
        yield Parameter(found["name"], found["in"], kind_of(schema), about, found.get("required", False))


def fields_of(described: Schema, body: Schema) -> Iterator[Parameter]:
    for name, schema in body.get("properties", {}).items():
        schema = resolved(described, schema)
        about = schema.get("description") or next(
            (form["description"] for form in schema.get("anyOf", []) if "description" in form), ""
        )
        yield Parameter(name, "body", kind_of(schema), about, name in body.get("required", []))


def kind_of(schema: Schema) -> str:
    """A schema in words.

    >>> kind_of({"anyOf": [{"type": "number", "maximum": 9}, {"type": "null"}]})
    'number, at most 9, or nothing'
    >>> kind_of({"enum": ["a", "b"], "default": "a"})
    'a or b; a if left out'
    """
    if forms := schema.get("anyOf"):
        words = [kind_of(form) for form in forms if form.get("type") != "null"]
        return ", or ".join([*words, "nothing"] if len(words) < len(forms) else words)
    if "enum" in schema:
        kind = " or ".join(map(str, schema["enum"]))
    elif "const" in schema:
        kind = str(schema["const"])
    else:
        kind = KINDS.get(schema.get("type", ""), "anything")
    for key, words in (("minimum", "at least"), ("exclusiveMinimum", "above"), ("maximum", "at most")):
        if key in schema:
            kind += f", {words} {number(schema[key])}"
    if schema.get("default") not in (None, "", {}):
        kind += f"; {schema['default']} if left out"
    return kind


# -- examples --------------------------------------------------------------------------------------


def shell_example(method: str, address: str, body: Any) -> str:
    parts = ["curl"] if method == "GET" else [f"curl -X {method}"]
    parts.append('-H "Authorization: Bearer $DGG_RAY_TOKEN"')
    if body is not None:
        quoted = json.dumps(body, ensure_ascii=False).replace("'", "'\\''")
        parts += ["-H 'Content-Type: application/json'", f"-d '{quoted}'"]
    return " \\\n  ".join([*parts, f"'{address}'"])


def client_example(request: str, base: str) -> str:
    """The request by way of Python's client; empty where the client has no method for it."""
    if (call := CLIENT.get(request)) is None:
        return ""
    lines = ["from pathlib import Path", ""] if "Path(" in call else []
    return "\n".join([*lines, "import dgg_ray", "", f'client = dgg_ray.Client("{base}")', f"client.{call}"])


def python_example(method: str, address: str, body: Any) -> str:
    """A request with Python's standard library."""
    headers, given = ['"Authorization": f"Bearer {os.environ[\'DGG_RAY_TOKEN\']}"'], "url"
    lines = ["import json, os, urllib.request", "", f'url = "{address}"']
    if body is not None:
        headers.append('"Content-Type": "application/json"')
        lines.append(f"body = {body!r}")
        given += ", json.dumps(body).encode()"
    given += ", headers=headers"
    if method != ("GET" if body is None else "POST"):
        given += f', method="{method}"'
    lines += [
        f"headers = {{{', '.join(headers)}}}",
        f"request = urllib.request.Request({given})",
        "with urllib.request.urlopen(request) as response:",
        "    print(response.read().decode())",
    ]
    return "\n".join(lines)
