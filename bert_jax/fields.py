"""Configuration fields, declared where they are used and checked against their declarations.

A group of fields is a frozen dataclass. A field has a default and a meaning, and may have choices,
bounds and a mark that a resumed run may change it. The checks, the error messages and
docs/config.md come from these declarations.

A `Choice` is a group that comes in several kinds, such as the optimizers. A recipe picks a kind by
name, which determines the fields of the group.
"""

import dataclasses
import difflib
import functools
import importlib
import inspect
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self, TypeGuard, TypeVar

from bert_jax.errors import UserError

T = TypeVar("T")
Plain = dict[str, Any]  # nested plain values, as in JSON


@dataclasses.dataclass(frozen=True)
class Bounds:
    """An interval in the usual notation, "[0, 1)" or "(0, inf)"."""

    text: str

    def hold(self, value: float) -> bool:
        """Whether the value is in the interval."""
        low, high = (float(end) for end in self.text[1:-1].split(","))
        above = value > low if self.text[0] == "(" else value >= low
        below = value < high if self.text[-1] == ")" else value <= high
        return above and below

    def complaint(self, value: float) -> str:
        """Says what is wrong with a value outside the interval."""
        if self.text == POSITIVE:
            return f"must be positive, not {value}"
        if self.text == NOT_NEGATIVE:
            return f"must not be negative, but is {value}"
        return f"must be in {self.text}, not {value}"


POSITIVE, NOT_NEGATIVE, FRACTION = "(0, inf)", "[0, inf)", "[0, 1)"


def field(
    default: T,
    doc: str,
    *,
    choices: Sequence[str] = (),
    bounds: str = "",
    resume: bool = False,
) -> T:
    """Declares a field of a frozen dataclass.

    Args:
      default: value if a recipe does not set the field, and in saved configurations older than the
        field: choose one that keeps their meaning.
      doc: meaning of the field, with its unit.
      choices: allowed values.
      bounds: interval of allowed values, as `Bounds` reads it.
      resume: whether a resumed run may change the field.
    """
    metadata = {"doc": doc, "choices": tuple(choices), "bounds": bounds, "resume": resume}
    return dataclasses.field(default=default, metadata=metadata)


class Choice:
    """Base class of groups of fields that come in several kinds.

    `class Optimizer(Choice)` defines a family. `class Lamb(Optimizer, name="lamb")` is one of its
    kinds, which recipes call "lamb". A class without a name is called "module:Class"; this is how a
    recipe names a class outside this package, which Python must be able to import.

    A kind may change the default of a field of its base with a plain value: `steps: int = 5`. The
    rest of the base's declaration stays.
    """

    _kinds: ClassVar[dict[str, type]]
    _name: ClassVar[str]

    def __init_subclass__(cls, name: str = "", **options: Any) -> None:
        super().__init_subclass__(**options)
        if Choice in cls.__bases__:
            cls._kinds = {}
        cls._name = name or f"{cls.__module__}:{cls.__qualname__}"
        if name:
            cls._kinds[name] = cls
        declared: dict[str, dataclasses.Field[Any]]
        declared = fields_of(cls) if dataclasses.is_dataclass(cls) else {}
        for each in declared.keys() & inspect.get_annotations(cls).keys() & cls.__dict__.keys():
            default = cls.__dict__[each]
            if not isinstance(default, dataclasses.Field):
                metadata = declared[each].metadata
                setattr(cls, each, dataclasses.field(default=default, metadata=metadata))

    @classmethod
    def kinds(cls) -> dict[str, type[Self]]:
        """The kinds that were declared with a name."""
        return dict(cls._kinds)

    @classmethod
    def kind(cls, name: str, path: str) -> type[Self]:
        """The kind called `name`.

        Raises:
          UserError: no such kind; the message begins with `path`.
        """
        if not isinstance(name, str):
            raise UserError(f"{path} must be a name, not {name!r}")
        if name in cls._kinds:
            return cls._kinds[name]
        if ":" not in name:
            known = ", ".join(cls._kinds)
            raise UserError(f"{path}={name!r}: use one of {known}, or MODULE:CLASS for your own")
        found = import_object(name, path)
        if not (isinstance(found, type) and issubclass(found, cls)):
            raise UserError(f"{path}={name!r}: must be a class derived from {cls.__name__}")
        return found

    @classmethod
    def family(cls) -> type["Choice"]:
        """The base class of this kind's family."""
        return next(each for each in cls.__mro__ if Choice in each.__bases__)

    @classmethod
    def called(cls) -> str:
        """The name of this kind in recipes."""
        return cls._name


def import_object(name: str, path: str) -> Any:
    """Imports the object that is named "module:object".

    Raises:
      UserError: it cannot be imported; the message begins with `path`.
    """
    module, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        where = (
            "; PYTHONPATH must name its folder" if isinstance(error, ModuleNotFoundError) else ""
        )
        raise UserError(f"{path}={name!r}: cannot be imported ({error}){where}") from error
    return found


def fields_of(cls: type) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a group by name."""
    return {each.name: each for each in dataclasses.fields(cls)}


def type_of(cls: type, name: str) -> Any:
    """The type of a field, with the names in its annotation resolved."""
    return _types(cls)[name]


@functools.cache
def _types(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def is_group(annotation: Any) -> TypeGuard[type]:
    """Whether a field of this type is a group of fields."""
    return isinstance(annotation, type) and (
        dataclasses.is_dataclass(annotation) or issubclass(annotation, Choice)
    )


def kind_in(
    annotation: type, given: Mapping[str, Any], default: Any, path: str
) -> tuple[type, Plain]:
    """The class of a group with the given values, and the values without the kind's name."""
    values = dict(given)
    if not issubclass(annotation, Choice):
        return annotation, values
    if "name" not in values:
        return type(default), values
    return annotation.kind(values.pop("name"), f"{path}.name"), values


def build(
    cls: type[T],
    given: Any,
    path: str = "config",
    default: Any = None,
    root: "Root | None" = None,
) -> T:
    """Builds a group of fields from nested plain values and checks them.

    Fields that are not given have their defaults. A `Choice` is given as a mapping with a "name",
    or as the name alone.

    Args:
      cls: class of the group.
      given: values of the fields.
      path: name of the group in messages.
      default: for a `Choice`, an instance of the kind to use if no kind is named.
      root: the group that holds this one and all others, None for this one.

    Raises:
      UserError: a field is unknown or missing, has a wrong type, is out of its bounds or is none of
        its choices.
    """
    if isinstance(given, cls):
        return given
    if isinstance(given, str) and issubclass(cls, Choice):
        given = {"name": given}
    if not isinstance(given, Mapping):
        raise UserError(f"{path} must be a group of fields, not {given!r}")
    kind, values = kind_in(cls, given, default, path)
    known = fields_of(kind)
    root = root or Root(path, kind)
    for name in values:
        if name not in known:
            raise no_such_field(f"{path}.{name}", list(known), root)
    made = {}
    for name, declared in known.items():
        if name in values:
            annotation = type_of(kind, name)
            made[name] = _value(annotation, declared, values[name], f"{path}.{name}", root)
        elif declared.default is dataclasses.MISSING:
            raise UserError(f"{path}.{name} is missing: set it in the recipe")
    group = kind(**made)
    check = getattr(group, "check", None)
    if check:
        check(path)
    return typing.cast(T, group)


class Root(NamedTuple):
    """The outermost group of a configuration, and its path in messages."""

    path: str
    cls: type


def no_such_field(path: str, known: Sequence[str], root: Root, *, sought: str = "") -> UserError:
    """The error for an unknown field; suggests others.

    Args:
      path: path of the unknown field.
      known: names of the fields of its group.
      root: where to look for the field in other groups.
      sought: name of the field in the group that `path` names; empty if `path` names the field.
    """
    group, _, name = path.rpartition(".")
    places: dict[str, list[str]] = {}
    for place in _paths(root.cls, root.path):
        places.setdefault(place.rpartition(".")[2], []).append(place)
    beside = [f"{group}.{each}" for each in difflib.get_close_matches(name, known, n=1)]
    similar = difflib.get_close_matches(sought or name, places, n=1)
    elsewhere = [place for each in similar for place in places[each]]
    if not sought and name in places:
        beside = []
    found = " or ".join(beside or elsewhere)
    return UserError(
        f"{path}: no such field; "
        + (f"did you mean {found}?" if found else "docs/config.md lists all fields")
    )


def _paths(cls: type, path: str) -> Iterator[str]:
    """Paths of all fields of a group and of the groups in it, of each `Choice` its default."""
    for name, declared in fields_of(cls).items():
        yield f"{path}.{name}"
        if is_group(type_of(cls, name)):
            yield from _paths(type(declared.default), f"{path}.{name}")


def _value(
    annotation: Any, declared: dataclasses.Field[Any], value: Any, path: str, root: Root
) -> Any:
    if is_group(annotation):
        return build(annotation, value, path, declared.default, root)
    value = _plain_value(annotation, value, path)
    choices, bounds = declared.metadata.get("choices"), declared.metadata.get("bounds")
    if value is None:
        return value
    if choices and value not in choices:
        raise UserError(f"{path}={value!r}: use one of {', '.join(choices)}")
    if bounds and not Bounds(bounds).hold(value):
        raise UserError(f"{path} {Bounds(bounds).complaint(value)}")
    return value


def _plain_value(annotation: Any, value: Any, path: str) -> Any:
    """Checks a value's type; lists become tuples, and integers floats if a float is declared."""
    if isinstance(value, list | tuple):
        value = tuple(_as_tuple(item) for item in value)
    if annotation is float and type(value) is int:
        value = float(value)
    if isinstance(annotation, type) and type(value) is not annotation:
        raise UserError(
            f"{path} must be {annotation.__name__}, not {value!r} ({type(value).__name__})"
        )
    if isinstance(annotation, types.UnionType | types.GenericAlias) and not fits(annotation, value):
        raise UserError(f"{path} must be {annotation}, not {value!r} ({type(value).__name__})")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{path} must be a finite number, not {value}")
    return value


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list | tuple) else value


def fits(annotation: Any, value: Any) -> bool:
    """Whether a value is of a type such as `str | tuple[str, ...]`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        return any(fits(each, value) for each in arguments)
    if annotation is Any:
        return True
    if annotation is types.NoneType:
        return value is None
    if origin is tuple:
        return isinstance(value, tuple) and all(fits(arguments[0], item) for item in value)
    if origin is not None:
        return isinstance(value, origin)
    return type(value) is annotation


def to_plain(value: Any) -> Any:
    """The inverse of `build`: nested plain values, a `Choice` with its "name" first."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name = {"name": value.called()} if isinstance(value, Choice) else {}
        return name | {each: to_plain(getattr(value, each)) for each in fields_of(type(value))}
    if isinstance(value, Mapping):
        return {name: to_plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def leaves(group: Any, path: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Path and declaration of every field of a configuration that is not a group."""
    for name, declared in fields_of(type(group)).items():
        value = getattr(group, name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", declared


def resumable(group: Any, prefix: str = "") -> list[str]:
    """Beginnings of the lines of `differences` that a resumed run may have.

    They are "field:", and "field[" for the items of one that has several.
    """
    free = [f"{prefix}{path}" for path, each in leaves(group) if each.metadata.get("resume")]
    return [path + mark for path in free for mark in (":", "[")]
