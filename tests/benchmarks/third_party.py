"""Run third-party packages; as a script one of them on pairs of networks, in a process of its own, which prints JSON.

Called by the benchmarks: ``python third_party.py rebasin FOLDER a.safetensors b.safetensors ...``. The two packages
share the module name ``rebasin``, so each lives in a folder of its own, made for example with
``pip install --no-deps --target FOLDER rebasin torchview graphviz tqdm``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import safetensors.torch
import torch
from torch import Tensor, nn

import networks

WIDTHS = (784, 128, 128, 128, 10)


def load(path: str) -> nn.Sequential:
    model = networks.mlp(WIDTHS)
    model.load_state_dict(safetensors.torch.load_file(path))
    return model.eval()


def run_rebasin(a: nn.Module, b: nn.Module, example: Tensor) -> nn.Module:
    """Weight matching of the package rebasin; it permutes ``b`` in place."""
    from rebasin import PermutationCoordinateDescent  # type: ignore[import-not-found]

    PermutationCoordinateDescent(a, b, example, logging_level="error").rebasin()
    return b


def run_sinkhorn(a: nn.Module, b: nn.Module, example: Tensor) -> nn.Module:
    """Sinkhorn re-basin with the L2 loss, 50 steps of AdamW at 0.1, as in the package's example."""
    from rebasin import RebasinNet  # type: ignore[import-not-found]
    from rebasin.loss import DistL2Loss  # type: ignore[import-not-found]

    net = RebasinNet(b, input_shape=tuple(example.shape))
    net.identity_init()
    criterion, optimizer = DistL2Loss(a), torch.optim.AdamW(net.p.parameters(), lr=0.1)
    net.train()
    for _ in range(50):
        loss = criterion(net())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()
    result: nn.Module = net()
    return result


RUNS: dict[str, Callable[[nn.Module, nn.Module, Tensor], nn.Module]] = {
    "rebasin": run_rebasin,
    "sinkhorn": run_sinkhorn,
}


def main() -> None:
    sys.path.insert(0, sys.argv[2])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    paths = sys.argv[3:]
    rows = []
    # The first pair is run twice: the first time pays for imports.
    for a_path, b_path in [(paths[0], paths[1]), *zip(paths[::2], paths[1::2], strict=True)]:
        a, b = load(a_path), load(b_path)
        start = time.process_time()
        aligned = RUNS[sys.argv[1]](a, b, torch.randn(1, WIDTHS[0]))
        seconds = time.process_time() - start
        state = {n: t.detach() for n, t in aligned.state_dict().items()}
        path = f"{b_path}.{sys.argv[1]}.aligned"
        safetensors.torch.save_file({n: t.contiguous() for n, t in state.items()}, path)
        rows.append({"aligned": path, "seconds": seconds})
    print(json.dumps(rows[1:]))


if __name__ == "__main__":
    main()
