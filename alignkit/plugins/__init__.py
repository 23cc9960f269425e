"""Plugins: hooks, the registry that loads them so that none can break another, and observers."""

from alignkit.errors import PluginWarning
from alignkit.plugins.observers import logged, watched
from alignkit.plugins.plugin_registry import Registry, registry

__all__ = ["PluginWarning", "Registry", "logged", "registry", "watched"]
