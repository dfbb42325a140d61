"""Recipes, Python files with `get_config(argument) -> ConfigDict`, and their overrides.

A recipe starts from `defaults` and sets the fields that it changes. Values derived from others
(`config.get_oneway_ref`) follow overrides too. `--config.a.b=value` overrides any field, whether
the recipe sets it or not.
"""

import ast
import contextlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from absl import flags
from ml_collections import ConfigDict, config_flags

from bert_jax.config.arguments import ConfigArguments, parse, recipes_folder
from bert_jax.config.finetuning import FinetuneConfig
from bert_jax.config.pretraining import PretrainConfig
from bert_jax.config.saved import RENAMED, RENAMED_IN_PHASES, migrate
from bert_jax.data.sampling import MixedStore
from bert_jax.errors import UserError
from bert_jax.fields import (
    Choice,
    Plain,
    Root,
    build,
    fields_of,
    fits,
    is_group,
    no_such_field,
    to_plain,
    type_of,
)

T = TypeVar("T")

VERBS: dict[type, str] = {PretrainConfig: "pretrain", FinetuneConfig: "finetune"}


def defaults(cls: type) -> ConfigDict:
    """The fields of a group with their defaults, for a recipe to change.

    A `Choice` has its "name" and the fields that all its kinds share; a recipe adds those of the
    kind that it names.
    """
    fields = ConfigDict()
    declared = fields_of(cls)
    shared = declared
    if issubclass(cls, Choice):
        fields.name = cls.called()
        shared = fields_of(cls.family())
    for name in shared:
        fields[name] = _default(cls, name)
    return fields


def _default(cls: type, name: str) -> Any:
    default = fields_of(cls)[name].default
    if is_group(type_of(cls, name)):
        return defaults(type(default))
    return default if isinstance(default, tuple) else to_plain(default)


def load_config(cls: type[T], arguments: Sequence[str]) -> T:
    """Reads `--config=RECIPE[:ARGUMENT]` and `--config.field=value` overrides.

    Args:
      cls: what to read, `PretrainConfig` or `FinetuneConfig`.
      arguments: command-line arguments about the config only.

    Raises:
      UserError: the recipe is missing or fails, or a field is unknown, of a wrong type or out of
        range.
    """
    given = parse(arguments)
    fields = _run_recipe(given)
    _check_verb(cls, fields, given.given)
    return build(cls, with_overrides(cls, fields, given.overrides))


def verb_of(arguments: Sequence[str]) -> str:
    """The verb whose recipe `arguments` name: "pretrain" or "finetune".

    Raises:
      UserError: there is no such recipe, or it fails.
    """
    fields = set(_run_recipe(parse(arguments)))
    return next((verb for cls, verb in VERBS.items() if fields <= set(fields_of(cls))), "pretrain")


def _check_verb(cls: type, fields: ConfigDict, recipe: str) -> None:
    """Raises UserError if the recipe is one for the other kind of run."""
    for other, verb in VERBS.items():
        strange = set(fields) - set(fields_of(cls))
        if strange and set(fields) <= set(fields_of(other)):
            raise UserError(f"--config={recipe}: a recipe for `bert-jax {verb}`")


def with_overrides(cls: type, fields: ConfigDict, flags_given: Sequence[str]) -> Plain:
    """Nested plain values of the group `cls` after overrides.

    Args:
      cls: class of the group.
      fields: its values, or some of them; changed in place.
      flags_given: `--config.field=value` each.

    Raises:
      UserError: a field is unknown, or a value of a wrong type.
    """
    given = [_Override.parse(flag) for flag in flags_given]
    # From outside in: a kind decides which fields there are, and some of them are choices, too.
    for index in sorted(range(len(given)), key=lambda index: given[index].depth):
        given[index] = given[index].resolved(cls, fields)
        if given[index].parts[-1] == "name":
            _choose_kind(cls, fields, given[index])
    overrides = [each for each in given if not each.set_groups(cls, fields)]
    for override in overrides:
        override.place(cls, fields)
    _check_phases(fields, given)
    rest = [
        override
        for override in overrides
        if not override.set_names(cls, fields) and not override.set_optional(cls, fields)
    ]
    _apply(fields, rest)
    return migrate(_plain(fields))


def _plain(value: Any) -> Any:
    """Nested plain values."""
    if isinstance(value, ConfigDict | dict):
        fields = value.to_dict() if isinstance(value, ConfigDict) else value
        return {name: _plain(item) for name, item in fields.items()}
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


def _run_recipe(given: ConfigArguments) -> ConfigDict:
    """What `get_config` of the file returns."""
    path, argument = given.recipe, given.argument
    # A recipe may import others: those beside it, as a script can, and those of this package.
    sys.path[:0] = [str(path.resolve().parent), str(recipes_folder())]
    try:
        spec = importlib.util.spec_from_file_location("recipe", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config() if argument is None else module.get_config(argument)
    except UserError as error:
        raise UserError(f"{given.given}: {error}") from error
    except Exception as error:  # a recipe is code: it can raise anything
        reason = " ".join(str(error).split())
        raise UserError(f"{given.given}: {type(error).__name__}: {reason}") from error
    finally:
        del sys.path[:2]
    if not isinstance(config, ConfigDict):
        kind = type(config).__name__
        raise UserError(f"{path}: get_config() must return a ConfigDict, not {kind}")
    return config


class _Override(NamedTuple):
    """`--config.PATH=VALUE`; `parts` are those of PATH, with `phases[0]` as a single part.

    `phases` and `mixture` are the fields that hold groups.
    """

    parts: tuple[str, ...]
    value: str | None

    @classmethod
    def parse(cls, flag: str) -> "_Override":
        path, equals, value = flag.removeprefix("--config.").partition("=")
        for old, new in RENAMED.items():
            path = new if path == old else path
        in_phase = re.fullmatch(r"(phases\[\d+\])\.(\w+)", path)
        if in_phase and in_phase[2] in RENAMED_IN_PHASES:
            path = f"{in_phase[1]}.{RENAMED_IN_PHASES[in_phase[2]]}"
        path = path.replace("task.options.", "task.")
        return cls(tuple(path.split(".")), value if equals else None)

    @property
    def path(self) -> str:
        return ".".join(self.parts)

    @property
    def depth(self) -> int:
        """How many groups the field is in; that of a kind's name is that of its group."""
        return len(self.parts) - (self.parts[-1] == "name")

    @property
    def flag(self) -> str:
        return f"--config.{self.path}" + ("" if self.value is None else f"={self.value}")

    def resolved(self, cls: type, fields: ConfigDict) -> "_Override":
        """The same override; one of a whole `Choice` sets its "name"."""
        with contextlib.suppress(UserError):  # `place` raises it, once all kinds are known
            *_, last = self.walk(cls, fields)
            if last.name == "name" and self.parts[-1] != "name":
                return self._replace(parts=(*self.parts, "name"))
        return self

    def walk(self, cls: type, fields: ConfigDict) -> "Iterator[_Place]":
        """The places on the path to the field; creates groups that the recipe lacks."""
        path = "config"
        root = Root(path, cls)
        for depth, part in enumerate(self.parts):
            if item := _ITEM.fullmatch(part):
                fields = _item(fields, item, path)
                cls = _GROUPS[item[1]] or cls
                path = f"{path}.{part}"
                root = Root(path, cls)
                if depth + 1 == len(self.parts):
                    raise _is_group(path, list(fields) or list(fields_of(cls)))
                continue
            yield _Place(cls, fields, part, path)
            known = fields_of(cls)
            is_name = part == "name" and issubclass(cls, Choice)
            if not is_name and part not in known:
                more = self.parts[depth + 1 :]
                raise no_such_field(
                    f"{path}.{part}", list(known), root, sought=more[-1] if more else ""
                )
            annotation = str if is_name else type_of(cls, part)
            path = f"{path}.{part}"
            if not is_group(annotation):
                if depth + 1 < len(self.parts):
                    raise no_such_field(f"{path}.{self.parts[depth + 1]}", [], root)
                return
            if part not in fields or isinstance(fields[part], str):
                given = {"name": fields[part]} if part in fields else {}
                with fields.ignore_type():
                    fields[part] = ConfigDict(given)
            fields, default = fields[part], known[part].default
            if issubclass(annotation, Choice):
                name = fields.get("name")
                cls = annotation.kind(name, f"{path}.name") if name else type(default)
            else:
                cls = annotation
            if depth + 1 == len(self.parts):
                if issubclass(annotation, Choice):
                    yield _Place(cls, fields, "name", path)
                    return
                raise _is_group(path, list(fields_of(cls)))

    def place(self, cls: type, fields: ConfigDict) -> None:
        """Sets the field to its default if the recipe does not set it."""
        *_, last = self.walk(cls, fields)
        if last.name not in last.fields and not last.is_kind:
            last.fields[last.name] = _default(last.cls, last.name)

    def set_names(self, cls: type, fields: ConfigDict) -> bool:
        """Sets a field of one or several names; returns whether it is one."""
        *_, last = self.walk(cls, fields)
        if last.is_kind:
            return False
        annotation = type_of(last.cls, last.name)
        if not fits(annotation, ("name",)):
            return False
        names = _names(self.value or "")
        if isinstance(names, str) and not fits(annotation, names):
            names = (names,) if names else ()
        with last.fields.ignore_type():
            last.fields[last.name] = names
        return True

    def set_groups(self, cls: type, fields: ConfigDict) -> bool:
        """Sets a field of several groups; returns whether it is one."""
        if self.parts[-1] not in _GROUPS:
            return False
        *_, last = self.walk(cls, fields)
        try:
            value = ast.literal_eval(self.value or "()")
        except (ValueError, SyntaxError):
            value = None
        groups = (value,) if isinstance(value, dict) else value
        if not isinstance(groups, tuple | list) or not all(isinstance(x, dict) for x in groups):
            raise UserError(
                f"config.{self.path} must be groups such as ({{'name': value}}, ...), not "
                f"{self.value!r}"
            )
        with last.fields.ignore_type():
            last.fields[last.name] = tuple(map(ConfigDict, groups))
        return True

    def set_optional(self, cls: type, fields: ConfigDict) -> bool:
        """Sets a field that is a number or None; returns whether it is one."""
        *_, last = self.walk(cls, fields)
        if last.is_kind or not fits(annotation := type_of(last.cls, last.name), None):
            return False
        try:
            value = ast.literal_eval(self.value or "")
        except (ValueError, SyntaxError):
            value = self.value
        if type(value) is int and fits(annotation, float(value)):
            value = float(value)
        if not fits(annotation, value):
            raise UserError(f"config.{self.path} must be a number or None, not {self.value!r}")
        with last.fields.ignore_type():
            last.fields[last.name] = value
        return True


# Fields that hold groups, and the class of these; None: that of the whole config.
_GROUPS: dict[str, type | None] = {"phases": None, "mixture": MixedStore}
_ITEM = re.compile(rf"({'|'.join(_GROUPS)})\[(.*)\]")


def _names(text: str) -> Any:
    """A name; the names of a text such as `a,b`, or the value of a Python tuple, list or string."""
    if text.startswith(("(", "[", "'", '"')):
        with contextlib.suppress(ValueError, SyntaxError):
            return ast.literal_eval(text)
    names = tuple(name.strip() for name in text.split(","))
    return names[0] if len(names) == 1 else names


class _Place(NamedTuple):
    """A field of the group `cls`, whose values `fields` are at `path`."""

    cls: type
    fields: ConfigDict
    name: str
    path: str

    @property
    def is_kind(self) -> bool:
        """Whether it is the name of a `Choice`'s kind, not a field that happens to be "name"."""
        return self.name == "name" and issubclass(self.cls, Choice)


def _is_group(path: str, known: Sequence[str]) -> UserError:
    return UserError(f"{path} is a group: set its fields, {', '.join(sorted(known))}")


def _item(fields: ConfigDict, item: re.Match[str], path: str = "config") -> ConfigDict:
    """A group in a field that holds several."""
    name, groups = item[1], fields.get(item[1], ())
    index = int(item[2]) if item[2].isdecimal() else len(groups)
    if index >= len(groups):
        raise UserError(f"{path}.{item[0]}: {path}.{name} has {len(groups)} items")
    if not all(isinstance(group, ConfigDict) for group in groups):
        with fields.ignore_type():
            fields[name] = tuple(map(ConfigDict, groups))
    return fields[name][index]


def _choose_kind(cls: type, fields: ConfigDict, override: _Override) -> None:
    """Sets the kind of a `Choice` and drops the fields that the new kind lacks."""
    *_, last = override.walk(cls, fields)
    if not issubclass(last.cls, Choice):
        return  # a field of another group that happens to be called "name"
    kind = last.cls.family().kind(override.value or "", f"{last.path}.name")
    last.fields.name = override.value
    for name in list(last.fields):
        if name != "name" and name not in fields_of(kind):
            del last.fields[name]


def _check_phases(fields: ConfigDict, overrides: Sequence[_Override]) -> None:
    """Raises UserError if an override would have no effect, since all phases set the field."""
    if any(override.parts == ("phases",) for override in overrides):
        return  # the phases are replaced
    phases = fields.get("phases", ())
    for override in overrides:
        path = ".".join(override.parts)
        parts = []  # up to the field, if it is an item of one that holds groups
        for part in override.parts:
            item = _ITEM.fullmatch(part)
            parts.append(item[1] if item else part)
            if item:
                break
        if phases and all(_has(phase, parts) for phase in phases):
            raise UserError(f"config.{path}: every phase has its own: set config.phases[0].{path}")


def _has(fields: Any, parts: Sequence[str]) -> bool:
    for part in parts:
        if not isinstance(fields, ConfigDict) or part not in fields:
            return False
        fields = fields[part]
    return True


def _apply(fields: ConfigDict, overrides: Sequence[_Override]) -> None:
    """Sets the overridden fields, each to a value of its type."""
    arguments = ["bert-jax", *(override.flag for override in overrides)]
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict(
            "config", fields, flag_values=values, lock_config=False, sys_argv=arguments
        )
        values(arguments)
    except flags.Error as error:
        # "flag --config.steps=ten: reason"; the last line of a traceback in it is the reason.
        first, *more = str(error).removeprefix("flag ").splitlines()
        flag = first.partition(": ")[0]
        name, _, value = flag.partition("=")
        for override in overrides:
            if name == f"--config.{override.path}":
                expected = type(_get(fields, override.parts)).__name__
                raise UserError(f"{name[2:]} must be {expected}, not {value!r}") from error
        raise UserError(f"{flag}: {more[-1]}" if more else first) from error


def _get(fields: Any, parts: Sequence[str]) -> Any:
    for part in parts:
        item = _ITEM.fullmatch(part)
        fields = _item(fields, item) if item else fields[part]
    return fields
