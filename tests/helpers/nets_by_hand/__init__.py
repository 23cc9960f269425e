"""Nets of every kind of architecture, each with its symmetries as a person writes them down."""

from helpers.nets_by_hand import (
    attention,
    convolutions,
    dense,
    image_nets,
    products,
    recurrent,
    relations,
    sequences,
    transformers,
)
from helpers.nets_by_hand.net import Net

NETS: dict[str, Net] = {
    **dense.NETS,
    **products.NETS,
    **convolutions.NETS,
    **image_nets.NETS,
    **recurrent.NETS,
    **sequences.NETS,
    **attention.NETS,
    **transformers.NETS,
    **relations.NETS,
}
