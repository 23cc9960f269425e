"""Tables and figures of the page about the paper, drawn from ``docs/results/paper-*.json``."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
sys.path.insert(0, str(ROOT / "tests" / "benchmarks" / "paper"))

import measure  # noqa: E402

TRAINED = ("Deep-Align", "probe encoder, trained")
ORDER = (
    "naive", "weight matching", "activation matching", "probes only", "probes on data", "universal",
    "probe encoder, trained", "probe encoder, trained, on data", "Deep-Align", "Deep-Align + consensus",
    "Deep-Align + consensus + midpoint", "Sinkhorn",
)  # fmt: skip
FOR_ONE = (
    "Deep-Align", "Deep-Align + consensus", "Deep-Align + consensus + midpoint", "probe encoder, trained",
    "probe encoder, trained, on data",
)  # fmt: skip
"""Columns of aligners that were trained for the architecture of the table."""
LABELS = {
    "weight_matching": "weight matching",
    "frank_wolfe": "Frank-Wolfe, rounded",
    "sinkhorn, distance": "Sinkhorn on the distance",
    "sinkhorn, midpoint loss": "Sinkhorn on the loss",
}
FLOOR = 0.05
"""Smallest share above the best that is drawn, in percent."""
Results = dict[str, Any]


def read(name: str) -> Results:
    """One file of results."""
    results = dict(measure.read_json(RESULTS / f"paper-{name}.json"))
    return ordered(results) if "columns" in results else results


def ordered(results: Results) -> Results:
    """The same with columns in the order in which they are shown."""
    columns = results["columns"]
    names = sorted(columns, key=lambda name: (*ORDER, name).index(name))
    return {**results, "columns": {name: columns[name] for name in names}}


def per_pair(column: Results, kind: str) -> np.ndarray:
    """``[seeds, pairs]`` of one kind of number."""
    return np.array([run[kind] for run in column["runs"].values()])


def interval(pairs: list[Any], values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean, networks drawn anew."""
    sample = measure.Measured("", [tuple(pair) for pair in pairs], {"": list(values)}, {}, {}, {})
    return measure.bootstrap(sample, lambda means: means[""])[1:]


def seeds_of(column: Results, kind: str) -> str:
    """Deviation of the means of several seeds."""
    means = per_pair(column, kind).mean(1)
    return f"{means.std(ddof=1):.4f} ({len(means)})" if len(means) > 1 else "one seed" if "0" in column["runs"] else ""


def facts(name: str) -> str:
    """What was measured, in words."""
    results = read(name)
    about = results["about"]
    accuracy = about["mean_test_accuracy"]
    quality = f"accuracy {accuracy:.4f}" if accuracy is not None else f"loss {about['mean_test_loss']:.2e}"
    networks = len({network for pair in results["pairs"] for network in pair})
    return (
        f"`{results['command']}`\n\n"
        f"{about['architecture']}, {about['source']}; mean test {quality}. {len(results['pairs'])} pairs of {networks} "
        f"test networks; barriers on {results['samples']} test samples at {results['points']} points; methods with "
        f"data have {results['images']} training samples, Sinkhorn {results['sinkhorn_images']} and at most "
        f"{results['sinkhorn_steps']} steps."
    )


def table(name: str) -> str:
    """All methods on one set."""
    results = read(name)
    lines = [
        "| method | barrier | 95 % interval | deviation (seeds) | AUC | squared distance | CPU s a pair | pairs |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for label, column in results["columns"].items():
        barriers = per_pair(column, "barriers")
        low, high = interval(results["pairs"][: barriers.shape[1]], barriers.mean(0))
        lines.append(
            f"| {label} | {barriers.mean():.4f} | {low:.4f} to {high:.4f} | {seeds_of(column, 'barriers')} "
            f"| {per_pair(column, 'areas').mean():.4f} | {per_pair(column, 'distances').mean():.1f} "
            f"| {per_pair(column, 'seconds').mean():.3f} | {barriers.shape[1]} |"
        )
    return "\n".join([*lines, "", same_pairs(results)])


def same_pairs(results: Results) -> str:
    """Barriers of the cheap methods on the pairs that the dear ones have, in words; empty if they have all."""
    few = min(per_pair(column, "barriers").shape[1] for column in results["columns"].values())
    if few == len(results["pairs"]):
        return ""
    shown = [
        f"{label} {per_pair(column, 'barriers')[:, :few].mean():.4f}"
        for label, column in results["columns"].items()
        if "inkhorn" not in label
    ]
    return f"Methods with Sinkhorn have the first {few} pairs. The others on those alone: {', '.join(shown)}."


NIGHT = 2 * 10 * 3600
"""CPU seconds of two cores in ten hours."""


def scale() -> str:
    """What training took here, in words, and what a night would give."""
    runs = read("mnist-mlp")["columns"]["Deep-Align"]["training"]
    seconds, first = [run["cpu_seconds"] for run in runs], runs[0]
    pairs = first["steps"] * first["settings"]["pairs"]
    return (
        f"Here {first['steps']:,} steps of {first['settings']['pairs']} pairs, on {first['networks']} networks, took "
        f"{min(seconds):.0f} to {max(seconds):.0f} CPU seconds. By that a night of two cores (ten hours) is worth "
        f"{NIGHT / np.mean(seconds) * pairs / 1e6:.1f} million pairs. "
        "No such night was spent."
    )


def training(*names: str) -> str:
    """How the aligners of some sets were trained."""
    lines = [
        "| set | aligner | parameters | networks | steps | best step of each seed | CPU s of each seed |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name in names:
        for label in TRAINED:
            runs = read(name)["columns"].get(label, {}).get("training", [])
            if runs:
                best, seconds = (", ".join(f"{run[key]:.0f}" for run in runs) for key in ("best_step", "cpu_seconds"))
                first = runs[0]
                lines.append(
                    f"| {name} | {label} | {first['parameters']:,} | {first['networks']} | {first['steps']} | {best} "
                    f"| {seconds} |"
                )
    return "\n".join(lines)


def goals() -> str:
    """What was to be reached on MNIST MLPs, and what was."""
    columns = read("mnist-mlp")["columns"]
    mean = {label: per_pair(column, "barriers").mean() for label, column in columns.items()}
    seconds = {label: per_pair(column, "seconds").mean() for label, column in columns.items()}
    lines = ["| goal | aligner | measured | reached |", "|---|---|---:|---|"]
    for label in [name for name in FOR_ONE if name in mean]:
        share = mean[label] / mean["activation matching"]
        lines.append(f"| barrier at most half of activation matching's | {label} | {share:.2f} | {yes(share <= 0.5)} |")
    for label in TRAINED:
        if f"{label} + Sinkhorn" in mean:
            barrier = mean[f"{label} + Sinkhorn"]
            lines.append(
                f"| barrier at most 0.005 with Sinkhorn after it | {label} | {barrier:.4f} | {yes(barrier <= 0.005)} |"
            )
    for label in [name for name in TRAINED if name in seconds]:
        ratio = seconds[label] / seconds["weight matching"]
        lines.append(f"| time at most twice weight matching's | {label} | {ratio:.2f} | {yes(ratio <= 2)} |")
    return "\n".join(lines)


def yes(fact: bool) -> str:
    """A word for the table."""
    return "yes" if fact else "no"


def splits() -> str:
    """Averages of networks of disjoint classes."""
    results = read("class-splits")
    parents = results["parents"]
    lines = [
        "| method | accuracy of the average | loss of the average | barrier | deviation of accuracy (seeds) |",
        "|---|---:|---:|---:|---:|",
        f"| the networks themselves | {np.mean(parents['accuracies']):.4f} | {np.mean(parents['losses']):.4f} | | |",
    ]
    for label, column in results["columns"].items():
        accuracy, loss, barrier = (per_pair(column, kind).mean() for kind in ("accuracies", "losses", "barriers"))
        lines.append(f"| {label} | {accuracy:.4f} | {loss:.4f} | {barrier:.4f} | {seeds_of(column, 'accuracies')} |")
    return "\n".join(lines)


def runtime() -> str:
    """Seconds for 1,000 pairs."""
    results = read("runtime")
    lines = [
        "| method | pairs measured | CPU s for 1,000 pairs | relative to weight matching | pairs a second, one thread "
        "| in a pool, pairs a CPU second | in batches, pairs a CPU second |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    unit = results["methods"]["weight matching"]
    for label, entry in results["methods"].items():
        each = entry["cpu_seconds"] / entry["pairs"]
        mark = "" if entry["pairs"] >= 1000 else f", computed from {entry['pairs']}"
        pool = f"{entry['pool']['pairs'] / entry['pool']['cpu_seconds']:.1f}" if "pool" in entry else ""
        batched = f"{entry['pairs'] / entry['batched_cpu_seconds']:.1f}" if "batched_cpu_seconds" in entry else ""
        lines.append(
            f"| {label} | {entry['pairs']} | {1000 * each:.1f}{mark} "
            f"| {each / (unit['cpu_seconds'] / unit['pairs']):.2f} | {1 / each:.1f} | {pool} | {batched} |"
        )
    return "\n".join(lines)


def mean_of(name: str, label: str, kind: str = "barriers") -> float:
    """Mean of one kind of number over seeds and pairs of a method on a set."""
    return float(per_pair(read(name)["columns"][label], kind).mean())


def share_of(name: str, label: str, other: str, kind: str = "barriers") -> float:
    """What a method has on a set, relative to another."""
    return mean_of(name, label, kind) / mean_of(name, other, kind)


def short() -> str:
    """What was found, as a list."""
    mlp, fashion, cnn, labels = "mnist-mlp", "fashion-mlp", "fashion-cnn", "activation matching"
    ours = ("Deep-Align", "Deep-Align + consensus", "Deep-Align + consensus + midpoint")
    alone, rounds, midpoint = (f"{share_of(mlp, label, labels):.2f}" for label in ours)
    networks = {name: read(name)["about"]["networks"]["train"] for name in (mlp, cnn)}
    longer = [share_of(name, "Sinkhorn", "probes on data", "seconds") for name in (mlp, fashion, cnn, "rotated-mlp")]
    seconds = {name: entry["cpu_seconds"] / entry["pairs"] for name, entry in read("runtime")["methods"].items()}
    names = ("Deep-Align", "Deep-Align + consensus", "probes only", "probes on data")
    times = [f"{seconds[name] / seconds['weight matching']:.1f} times" for name in names]
    ends = [mean_of(mlp, label) for label in read(mlp)["columns"] if "Sinkhorn" in label]
    lines = (
        f"On MNIST MLPs the paper's network, trained on {networks[mlp]} networks, has "
        f"{share_of(mlp, ours[0], 'weight matching'):.2f} times the [barrier](glossary.md#barrier) of weight matching, "
        f"and {alone} times that of activation matching. With rounds of [consensus](glossary.md#consensus) after it, "
        f"which need no training, it is at {rounds} of activation matching, and with midpoint steps on 512 inputs "
        f"without labels at {midpoint}.",
        f"On Fashion-MNIST MLPs it is at {share_of(fashion, ours[0], labels):.2f} of activation matching, and with "
        f"consensus and midpoint steps at {share_of(fashion, ours[2], labels):.2f}. On small Fashion-MNIST CNNs "
        f"({networks[cnn]} networks) it is at {share_of(cnn, ours[0], labels):.2f}.",
        "[Probes](glossary.md#probe) with midpoint steps reach the same barriers without any training of an "
        "[aligner](glossary.md#aligner). Sinkhorn, which has labels, takes "
        f"{min(longer):.0f} to {max(longer):.0f} times as long.",
        f"For a pair of MNIST MLPs the paper's network takes {times[0]} the time of weight matching, and {times[1]} "
        f"with consensus. Probes take {times[2]}, and {times[3]} with midpoint steps.",
        f"Sinkhorn ends between {min(ends):.4f} and {max(ends):.4f} on these networks. The goal, "
        f"0.005, is {'reached' if min(ends) <= 0.005 else 'not reached'}.",
    )
    return "\n".join(f"- {line}" for line in lines)


def many_table(experiment: str) -> str:
    """Barriers of the paper's network by the networks and steps of its training, beside methods without training."""
    rows = read(experiment)["rows"]
    lines = [
        "| method | networks | steps | best step | CPU s of training | barrier | 95 % interval |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        facts = row.get("training", {})
        cells = (
            [f"{facts[key]:,.0f}" for key in ("networks", "steps", "best_step", "cpu_seconds")] if facts else [""] * 4
        )
        low, high = row["interval"]
        shown = "Deep-Align" if facts else name
        lines.append(f"| {shown} | {' | '.join(cells)} | {row['barrier']:.4f} | {low:.4f} to {high:.4f} |")
    return "\n".join(lines)


def many_words(experiment: str) -> str:
    """What was run, in words."""
    results = read(experiment)
    about, pairs = results["about"], next(iter(results["rows"].values()))["pairs"]
    return (
        f"`{results['command']}`\n\n"
        f"{about['architecture']}, {about['source']}; mean test accuracy {about['mean_test_accuracy']:.4f}; {pairs} "
        "pairs of test networks."
    )


def many_night() -> str:
    """What more networks and more steps were worth, and what a night would give if it went on like that."""
    rows = read("many-networks")["rows"]
    facts = {name: row["training"] for name, row in rows.items() if "training" in row}
    barrier = {(fact["networks"], fact["steps"]): rows[name]["barrier"] for name, fact in facts.items()}
    most = max(networks for networks, _ in barrier)
    beside = [
        f"after {steps:,} steps {value:.4f} on {networks:,} and {barrier[most, steps]:.4f} on {most:,}"
        for (networks, steps), value in barrier.items()
        if networks < most and (most, steps) in barrier
    ]
    curve = sorted((steps, value) for (networks, steps), value in barrier.items() if networks == most)
    (steps, before), (last, now) = curve[-2:]
    each = np.mean([fact["cpu_seconds"] / fact["steps"] for fact in facts.values()])
    night = round(NIGHT / 2 / each, -4)
    expected = now * (now / before) ** (np.log(night / last) / np.log(last / steps))
    longest = next(fact for fact in facts.values() if (fact["networks"], fact["steps"]) == (most, last))
    stopped = ""
    if last < longest["settings"]["steps"]:
        stopped = (
            f"The longest of these stopped by itself, {longest['best_step']:,} steps being the best of {last:,}: "
            "barriers of validation networks fell no further. "
        )
    return (
        f"Mean barriers by the number of networks: {'; '.join(beside)}. By the number of steps, on {most:,} networks: "
        f"{', '.join(f'{value:.4f} after {count:,}' for count, value in curve)}. Probes without training have "
        f"{rows['probes']['barrier']:.4f}, on data {rows['probes on data']['barrier']:.4f}. A step took "
        f"{1000 * each:.0f} milliseconds of CPU time, so that one core makes {night:,.0f} steps in ten hours, and two "
        f"cores two such trainings. {stopped}If the barrier went on to fall with steps as from {steps:,} to {last:,}, "
        f"it would be {expected:.3f} in a night. That is a power law through two points, continued by a factor of "
        f"{night / last:.0f}; no such night was spent."
    )


def soft_table() -> str:
    """Barriers after Sinkhorn from soft alignments in half the steps, and from alignments."""
    found = read("soft-starts")
    names = list(next(iter(found.values()))["starts"])
    means = {
        name: {start: np.mean(entry["barriers"]) for start, entry in results["starts"].items()}
        for name, results in found.items()
    }
    lines = [
        f"| set | pairs | steps | samples a soft step | {' | '.join(names)} |",
        "|---|" + "---:|" * (3 + len(names)),
    ]
    for name, results in found.items():
        cells = [f"{means[name][start]:.4f}" if start in means[name] else "" for start in names]
        steps = f"{results['steps']}, soft {results['steps'] // 2}"
        lines.append(f"| {name} | {results['pairs']} | {steps} | {results['soft_samples']} | {' | '.join(cells)} |")
    parts = []
    for start, words in ((names[-2], "with labels"), (names[-1], "by outputs")):
        reached = [f"{name} {yes(mean[start] <= mean[names[0]])}" for name, mean in means.items() if start in mean]
        parts.append(f"{words}: {', '.join(reached)}")
    goal = f"Is the goal reached, no more than from weight matching with data in half the steps? {'; '.join(parts)}."
    return "\n".join([*lines, "", *(f"- `{results['command']}`" for results in found.values()), "", goal])


def soft_figure() -> str:
    """Loss of the best rounded midpoint against steps, a panel a set."""
    found = read("soft-starts")
    figure, axes = plt.subplots(1, len(found), figsize=(3.6 * len(found), 3.6), layout="constrained", squeeze=False)
    for ax, (name, results) in zip(axes[0], found.items(), strict=True):
        for at, (start, curve) in enumerate(results["starts"].items()):
            if start.endswith("by outputs"):  # another objective than the loss
                continue
            ax.plot(curve["steps"], curve["mean"], color=f"C{at}", marker=".", markersize=4, label=start)
        ax.set(title=f"{name}, {results['pairs']} pairs", xlabel="step")
    axes[0, 0].set_ylabel("loss in the middle")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    return svg(figure)


def starts_table() -> str:
    """Where each solver ends from each start."""
    results = read("starts")
    lines = ["| start | of itself: distance, barrier | " + " | ".join(LABELS.values()) + " |", "|---|" + "---:|" * 5]
    names = list(dict.fromkeys(name for curves in results["curves"].values() for name in curves))
    for name in names:
        begun = results["starts"].get(name)
        cells = [f"{np.mean(begun['distances']):.1f}, {np.mean(begun['barriers']):.4f}" if begun else ""]
        for solver in LABELS:
            entry = results["curves"][solver].get(name)
            cells.append(f"{np.mean(entry['distances']):.1f}, {np.mean(entry['barriers']):.4f}" if entry else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def starts_figure() -> str:
    """Objective against steps, as a share above the best end of all."""
    results = read("starts")
    figure, axes = plt.subplots(2, 2, figsize=(9.5, 7), layout="constrained")
    names = list(dict.fromkeys(name for curves in results["curves"].values() for name in curves))
    ends = {
        solver: min(curve["mean"][-1] for curve in results["curves"][solver].values()) for solver in results["curves"]
    }
    lowest = min(end for solver, end in ends.items() if "loss" not in solver)
    for ax, (solver, title) in zip(axes.flat, LABELS.items(), strict=True):
        best = ends[solver] if "loss" in solver else lowest
        for at, name in enumerate(names):
            curve = results["curves"][solver].get(name)
            if curve:
                above = [max(100 * (value / best - 1), FLOOR) for value in curve["mean"]]
                ax.plot(curve["steps"], above, color=f"C{at}", marker=".", markersize=4, label=name)
        kind = "loss" if "loss" in solver else "squared distance"
        ax.set(title=title, xlabel="step", ylabel=f"{kind}, % above the best", yscale="log")
        ax.yaxis.set_major_formatter("{x:g}")
        if solver == "frank_wolfe":
            ax.set(xscale="symlog", xlim=(0, None))
            ax.xaxis.set_major_formatter("{x:g}")
    axes[0, 1].legend(fontsize="small")
    return svg(figure)


def steps_figure(*names: str) -> str:
    """Barrier of INRs against the number of Sinkhorn steps."""
    figure, axes = plt.subplots(1, len(names), figsize=(3.6 * len(names), 4.2), layout="constrained", squeeze=False)
    every = {name: read(f"{name}-steps") for name in names}
    labels = list(dict.fromkeys(label for results in every.values() for label in results["steps"]["0"]["columns"]))
    for ax, results in zip(axes[0], every.values(), strict=True):
        for at, label in enumerate(labels):
            parts = [(int(steps), part["columns"].get(label)) for steps, part in results["steps"].items()]
            drawn = [(steps, per_pair(column, "barriers").mean()) for steps, column in parts if column]
            if drawn:
                ax.plot(*zip(*drawn, strict=True), color=f"C{at}", marker="o", markersize=4, label=label)
        ax.set(title=f"{results['about']['architecture']},\n{results['about']['source']}", xlabel="Sinkhorn steps")
        ax.set_ylim(0, 1.05 * ax.get_ylim()[1])
    axes[0, 0].set_ylabel("barrier")
    shown = {label: line for ax in axes[0] for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=4, fontsize="small")
    return svg(figure)


def steps_table(*names: str) -> str:
    """The numbers of that figure."""
    lines = []
    for name in names:
        results = read(f"{name}-steps")
        pairs = len(results["steps"]["0"]["pairs"])
        lines += [
            f"{results['about']['architecture']}, {results['about']['source']}, {pairs} pairs: `{results['command']}`",
            "",
            "| start | " + " | ".join(f"{steps} steps" for steps in results["steps"]) + " |",
            "|---|" + "---:|" * len(results["steps"]),
        ]
        for label in results["steps"]["0"]["columns"]:
            columns = [part["columns"].get(label) for part in results["steps"].values()]
            cells = [f"{per_pair(column, 'barriers').mean():.4f}" if column else "" for column in columns]
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def phases_table(*names: str) -> str:
    """Barriers of INRs by what is searched, and the oracles that show what is left."""
    found = {name: read(f"{name}-phases") for name in names}
    lines = [f"- {name}, {one['pairs']} pairs: `{one['command']}`" for name, one in found.items()]
    lines += ["", f"| barrier | {' | '.join(found)} |", "|---|" + "---:|" * len(found)]
    for label in found[names[0]]["barriers"]:
        numbers = [f"{one['barriers'][label]:.4f}" for one in found.values()]
        lines.append(f"| {label} | {' | '.join(numbers)} |")
    numbers = [f"{one['shared start']['barrier']:.4f}" for one in found.values()]
    lines.append(f"| two trainings from one start, not aligned | {' | '.join(numbers)} |")
    for noise in found[names[0]]["noise"]:
        cells = [one["noise"][noise] for one in found.values()]
        for key, label in (("order known", "known"), ("order found", "found")):
            numbers = [f"{cell[f'barrier, {key}']:.4f}" for cell in cells]
            lines.append(f"| itself with {float(noise):.0%} noise, order {label} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def phases_words(*names: str) -> str:
    """What phases are worth, in words."""
    parts = []
    for name in names:
        one = read(f"{name}-phases")
        barriers = one["barriers"]
        parts.append(
            f"on {name} the barrier falls from {barriers['permutations']:.2f} to "
            f"{barriers['phases wrapped']:.2f} (predicting zero: {barriers['predicting zero']:.2f})"
        )
    moved = [read(f"{name}-phases")["shared start"]["hidden weights moved"] for name in names]
    shares = " and ".join(f"{share:.0%}" for share in moved)
    return f"With phases wrapped, {', and '.join(parts)}. Training moves hidden weights by {shares} of their size."


def limit_words(*names: str) -> str:
    """What the oracles say of where alignment of INRs ends, in words."""
    found = {name: read(f"{name}-phases") for name in names}
    noise = max(next(iter(found.values()))["noise"], key=float)
    parts = []
    for name, one in found.items():
        most, shared, apart = one["noise"][noise], one["shared start"]["barrier"], one["barriers"]["phases wrapped"]
        parts.append(
            f"on {name} {most['found']:.0%} of the units are found, the right order leaves a barrier of "
            f"{most['barrier, order known']:.2f}, and two trainings have {shared:.2f} from one start and {apart:.2f} "
            "from two"
        )
    return (
        f"Where the limit is: of a reordered copy with {float(noise):.0%} noise, about as much as training moves "
        f"hidden weights, {'; '.join(parts)}. So weights may move as far without a barrier where both networks begin "
        "alike, and a barrier can be left where the order is right."
    )


def svg(figure: plt.Figure) -> str:
    """The picture as text for the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
