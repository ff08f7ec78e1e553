"""Command line to frozen configuration: YAML gives the defaults, flags override, errors are one line."""

import contextlib
import difflib
import inspect
import io
import re
import sys
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import tyro
import yaml

from cluster.artifacts.redact import redact
from cluster.errors import UserError

_Config = TypeVar("_Config", bound=pydantic.BaseModel)


def parse(config_class: type[_Config], command: str, arguments: list[str]) -> _Config | None:
    """The configuration that the arguments describe; None if they only asked to print it.

    ``--config FILE`` reads defaults from YAML; ``--print-config`` prints the result, secrets redacted.

    Raises:
        UserError: unknown flag or field, impossible value, unreadable file.
        SystemExit: ``--help`` was asked for and printed.
    """
    arguments, file = _take_value(arguments, "--config")
    print_only = "--print-config" in arguments
    arguments = [argument for argument in arguments if argument != "--print-config"]
    values = read_yaml(file, f"--config {file}") if file else {}
    default = _with_defaults(config_class, values, file or "")
    config = _run_tyro(config_class, command, arguments, default)
    if print_only:
        print(yaml.safe_dump(redact(config.model_dump(mode="json")), sort_keys=False).rstrip())
        return None
    return config


def _run_tyro(config_class: type[_Config], command: str, arguments: list[str], default: Any) -> _Config:
    """Tyro draws its errors as boxes on standard error; they become one line."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                config_class,
                prog=f"manta {command}",
                description=inspect.cleandoc(config_class.__doc__ or "")
                + "\n\n--config FILE.yaml reads defaults from a file; --print-config prints the result.",
                args=arguments,
                default=default,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            sys.stderr.write(errors.getvalue())
            raise
        raise UserError(f"{_one_line(errors.getvalue())}; see `manta {command} --help`") from None


def _one_line(boxed: str) -> str:
    """The words of a boxed, wrapped error message on one line, without pydantic's addresses."""
    lines = [re.sub(r"[╭╮╰╯│─]+|-{4,}", " ", line).strip() for line in boxed.splitlines()]
    text = " ".join(line for line in lines if line and not line.startswith("For full helptext"))
    text = re.sub(r"For further information visit \S+", "", text)
    text = re.sub(r"For full helptext, (run|see) .*", "", text)
    text = re.sub(r"Perhaps you meant: (--\S+).*", r"; did you mean \1?", text)
    text = re.sub(r"Argument helptext: .*", "", text)
    text = re.sub(r"^Required options Missing from .+?: (.+?) \(required\).*", r"missing \1", text)
    text = re.sub(r"Error parsing \w+: \d+ validation errors? for \w+", "", text)
    # Validators of ours name the value themselves.
    text = re.sub(r"Value error, (.*?)\s*\[type=value_error, .+?, input_type=\w+\]", r"\1", text)
    text = re.sub(r"\[type=\w+, input_value=(.+?), input_type=\w+\]", r"(got \1)", text)
    for title in (
        "Unrecognized options",
        "Value error",
        "Parsing error",
        "Required options",
        "Invalid choice",
        "Invalid value",
    ):
        text = re.sub(rf"^{title}\s+(?=\S)", "", text)
    return re.sub(r"\s+", " ", text).replace(" ;", ";").strip(" .;")


def describe(error: pydantic.ValidationError) -> str:
    """A pydantic error on one line: each field, what is wrong, and the value."""
    parts = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] != "value_error" or place:  # Validators of ours name the value themselves.
            message = f"{message} (got {item['input']!r})"
        parts.append(f"{place}: {message}" if place else message)
    return "; ".join(parts)


def _take_value(arguments: list[str], flag: str) -> tuple[list[str], str | None]:
    """Remove ``flag VALUE`` or ``flag=VALUE`` from the arguments."""
    rest: list[str] = []
    value: str | None = None
    iterator = iter(arguments)
    for argument in iterator:
        if argument == flag:
            value = next(iterator, None)
            if value is None:
                raise UserError(f"{flag} needs a file name")
        elif argument.startswith(f"{flag}="):
            value = argument.partition("=")[2]
        else:
            rest.append(argument)
    return rest, value


def read_yaml(file: str, place: str) -> dict[str, Any]:
    """The fields and values of a YAML file.

    place: what named the file, for the message.

    Raises:
        UserError: it cannot be read, or is no YAML, or something else than fields and values.
    """
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{place}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{place}: not YAML: {' '.join(str(error).split())}") from error
    if content is not None and not isinstance(content, dict):
        raise UserError(f"{place}: expected fields and values, found a {type(content).__name__}")
    return content or {}


def from_values(config_class: type[_Config], values: dict[str, Any], place: str) -> _Config:
    """The configuration that a mapping describes, such as one out of a YAML file.

    place: where the values come from, for the message.

    Raises:
        UserError: unknown field, missing field, impossible value.
    """
    filled = _with_defaults(config_class, values, place).model_dump(warnings=False)
    try:
        return config_class.model_validate({name: v for name, v in filled.items() if v is not tyro.MISSING})
    except pydantic.ValidationError as error:
        raise UserError(f"{place}: {describe(error)}") from error


def _with_defaults(
    model: type[pydantic.BaseModel], values: dict[str, Any], place: str, default: Any = None
) -> Any:
    """An instance of ``model`` with ``values``, its defaults, and tyro's marker where a flag is required.

    default: an instance whose fields go before those of the class.
    """
    unknown = sorted(set(values) - set(model.model_fields), key=str)
    if unknown:
        nearest = difflib.get_close_matches(str(unknown[0]), model.model_fields, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"fields are {', '.join(model.model_fields)}"
        raise UserError(f"{place}: unknown field {unknown[0]!r}; {hint}")
    fields: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        nested = _nested_model(field.annotation)
        inherited = tyro.MISSING if field.is_required() else field.get_default(call_default_factory=True)
        if default is not None:
            inherited = getattr(default, name)
        if nested is not None and (isinstance(values.get(name), dict) or field.is_required()):
            below = inherited if isinstance(inherited, nested) else None
            fields[name] = _with_defaults(nested, values.get(name) or {}, f"{place}: {name}", below)
        elif name in values:
            fields[name] = _validated(field, values[name], f"{place}: {name}")
        else:
            fields[name] = inherited
    return model.model_construct(**fields)


def _nested_model(annotation: Any) -> type[pydantic.BaseModel] | None:
    """The model class in ``Model`` or ``Model | None``."""
    candidates = typing.get_args(annotation) if typing.get_origin(annotation) in _UNIONS else (annotation,)
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, pydantic.BaseModel):
            return candidate
    return None


_UNIONS = (typing.Union, types.UnionType)


def _validated(field: Any, value: Any, place: str) -> Any:
    annotation: Any = (
        typing.Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    )
    try:
        return pydantic.TypeAdapter(annotation).validate_python(value)
    except pydantic.ValidationError as error:
        raise UserError(f"{place}: {describe(error)}") from error
