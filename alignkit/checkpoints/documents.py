"""Documents: files of our own, each with a header that says what it is and in which version.

A `Format` is declared once, in the module that knows what is inside. Its documents are JSON texts that begin with
``{"format": "alignkit.solution", "version": 1, ...}``, or safetensors files that hold such a text in the entry
``alignkit`` of their header. Whatever is wrong with a document is one sentence, in the format's own class of errors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from pydantic import ValidationError
from torch import Tensor

from alignkit.checkpoints.safetensors_file import save_safetensors
from alignkit.checkpoints.staging import staged, write_text
from alignkit.errors import AlignkitError
from alignkit.text import describe_validation, explain_error, show_value, with_article

ENTRY = "alignkit"
"""Entry of a safetensors header that holds the JSON text."""


@dataclass(frozen=True)
class Format:
    """A kind of document.

    Attributes:
        name: Name in the header, such as ``"alignkit.solution"``.
        noun: What messages call a document of this kind.
        writer: The function or command that writes one.
        error: Class of the errors.
        version: Version of the content. It is raised when the content changes, and no other version is read.
    """

    name: str
    noun: str
    writer: str
    error: type[AlignkitError]
    version: int = 1

    @property
    def header(self) -> dict[str, Any]:
        """Name and version, as every document has them."""
        return {"format": self.name, "version": self.version}

    def to_json(self, values: Mapping[str, Any], indent: int | None = 1) -> str:
        """Write plain values as a JSON text, behind the header."""
        return json.dumps({**self.header, **values}, indent=indent, allow_nan=False) + "\n"

    def from_json(self, text: str | bytes, source: object = "this text") -> dict[str, Any]:
        """Read the values of a JSON text. Errors name its ``source``, such as a path."""
        try:
            document = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise self._unreadable(source, ValueError(f"it is not JSON, {error}")) from error
        return self.check(document, source)

    def check(self, document: object, source: object) -> dict[str, Any]:
        """Check the header of a document, and return the rest.

        Raises:
            AlignkitError: It is something else, or of another version; in the class of the format.
        """
        if not isinstance(document, Mapping) or document.get("format") != self.name:
            name = document.get("format") if isinstance(document, Mapping) else None
            kind = "" if name is None else f", it is {show_value(name)}"
            raise self.error(f"{source} is not {with_article(self.noun)}{kind}. One is written by {self.writer}.")
        version = document.get("version")
        if version != self.version:
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
        """Write a JSON file; either the whole file appears, or nothing changes and `WeightsError` is raised."""
        write_text(path, self.to_json(values))

    def read(self, path: Path) -> dict[str, Any]:
        """Read the values of a JSON file."""
        try:
            text = path.read_bytes()
        except OSError as error:
            raise self._unreadable(path, error) from error
        return self.from_json(text, path)

    def write_tensors(self, path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Write a safetensors file; either the whole file appears, or nothing changes and `WeightsError` is raised."""
        with staged(path) as temporary:
            save_safetensors(tensors, temporary, {ENTRY: json.dumps({**self.header, **values})})

    def read_tensors(self, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Read the values and the tensors of a safetensors file, in memory of their own."""
        with self._opened(path) as (values, file):
            return values, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping

    def read_values(self, path: Path) -> dict[str, Any]:
        """Read the values of a safetensors file without its tensors."""
        with self._opened(path) as (values, _):
            return values

    @contextmanager
    def _opened(self, path: Path) -> Iterator[tuple[dict[str, Any], Any]]:
        """Open a safetensors file: its values, and the file."""
        try:
            with safetensors.safe_open(path, "pt") as file:
                yield self.from_json((file.metadata() or {}).get(ENTRY, "{}"), path), file
        except (OSError, safetensors.SafetensorError) as error:
            raise self._unreadable(path, error) from error

    def _unreadable(self, source: object, error: Exception) -> AlignkitError:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        return self.error(f"{source} cannot be read as {with_article(self.noun)}: {reason}.")
