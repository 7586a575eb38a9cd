"""What happens to machines: they stop, lose power, are cut off. Only where a program can do that to them (`--node-tool`)."""

import json
import os
import random
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .fleet import Fleet
from .kube import Failed, Skipped, command, eventually
from .run import Run, step


def spread(fleet: Fleet) -> dict[str, str]:
    """The machine of each slot, if every slot has one of its own."""
    nodes = {pod.slot: pod.node for pod in fleet.pods()}
    if len(set(nodes.values())) != len(nodes):
        raise Skipped(f"needs a machine for each pod, but they run on {sorted(nodes.values())}")
    return nodes


def down(run: Run, action: str, *nodes: str) -> None:
    """Ends machines, all at the same time. They come back after the step if it did not get so far."""
    away = set(nodes)
    run.away |= away
    run.afterwards(lambda: back(run, *(away & run.away)))
    with ThreadPoolExecutor(len(nodes)) as pool:
        list(pool.map(lambda node: run.tool("node", node, action), nodes))


def back(run: Run, *nodes: str) -> None:
    """Starts machines again, and waits until Kubernetes finds them ready."""
    if not nodes:
        return
    with ThreadPoolExecutor(len(nodes)) as pool:
        list(pool.map(lambda node: run.tool("node", node, "start"), nodes))
    run.away -= set(nodes)

    def all_ready():
        items = [each for each in run.kube.items("nodes") if each["metadata"]["name"] in nodes]
        return all(condition["status"] == "True" for each in items for condition in each["status"]["conditions"]
                   if condition["type"] == "Ready")

    eventually(f"{', '.join(nodes)} to be ready", all_ready, 90, every=0.5)


def goes_on(fleet: Fleet, writes: int = 1000) -> None:
    """Waits for so many more acknowledged writes, some seconds of them: the others go on."""
    enough = fleet.load.ledger.count + writes
    eventually("the others to go on", lambda: fleet.load.ledger.count >= enough, 120, every=0.05)


def noticed(run: Run, node: str) -> None:
    """Waits until Kubernetes has seen that a machine is away: then its pod is out of the Services."""
    def away():
        conditions = run.kube.get("node", node)["status"]["conditions"]
        return any(each["type"] == "Ready" and each["status"] != "True" for each in conditions)

    eventually(f"Kubernetes to see that {node} is away", away, 90, every=0.5)


@step("machine-stops", "the leader's machine stops, and comes back once the others have gone on", nodes=True)
def machine_stops(run: Run) -> None:
    fleet, nodes = run.fleet, spread(run.fleet)
    slot = fleet.leader()
    before = {slot: fleet.identities()[slot]}
    down(run, "stop", nodes[slot])
    noticed(run, nodes[slot])
    goes_on(fleet)
    fleet.fault()
    back(run, nodes[slot])
    fleet.whole(3, before)


@step("power-cut", "the leader's machine loses power, and what was not synced; it comes back", nodes=True)
def power_cut(run: Run) -> None:
    fleet, nodes = run.fleet, spread(run.fleet)
    slot = fleet.leader()
    before = {slot: fleet.identities()[slot]}
    down(run, "powercut", nodes[slot])
    goes_on(fleet)
    fleet.fault()
    back(run, nodes[slot])
    fleet.whole(3, before)
    if fleet.identities()[slot][2] != before[slot][2]:
        raise Failed("it came back as another member")


@step("power-cut-of-all", "all machines lose power at once, and come back", nodes=True)
def power_cut_of_all(run: Run) -> None:
    fleet = run.fleet
    cluster, before = fleet.cluster_id(), fleet.identities()
    machines = [node["metadata"]["name"] for node in run.kube.items("nodes")]
    fleet.fault()
    down(run, "powercut", *machines)
    back(run, *machines)
    fleet.whole(3, before, seconds=240)
    if fleet.cluster_id() != cluster:
        raise Failed("another cluster came back")


@step("machine-cut-off", "the leader's machine is cut off from all others, then joins them again", nodes=True)
def machine_cut_off(run: Run) -> None:
    fleet, nodes = run.fleet, spread(run.fleet)
    slot = fleet.leader()
    run.afterwards(run.tool, "heal")
    run.tool("node", nodes[slot], "cut")
    noticed(run, nodes[slot])
    goes_on(fleet)
    fleet.fault()
    run.tool("node", nodes[slot], "join")
    fleet.whole(3)


@step("cut-one-from-another", "the leader and one follower cannot reach each other, then they can again", nodes=True)
def cut_one_from_another(run: Run) -> None:
    fleet, nodes = run.fleet, spread(run.fleet)
    leader = fleet.leader()
    other = random.choice([slot for slot in nodes if slot != leader])
    run.afterwards(run.tool, "heal")
    run.tool("part", nodes[leader], nodes[other])
    goes_on(fleet)
    fleet.fault()
    run.tool("heal")
    fleet.whole(3)


@step("dns-down", "the cluster's DNS is down while all pods are replaced; they wait, and form once it is back", nodes=True)
def dns_down(run: Run) -> None:
    fleet = run.fleet
    found = json.loads(command("kubectl", "get", "deployments", "--namespace", "kube-system", "--selector", "k8s-app=kube-dns",
                               "--output", "json").stdout)["items"]
    if not found:
        raise Skipped("DNS is not a Deployment with the label k8s-app=kube-dns")
    names = {each["metadata"]["name"]: each["spec"]["replicas"] for each in found}

    def dns(counts: dict[str, int]) -> None:
        for name, count in counts.items():
            command("kubectl", "--namespace", "kube-system", "scale", f"deployment/{name}", f"--replicas={count}")

    before = fleet.identities()
    run.afterwards(dns, names)
    dns(dict.fromkeys(names, 0))
    eventually("DNS to be gone", lambda: not json.loads(command(
        "kubectl", "get", "pods", "--namespace", "kube-system", "--selector", "k8s-app=kube-dns", "--output", "json").stdout)["items"])
    fleet.kube("delete", "pod", *[pod.name for pod in fleet.pods()], "--wait=false")

    def waits():
        statuses = fleet.statuses()
        if len(statuses) != 3 or any(fleet.identities()[slot] == who for slot, who in before.items()):
            raise Failed(f"slots {sorted(statuses)} run")
        return all(status.not_ready_because for status in statuses.values())

    eventually("all pods to run again, and to say why they are not ready", waits, 120)
    fleet.fault()
    dns(names)
    fleet.whole(3, before)
    pods = fleet.kube.items("pods", "--selector", fleet.selector)
    if any(each["restartCount"] for pod in pods for each in pod["status"]["containerStatuses"]):
        raise Failed("a node gave up while DNS was down")


@step("api-server-down", "the API server hangs, and the leader's container restarts meanwhile", nodes=True)
def api_server_down(run: Run) -> None:
    fleet = run.fleet
    state = Path(os.environ.get("LARDER_K8S_STATE", "/var/lib/larder-k8s"))
    record = state / "run" / "kube-apiserver"
    if not record.exists():
        raise Skipped("the API server's process is not known")
    api = int(record.read_text())
    slot = fleet.leader()
    before, pod = {slot: fleet.identities()[slot]}, fleet.pod(slot)
    status, = fleet.kube.get("pod", pod.name)["status"]["containerStatuses"]
    container = status["containerID"].removeprefix("containerd://")
    run.afterwards(os.kill, api, signal.SIGCONT)
    os.kill(api, signal.SIGSTOP)
    goes_on(fleet)
    fleet.fault()
    command("ctr", "--address", state / "node" / pod.node / "containerd.sock", "--namespace", "k8s.io",
            "tasks", "kill", "--signal", "SIGTERM", container)

    def restarted():
        return fleet.is_whole(3, before)

    fleet.target = {}
    eventually("three slots to be whole without an API server", restarted, 120)
    os.kill(api, signal.SIGCONT)
    fleet.whole(3, before)
