"""What does a YAML file of settings say, and at which line and column is it wrong?"""

from __future__ import annotations

import difflib
import enum
import errno
import os
import stat
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
import yaml

_BYTES_MAX: Final = 1 << 20  # settings are never this large
_VALUES_MAX: Final = 100_000  # with aliases written out: a few lines can stand for billions
_WORD: Final = "tag:yaml.org,2002:str"

Decoded = TypeVar("Decoded", bound=msgspec.Struct)


class ConfigError(Exception):
    """A setting that cannot be used: where it stands, what was found, what to write instead."""


def read_file(path: Path, what: str = "file of settings") -> bytes:
    """The content of a file. Raises OSError; ConfigError where it is no regular file, or too large.

    Nothing here waits: opening a FIFO blocks until somebody writes, and no signal would end that.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise ConfigError(f"{path}: a FIFO or a device, and no regular file: name a file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(_BYTES_MAX + 1)
    finally:
        os.close(descriptor)
    if len(content) > _BYTES_MAX:
        raise ConfigError(f"{path}: more than {_BYTES_MAX} bytes: this is no {what}")
    return content


def did_you_mean(word: str, known: tuple[str, ...]) -> str:
    """A hint for a misspelt word: the closest known one, else all of them."""
    close = closest(word, known)
    return f"did you mean `{close}`?" if close else f"known are {', '.join(f'`{name}`' for name in known)}"


def closest(word: str, known: tuple[str, ...]) -> str | None:
    """The known word that a misspelt one stands for; None where it is like none of them."""
    starting = [name for name in known if word and name.startswith(word)]
    found = starting[:1] if len(starting) == 1 else difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return found[0] if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class YamlMapping:
    """The `key: value` lines of a file, and where each stands."""

    name: str  # of the file
    root: yaml.MappingNode
    values: Mapping[str, Any]

    def at(self, node: yaml.Node) -> str:
        """`file:line:column` of a node."""
        return f"{self.name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"

    def pairs(self, node: yaml.Node | None = None) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
        """Keys and values of a node, or of the whole file. Raises ConfigError at a key that is no word, or a second."""
        node = self.root if node is None else node
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{self.at(node)}: expected `key: value` lines")
        seen: set[str] = set()
        for key_node, _ in node.value:  # all of them first: of two the values hold the second
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _WORD:
                raise ConfigError(f"{self.at(key_node)}: a key must be a word: put it into quotes")
            if key_node.value in seen:
                raise ConfigError(f"{self.at(key_node)}: key `{key_node.value}` stands here a second time: remove one")
            seen.add(key_node.value)
        yield from node.value

    def node(self, *path: str | int) -> yaml.Node:
        """The value under keys and places in lists, else the nearest there is around it."""
        found: yaml.Node = self.root
        for step in path:
            if isinstance(found, yaml.MappingNode):
                found = next((value for key, value in found.value if key.value == step), found)
            elif isinstance(found, yaml.SequenceNode) and isinstance(step, int):
                found = found.value[step]
        return found

    def convert(self, to: type[Decoded]) -> Decoded:
        """All of it as a struct. Raises ConfigError."""
        self._check(self.root, self.values, to)
        return msgspec.convert(self.values, to)

    def _check(self, node: yaml.Node, value: Any, kind: Any) -> None:  # noqa: ANN401 - any value of any type
        """Walks text and types side by side, so that an error can say where it is."""
        bare = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        if isinstance(bare, type) and issubclass(bare, msgspec.Struct):
            self._check_struct(node, value, bare)
            return
        origin = get_origin(bare)
        if origin is dict and isinstance(node, yaml.MappingNode):
            for key_node, value_node in self.pairs(node):
                self._check(value_node, value[key_node.value], get_args(bare)[1])
            return
        if origin is tuple and isinstance(node, yaml.SequenceNode):
            for entry, part in zip(node.value, value, strict=True):
                self._check(entry, part, get_args(bare)[0])
            return
        known = choices(kind)
        if known and value is not None and (not isinstance(value, str) or value not in known):
            found = node.value if isinstance(node, yaml.ScalarNode) else value
            raise ConfigError(f"{self.at(node)}: unknown value `{found}`: {did_you_mean(str(found), known)}")
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            shown = node.value if isinstance(node, yaml.ScalarNode) else "a list or mapping"
            raise ConfigError(f"{self.at(node)}: `{shown}`: {error}") from error

    def _check_struct(self, node: yaml.Node, value: Any, kind: type[msgspec.Struct]) -> None:  # noqa: ANN401
        hints = get_type_hints(kind, include_extras=True)
        required = {field.name for field in msgspec.structs.fields(kind) if field.required}
        for key_node, value_node in self.pairs(node):
            key = key_node.value
            if key not in hints:
                raise ConfigError(f"{self.at(key_node)}: unknown key `{key}`: {did_you_mean(key, tuple(hints))}")
            required.discard(key)
            self._check(value_node, value[key], hints[key])
        if required:
            raise ConfigError(f"{self.at(node)}: `{min(required)}` is missing")


def choices(kind: Any) -> tuple[str, ...]:  # noqa: ANN401 - a type expression
    """The words that a type is made of: an Enum's values, a Literal's; none where it is not."""
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return tuple(str(member.value) for member in kind)
    origin = get_origin(kind)
    if origin is Annotated:
        return choices(get_args(kind)[0])
    if origin is Literal:
        return tuple(str(choice) for choice in get_args(kind))
    if origin is Union or origin is types.UnionType or origin is tuple:
        return tuple(choice for part in get_args(kind) for choice in choices(part))
    return ()


def read_mapping(text: bytes | str, name: str) -> YamlMapping | None:
    """The content of a file; None where there is nothing in it. Raises ConfigError with file, line and column."""
    root, values = _read(text, name)
    if root is None:
        return None
    if not isinstance(root, yaml.MappingNode):
        mark = root.start_mark
        raise ConfigError(f"{name}:{mark.line + 1}:{mark.column + 1}: expected `key: value` lines")
    return YamlMapping(name=name, root=root, values=values)


def read_values(text: bytes | str, name: str) -> Any:  # noqa: ANN401 - whatever the file holds
    """The content of a file of any form. Raises ConfigError with file, line and column."""
    return _read(text, name)[1]


def _read(text: bytes | str, name: str) -> tuple[yaml.Node | None, Any]:
    if len(text) > _BYTES_MAX:
        raise ConfigError(f"{name}: more than {_BYTES_MAX} bytes: this is no file of settings")
    try:
        text = text if isinstance(text, str) else text.decode()
        # libyaml's loader crashes the process where brackets are nested deep; this one raises RecursionError.
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None:
            _check_aliases(root, name)
        values = yaml.load(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: not UTF-8 text") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark is not None else name
        raise ConfigError(f"{at}: not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: not YAML: {' '.join(str(error).split())}") from error
    return root, values


def _check_aliases(root: yaml.Node, name: str) -> None:
    """Raises ConfigError where aliases stand for more values than any file has, or for themselves."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        known = sizes.get(id(node))
        if known == 0:
            mark = node.start_mark
            raise ConfigError(f"{name}:{mark.line + 1}:{mark.column + 1}: an alias stands inside of what it stands for")
        if known is not None:
            return known
        sizes[id(node)] = 0  # being counted
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        found = sizes[id(node)] = 1 + sum(map(size, parts))
        if found > _VALUES_MAX:
            mark = node.start_mark
            raise ConfigError(
                f"{name}:{mark.line + 1}:{mark.column + 1}: more than {_VALUES_MAX} values once aliases are written "
                "out: write what is meant without them"
            )
        return found

    size(root)
