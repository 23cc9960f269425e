"""The table of domain aligners, and what is said of it, drawn from ``docs/results/domains.json``."""

from __future__ import annotations

import json
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np

MEASURED = json.loads((Path(__file__).parents[1] / "results" / "domains.json").read_text(encoding="utf-8"))
RESULTS = {row: measured for row, measured in MEASURED.items() if measured["source"] == measured["domain"]}
FOREIGN = {row: measured for row, measured in MEASURED.items() if row not in RESULTS}
"""Networks of another data set than the aligner's, whose inputs have the same shape."""
GOALS = "domain-28-128x3, mnist 28x28"
"""The row that goals were set for."""
OURS = "domain aligner"
COLUMNS = ("weight matching, best of 10", "probes", "probes, stand-ins", OURS, "probes, 512 inputs")
FROM_WEIGHTS, FROM_OURS = "weight matching > sinkhorn", "domain aligner > sinkhorn"
BY_OUTPUTS = f"{FROM_OURS}, by outputs"
NEEDED = {
    COLUMNS[-1]: "512 inputs",
    FROM_WEIGHTS: "weight matching, then Sinkhorn",
    FROM_OURS: "domain aligner, then Sinkhorn in half the steps",
    BY_OUTPUTS: "the same by outputs, without labels",
}


def geometric(values: list[float]) -> float:
    """Geometric mean of positive numbers."""
    return float(np.exp(np.mean(np.log(values))))


def ratio(name: str) -> float:
    """Ratio of two methods, geometric mean over the sets."""
    return geometric([measured["ratios"][name][0] for measured in RESULTS.values()])


def is_measured(what: str, name: str) -> bool:
    """Whether every row holds a method, or a ratio."""
    return all(name in measured[what] for measured in MEASURED.values())


def table() -> str:
    """Mean barriers, a row a set of held-out networks."""
    names = (*COLUMNS, *(name for name in (FROM_WEIGHTS, FROM_OURS, BY_OUTPUTS) if is_measured("barrier", name)))
    shown = [NEEDED.get(name, name) for name in names]
    lines = [f"| networks | pairs | test images | {' | '.join(shown)} |", "|---|" + "---:|" * (len(shown) + 2)]

    def row(name: str, measured: dict[str, Any]) -> str:
        cells = [f"{measured['barrier'][name]:.4f}" for name in names]
        return f"| {about(name, measured)} | {measured['pairs']} | {measured['samples']:,} | {' | '.join(cells)} |"

    means = [geometric([measured["barrier"][name] for measured in RESULTS.values()]) for name in names]
    mean = f"| geometric mean of these | | | {' | '.join(f'{mean:.4f}' for mean in means)} |"
    return "\n".join([*lines, *starmap(row, RESULTS.items()), mean, *starmap(row, FOREIGN.items())])


def about(name: str, measured: dict[str, Any]) -> str:
    """The name of a set, what its networks are, and whose aligner it is where that learned other images."""
    other = "" if measured["source"] == measured["domain"] else f", by the aligner of {measured['domain']}"
    return f"{name.partition(', ')[0]}: {measured['about']}{other}"


def ratios() -> str:
    """Ratios of mean barriers with their intervals, a row a set."""
    names = [name for name in RESULTS[GOALS]["ratios"] if is_measured("ratios", name)]
    lines = [f"| networks | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]

    def row(name: str, measured: dict[str, Any]) -> str:
        cells = ["{:.2f} [{:.2f}, {:.2f}]".format(*measured["ratios"][ratio]) for ratio in names]
        return f"| {about(name, measured)} | {' | '.join(cells)} |"

    mean = f"| geometric mean of these | {' | '.join(f'{ratio(name):.2f}' for name in names)} |"
    return "\n".join([*lines, *starmap(row, RESULTS.items()), mean, *starmap(row, FOREIGN.items())])


def words() -> str:
    """What the aligners were trained on, what they are worth, and what was to be reached."""
    kinds = {tuple(measured["trained on"]): measured for measured in RESULTS.values()}
    trained = "; ".join(f"{', '.join(one['trained on'])} ({one['kilobytes']} kB)" for one in kinds.values())
    seeds = [list(measured["seeds"].values()) for measured in RESULTS.values()]
    trainings = sorted({len(values) for values in seeds}, reverse=True)
    spread = max(max(values) / min(values) for values in seeds)
    last = RESULTS[GOALS]
    steps = last["sinkhorn steps"]
    networks = sorted({measured["networks"] for measured in RESULTS.values()})
    drawn = sorted({measured["drawn"] for measured in RESULTS.values()})
    ours, data = (ratio(f"domain aligner / {other}") for other in ("probes", "probes, 512 inputs"))
    without, labelled, from_weights = (last["barrier"][name] for name in ("domain aligner", FROM_OURS, FROM_WEIGHTS))
    return (
        f"Aligners were trained on: {trained}. Barriers are means over {' or '.join(map(str, trainings))} trainings "
        f"with other seeds, whose means differ by a factor of at most {spread:.2f}. Sinkhorn takes {steps} steps from "
        "weight matching, "
        f"and {steps // 2} from the soft alignment of the first domain aligner, on the first {last['sinkhorn pairs']} "
        f"pairs. Midpoint steps of the aligner ran on {' or '.join(map(str, drawn))} drawn inputs. Intervals are "
        f"bootstraps over networks, {networks[0]} to {networks[-1]} a set.\n\n"
        f"These goals were set beforehand: at most 0.75 of probes alone (measured: {ours:.2f}), and within 1.15 of "
        f"probes on 512 inputs ({data:.2f}). On {last['about']} at most 0.013 without data ({without:.4f}), and at "
        f"most 0.006 with labels and Sinkhorn after it ({labelled:.4f}, by outputs {last['barrier'][BY_OUTPUTS]:.4f}; "
        f"from weight matching {from_weights:.4f})."
        f"{stand_in_words()}{foreign_words()}"
    )


def stand_in_words() -> str:
    """On which sets stand-ins do harm, by the interval, and where they are worth least."""
    name = f"{COLUMNS[2]} / {COLUMNS[1]}"
    worse = [row.partition(", ")[0] for row, measured in RESULTS.items() if measured["ratios"][name][1] > 1]
    last = max(RESULTS, key=lambda row: RESULTS[row]["ratios"][name][0])
    least = f"{last.partition(', ')[0]} {{:.2f}} [{{:.2f}}, {{:.2f}}]".format(*RESULTS[last]["ratios"][name])
    return (
        f"\n\nStand-ins are {ratio(name):.2f} of probes alone without any training, and surely worse "
        f"{'on ' + ', '.join(worse) if worse else 'nowhere'}. They are worth least on {least}."
    )


def foreign_words() -> str:
    """What aligners are worth on networks of another data set, which they do not refuse."""
    sentences = []
    for row, measured in FOREIGN.items():
        barrier, source = measured["barrier"], measured["source"]
        own = RESULTS.get(f"{row.partition(', ')[0]}, {source}")
        beside = "" if own is None else f", the one of their own domain {own['barrier'][OURS]:.4f}"
        probes, stand_ins, data = (barrier[name] for name in ("probes", "probes, stand-ins", COLUMNS[-1]))
        sentences.append(
            f"On networks of {source} the aligner of {measured['domain']} has {barrier[OURS]:.4f}{beside}; probes have "
            f"{probes:.4f}, with stand-ins {stand_ins:.4f}, on 512 inputs {data:.4f}."
        )
    known = "A domain is known by the shape of its inputs: an aligner does not refuse other images of the same shape. "
    return "\n\n" + known + " ".join(sentences) if sentences else ""


def in_short() -> str:
    """What they are worth, in a sentence."""
    names = (COLUMNS[0], "probes", "domain aligner", COLUMNS[-1])
    weights, probes, ours, data = (geometric([one["barrier"][name] for one in RESULTS.values()]) for name in names)
    return (
        f"Over {len(RESULTS)} sets of networks of other shapes and families than it was trained on an aligner of the "
        f"domain has {ours:.3f} without data, where probes have {probes:.3f}, probes on 512 inputs {data:.3f} and "
        f"weight matching {weights:.3f}."
    )


def seconds() -> str:
    """CPU milliseconds a pair, in words."""
    shown = {
        name: np.mean([measured["milliseconds"].get(name, np.nan) for measured in RESULTS.values()])
        for name in next(iter(RESULTS.values()))["milliseconds"]
        if is_measured("milliseconds", name)
        and (not name.startswith("domain aligner, seed") or name.endswith("seed 0"))
    }
    return ", ".join(f"{name.removesuffix(', seed 0')} {time:.0f}" for name, time in shown.items())
