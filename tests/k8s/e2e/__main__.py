"""The command line; `tests/k8s/run` calls it."""

import argparse
import re
import shutil
import signal
import sys
from pathlib import Path

from . import examples, faults, planted, steps  # noqa: F401  (most register their steps)
from .kube import Failed, command
from .run import STEPS, Run

CHART = Path(__file__).parents[3] / "charts" / "larder"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests/k8s/run",
        description="Runs Larder's chart and image on the cluster that KUBECONFIG names, under load, while things go wrong. "
                    "It needs kubectl; helm and Python packages it fetches where they are missing. It makes namespaces of its "
                    "own and removes them. The step `drain` marks all machines unschedulable for some seconds, and nothing else "
                    "touches what is not its own, except with --node-tool.")
    parser.add_argument("--image", default="larder.test/larder:dev", metavar="NAME:TAG", help="the image under test; default: %(default)s")
    parser.add_argument("--namespace", default="larder-e2e", help="how its namespaces are called; something random follows it")
    parser.add_argument("--only", metavar="STEP,...", help="only these steps")
    parser.add_argument("--list", action="store_true", help="names the steps")
    parser.add_argument("--dry-run", action="store_true", help="prints each step, renders what it would install, and shows that the client finds a lost write; "
                        "needs no cluster")
    parser.add_argument("--node-tool", metavar="PATH", help="the program that stops, cuts off and starts machines: `PATH node NAME "
                        "stop|start|powercut|cut|join`, `PATH part A B`, `PATH heal`; without it those steps are not run")
    parser.add_argument("--cluster-domain", default="", metavar="NAME", help="the cluster's DNS domain, if it is not cluster.local")
    parser.add_argument("--reach", choices=["auto", "direct", "forward"], default="auto",
                        help="how the client reaches pods: by their addresses, or by kubectl port-forward; auto finds out")
    parser.add_argument("--out", metavar="FILE", help="writes the table there too")
    parser.add_argument("--chart", type=Path, default=CHART, metavar="DIR", help="the chart under test; default: charts/larder")
    parser.add_argument("--helm", default="helm", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if not re.fullmatch(r".+:[A-Za-z0-9_][A-Za-z0-9_.-]*", chosen.image):
        parser.error(f"--image {chosen.image}: write it as NAME:TAG")
    names = [step.name for step in STEPS]
    wanted = [name for name in (chosen.only or "").split(",") if name]
    unknown = [name for name in wanted if name not in names]
    if unknown:
        parser.error(f"there is no step {', '.join(unknown)}; --list names them")
    chosen.steps = [step for step in STEPS if not wanted or step.name in wanted]
    if chosen.node_tool and not shutil.which(chosen.node_tool):
        parser.error(f"--node-tool {chosen.node_tool}: there is no such program")
    return chosen


def stopped(number, _frame):
    """So that what was made is removed also when the run is stopped."""
    raise KeyboardInterrupt(signal.Signals(number).name)


def main() -> int:
    chosen = options()
    if chosen.list:
        for step in chosen.steps:
            print(f"{step.name:22}{step.what}{' (needs --node-tool)' if step.nodes else ''}")
        return 0
    run = Run(chosen, chosen.chart)
    if chosen.dry_run:
        return 1 if planted.main() + run.dry(chosen.steps) else 0
    signal.signal(signal.SIGTERM, stopped)
    try:
        nodes = command("kubectl", "get", "nodes", "--output", "name", timeout=30).stdout.split()
    except (Failed, FileNotFoundError) as error:
        print(f"tests/k8s/run: no cluster can be asked: {error}", file=sys.stderr)
        return 2
    print(f"{len(chosen.steps)} steps with {chosen.image} on {len(nodes)} nodes, in namespaces {run.namespace}...", flush=True)
    try:
        return 1 if run.all(chosen.steps) else 0
    except KeyboardInterrupt:
        print("tests/k8s/run: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
