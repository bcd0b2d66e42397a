"""Study → JSON Schema, for editors: `# yaml-language-server: $schema=…`."""

from __future__ import annotations

from functools import cache
from typing import Any

from dgg_ray.config.loader import KEYS, PLUGIN_SECTIONS, REQUIRED, SECTIONS
from dgg_ray.config.parsing import json_schema
from dgg_ray.config.sections import OwnSeeds, TunedBaseline
from dgg_ray.core import plugins
from dgg_ray.core.interfaces import AnswerStyles

TASK_NAME = "The task's name, by which orders and per-task settings call it: letters, digits, _ and -."
EVALUATE_ONLY = "Whether the task is never trained, and only evaluated after each stage; false by default."

OWN = "A plug-in of your own: package.module:Class."


@cache
def schema() -> dict[str, Any]:
    """Describe what a study file may hold, with all plug-ins of this package and their settings."""
    definitions: dict[str, Any] = {}

    def choice(kind: str, key: str) -> list[dict[str, Any]]:
        forms = []
        for name in plugins.all_names(kind):
            if plugins.lookup_faults(kind, name):
                continue  # an installed package's plug-in that cannot be imported
            form = json_schema(plugins.find(kind, name), definitions)
            chosen = {"const": name, "description": form["description"]}
            form["properties"] = {key: chosen, **form.get("properties", {})}
            form["required"] = [key, *form.get("required", [])]
            forms.append(form)
        return forms

    def outside(key: str) -> list[dict[str, Any]]:
        """A plug-in of the user's own: `package.module:Class`, with settings that are not known here."""
        name = {"type": "string", "pattern": r"[.:]", "description": OWN}
        return [name, {"type": "object", "properties": {key: name}, "required": [key]}]

    properties: dict[str, Any] = {key: json_schema(cls, definitions) for key, cls in SECTIONS.items()}
    for key, kind in PLUGIN_SECTIONS.items():
        properties[key] = {
            "anyOf": [{"enum": list(plugins.all_names(kind))}, *choice(kind, "name"), *outside("name")]
        }
    tasks = [*choice("readers", "reader"), outside("reader")[1]]
    for form in tasks:
        form["properties"]["name"] = {"type": "string", "description": TASK_NAME}
        form["properties"]["evaluate_only"] = {"type": "boolean", "description": EVALUATE_ONLY}
        form["required"].append("name")
    properties["tasks"] = {"type": "array", "minItems": 2, "items": {"anyOf": tasks}}
    order = {"type": "array", "items": {"type": "string"}}
    properties["orders"] = {"anyOf": [properties["orders"], {"type": "array", "items": order}]}
    space = {"anyOf": [{"type": "array", "minItems": 1}, {"type": "object"}]}
    space = {"type": "object", "additionalProperties": space, "minProperties": 1}
    objective = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    for key, form in {"space": space, "objective": objective}.items():
        description = {"description": properties["search"]["properties"][key]["description"]}
        properties["search"]["properties"][key] = form | description
    for cls in (AnswerStyles, TunedBaseline):
        definitions[cls.__name__] |= json_schema(cls, {})
    definitions["TunedBaseline"]["properties"]["search"] |= space
    definitions.pop("SearchParameter")  # replaced by `space`, which has the short forms too
    properties |= {"name": {"type": "string"}, "question": {"type": "string"}}
    seed_list = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
    properties["seeds"] = {"anyOf": [seed_list, {"const": "per_order"}, json_schema(OwnSeeds, definitions)]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A dgg_ray study",
        "type": "object",
        "required": list(REQUIRED),
        "additionalProperties": False,
        "properties": {key: {**properties[key], "description": text} for key, text in KEYS.items()},
        "$defs": definitions,
    }
