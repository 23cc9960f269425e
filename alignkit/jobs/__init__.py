"""Jobs: what people use alignments for, one file each.

Every job takes ``(pair)`` or ``(graph, a, b)`` and returns a result with ``explain()``, ``facts()`` and ``report()``.
The functions are public names of `alignkit`; here are the types of their results.

Every ``report()`` takes its ``title``, and by keyword what the job has use for: ``facts``, what else belongs to the
summary; ``check``, the function check, if there was one; ``pair``, the networks as they were given, for heat maps of
their units; ``names``, what the networks are called, by default their numbers.
"""

from alignkit.jobs.adapters import Adapter
from alignkit.jobs.align_many import ManyAlignment
from alignkit.jobs.canonical_form import Formed
from alignkit.jobs.canonicalize import Canonical
from alignkit.jobs.check import Checked, Sameness, check_same
from alignkit.jobs.compare.comparison import Comparison, ComparisonRow
from alignkit.jobs.demo import FILES as DEMO_FILES
from alignkit.jobs.demo import DemoResult, estimate_demo, run_demo
from alignkit.jobs.distance import Distance
from alignkit.jobs.estimate import Estimate
from alignkit.jobs.fold import Folded
from alignkit.jobs.folder_comparison import FolderWarning
from alignkit.jobs.from_disk import match_checkpoints
from alignkit.jobs.memory_use import peak_memory
from alignkit.jobs.mending import Statistics
from alignkit.jobs.merge import Merged
from alignkit.jobs.merge_adapters import MergedAdapters
from alignkit.jobs.model_card import CardSource, adapter_source, card_sources, model_card
from alignkit.jobs.network_files import NetworkFiles
from alignkit.jobs.network_opening import is_folder_or_id
from alignkit.jobs.recipe import MergeRecipe, merge_recipe
from alignkit.jobs.record import (
    Record,
    RecordedInput,
    input_of_path,
    make_record,
    read_record,
    sidecar,
    write_described,
    write_sidecar,
)
from alignkit.jobs.rewritten import FoldCheck
from alignkit.jobs.rotate import Rotated
from alignkit.jobs.solved_pairs import SolvedPair, SolvedPairs
from alignkit.jobs.spec_file import read_spec, read_spec_or_graph
from alignkit.jobs.stretch import Stretched
from alignkit.jobs.transport import Transported
from alignkit.jobs.transport_adapter import TransportedAdapter
from alignkit.jobs.transport_optimizer import CarriedOptimizer, carry_optimizer, read_names
from alignkit.jobs.transport_tensors import TransportedTensors
from alignkit.jobs.widen import WidenedNetwork

__all__ = [
    "DEMO_FILES",
    "Adapter",
    "Canonical",
    "CardSource",
    "CarriedOptimizer",
    "Checked",
    "Comparison",
    "ComparisonRow",
    "DemoResult",
    "Distance",
    "Estimate",
    "FoldCheck",
    "Folded",
    "FolderWarning",
    "Formed",
    "ManyAlignment",
    "MergeRecipe",
    "Merged",
    "MergedAdapters",
    "NetworkFiles",
    "Record",
    "RecordedInput",
    "Rotated",
    "Sameness",
    "SolvedPair",
    "SolvedPairs",
    "Statistics",
    "Stretched",
    "Transported",
    "TransportedAdapter",
    "TransportedTensors",
    "WidenedNetwork",
    "adapter_source",
    "card_sources",
    "carry_optimizer",
    "check_same",
    "estimate_demo",
    "input_of_path",
    "is_folder_or_id",
    "make_record",
    "match_checkpoints",
    "merge_recipe",
    "model_card",
    "peak_memory",
    "read_names",
    "read_record",
    "read_spec",
    "read_spec_or_graph",
    "run_demo",
    "sidecar",
    "write_described",
    "write_sidecar",
]
