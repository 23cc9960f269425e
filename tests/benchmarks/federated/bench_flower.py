"""Federated averaging in Flower's simulation, with and without alignment on the server.

    pip install "flwr[simulation]" && python tests/benchmarks/federated/bench_flower.py

Each of the clients starts from weights of its own, and trains on its own share of the digits.
"""

from __future__ import annotations

import argparse

import clients
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

import alignkit

COUNT, ALPHA, EPOCHS, ROUNDS = 8, 1.0, 10, 5


# --8<-- [start:strategy]
class AlignedFedAvg(FedAvg):
    """Bring the units of all clients to one order, then average."""

    def __init__(self, graph, **options):
        super().__init__(**options)
        self.graph = graph

    def aggregate_train(self, server_round, replies):
        """Align what the clients sent. No data are needed."""
        replies = [reply for reply in replies if not reply.has_error()]
        sent = [reply.content["arrays"].to_torch_state_dict() for reply in replies]
        aligned = alignkit.align_many(self.graph, *sent).apply(sent)
        for reply, weights in zip(replies, aligned, strict=True):
            reply.content["arrays"] = ArrayRecord(weights)
        return super().aggregate_train(server_round, replies)


# --8<-- [end:strategy]


client_app = ClientApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train on the rows of this client; in the first round from weights of its own."""
    number, first = int(context.node_config["partition-id"]), message.content["config"]["server-round"] == 1
    rows = clients.shares(COUNT, ALPHA, 0)[number]
    start = clients.network(number).state_dict() if first else message.content["arrays"].to_torch_state_dict()
    weights = clients.train(start, rows, EPOCHS, 100 * message.content["config"]["server-round"] + number)
    content = {"arrays": ArrayRecord(weights), "metrics": MetricRecord({"num-examples": len(rows)})}
    return Message(content=RecordDict(content), reply_to=message)


def serve(align: bool) -> ServerApp:
    """A server that prints the accuracy of its average after every round."""
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        graph = alignkit.trace(clients.network(0), clients.TEST_X[:2])
        options = {"fraction_evaluate": 0.0, "min_train_nodes": COUNT, "min_available_nodes": COUNT}
        strategy = AlignedFedAvg(graph, **options) if align else FedAvg(**options)
        reached = []

        def judge(_: int, arrays: ArrayRecord) -> MetricRecord:
            reached.append(round(clients.accuracy(arrays.to_torch_state_dict()), 3))
            return MetricRecord({"accuracy": reached[-1]})

        start = ArrayRecord(clients.network(0).state_dict())
        strategy.start(grid, start, num_rounds=ROUNDS, evaluate_fn=judge)
        print("aligned" if align else "plain", reached[1:], flush=True)

    return server


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    for align in (False, True):
        run_simulation(serve(align), client_app, COUNT, backend_config={"client_resources": {"num_cpus": 1.0}})
