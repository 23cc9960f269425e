"""From a name or a folder to a model and an example call, one file a library."""

from alignkit.models.building import Example
from alignkit.models.configurations import Configuration, edited_config, list_differences, says_ties
from alignkit.models.side_files import differing_files, tokenizer_files
from alignkit.models.sources import load_model, source_of
from alignkit.models.stored_names import conversion_of

__all__ = [
    "Configuration",
    "Example",
    "conversion_of",
    "differing_files",
    "edited_config",
    "list_differences",
    "load_model",
    "says_ties",
    "source_of",
    "tokenizer_files",
]
