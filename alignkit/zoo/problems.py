"""What is wrong with the fields of a description, in one sentence."""

from __future__ import annotations

from pydantic import ValidationError


def described_errors(error: ValidationError) -> str:
    """Every problem that pydantic found, with the path of its field."""
    parts = []
    for entry in error.errors(include_url=False):
        place = ".".join(str(step) for step in entry["loc"])
        parts.append(f"{place}: {entry['msg']}" if place else entry["msg"])
    return "; ".join(parts) + "."
