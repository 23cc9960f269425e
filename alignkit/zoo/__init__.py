"""Data sets of trained networks: many small ones trained at once, kept in sharded safetensors with a manifest.

`plan_set` says what a data set holds and `write_set` makes it, `NetworkSet.open` reads it, `train` trains networks in
memory.
"""

from alignkit.zoo.architectures import Architecture, Cnn, Gpt, Lstm, Mlp, ResNet, Siren, Vit, architecture
from alignkit.zoo.estimating import SetEstimate, estimate_set
from alignkit.zoo.manifest import Manifest, NetworkRecord, SetPlan, plan_set, read_manifest
from alignkit.zoo.network_set import NetworkSet
from alignkit.zoo.recipe import Recipe
from alignkit.zoo.sources import ImageSource, SignalSource, SineSource, Source, source
from alignkit.zoo.training import Trained, train
from alignkit.zoo.writing import write_set

__all__ = [
    "Architecture",
    "Cnn",
    "Gpt",
    "ImageSource",
    "Lstm",
    "Manifest",
    "Mlp",
    "NetworkRecord",
    "NetworkSet",
    "Recipe",
    "ResNet",
    "SetEstimate",
    "SetPlan",
    "SignalSource",
    "SineSource",
    "Siren",
    "Source",
    "Trained",
    "Vit",
    "architecture",
    "estimate_set",
    "plan_set",
    "read_manifest",
    "source",
    "train",
    "write_set",
]
