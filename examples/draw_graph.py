"""Draw the graph of a small convolutional network, as it is before fusion; what becomes one kernel has one colour."""

from __future__ import annotations

import sys
from pathlib import Path

import networkx

import lepton_jit as lpt

try:
    from matplotlib.figure import Figure
except ImportError:
    sys.exit("draw_graph: expected matplotlib; `pip install 'lepton-jit[draw]'` installs it")

OUTSIDE, COMPUTED_BY_ALL = "white", ("constant", "broadcast_in_dim")
COLOURS = ("#8dd3c7", "#fdb462", "#80b1d3", "#fb8072", "#b3de69", "#fccde5", "#bc80bd", "#ffed6f")


def main(path: Path) -> None:
    x = lpt.Input((28, 28, 1))
    y = lpt.Conv2D(16, 3, activation="relu", name="first")(x)
    y = lpt.MaxPooling2D(2)(y)
    z = lpt.Conv2D(16, 3, padding="same", activation="relu", name="second")(y)
    z = lpt.GlobalAveragePooling2D()(lpt.Add()([y, z]))
    fast = lpt.compile(lpt.Model(x, lpt.Dense(10, activation="softmax", name="scores")(z)))

    view = fast.to_networkx("main")
    for name in [name for name, op in view.nodes(data="op") if op in COMPUTED_BY_ALL]:
        view.add_edges_from([(source, reader) for source in view.pred[name] for reader in view.succ[name]])
        view.remove_node(name)
    draw(view, path)
    print(f"{path}: {len(view)} nodes, {len({k for _, k in view.nodes(data='kernel') if k})} kernels")


def draw(view: networkx.MultiDiGraph, path: Path) -> None:
    """Data flows from the top to the bottom."""
    for depth, names in enumerate(networkx.topological_generations(view)):
        for name in names:
            view.nodes[name]["depth"] = -depth
    place = networkx.multipartite_layout(view, subset_key="depth", align="horizontal")
    figure = Figure(figsize=(12, 1 + 1.3 * len({data["depth"] for _, data in view.nodes(data=True)})))
    axes = figure.add_subplot()
    axes.set_axis_off()
    labels = {name: data["name"] or f"{data['op']}\n{data['type']}" for name, data in view.nodes(data=True)}
    colours = [COLOURS[step % len(COLOURS)] if step >= 0 else OUTSIDE for _, step in view.nodes(data="step")]
    networkx.draw_networkx_edges(networkx.DiGraph(view), place, ax=axes, node_size=2000, edge_color="#888888")
    networkx.draw_networkx_nodes(
        view, place, ax=axes, node_color=colours, node_size=2000, node_shape="s", edgecolors="#555555"
    )
    networkx.draw_networkx_labels(view, place, labels, ax=axes, font_size=6)
    figure.savefig(path, dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "graph.png"))
