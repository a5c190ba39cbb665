"""The peers' side of peers.py, run by their own interpreter: one line of JSON for each line read.

A line names a case and a solver, separated by a tab. The first run of each is for warming up.
"""

import json
import sys
import warnings
from collections.abc import Callable

import peers_data as data
import torch
from curvlinops import GGNLinearOperator, HessianLinearOperator, hutchinson_trace
from curvlinops.papyan2020traces.spectrum import fast_lanczos
from laplace import Laplace
from laplace.curvature import AsdlGGN, BackPackGGN, CurvlinopsGGN
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

warnings.filterwarnings("ignore")
BACKENDS = {"BackPACK": BackPackGGN, "ASDL": AsdlGGN, "curvlinops": CurvlinopsGGN}


def evidence(width: int, backend: str) -> Callable[[], float]:
    """laplace-torch: full Gauss-Newton matrix of all weights, and its log marginal likelihood."""
    layers, x, y = data.regression(width)
    model = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1)).double()
    _copy(layers, [model[0], model[2]])
    pairs = TensorDataset(torch.as_tensor(x), torch.as_tensor(y))
    loader = DataLoader(pairs, batch_size=data.POINTS)

    def run() -> float:
        fitted = Laplace(
            model, "regression", subset_of_weights="all", hessian_structure="full",
            sigma_noise=data.NOISE, prior_precision=1.0, backend=BACKENDS[backend],
        )  # fmt: skip
        fitted.fit(loader)
        return float(fitted.log_marginal_likelihood())

    return run


class LeNet(nn.Module):
    """As `lenet` of curvature.py."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList([nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5)])
        self.dense = nn.ModuleList([nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, None]
        for convolution in self.convolutions:
            x = nn.functional.avg_pool2d(torch.tanh(convolution(x)), 2)
        x = x.permute(0, 2, 3, 1).flatten(1)
        for layer in self.dense[:-1]:
            x = torch.tanh(layer(x))
        return self.dense[-1](x)


def _copy(layers: data.Layers, modules: list[nn.Module]) -> None:
    """Weights from (.., in, out) to (out, in, ..)."""
    with torch.no_grad():
        for (weight, bias), module in zip(layers, modules, strict=True):
            order = (3, 2, 0, 1) if weight.ndim == 4 else (1, 0)
            module.weight.copy_(torch.as_tensor(weight.transpose(order)))
            module.bias.copy_(torch.as_tensor(bias))


def classifier(name: str) -> nn.Module:
    """LeNet, or the dense network of its size."""
    if name == "LeNet":
        model = LeNet()
        _copy(data.lenet(), [*model.convolutions, *model.dense])
        return model
    sizes = [nn.Linear(784, 75), nn.Linear(75, 30), nn.Linear(30, 10)]
    _copy(data.dense(), sizes)
    first, second, last = sizes
    return nn.Sequential(nn.Flatten(), first, nn.Tanh(), second, nn.Tanh(), last)


def operator(kind: type, name: str) -> object:
    """An operator of curvlinops on the mean cross-entropy."""
    model = classifier(name)
    x, y = (torch.as_tensor(part) for part in data.images())
    weights = list(model.parameters())
    return kind(model, nn.CrossEntropyLoss(), weights, [(x, y)], check_deterministic=False)


def trace(name: str) -> Callable[[], float]:
    hessian = operator(HessianLinearOperator, name)
    return lambda: float(hutchinson_trace(hessian, data.PROBES))


def log_det(name: str) -> Callable[[], float]:
    """Lanczos quadrature by curvlinops' own decomposition."""
    ggn = operator(GGNLinearOperator, name)
    size = ggn.shape[0]

    def run() -> float:
        total = 0.0
        for _ in range(data.LANCZOS_PROBES):
            nodes, vectors = (torch.as_tensor(a) for a in fast_lanczos(ggn, data.DEPTH))
            logs = torch.log(nodes.clamp(min=0.0) + data.DAMPING)
            total += float(size * (vectors[0] ** 2 * logs).sum())
        return total / data.LANCZOS_PROBES

    return run


def made(case: str, solver: str) -> Callable[[], float]:
    kind, _, which = case.partition(", ")
    if kind == "evidence":
        return evidence(int(which.removeprefix("width ")), solver.removeprefix("laplace-torch, "))
    return {"trace": trace, "log det": log_det}[kind](which)


def main() -> None:
    ready: dict[str, Callable[[], float]] = {}
    for line in sys.stdin:
        case, solver = line.rstrip("\n").split("\t")
        if line not in ready:
            ready[line] = made(case, solver)
        print(json.dumps(data.turn(ready[line])), flush=True)


if __name__ == "__main__":
    main()
