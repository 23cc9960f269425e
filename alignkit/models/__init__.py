"""From a name or a folder to a model and an example call, one file a library."""
