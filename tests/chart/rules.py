"""What must be true of the objects that the chart renders, whatever the values.

A rule takes a Render and yields a sentence for each thing that is wrong. Beside each rule stand its plants: changes to a correct
render that break it. The gate shows for every rule that each of its plants is found, so that no rule is one that cannot fail.

Expectations are computed here from the values and from the contract with the binary, not read from the templates.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import promql_parser

try:
    import tomllib
except ModuleNotFoundError:  # Python before 3.11
    import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parents[2]
BINARY = "/usr/local/bin/larder"
PORTS = {"client": 7400, "peer": 7401, "http": 7402}
# The levels of the pod security standards: volumes that "restricted" admits.
RESTRICTED_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
RULES = []


@dataclass(frozen=True)
class Render:
    """What helm made of some values."""

    values: dict  # all of them: the chart's, and over them what was set
    objects: list
    release: str
    namespace: str
    app_version: str

    @property
    def daemonset(self):
        return self.values["mode"] == "daemonset"

    @property
    def fullname(self):
        named = self.values["nameOverride"] or "larder"
        return self.values["fullnameOverride"] or (self.release if named in self.release else f"{self.release}-{named}")

    @property
    def selector(self):
        return {
            "app.kubernetes.io/name": self.values["nameOverride"] or "larder",
            "app.kubernetes.io/instance": self.release,
            "app.kubernetes.io/component": "node",
        }

    @property
    def voters(self):
        most = min(self.values["replicas"], self.values["maxVoters"])
        return most if most % 2 else max(0, most - 1)

    def all(self, kind):
        return [o for o in self.objects if o["kind"] == kind]

    def get(self, kind, name):
        """The object, or an empty one: what is missing is then found wanting by whatever is looked at."""
        found = [o for o in self.all(kind) if o["metadata"]["name"] == name]
        return found[0] if found else {"kind": kind, "metadata": {"name": name}, "spec": {}, "data": {}}

    @property
    def workload(self):
        return self.get("DaemonSet" if self.daemonset else "StatefulSet", self.fullname)

    @property
    def pod(self):
        return self.workload["spec"].get("template", {}).get("spec", {})

    @property
    def node(self):
        """The nodes' container."""
        return next((c for c in self.pod.get("containers", []) if c["name"] == "larder"), {})


@dataclass(frozen=True)
class Plant:
    """A violation: `change` breaks a render of `base` (a name the gate knows), and the rule must speak of `word`."""

    change: object
    word: str
    base: str = "default"


def rule(*plants):
    def register(check):
        RULES.append((check, plants))
        return check

    return register


def pods(objects):
    """(whose, kind, pod spec) of everything that makes pods."""
    for o in objects:
        whose = f"{o['kind']} {o['metadata'].get('name')}"
        if o["kind"] == "Pod":
            yield whose, o["kind"], o["spec"]
        elif "template" in (o.get("spec") or {}):
            yield whose, o["kind"], o["spec"]["template"]["spec"]
        elif o["kind"] == "CronJob":
            yield whose, o["kind"], o["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def containers(pod):
    return [("container", c) for c in pod.get("containers", [])] + [("init container", c) for c in pod.get("initContainers", [])]


def unlike(what, found, wanted):
    """A sentence if the two differ."""
    if found != wanted:
        yield f"{what} is {json.dumps(found)}, not {json.dumps(wanted)}"


# What plants change.
def node(objects):
    return next(c for c in main_pod(objects)["containers"] if c["name"] == "larder")


def main_pod(objects):
    return next(o for o in objects if o["kind"] in ("StatefulSet", "DaemonSet"))["spec"]["template"]["spec"]


def named(objects, kind, name=None):
    return next(o for o in objects if o["kind"] == kind and name in (None, o["metadata"]["name"]))


def drop(objects, kind, name=None):
    objects.remove(named(objects, kind, name))


def environment(objects, name):
    return next(e for e in node(objects)["env"] if e["name"] == name)


@rule(
    Plant(lambda o: node(o)["securityContext"].update(allowPrivilegeEscalation=True), "allowPrivilegeEscalation"),
    Plant(lambda o: node(o)["securityContext"].pop("readOnlyRootFilesystem"), "readOnlyRootFilesystem"),
    Plant(lambda o: node(o)["securityContext"]["capabilities"].update(add=["SYS_ADMIN"]), "capabilities"),
    Plant(lambda o: node(o)["securityContext"].update(runAsUser=0), "runAsUser"),
    Plant(lambda o: node(o)["securityContext"].update(privileged=True), "privileged"),
    Plant(lambda o: main_pod(o)["securityContext"].update(seccompProfile={"type": "Unconfined"}), "seccompProfile"),
    Plant(lambda o: main_pod(o).update(hostNetwork=True), "hostNetwork"),
    Plant(lambda o: main_pod(o)["volumes"].append({"name": "x", "hostPath": {"path": "/"}}), "hostPath"),
    Plant(lambda o: main_pod(o).update(initContainers=[{"name": "chown"}]), "init container chown"),
    Plant(lambda o: named(o, "Pod")["spec"]["containers"][0].pop("securityContext"), "larder-check", "default"),
    Plant(lambda o: main_pod(o)["initContainers"][0]["securityContext"]["capabilities"].update(add=["CHOWN", "FOWNER"]), "capabilities", "init"),
    Plant(lambda o: main_pod(o)["initContainers"][0].update(args=["serve"]), "init-dir", "init"),
    Plant(lambda o: main_pod(o)["volumes"].append({"name": "x", "hostPath": {"path": "/etc"}}), "hostPath", "init"),
    Plant(lambda o: main_pod(o).update(hostPID=True), "hostPID", "init"),
)
def pod_security(render):
    """Level "restricted" everywhere; a DaemonSet's host network, data directory and init-dir are the only exceptions."""
    for whose, kind, pod in pods(render.objects):
        host = kind == "DaemonSet" and whose == f"DaemonSet {render.fullname}"
        for field in ("hostPID", "hostIPC"):
            yield from unlike(f"{whose}: {field}", pod.get(field, False), False)
        yield from unlike(f"{whose}: hostNetwork", pod.get("hostNetwork", False), host)
        security = pod.get("securityContext", {})
        yield from unlike(f"{whose}: runAsNonRoot", security.get("runAsNonRoot"), True)
        yield from unlike(f"{whose}: seccompProfile", security.get("seccompProfile"), {"type": "RuntimeDefault"})
        if security.get("runAsUser") == 0:
            yield f"{whose}: runAsUser is 0"
        for volume in pod.get("volumes", []):
            (source,) = set(volume) - {"name"}
            owned = host and volume["name"] == "data" and volume[source].get("path") == render.values["daemonset"]["hostPath"]
            if source not in RESTRICTED_VOLUMES and not owned:
                yield f"{whose}: volume {volume['name']} is a {source}"
        for place, container in containers(pod):
            who = f"{whose}, {place} {container['name']}"
            yield from container_security(render, who, place, container, host)


def container_security(render, who, place, container, host):
    security = container.get("securityContext", {})
    prepares = place == "init container"
    if prepares and not (host and container["name"] == "init-dir" and render.values["daemonset"]["initDir"]["enabled"]):
        yield f"{who}: there is none by default"
        return
    if prepares:
        user = render.values["podSecurity"]
        owner = f"{user['runAsUser']}:{user['runAsGroup']}"
        yield from unlike(f"{who}: init-dir's args", container["args"], ["init-dir", "/var/lib/larder", "--owner", owner])
        yield from unlike(f"{who}: runAsUser", security.get("runAsUser"), 0)
    else:
        yield from unlike(f"{who}: runAsNonRoot", security.get("runAsNonRoot"), True)
        if security.get("runAsUser") == 0:
            yield f"{who}: runAsUser is 0"
    capabilities = {"drop": ["ALL"], "add": ["CHOWN"]} if prepares else {"drop": ["ALL"]}
    yield from unlike(f"{who}: capabilities", security.get("capabilities"), capabilities)
    yield from unlike(f"{who}: privileged", security.get("privileged", False), False)
    yield from unlike(f"{who}: allowPrivilegeEscalation", security.get("allowPrivilegeEscalation"), False)
    yield from unlike(f"{who}: readOnlyRootFilesystem", security.get("readOnlyRootFilesystem"), True)
    yield from unlike(f"{who}: seccompProfile", security.get("seccompProfile"), {"type": "RuntimeDefault"})


@rule(
    Plant(lambda o: node(o).update(command=["/bin/sh", "-c", "larder serve"]), "/bin/sh"),
    Plant(lambda o: node(o).update(args=["serve", "&&", "true"]), "&&"),
    Plant(lambda o: node(o)["lifecycle"]["preStop"]["exec"].update(command=["sh", "-c", "sleep 5"]), "preStop"),
    Plant(lambda o: named(o, "Pod")["spec"]["containers"][0].pop("command"), "larder-check"),
)
def no_shell(render):
    """The image has the binary and nothing else: every command is the binary, and no argument is for a shell."""
    for whose, _, pod in pods(render.objects):
        for place, container in containers(pod):
            who = f"{whose}, {place} {container['name']}"
            yield from unlike(f"{who}: command", container.get("command"), [BINARY])
            for argument in container.get("args", []):
                if not re.fullmatch(r"[\w./:-]+", argument):
                    yield f"{who}: the argument {argument} looks as if it were for a shell"
            hooks = list(container.get("lifecycle", {}).items()) + [(k, v) for k, v in container.items() if k.endswith("Probe")]
            for name, hook in hooks:
                if "exec" in hook:
                    yield from unlike(f"{who}: {name}", hook["exec"]["command"][0], BINARY)


@rule(
    Plant(lambda o: drop(o, "PodDisruptionBudget"), "0 disruption budgets"),
    Plant(lambda o: named(o, "PodDisruptionBudget")["spec"].update(minAvailable=2), "minAvailable"),
    Plant(lambda o: named(o, "PodDisruptionBudget")["spec"].update(maxUnavailable=2), "maxUnavailable"),
    Plant(lambda o: named(o, "PodDisruptionBudget")["spec"]["selector"].update(matchLabels={"a": "b"}), "selector"),
    Plant(lambda o: o.append({"kind": "PodDisruptionBudget", "metadata": {}, "spec": {}}), "1 disruption budgets", "one"),
)
def disruption_budget(render):
    """None at one replica, which could never be drained, and none for a DaemonSet; else one at a time."""
    wanted = 0 if render.daemonset or render.values["replicas"] < 2 or not render.values["podDisruptionBudget"]["enabled"] else 1
    found = render.all("PodDisruptionBudget")
    if len(found) != wanted:
        yield f"there are {len(found)} disruption budgets, not {wanted}"
    elif wanted:
        spec = {"maxUnavailable": 1, "selector": {"matchLabels": render.selector}}
        yield from unlike("the disruption budget's maxUnavailable, minAvailable and selector", found[0]["spec"], spec)


@rule(
    Plant(lambda o: environment(o, "LARDER_PEER_TEMPLATE").update(value="x-{slot}:7401"), "LARDER_PEER_TEMPLATE"),
    Plant(lambda o: node(o)["env"].append({"name": "LARDER_REPLICAS", "value": "3"}), "LARDER_REPLICAS"),
    Plant(lambda o: environment(o, "LARDER_MEMORY_LIMIT")["valueFrom"]["resourceFieldRef"].update(resource="requests.memory"), "LARDER_MEMORY_LIMIT"),
    Plant(lambda o: node(o)["env"].remove(environment(o, "LARDER_EPHEMERAL")), "LARDER_EPHEMERAL", "ephemeral"),
    Plant(lambda o: environment(o, "LARDER_SLOT").update(valueFrom={"fieldRef": {"fieldPath": "metadata.name"}}), "LARDER_SLOT", "init"),
    Plant(lambda o: node(o)["env"].append(environment(o, "LARDER_CONFIG")), "twice"),
    Plant(lambda o: node(o)["resources"].pop("limits"), "memory limit"),
)
def environment_contract(render):
    """The variables are the ones that `larder serve` and `larder prestop` read, with what they mean."""
    values = render.values
    template = "{slot}:7401"
    if not render.daemonset:
        template = f"{render.fullname}-{{slot}}.{render.fullname}-headless.{render.namespace}.svc.{values['clusterDomain']}.:7401"
    wanted = {
        "LARDER_CONFIG": "/etc/larder/config/larder.toml",
        "LARDER_SCALE_FILE": "/etc/larder/scale/scale.toml",
        "LARDER_DATA_DIR": "/var/lib/larder",
        "LARDER_PEER_TEMPLATE": template,
        "LARDER_MAX_VOTERS": str(values["maxVoters"]),
        "LARDER_MEMORY_LIMIT": {"resourceFieldRef": {"containerName": "larder", "resource": "limits.memory", "divisor": "1"}},
    }
    if render.daemonset:
        wanted["LARDER_SLOT"] = {"fieldRef": {"apiVersion": "v1", "fieldPath": "spec.nodeName"}}
    elif values["rbac"]["create"]:
        wanted["LARDER_STATEFULSET"] = f"{render.namespace}/{render.fullname}"
    if not values["persistence"]["enabled"]:
        wanted["LARDER_EPHEMERAL"] = "true"
        wanted["LARDER_ON_MAJORITY_LOST"] = values["ephemeral"]["onMajorityLost"]
    extra = {e["name"] for e in values["extraEnv"]}
    listed = [e["name"] for e in render.node.get("env", [])]
    found = {e["name"]: e.get("value", e.get("valueFrom")) for e in render.node.get("env", []) if e["name"] not in extra}
    for name in sorted(wanted.keys() | found.keys()):
        yield from unlike(f"the variable {name}", found.get(name), wanted.get(name))
    if len(listed) != len(set(listed)):
        yield f"a variable is there twice: {listed}"
    if not render.node.get("resources", {}).get("limits", {}).get("memory"):
        yield "the nodes' container has no memory limit, so LARDER_MEMORY_LIMIT would be the machine's memory"


@rule(
    Plant(lambda o: main_pod(o).update(enableServiceLinks=True), "enableServiceLinks"),
    Plant(lambda o: named(o, "Pod")["spec"].update(automountServiceAccountToken=True), "automountServiceAccountToken"),
    Plant(lambda o: main_pod(o).update(automountServiceAccountToken=True), "automountServiceAccountToken", "norbac"),
    Plant(lambda o: named(o, "ServiceAccount").update(automountServiceAccountToken=True), "automountServiceAccountToken"),
    Plant(lambda o: named(o, "Role")["rules"][0].update(resourceNames=[]), "Role"),
    Plant(lambda o: named(o, "Role")["rules"].append({"apiGroups": [""], "resources": ["secrets"], "verbs": ["list"]}), "Role"),
    Plant(lambda o: named(o, "RoleBinding").update(subjects=[]), "RoleBinding"),
    Plant(lambda o: o.append({"kind": "Role", "metadata": {}}), "Role", "norbac"),
    Plant(lambda o: o.append({"kind": "ClusterRole", "metadata": {}}), "ClusterRole", "init"),
)
def least_privilege(render):
    """A token and a Role only where they are used, and for no more than that."""
    uses_api = render.values["rbac"]["create"] and not render.daemonset
    for whose, kind, pod in pods(render.objects):
        yield from unlike(f"{whose}: enableServiceLinks", pod.get("enableServiceLinks"), False)
        automount = uses_api and kind == "StatefulSet"
        yield from unlike(f"{whose}: automountServiceAccountToken", pod.get("automountServiceAccountToken"), automount)
    for account in render.all("ServiceAccount"):
        yield from unlike("the ServiceAccount's automountServiceAccountToken", account.get("automountServiceAccountToken"), False)
    for kind, count in (("Role", int(uses_api)), ("RoleBinding", int(uses_api)), ("ClusterRole", 0), ("ClusterRoleBinding", 0)):
        yield from unlike(f"the number of {kind} objects", len(render.all(kind)), count)
    if uses_api:
        rules = [
            {"apiGroups": ["apps"], "resources": ["statefulsets"], "resourceNames": [render.fullname], "verbs": ["get"]},
            {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"]},
            {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [f"{render.fullname}-cluster"], "verbs": ["get"]},
        ]
        yield from unlike("the Role's rules", render.get("Role", render.fullname).get("rules"), rules)
        binding = render.get("RoleBinding", render.fullname)
        subject = {"kind": "ServiceAccount", "name": render.pod.get("serviceAccountName"), "namespace": render.namespace}
        yield from unlike("the RoleBinding's subjects", binding.get("subjects"), [subject])
        yield from unlike("the RoleBinding's role", binding.get("roleRef", {}).get("name"), render.fullname)


@rule(
    Plant(lambda o: node(o)["livenessProbe"]["httpGet"].update(path="/readyz"), "livenessProbe"),
    Plant(lambda o: node(o).pop("startupProbe"), "startupProbe"),
    Plant(lambda o: node(o)["readinessProbe"].update(failureThreshold=9), "readinessProbe"),
    Plant(lambda o: node(o).pop("lifecycle"), "preStop"),
    Plant(lambda o: main_pod(o).update(terminationGracePeriodSeconds=5), "terminationGracePeriodSeconds"),
    Plant(lambda o: node(o)["ports"].pop(), "ports"),
)
def life_cycle(render):
    """Probes that do no harm, a preStop that knows a restart from a leave, and the time for it."""
    for name, path in (("startup", "/startupz"), ("liveness", "/livez"), ("readiness", "/readyz")):
        wanted = {"httpGet": {"path": path, "port": "http"}, **render.values["probes"][name]}
        yield from unlike(f"{name}Probe", render.node.get(f"{name}Probe"), wanted)
    yield from unlike("preStop", render.node.get("lifecycle"), {"preStop": {"exec": {"command": [BINARY, "prestop"]}}})
    grace = render.values["terminationGracePeriodSeconds"]
    yield from unlike("terminationGracePeriodSeconds", render.pod.get("terminationGracePeriodSeconds"), grace)
    ports = [{"name": name, "containerPort": port} for name, port in PORTS.items()]
    yield from unlike("the ports", render.node.get("ports"), ports)


@rule(
    Plant(lambda o: named(o, "StatefulSet")["spec"].update(podManagementPolicy="OrderedReady"), "podManagementPolicy"),
    Plant(lambda o: named(o, "StatefulSet")["spec"].update(replicas=4), "replicas"),
    Plant(lambda o: named(o, "StatefulSet")["spec"].update(updateStrategy={"type": "OnDelete"}), "updateStrategy"),
    Plant(lambda o: named(o, "StatefulSet")["spec"].pop("persistentVolumeClaimRetentionPolicy"), "RetentionPolicy"),
    Plant(lambda o: named(o, "StatefulSet")["spec"]["template"]["metadata"].update(labels={"a": "b"}), "labels"),
    Plant(lambda o: named(o, "DaemonSet")["spec"]["template"]["spec"].update(dnsPolicy="Default"), "dnsPolicy", "init"),
    Plant(lambda o: main_pod(o)["volumes"].append({"name": "data", "emptyDir": {}}), "data"),
    Plant(lambda o: next(v for v in main_pod(o)["volumes"] if v["name"] == "data")["emptyDir"].update(medium="Memory"), "data", "ephemeral"),
)
def workload(render):
    """The StatefulSet, or the DaemonSet, and where the data is."""
    values, spec = render.values, render.workload["spec"]
    yield from unlike("the number of workloads", len(render.all("StatefulSet")) + len(render.all("DaemonSet")), 1)
    labels = spec.get("template", {}).get("metadata", {}).get("labels", {})
    yield from unlike("the pods' labels", labels, {**values["podLabels"], **render.selector})
    update = {"type": values["updateStrategy"]["type"]}
    if render.daemonset:
        if update["type"] == "RollingUpdate":
            update["rollingUpdate"] = {"maxUnavailable": 1}
        yield from unlike("dnsPolicy", render.pod.get("dnsPolicy"), "ClusterFirstWithHostNet")
        yield from unlike("hostAliases", render.pod.get("hostAliases", []), values["daemonset"]["hostAliases"])
    else:
        yield from unlike("podManagementPolicy", spec.get("podManagementPolicy"), "Parallel")
        yield from unlike("replicas", spec.get("replicas"), values["replicas"])
        retention = {key: values["persistence"][key] for key in ("whenDeleted", "whenScaled")} if values["persistence"]["enabled"] else None
        yield from unlike("persistentVolumeClaimRetentionPolicy", spec.get("persistentVolumeClaimRetentionPolicy"), retention)
    yield from unlike("updateStrategy", spec.get("updateStrategy"), update)
    data = None
    if not values["persistence"]["enabled"]:
        data = {"emptyDir": {key: values["ephemeral"][key] for key in ("medium", "sizeLimit") if values["ephemeral"][key]}}
    elif render.daemonset:
        data = {"hostPath": {"path": values["daemonset"]["hostPath"], "type": "DirectoryOrCreate"}}
    found = [v for v in render.pod.get("volumes", []) if v["name"] == "data"]
    yield from unlike("the volume data", found, [{"name": "data", **data}] if data else [])
    yield from unlike("the claim of data", [c["metadata"]["name"] for c in spec.get("volumeClaimTemplates", [])], [] if data else ["data"])


@rule(
    Plant(lambda o: named(o, "ConfigMap", "larder-scale")["data"].update({"scale.toml": 'seeds = "0"\nreplicas = 3\n'}), "seeds"),
    Plant(lambda o: named(o, "ConfigMap", "larder-scale")["data"].update({"scale.toml": 'seeds = "0,1,2"\nreplicas = 5\n'}), "replicas"),
    Plant(lambda o: named(o, "ConfigMap", "larder-config")["data"].update({"larder.toml": 'client_addr = "0.0.0.0:7400"\nslot = 1\n'}), "larder.toml"),
    Plant(lambda o: named(o, "ConfigMap", "larder-config")["data"].update({"larder.toml": "client_addr = ["}), "TOML"),
    Plant(lambda o: named(o, "ConfigMap", "larder-connection")["data"].pop("LARDER_PROTOCOL"), "connection"),
    Plant(lambda o: named(o, "ConfigMap", "larder-connection")["data"].update(LARDER_ENDPOINTS="http://larder:7400"), "connection"),
    Plant(lambda o: main_pod(o)["volumes"][0]["configMap"].update(name="other"), "config"),
    Plant(lambda o: node(o)["volumeMounts"][1].update(subPath="larder.toml"), "mount"),
)
def config_maps(render):
    """Files that are TOML and say what was asked for; and what clients are told."""
    values = render.values
    seeds = "0,1,2" if render.voters >= 3 else "0"
    scale = {"seeds": seeds, "replicas": values["replicas"]}
    if render.daemonset:
        scale = {"seeds": ",".join(values["daemonset"]["seedNodes"])}
    two = "IPv6" in values["ipFamilies"] or values["ipFamilyPolicy"].endswith("DualStack")
    listen = values["listenAddress"] or ("[::]" if two else "0.0.0.0")
    config = {f"{name}_addr": f"{listen}:{port}" for name, port in PORTS.items()} | values["config"]
    for name, key, wanted in (("scale", "scale.toml", scale), ("config", "larder.toml", config)):
        try:
            found = tomllib.loads(render.get("ConfigMap", f"{render.fullname}-{name}")["data"].get(key, ""))
            yield from unlike(f"{key}, seeds or replicas or a setting,", found, wanted)
        except tomllib.TOMLDecodeError as error:
            yield f"{key} is not TOML: {error}"
        volume = {"name": name, "configMap": {"name": f"{render.fullname}-{name}"}}
        yield from unlike(f"the volume {name}", [v for v in render.pod.get("volumes", []) if v["name"] == name], [volume])
        # No subPath: kubelet does not bring such a file up to date.
        mount = {"name": name, "mountPath": f"/etc/larder/{name}", "readOnly": True}
        yield from unlike(f"the mount of {name}", [m for m in render.node.get("volumeMounts", []) if m["name"] == name], [mount])
    connection = {
        "LARDER_ENDPOINTS": f"http://{render.fullname}.{render.namespace}.svc.{values['clusterDomain']}:7400",
        "LARDER_CLIENT_PORT": "7400",
        "LARDER_PROTOCOL": "grpc",
    }
    yield from unlike("the ConfigMap connection", render.get("ConfigMap", f"{render.fullname}-connection")["data"], connection)


@rule(
    Plant(lambda o: named(o, "Service", "larder-headless")["spec"].pop("publishNotReadyAddresses"), "publishNotReadyAddresses"),
    Plant(lambda o: named(o, "Service", "larder-headless")["spec"].update(clusterIP="10.0.0.1"), "clusterIP"),
    Plant(lambda o: named(o, "Service", "larder")["spec"].update(publishNotReadyAddresses=True), "publishNotReadyAddresses"),
    Plant(lambda o: named(o, "Service", "larder")["spec"]["selector"].pop("app.kubernetes.io/component"), "selector"),
    Plant(lambda o: named(o, "Service", "larder")["spec"]["ports"][0].update(port=80), "ports"),
    Plant(lambda o: named(o, "Service", "larder")["spec"].update(type="NodePort"), "type"),
)
def services(render):
    """The nodes' names, for all of them; and the clients' Service, for those that are ready."""
    values = render.values["service"]
    for name in [render.fullname] + ([] if render.daemonset else [f"{render.fullname}-headless"]):
        spec = render.get("Service", name)["spec"]
        headless = name != render.fullname
        yield from unlike(f"Service {name}: selector", spec.get("selector"), render.selector)
        yield from unlike(f"Service {name}: clusterIP", spec.get("clusterIP"), "None" if headless else None)
        yield from unlike(f"Service {name}: publishNotReadyAddresses", spec.get("publishNotReadyAddresses", False), headless)
        yield from unlike(f"Service {name}: type", spec.get("type"), "ClusterIP" if headless else values["type"])
        ports = {port["name"]: (port["port"], port["targetPort"]) for port in spec.get("ports", [])}
        wanted = {port: (PORTS[port], port) for port in (["client", "peer"] if headless else ["client"])}
        yield from unlike(f"Service {name}: ports", ports, wanted)
        for key in ("ipFamilyPolicy", "ipFamilies"):
            yield from unlike(f"Service {name}: {key}", spec.get(key), render.values[key] or None)
    yield from unlike("the number of Services", len(render.all("Service")), 1 if render.daemonset else 2)


@rule(
    Plant(lambda o: named(o, "NetworkPolicy")["spec"]["ingress"][0].pop("from"), "peer"),
    Plant(lambda o: named(o, "NetworkPolicy")["spec"]["ingress"][1]["ports"].append({"port": "peer", "protocol": "TCP"}), "peer"),
    Plant(lambda o: named(o, "NetworkPolicy")["spec"]["ingress"][1].pop("ports"), "peer"),
    Plant(lambda o: named(o, "NetworkPolicy")["spec"]["policyTypes"].append("Egress"), "policyTypes"),
    Plant(lambda o: drop(o, "NetworkPolicy"), "NetworkPolicy"),
    Plant(lambda o: named(o, "NetworkPolicy")["spec"]["ingress"].pop(2), "http"),
)
def network_policy(render):
    """Only nodes reach the peer port; the others are open, or for whom they were opened; egress is nobody's business."""
    wanted = render.values["networkPolicy"]["enabled"] and not render.daemonset
    yield from unlike("the number of NetworkPolicy objects", len(render.all("NetworkPolicy")), int(wanted))
    if not wanted or not render.all("NetworkPolicy"):
        return
    spec = render.all("NetworkPolicy")[0]["spec"]
    yield from unlike("policyTypes", spec["policyTypes"], ["Ingress"])
    yield from unlike("podSelector", spec["podSelector"], {"matchLabels": render.selector})
    own = {key: value for key, value in render.selector.items() if not key.endswith("component")}
    policy = render.values["networkPolicy"]
    may = {
        "peer": [{"podSelector": {"matchLabels": render.selector}}],
        "client": [{"podSelector": {"matchLabels": own}}, *policy["clients"]] if policy["clients"] else None,
        "http": policy["http"] or None,
    }
    for port, sources in may.items():
        # A rule without ports is for all of them.
        rules = [r.get("from") for r in spec["ingress"] if port in [p["port"] for p in r.get("ports", [{"port": port}])]]
        yield from unlike(f"who may reach the port {port}", rules, [sources])


@rule(
    Plant(lambda o: main_pod(o)["affinity"]["podAntiAffinity"].clear(), "anti-affinity"),
    Plant(lambda o: main_pod(o)["topologySpreadConstraints"][0]["labelSelector"].update(matchLabels={}), "topologySpread"),
    Plant(lambda o: main_pod(o).pop("topologySpreadConstraints"), "topologySpread"),
    Plant(lambda o: main_pod(o).update(affinity={"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": []}}), "anti-affinity", "init"),
)
def spread(render):
    """Over machines by the preset, over zones by a constraint whose selector is the nodes'."""
    values, terms = render.values, render.pod.get("affinity", {}).get("podAntiAffinity", {})
    preset = "none" if render.daemonset else values["antiAffinity"]
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": render.selector}}
    required, preferred = "requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution"
    given = values["affinity"].get("podAntiAffinity", {})
    wanted = {key: list(value) for key, value in given.items()}
    if preset == "hard":
        wanted.setdefault(required, []).append(term)
    elif preset == "soft":
        wanted.setdefault(preferred, []).append({"weight": 100, "podAffinityTerm": term})
    yield from unlike("the anti-affinity", terms, wanted)
    for key in ("nodeAffinity", "podAffinity"):
        yield from unlike(key, render.pod.get("affinity", {}).get(key), values["affinity"].get(key))
    constraint = {key: values["topologySpread"][key] for key in ("maxSkew", "topologyKey", "whenUnsatisfiable")}
    constraint["labelSelector"] = {"matchLabels": render.selector}
    spreads = [constraint] if values["topologySpread"]["enabled"] and not render.daemonset else []
    yield from unlike("topologySpreadConstraints", render.pod.get("topologySpreadConstraints", []), spreads)


@rule(
    Plant(lambda o: named(o, "Pod")["spec"]["containers"][0]["args"].__setitem__(2, "5"), "check"),
    Plant(lambda o: named(o, "Pod")["spec"]["containers"][0].pop("envFrom"), "envFrom"),
    Plant(lambda o: named(o, "Pod")["metadata"]["annotations"].clear(), "hook"),
    Plant(lambda o: named(o, "Pod")["metadata"]["labels"].update({"app.kubernetes.io/component": "node"}), "labels"),
    Plant(lambda o: drop(o, "Pod"), "check"),
    Plant(lambda o: named(o, "Pod")["spec"].update(hostAliases=[{"ip": "192.0.2.1", "hostnames": ["n1"]}]), "hostAliases", "init"),
    Plant(lambda o: named(o, "Pod")["spec"]["containers"][0]["args"].extend(["--expect-voters", "3"]), "check", "init"),
)
def helm_test(render):
    """`helm test` runs `larder check` as a client does, expects the voters there should be, and is no node itself."""
    check = render.get("Pod", f"{render.fullname}-check")
    if not render.daemonset and render.values["replicas"] == 0:
        yield from unlike("the number of pods to check nothing", len(render.all("Pod")), 0)
        return
    container = check["spec"].get("containers", [{}])[0]
    expect = [] if render.daemonset else ["--expect-voters", str(render.voters)]
    yield from unlike("the args of check", container.get("args"), ["check", *expect, "--timeout", "30s"])
    connection = [{"configMapRef": {"name": f"{render.fullname}-connection"}}]
    yield from unlike("envFrom of check", container.get("envFrom"), connection)
    # It asks every node by its name, and is not on the host's network, where names may come from the machine.
    yield from unlike("hostAliases of check", check["spec"].get("hostAliases", []), render.values["daemonset"]["hostAliases"])
    yield from unlike("the hook of check", check["metadata"].get("annotations", {}).get("helm.sh/hook"), "test")
    if render.selector.items() <= check["metadata"].get("labels", {}).items():
        yield "the labels of check are those of a node, and clients would be sent to it"


@rule(
    Plant(lambda o: named(o, "StatefulSet")["metadata"].update(namespace="default"), "namespace"),
    Plant(lambda o: named(o, "ConfigMap", "larder-scale")["metadata"]["labels"].pop("app.kubernetes.io/instance"), "labels"),
    Plant(lambda o: o.append(named(o, "Service", "larder")), "twice"),
    Plant(lambda o: node(o).update(image="larder:latest"), "image"),
)
def identity(render):
    """Every object is in the namespace, is labelled as the release's, and is there once; one image for all."""
    seen = set()
    extra = {(o["kind"], o["metadata"]["name"]) for o in render.values["extraObjects"] if "{{" not in o["metadata"]["name"]}
    image = render.values["image"]
    wanted = f"{image['repository']}@{image['digest']}" if image["digest"] else f"{image['repository']}:{image['tag'] or render.app_version}"
    for o in render.objects:
        name = (o["kind"], o["metadata"].get("name"))
        if name in seen:
            yield f"{name} is there twice"
        seen.add(name)
        if name in extra:
            continue
        yield from unlike(f"the namespace of {name}", o["metadata"].get("namespace"), render.namespace)
        own = {key: value for key, value in render.selector.items() if not key.endswith("component")}
        if not own.items() <= o["metadata"].get("labels", {}).items():
            yield f"the labels of {name} do not say whose it is"
    for whose, _, pod in pods(render.objects):
        for _, container in containers(pod):
            yield from unlike(f"{whose}: the image of {container['name']}", container.get("image"), wanted)


@rule(
    Plant(lambda o: environment(o, "LARDER_PEER_TEMPLATE").update(value="x.svc.cluster.local"), "cluster.local", "domain"),
)
def domain(render):
    """The cluster's domain is only what the value says."""
    if render.values["clusterDomain"] != "cluster.local" and "cluster.local" in json.dumps(render.objects):
        yield "cluster.local is written out somewhere"


def metric_names():
    """Every name that src/observe/metrics.rs documents or tests."""
    return set(re.findall(r"\blarder_[a-z_]+", (REPOSITORY / "src/observe/metrics.rs").read_text()))


def expression(text, selector):
    """Sentences about a PromQL expression that is none, names a metric there is not, or looks at other pods too."""
    known, found = metric_names(), []

    def visit(expr):
        if isinstance(expr, promql_parser.VectorSelector):
            found.append((expr.name, str(expr)))

    try:
        promql_parser.walk(promql_parser.parse(text), visit)
    except ValueError as error:
        yield f"{text} is no PromQL: {error}"
    for name, whole in found:
        base = re.sub("_(bucket|sum|count)$", "", name)
        foreign = name == "up" or name.startswith("kubelet_volume_stats_")
        if not foreign and not known & {name, *({base, base + "_count"} if base != name else ())}:
            yield f"{text}: Larder has no metric {name}"
        if any(part not in whole for part in selector):
            yield f"{text}: {whole} does not keep to {' and '.join(selector)}"


@rule(
    Plant(lambda o: alert(o, 0).update(expr="sum(larder_leaders{})"), "no metric larder_leaders", "full"),
    Plant(lambda o: alert(o, 0).update(expr="sum(larder_raft_term"), "no PromQL", "full"),
    Plant(lambda o: alert(o, 0).update(expr="larder_raft_term > 1"), "does not keep to", "full"),
    Plant(lambda o: alert(o, 0)["annotations"].pop("summary"), "summary", "full"),
    Plant(lambda o: named(o, "PodMonitor")["spec"]["podMetricsEndpoints"][0].update(port="client"), "PodMonitor", "full"),
    Plant(lambda o: named(o, "PodMonitor")["spec"]["selector"].update(matchLabels={}), "PodMonitor", "full"),
    Plant(lambda o: named(o, "ConfigMap", "larder-dashboard")["data"].update({"larder.json": "{"}), "dashboard", "full"),
    Plant(lambda o: named(o, "ConfigMap", "larder-dashboard")["metadata"]["labels"].pop("grafana_dashboard"), "dashboard", "full"),
    Plant(lambda o: broken_panel(o), "no metric larder_keys", "full"),
    Plant(lambda o: o.append({"kind": "PodMonitor", "metadata": {}}), "PodMonitor"),
)
def monitoring(render):
    """Off unless asked for; alerts and panels are PromQL, over metrics that Larder has, of this release's pods."""
    metrics = render.values["metrics"]
    wanted = {"PodMonitor": metrics["podMonitor"]["enabled"], "PrometheusRule": metrics["prometheusRule"]["enabled"]}
    for kind, enabled in wanted.items():
        yield from unlike(f"the number of {kind} objects", len(render.all(kind)), int(enabled))
    if wanted["PodMonitor"]:
        spec = render.get("PodMonitor", render.fullname)["spec"]
        yield from unlike("the PodMonitor's selector", spec.get("selector"), {"matchLabels": render.selector})
        endpoint = {"port": "http", "path": "/metrics", "interval": metrics["podMonitor"]["interval"]}
        yield from unlike("the PodMonitor's endpoints", spec.get("podMetricsEndpoints"), [endpoint])
    for group in render.get("PrometheusRule", render.fullname)["spec"].get("groups", []):
        for entry in group["rules"]:
            yield from expression(entry["expr"], [f'namespace="{render.namespace}"', f"{render.fullname}-["])
            if not entry["annotations"].keys() >= {"summary", "description"} or "severity" not in entry["labels"]:
                yield f"alert {entry['alert']} lacks a summary, a description or a severity"
    if metrics["dashboard"]["enabled"]:
        board = render.get("ConfigMap", f"{render.fullname}-dashboard")
        if not metrics["dashboard"]["labels"].items() <= board["metadata"].get("labels", {}).items():
            yield "the dashboard lacks the labels by which the sidecar finds it"
        try:
            panels = json.loads(board["data"].get(f"{render.fullname}.json", ""))["panels"]
        except ValueError as error:
            yield f"the dashboard is not JSON: {error}"
            return
        for target in [target for panel in panels for target in panel["targets"]]:
            text = target["expr"].replace("$__rate_interval", "5m")
            yield from expression(text, ['namespace="$namespace"', 'job="$job"'])


def alert(objects, index):
    return named(objects, "PrometheusRule")["spec"]["groups"][0]["rules"][index]


def broken_panel(objects):
    data = named(objects, "ConfigMap", "larder-dashboard")["data"]
    data["larder.json"] = data["larder.json"].replace("larder_state_keys", "larder_keys")
