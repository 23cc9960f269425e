"""Documents: files of our own, each with a header that says what it is and in which version.

A `Format` is declared once, in the module that knows what is inside. Its documents are JSON texts that begin with
``{"format": "alignkit.solution", "version": 1, ...}``, or safetensors files that hold such a text in the entry
``alignkit`` of their header. Whatever is wrong with a document is one sentence, in the format's own class of errors.

A document carries a check sum, ``"digest"``: BLAKE2b of its values, as JSON with sorted keys, and of its tensors. One
without it was written by an earlier release and is read as well. The schema of a format admits no other entries, so
that the name of the check sum cannot be lost unnoticed either.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from torch import Tensor

from alignkit.arguments import check_arguments
from alignkit.checkpoints.opening import read_file
from alignkit.checkpoints.safetensors_file import ENTRY, SafetensorsShard, save_safetensors
from alignkit.checkpoints.shard import memory_of
from alignkit.checkpoints.staging import staged, write_text
from alignkit.errors import AlignkitError, WeightsError
from alignkit.text import describe_validation, explain_error, show_value, with_article

DIGEST, TENSORS = "digest", "digest_of_tensors"
"""Entries that hold the check sums of the values and of the tensors beside them."""
ContentT = TypeVar("ContentT")


class Content(BaseModel, strict=True, extra="forbid"):
    """What is inside a document: fields of exact types, and nothing else."""


@dataclass(frozen=True)
class Format(Generic[ContentT]):
    """A kind of document.

    Attributes:
        name: Name in the header, such as ``"alignkit.solution"``.
        noun: What messages call a document of this kind.
        writer: The function or command that writes one.
        error: Class of the errors.
        content: Type of what is inside; pydantic holds documents against it.
        version: Version of the content. It is raised when the content changes.
        older: Earlier versions whose documents are read as well, because they say the same in this version.
    """

    name: str
    noun: str
    writer: str
    error: type[AlignkitError]
    content: type[ContentT]
    version: int = 1
    older: tuple[int, ...] = ()

    @cached_property
    def _schema(self) -> TypeAdapter[ContentT]:
        return TypeAdapter(self.content)

    @property
    def header(self) -> dict[str, Any]:
        """Name and version, as every document has them."""
        return {"format": self.name, "version": self.version}

    def to_json(self, values: Mapping[str, Any], indent: int | None = 1) -> str:
        """Write plain values as a JSON text, behind the header."""
        return json.dumps(with_digest({**self.header, **values}), indent=indent, allow_nan=False) + "\n"

    def from_json(self, text: str | bytes, source: object = "this text") -> ContentT:
        """Read what is in a JSON text. Errors name its ``source``, such as a path."""
        values, _ = self._values(text, source)
        return self._content(values, source)

    def _values(self, text: str | bytes, source: object) -> tuple[dict[str, Any], str | None]:
        """Read the values of a JSON text, and the check sum of the tensors beside it."""
        try:
            document = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise self._unreadable(source, ValueError(f"it is not JSON, {error}")) from error
        self.check_header(document, source)
        try:
            values = without_digest(document)
        except ValueError as error:
            raise self.error(f"{source} is damaged: {error}. Write it again with {self.writer}.") from error
        digest = values.pop(TENSORS, None)
        return {key: value for key, value in values.items() if key not in self.header}, digest

    def check_header(self, document: object, source: object) -> dict[str, Any]:
        """Check the header of a document, and return the rest.

        Raises:
            AlignkitError: It is something else, or of another version; in the class of the format.
        """
        if not isinstance(document, Mapping) or document.get("format") != self.name:
            name = document.get("format") if isinstance(document, Mapping) else None
            kind = "" if name is None else f", it is {show_value(name)}"
            raise self.error(f"{source} is not {with_article(self.noun)}{kind}. One is written by {self.writer}.")
        version = document.get("version")
        if version not in (self.version, *self.older):
            newer = isinstance(version, int) and version > self.version
            way_out = "Upgrade alignkit to a newer release." if newer else f"Write it again with {self.writer}."
            versions = f"version {version!r} of {self.name}; this release reads version {self.version}"
            raise self.error(f"{source} has {versions}. {way_out}")
        return {key: value for key, value in document.items() if key not in self.header}

    @contextmanager
    def rebuilding(self, source: object) -> Iterator[None]:
        """Turn what goes wrong while an object is built from the values of a document into an error that names it."""
        try:
            yield
        except KeyError as error:
            raise self.error(f"{source} is damaged: {error} is missing.") from error
        except ValidationError as error:
            raise self.error(f"{source} is damaged: {describe_validation(error)}") from error
        except (AlignkitError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise self.error(f"{source} is damaged: {explain_error(error).rstrip('.')}.") from error

    def write(self, path: Path, values: Mapping[str, Any]) -> None:
        """Write a JSON file in place of one that is there; the whole file appears, or nothing changes.

        Raises:
            WeightsError: Its name does not end in ``.json``, or it cannot be written.
        """
        self._check_name(path, ".json")
        write_text(path, self.to_json(values))

    def read(self, path: Path) -> ContentT:
        """Read what is in a JSON file."""
        try:
            text = read_file(path)
        except OSError as error:
            raise self._unreadable(path, error) from error
        return self.from_json(text, path)

    def write_tensors(self, path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Write a safetensors file in place of one that is there; the whole file appears, or nothing changes.

        Raises:
            WeightsError: Its name does not end in ``.safetensors``, or it cannot be written.
        """
        self._check_name(path, ".safetensors")
        document = with_digest({**self.header, **values, TENSORS: _digest_of_tensors(tensors)})
        with staged(path) as temporary:
            save_safetensors(tensors, temporary, {ENTRY: json.dumps(document)})

    def _check_name(self, path: Path, suffix: str) -> None:
        if path.suffix != suffix:
            raise WeightsError(f"{path}: {with_article(self.noun)} is written as {suffix}: end the name in that.")

    def read_tensors(self, path: Path) -> tuple[ContentT, dict[str, Tensor]]:
        """Read what is in a safetensors file: its content, and its tensors in memory of their own."""
        values, digest, shard = self._opened(path)
        content = self._content(values, path)
        try:
            tensors = {name: shard.read(name) for name in shard.entries}
        except WeightsError as error:
            raise self.error(str(error)) from error
        if digest not in (None, _digest_of_tensors(tensors)):
            raise self.error(f"{path} is damaged: its tensors are not those that were written with it.")
        return content, tensors

    def read_values(self, path: Path) -> ContentT:
        """Read what is in a safetensors file without its tensors."""
        return self._content(self._opened(path)[0], path)

    def _opened(self, path: Path) -> tuple[dict[str, Any], str | None, SafetensorsShard]:
        """Open a safetensors file: its values, the check sum of its tensors, and the file."""
        try:
            shard = SafetensorsShard(path)
        except WeightsError as error:
            raise self._unreadable(path, error.__cause__ or error) from error
        return *self._values(shard.metadata.get(ENTRY, "{}"), path), shard

    def _content(self, values: Mapping[str, Any], source: object) -> ContentT:
        """Hold values against the schema."""
        with self.rebuilding(source):
            return self._schema.validate_json(json.dumps(values))

    def _unreadable(self, source: object, error: BaseException) -> AlignkitError:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        return self.error(f"{source} cannot be read as {with_article(self.noun)}: {reason}.")


@check_arguments
def format_of(path: str | Path) -> str | None:
    """Return the name of the format of a safetensors document; None where a file is not one."""
    try:
        document = json.loads(SafetensorsShard(Path(path)).metadata.get(ENTRY, "{}"))
    except (WeightsError, ValueError, RecursionError):
        return None
    name = document.get("format") if isinstance(document, Mapping) else None
    return name if isinstance(name, str) else None


def with_digest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Add the check sum of plain values to them."""
    return {**values, DIGEST: _digest(values)}


def without_digest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Take the check sum out of values that `with_digest` made; raise ValueError if it is not theirs."""
    rest = {key: value for key, value in values.items() if key != DIGEST}
    if DIGEST in values and values[DIGEST] != _digest(rest):
        raise ValueError("its check sum is not that of its values, so they were changed after they were written")
    return rest


def _digest(values: Mapping[str, Any]) -> str:
    # Once through JSON, which makes texts of keys and lists of tuples.
    text = json.dumps(json.loads(json.dumps(values)), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(memory_of(tensor))
    return digest.hexdigest()
