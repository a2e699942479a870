"""Configurations: frozen, typed, serialisable, and changed by `a.b=c` overrides."""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from encyclo.errors import InputError

ConfigT = TypeVar("ConfigT", bound="Config")


class Config(BaseModel):
    """Base of every configuration: all numbers of a part, a system or a training stage, by name, with defaults.

    Choices between alternatives are unions discriminated by a `kind` field (a `Literal`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())

    alternatives: ClassVar[tuple[str, ...]] = ()
    """Fields of which one is set (a budget in steps or in seconds): an override of one unsets the others."""

    def replace(self: ConfigT, **changes: Any) -> ConfigT:
        """A copy with some fields changed, validated again."""
        return type(self).model_validate({**self._fields(), **changes})

    def override(self: ConfigT, assignments: Iterable[str]) -> ConfigT:
        """A copy with `field.field=value` assignments applied; values are read as JSON, else as plain text.

        Setting a nested choice's `kind` keeps those of its fields that the new kind has too.

        Raises:
            InputError: for a malformed assignment, an unknown field (naming the known ones) or a refused value
                (naming the field and what it takes).
        """
        tree = self.model_dump(mode="json")
        told: set[str] = set()
        for assignment in assignments:
            path, sign, text = assignment.partition("=")
            if not sign or not path:
                raise InputError(f"'{assignment}' is not of the form field=value (a nested field: part.field=value)")
            told.add(path)
            _assign(self, tree, path.split("."), _value(text), path, told)
        try:
            return type(self).model_validate(tree)
        except ValidationError as error:
            raise InputError(_explain(self, error)) from None

    def traverse(self, prefix: str = "") -> Iterator[tuple[str, "Config"]]:
        """This configuration and all nested ones, as (dotted path, configuration)."""
        yield prefix, self
        for name, value in self._fields().items():
            path = f"{prefix}.{name}" if prefix else name
            if isinstance(value, Config):
                yield from value.traverse(path)
            elif isinstance(value, tuple | list):
                for index, item in enumerate(value):
                    if isinstance(item, Config):
                        yield from item.traverse(f"{path}.{index}")

    def fingerprint(self) -> str:
        """SHA-256 (hex, 16 digits) of the serialised configuration."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in type(self).model_fields}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return {"True": True, "False": False, "None": None}.get(text, text)


def _assign(config: Any, tree: Any, path: list[str], value: Any, whole: str, told: Collection[str]) -> None:
    """Write `value` into the dumped `tree` at `path`, walking `config` beside it to know the field names.

    `told` holds the paths that were assigned to so far: what the user wrote is not unset for an alternative.
    """
    name, *rest = path
    if isinstance(tree, list):
        if not name.isdigit() or int(name) >= len(tree):
            raise InputError(f"'{whole}': '{name}' is no index into {len(tree)} entries")
        if rest:
            _assign(config[int(name)], tree[int(name)], rest, value, whole, told)
        else:
            tree[int(name)] = value
        return
    if isinstance(config, Config):
        known = list(type(config).model_fields)
        if name not in known and not (tree.get("kind") != getattr(config, "kind", None)):
            raise InputError(f"'{whole}': no field '{name}'; the fields are {', '.join(known)}")
    elif not isinstance(tree, dict):
        raise InputError(f"'{whole}': '{name}' lies below a plain value")
    if rest:
        inner = tree.get(name)
        if inner is None:
            tree[name] = inner = {}
        if not isinstance(inner, dict | list):
            raise InputError(f"'{whole}': '{name}' is a plain value, it has no field '{rest[0]}'")
        _assign(getattr(config, name, None), inner, rest, value, whole, told)
    elif name == "kind" and value != tree.get("kind"):
        tree.clear()
        tree["kind"] = value
    elif isinstance(tree.get(name), dict) and isinstance(value, str):
        tree[name] = {"kind": value}  # `feed_forward=geglu` is short for `feed_forward.kind=geglu`
    else:
        tree[name] = value
        alternatives = config.alternatives if isinstance(config, Config) and value is not None else ()
        if name in alternatives:
            above = whole[: -len(name)]
            tree.update({other: None for other in alternatives if other != name and above + other not in told})


def _explain(config: Config, error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(step) for step in first["loc"])
    message = first["msg"]
    message = (message[0].lower() + message[1:]).removeprefix("value error, ")
    if not where:  # a rule over several fields, which names them itself
        return message
    field = type(config).model_fields.get(str(first["loc"][0])) if first["loc"] else None
    allowed = ""
    if field is not None and len(first["loc"]) == 1 and get_args(field.annotation) and "input should be" not in message:
        allowed = f" (allowed: {', '.join(map(str, get_args(field.annotation)))})"
    given = first.get("input")
    shown = json.dumps(given, default=str) if not isinstance(given, dict) else "this choice"
    return f"{where}={shown}: {message}{allowed}"
