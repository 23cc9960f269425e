"""From a name or a folder to a model and an example call, one file a library."""

from alignkit.models.building import Example
from alignkit.models.sources import load_model, source_of

__all__ = ["Example", "load_model", "source_of"]
