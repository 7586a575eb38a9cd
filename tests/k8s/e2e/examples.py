"""Each of the chart's example values files, as it is, installed and used."""

import json
import shutil
from pathlib import Path

from .fleet import Fleet
from .kube import Failed, Skipped, ready
from .load import Endpoint
from .run import Run, step
from .steps import delete_pods, raft_ids
from .watch import Direct


def arguments(run: Run, name: str, *more: str) -> list[str]:
    """helm's arguments for an example: its values, the image under test, these settings."""
    return ["--values", str(run.chart / "examples" / f"{name}.yaml"), *run.image_values(*more)]


def tested(fleet: Fleet) -> None:
    """`helm test` of the release."""
    said = fleet.helm.test(fleet.release)
    if "Succeeded" not in said:
        raise Failed(f"helm test: {said}")


@step("example-one-node", "one node, `helm test`, its pod is deleted; then three nodes by `replicas`", alone=True,
      values=lambda run: [arguments(run, "one-node"), arguments(run, "one-node", "replicas=3")])
def one_node(run: Run) -> None:
    fleet = run.install(arguments(run, "one-node"), count=1)
    tested(fleet)
    before = delete_pods(fleet, ["0"])
    fleet.whole(1, before)
    before = fleet.identities()
    fleet.fault()
    fleet.helm.upgrade(fleet.release, arguments(run, "one-node", "replicas=3"))
    fleet.whole(3)
    if fleet.identities()["0"] != before["0"]:
        raise Failed("the first node was restarted by scaling")


@step("example-production", "three nodes on three machines, `helm test`", alone=True, values=lambda run: [arguments(run, "production")])
def production(run: Run) -> None:
    if len([node for node in run.kube.items("nodes") if ready(node)]) < 3:
        raise Skipped("needs three machines")
    fleet = run.install(arguments(run, "production"))
    if len({pod.node for pod in fleet.pods()}) != 3:
        raise Failed("two pods are on one machine")
    tested(fleet)


@step("example-ephemeral", "three nodes without disks, `helm test`; a pod is deleted: a new member takes the slot", alone=True,
      values=lambda run: [arguments(run, "ephemeral")])
def ephemeral(run: Run) -> None:
    if len([node for node in run.kube.items("nodes") if ready(node)]) < 3:
        raise Skipped("needs three machines")
    fleet = run.install(arguments(run, "ephemeral"))
    tested(fleet)
    slot = fleet.slots()[-1]
    before = delete_pods(fleet, [slot])
    fleet.whole(3, before)
    if raft_ids(before) & raft_ids(fleet.identities()):
        raise Failed(f"slot {slot} came back without its data as the member that it was")


@step("example-bare-metal", "clients outside of Kubernetes use a port of every machine, `helm test`", alone=True,
      values=lambda run: [arguments(run, "bare-metal-clients")])
def bare_metal(run: Run) -> None:
    fleet = run.install(arguments(run, "bare-metal-clients"))
    tested(fleet)
    if not isinstance(fleet.endpoints.way, Direct):
        print("  the machines' port was not tried: from here they cannot be reached")
        return
    port = fleet.kube.get("service", fleet.release)["spec"]["ports"][0]["nodePort"]
    for node, address in machines(run).items():
        endpoint = Endpoint(f"{address}:{port}")
        version = endpoint.set(f"e2e/through/{node}".encode(), b"outside", 0)
        found = endpoint.get(f"e2e/through/{node}".encode())
        if (found.value, found.version) != (b"outside", version):
            raise Failed(f"through port {port} of {node}: {found}")
        endpoint.channel.close()


def machines(run: Run) -> dict[str, str]:
    """The machines that take pods, and their addresses."""
    found = {}
    for node in run.kube.items("nodes"):
        taken = node["spec"].get("unschedulable") or any(
            taint["effect"] in ("NoSchedule", "NoExecute") for taint in node["spec"].get("taints", []))
        if ready(node) and not taken:
            found[node["metadata"]["name"]] = next(
                each["address"] for each in node["status"]["addresses"] if each["type"] == "InternalIP")
    return found


def daemonset_arguments(run: Run, hosts: dict[str, str]) -> list[str]:
    """The example with this cluster's machines. Their names need no DNS: they are put into /etc/hosts."""
    aliases = [{"ip": address, "hostnames": [name]} for name, address in hosts.items()]
    return [*arguments(run, "daemonset", f"daemonset.hostPath=/var/lib/{run.namespace}"),
            "--set-json", f"daemonset.seedNodes={json.dumps(list(hosts))}", "--set-json", f"daemonset.hostAliases={json.dumps(aliases)}"]


@step("example-daemonset", "one node on each of three labelled machines with their disks, `helm test`; a pod is deleted", alone=True,
      values=lambda run: [daemonset_arguments(run, {name: "192.0.2.1" for name in "abc"})])
def daemonset(run: Run) -> None:
    hosts = dict(list(machines(run).items())[:3])
    if len(hosts) < 3:
        raise Skipped("needs three machines")
    namespace = f"{run.namespace}-host"
    run.make_namespace(namespace, "privileged")
    fleet = run.prepare(daemonset_arguments(run, hosts), namespace=namespace)
    fleet.install()
    if run.options.node_tool:
        # Machines that are one in truth have one file system: each takes a folder of its own.
        share(run, fleet)
    else:
        print(f"  on {', '.join(hosts)} the folder /var/lib/{run.namespace} stays: remove it")
    run.afterwards(fleet.kube, "label", "node", *hosts, "larder/node-")
    fleet.fault()
    fleet.kube("label", "node", *hosts, "larder/node=true")
    fleet.whole(3)
    fleet.start_load()
    tested(fleet)
    slot = fleet.slots()[-1]
    before = delete_pods(fleet, [slot])
    fleet.whole(3, before)
    if raft_ids(before) - raft_ids(fleet.identities()):
        raise Failed(f"{slot} came back over its disk as another member")
    run.measure()
    run.clear()


def share(run: Run, fleet: Fleet) -> None:
    """Mounts a folder of the hostPath instead of the whole, by the machine's name, before any pod runs."""
    kind = f"daemonset/{fleet.release}"
    spec = fleet.kube.get(kind)["spec"]["template"]["spec"]
    slot, = [each for each in spec["containers"][0]["env"] if each["name"] == "LARDER_SLOT"]
    patch = []
    for group in ("initContainers", "containers"):
        container = spec[group][0]
        index = [mount["name"] for mount in container["volumeMounts"]].index("data")
        patch.append({"op": "add", "path": f"/spec/template/spec/{group}/0/volumeMounts/{index}/subPathExpr", "value": "$(LARDER_SLOT)"})
        if group == "initContainers":
            patch.append({"op": "add", "path": f"/spec/template/spec/{group}/0/env", "value": [slot]})
    fleet.kube("patch", kind, "--type", "json", "--patch", json.dumps(patch))
    run.afterwards(shutil.rmtree, Path("/var/lib") / run.namespace, True)
