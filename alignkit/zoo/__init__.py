"""Data sets of trained networks: many small ones trained at once, kept in sharded safetensors with a manifest.

`write_set` makes a data set, `NetworkSet.open` reads it, `train` trains networks in memory.
"""

from alignkit.zoo.architectures import Architecture, Cnn, Lstm, Mlp, ResNet, Siren, Vit, architecture
from alignkit.zoo.manifest import Manifest, NetworkRecord
from alignkit.zoo.network_set import NetworkSet
from alignkit.zoo.recipe import Recipe
from alignkit.zoo.sources import ImageSource, SignalSource, SineSource, Source, source
from alignkit.zoo.training import Trained, train
from alignkit.zoo.writing import write_set

__all__ = [
    "Architecture",
    "Cnn",
    "ImageSource",
    "Lstm",
    "Manifest",
    "Mlp",
    "NetworkRecord",
    "NetworkSet",
    "Recipe",
    "ResNet",
    "SignalSource",
    "SineSource",
    "Siren",
    "Source",
    "Trained",
    "Vit",
    "architecture",
    "source",
    "train",
    "write_set",
]
