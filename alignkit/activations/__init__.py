"""Activations of the units of a group: where they are read while a model runs, and their streamed moments."""

from alignkit.activations.moments import CrossMoments, Moments, cross_moments
from alignkit.activations.proof import find_readings
from alignkit.activations.random_inputs import probe_batches, random_batch
from alignkit.activations.readings import Reading

__all__ = ["CrossMoments", "Moments", "Reading", "cross_moments", "find_readings", "probe_batches", "random_batch"]
