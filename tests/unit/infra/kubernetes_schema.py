"""What Kubernetes' API server would say of an object: unknown fields, wrong types, missing fields."""

import functools
import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

VERSION = "1.33"
"""Of Kubernetes; what we write has been the same for many."""
_SCHEMAS = Path(__file__).parent / "schemas"


def schema_problems(document: dict[str, Any]) -> list[str]:
    """One line a problem."""
    if document["apiVersion"] != "ray.io/v1":
        return _core_problems(json.dumps(document))
    # A CustomResourceDefinition says nothing of its objects' metadata, for it is everybody's.
    bare = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": document["metadata"]}
    errors = _validator(document["kind"].lower()).iter_errors(document)
    return _core_problems(json.dumps(bare)) + [f"{error.json_path}: {error.message}" for error in errors]


@functools.cache  # The same few objects come again and again, and each takes the library half a second.
def _core_problems(text: str) -> list[str]:
    document = json.loads(text)
    try:
        kubernetes_validate.validate(document, VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [error.message]
    except kubernetes_validate.SchemaNotFoundError as error:
        return [error.message]
    return []


@functools.cache
def _validator(kind: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((_SCHEMAS / f"{kind}.json").read_text())
    return jsonschema.Draft202012Validator(_strict(schema))


def _strict(schema: Any) -> Any:
    """The OpenAPI schema as a JSON schema that refuses fields it does not name."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: _strict(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string") is True:
        result["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if isinstance(schema.get("properties"), dict) and "type" in schema:
        result.setdefault("additionalProperties", False)
    return result
