#!/usr/bin/env python3
"""The gate of charts/larder; tests/chart/run calls it. See there for what it is, and rules.py for what must be true."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Lock

import kubernetes_validate
import yaml
import yamllint.config
import yamllint.linter

import rules
import values_table

HERE = Path(__file__).resolve().parent
REPOSITORY = rules.REPOSITORY
CHART = REPOSITORY / "charts/larder"
EXAMPLES = CHART / "examples"
# The oldest that Chart.yaml admits, two between, and the newest whose schemas are here.
KUBERNETES = ["1.27.0", "1.30.0", "1.33.0", "1.37.0"]
RELEASE, NAMESPACE = "larder", "cache"
# Not Kubernetes' own, so kubernetes-validate has no schema of them; the rules look at them.
CUSTOM = {"PodMonitor", "PrometheusRule"}
SEEDS = {"mode": "daemonset", "daemonset": {"seedNodes": ["n1", "n2", "n3"]}}
# What the plants of the rules break.
BASES = {
    "default": {},
    "one": {"replicas": 1},
    "norbac": {"rbac": {"create": False}},
    "ephemeral": {"persistence": {"enabled": False}},
    "domain": {"clusterDomain": "example.internal"},
    "init": {"mode": "daemonset", "daemonset": {"seedNodes": ["n1", "n2", "n3"], "initDir": {"enabled": True}}},
}
WORK = Path()
LOCK = Lock()
TESTS = []


class Failed(Exception):
    """A test's finding: sentences."""


def test(function):
    TESTS.append(function)
    return function


def report(problems):
    problems = list(problems)
    if problems:
        raise Failed("\n".join(problems[:40] + ([f"and {len(problems) - 40} more"] if len(problems) > 40 else [])))


# What there is to render.


def read(path):
    return yaml.load(Path(path).read_text(), yaml.CSafeLoader)


@cache
def defaults():
    return read(CHART / "values.yaml")


def laid_over(base, over):
    """As helm does: maps are merged, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = laid_over(base[key], value) if both else value
    return merged


def bases():
    return BASES | {"full": read(HERE / "full.yaml")}


def matrix():
    """Names and values of everything that is rendered."""
    cases = dict(bases())
    for replicas in (1, 3, 4, 5):
        for persistence in (True, False):
            for rbac in (True, False):
                name = f"replicas-{replicas}-{'disk' if persistence else 'memory'}-{'rbac' if rbac else 'norbac'}"
                cases[name] = {"replicas": replicas, "persistence": {"enabled": persistence}, "rbac": {"create": rbac}}
    for persistence in (True, False):
        for rbac in (True, False):
            name = f"daemonset-{'disk' if persistence else 'memory'}-{'rbac' if rbac else 'norbac'}"
            cases[name] = laid_over(SEEDS, {"persistence": {"enabled": persistence}, "rbac": {"create": rbac}})
    cases["full-daemonset"] = read(HERE / "full-daemonset.yaml")
    cases["stopped"] = {"replicas": 0}
    cases["two"] = {"replicas": 2}
    cases["one-voter"] = {"replicas": 5, "maxVoters": 1}
    cases["recovering"] = {"persistence": {"enabled": False}, "ephemeral": {"medium": "Memory", "sizeLimit": "128Mi", "onMajorityLost": "recover"}}
    cases["bare"] = {"antiAffinity": "none", "topologySpread": {"enabled": False}, "networkPolicy": {"enabled": False}, "podDisruptionBudget": {"enabled": False}}
    cases["named"] = {"nameOverride": "cache", "fullnameOverride": "shop-cache"}
    cases["ipv6"] = {"ipFamilies": ["IPv6"], "service": {"type": "NodePort"}}
    for example in value_examples():
        cases[f"example-{example.stem}"] = read(example)
    return cases


def value_examples():
    return sorted(path for path in EXAMPLES.glob("*.yaml") if path.name != "client-pod.yaml")


# Rendering.


def helm(*arguments, ok=True):
    """Standard output of helm; with `ok=False` what it says when it fails."""
    done = subprocess.run(["helm", *map(str, arguments)], capture_output=True, text=True, check=False)
    if ok and done.returncode != 0:
        raise Failed(f"helm {' '.join(map(str, arguments))}\n{done.stderr}")
    if not ok and done.returncode == 0:
        raise Failed(f"helm {' '.join(map(str, arguments))} succeeded, and should not")
    return done.stdout if ok else done.stderr


@cache
def values_path(text):
    path = WORK / f"values-{len(list(WORK.glob('values-*')))}.json"
    path.write_text(text)
    return path


def values_file(values):
    """A file with the values, written once: a helm that runs beside this one may be reading it."""
    with LOCK:
        return values_path(json.dumps(values))


def template(values, *arguments, chart=CHART, ok=True, release=RELEASE):
    # helm wants flags of its own order, and a release's name may not be taken for one.
    return helm("template", "--namespace", NAMESPACE, "--values", values_file(values), *arguments, "--", release, chart, ok=ok)


@cache
def parsed(text):
    return [o for o in yaml.load_all(text, yaml.CSafeLoader) if o]


def render(values, text, release=RELEASE):
    app_version = read(CHART / "Chart.yaml")["appVersion"]
    return rules.Render(laid_over(defaults(), values), copy.deepcopy(parsed(text)), release, NAMESPACE, app_version)


@cache
def rendered():
    """(case, Kubernetes version, values, text) of the whole matrix."""
    jobs = [(name, version, values) for name, values in matrix().items() for version in KUBERNETES]
    with ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
        texts = pool.map(lambda job: template(job[2], "--kube-version", job[1]), jobs)
    return [(*job, text) for job, text in zip(jobs, texts)]


def once():
    """The matrix without what is equal under several versions."""
    seen = {}
    for name, _, values, text in rendered():
        seen.setdefault((name, text), values)
    return [(name, values, text) for (name, text), values in seen.items()]


def of(name):
    """The base's render, for changing."""
    values = matrix()[name]
    return render(values, next(text for case, version, _, text in rendered() if (case, version) == (name, KUBERNETES[-1])))


def workload(values, *arguments, **more):
    return render(values, template(values, *arguments, **more)).workload


# The tests.


@test
def helm_lint():
    for name, values in matrix().items():
        try:
            helm("lint", "--strict", "--quiet", "--namespace", NAMESPACE, "--values", values_file(values), CHART)
        except Failed as said:
            raise Failed(f"{name}: {said}") from said
    broken = WORK / "broken"
    shutil.copytree(CHART, broken)
    (broken / "templates/broken.yaml").write_text("kind: {{ .Values.nothing.at.all }}\n")
    helm("lint", "--strict", broken, ok=False)


@test
def the_rules_hold_in_the_whole_matrix():
    for name, values, text in once():
        report(f"{name}: {check.__name__}: {problem}" for check, _ in rules.RULES for problem in check(render(values, text)))
    print(f"{len(rendered())} renders: {len(matrix())} sets of values, Kubernetes {', '.join(KUBERNETES)}; {len(rules.RULES)} rules")


@test
def every_rule_finds_its_plants():
    count, missed = 0, []
    for check, plants in rules.RULES:
        if not plants:
            missed.append(f"{check.__name__} has no plant, so nobody knows whether it can fail")
        for plant in plants:
            broken = of(plant.base)
            plant.change(broken.objects)
            found = list(check(broken))
            count += 1
            if not any(plant.word in problem for problem in found):
                missed.append(f"{check.__name__} does not find the plant that should be told as `{plant.word}`; it found {found}")
    report(missed)
    print(f"{count} plants, all found")


@test
def another_release_name():
    """Names go by the release, and two releases in one namespace share nothing."""
    names = []
    for release in ("shop", "shop-larder-2"):
        made = render({}, template({}, release=release), release)
        report(f"{release}: {problem}" for check, _ in rules.RULES for problem in check(made))
        names.append({(o["kind"], o["metadata"]["name"]) for o in made.objects})
    report(f"both releases have {name}" for name in names[0] & names[1])


def invalid(objects, version):
    """What Kubernetes' own schemas say against the objects."""
    for o in objects:
        if o["kind"] not in CUSTOM:
            try:
                kubernetes_validate.validate(o, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                yield f"{o['kind']} {o['metadata'].get('name')}: {'.'.join(map(str, error.path))}: {error.message}"


@test
def kubernetes_validate_strict():
    seen = set()
    for name, version, _, text in rendered():
        for o in parsed(text):
            key = (version, json.dumps(o, sort_keys=True))
            if key not in seen:
                seen.add(key)
                report(f"{name}, Kubernetes {version}: {problem}" for problem in invalid([o], version))
    client = list(yaml.safe_load_all((EXAMPLES / "client-pod.yaml").read_text()))
    report(problem for version in KUBERNETES for problem in invalid(client, version))
    for change, word in (
        (lambda o: rules.node(o).update(securityContex={}), "securityContex"),
        (lambda o: rules.named(o, "StatefulSet")["spec"].update(replicas="3"), "replicas"),
        (lambda o: rules.named(o, "Service").update(apiVersion="v1", spec={"ports": [{"name": "x"}]}), "port"),
    ):
        broken = of("default").objects
        change(broken)
        if not any(word in problem for problem in invalid(broken, KUBERNETES[-1])):
            raise Failed(f"kubernetes-validate does not find the plant {word}")
    print(f"{len(seen)} different objects")


def lint(text):
    config = yamllint.config.YamlLintConfig((HERE / "yamllint.yaml").read_text())
    return [f"{problem.line}: {problem.message}" for problem in yamllint.linter.run(text, config)]


@test
def yamllint_of_what_is_rendered_and_written():
    written = [*CHART.glob("*.yaml"), *EXAMPLES.glob("*.yaml"), *HERE.glob("*.yaml")]
    texts = {str(path.relative_to(REPOSITORY)): path.read_text() for path in written}
    texts |= {f"{name} rendered": text for name, _, text in once()}
    report(f"{name}:{problem}" for name, text in texts.items() for problem in lint(text))
    for broken in ("a: 1\na: 2\n", "a: 1 \n", "a:\n   b: 1\n", "a: yes\n"):
        if not lint(broken):
            raise Failed(f"yamllint finds nothing in {broken!r}")


def checkov(folder):
    """(check, kind and name, what it is about) of everything that checkov has against the files of a folder."""
    command = ["checkov", "--directory", folder, "--framework", "kubernetes", "--output", "json", "--quiet", "--compact", "--skip-download"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    try:
        answer = json.loads(done.stdout)
        failed, summary = answer["results"]["failed_checks"], answer["summary"]
    except (ValueError, KeyError, TypeError) as error:
        raise Failed(f"checkov did not answer: {error}\n{done.stdout[:2000]}\n{done.stderr[:2000]}") from error
    if summary["parsing_errors"] or not summary["passed"]:
        raise Failed(f"checkov could not read the files, or found nothing to check: {summary}")
    for entry in failed:
        kind, _, name = entry["resource"].split(".")[:3]
        yield entry["check_id"], f"{kind} {name}", entry["check_name"]


@test
def checkov_finds_only_what_is_allowed():
    # One call for all, as it is slow. The names tell them apart.
    texts = {
        "larder": template({}),
        "larder-memory": template({"persistence": {"enabled": False}, "rbac": {"create": False}}, release="larder-memory"),
        "larder-daemonset": template(bases()["init"], release="larder-daemonset"),
        "larder-client": (EXAMPLES / "client-pod.yaml").read_text().replace("  name: larder-client\n", f"  name: larder-client\n  namespace: {NAMESPACE}\n", 1),
        "planted": template({}, release="planted-larder").replace("allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true\n            privileged: true", 1),
    }
    folder = WORK / "checkov"
    folder.mkdir()
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    found = set(checkov(folder))
    planted = {check for check, where, _ in found if where == "StatefulSet planted-larder"}
    found = {entry for entry in found if "planted" not in entry[1]}
    allowed = {(entry["check"], where): entry for entry in read(HERE / "checkov.yaml") for where in entry["where"]}
    hit = {(check, where) for check, where, _ in found}
    listed = "tests/chart/checkov.yaml"
    problems = [f"{check} on {where}: {what}; mend it, or allow it with a reason in {listed}" for check, where, what in sorted(found) if (check, where) not in allowed]
    problems += [f"{listed} allows {check} on {where}, which is not found any more: take it out" for check, where in sorted(allowed.keys() - hit)]
    problems += [f"{listed} gives no reason for {entry['check']}" for entry in allowed.values() if len(entry.get("reason", "")) < 20]
    report(problems)
    if not {"CKV_K8S_16", "CKV_K8S_20"} <= planted:
        raise Failed(f"checkov does not find a privileged container; it finds {planted}")
    print(f"{len(hit)} findings, each allowed with a reason")


def unequal(values, chart=CHART):
    """Whether two renders of the same differ."""
    return template(values, chart=chart) != template(values, chart=chart)


@test
def two_renders_are_equal():
    for values in ({}, bases()["full"], bases()["init"]):
        if unequal(values):
            raise Failed(f"two renders of {values} differ")
    # What depends on the cluster would differ between two of them, which two renders here cannot show.
    actions = [action for path in (CHART / "templates").rglob("*.*") for action in re.findall(r"{{-? (?!/\*)(.*?)}}", path.read_text(), re.S)]
    report(f"a template asks the cluster: {action}" for action in actions if re.search(r"\blookup\b|\.Capabilities\b", action))
    planted = WORK / "random"
    shutil.copytree(CHART, planted)
    (planted / "templates/random.yaml").write_text("kind: ConfigMap\ndata: {{ randAlphaNum 20 }}\n")
    if not unequal({}, planted):
        raise Failed("a template with a random value is not found")


def differences(before, after, path=""):
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before.keys() | after.keys():
            yield from differences(before.get(key), after.get(key), f"{path}.{key}".lstrip("."))
    elif before != after:
        yield path


@test
def scaling_changes_replicas_and_no_pod():
    for base in ({}, {"rbac": {"create": False}}, {"persistence": {"enabled": False}}):
        changed = {}
        for replicas in (3, 5):
            made = render(base, template({**base, "replicas": replicas}))
            changed[replicas] = {f"{o['kind']} {o['metadata']['name']}": o for o in made.objects}
        found = set(differences(changed[3], changed[5]))
        wanted = {"StatefulSet larder.spec.replicas", "ConfigMap larder-scale.data.scale.toml", "Pod larder-check.spec.containers"}
        if found != wanted:
            raise Failed(f"3 -> 5 changes {sorted(found)}, not {sorted(wanted)}")
    for before, after in ((1, 3), (5, 1), (3, 0)):
        for base in ({}, {"rbac": {"create": False}}):
            pods = [workload({**base, "replicas": replicas})["spec"]["template"] for replicas in (before, after)]
            report(f"{before} -> {after} changes the pods: {path}" for path in differences(*pods))
    # And that a change of settings does roll them.
    pods = [workload({"config": config})["spec"]["template"] for config in ({}, {"log_level": "debug"})]
    if list(differences(*pods)) != ["metadata.annotations.checksum/config"]:
        raise Failed("a change of config does not change the pods' checksum, so nobody would restart for it")


def frozen(workload):
    return {key: workload["spec"][key] for key in ("selector", "serviceName", "volumeClaimTemplates") if key in workload["spec"]}


@test
def what_cannot_change_never_does():
    """Kubernetes refuses such an upgrade; a user would have to delete the StatefulSet."""
    golden = read(HERE / "frozen.yaml")
    # The next version of the chart, with other settings.
    newer = WORK / "newer"
    shutil.copytree(CHART, newer)
    chart = read(CHART / "Chart.yaml")
    (newer / "Chart.yaml").write_text(yaml.safe_dump({**chart, "version": "99.0.0", "appVersion": "99.0.0"}))
    others = {"podLabels": {"a": "b"}, "podAnnotations": {"a": "b"}, "maxVoters": 3, "image": {"tag": "99"}, "clusterDomain": "example.internal"}
    for name, values in {"statefulset": {}, "memory": {"persistence": {"enabled": False}}, "daemonset": SEEDS}.items():
        for found in (workload(values), workload(laid_over(others, values), chart=newer)):
            report(f"{name}: {path} is not what tests/chart/frozen.yaml says" for path in differences(golden[name], frozen(found)))
    broken = workload({})
    broken["spec"]["volumeClaimTemplates"][0]["metadata"]["labels"]["helm.sh/chart"] = "larder-0.1.0"
    if not list(differences(golden["statefulset"], frozen(broken))):
        raise Failed("a label with the chart's version in the volume template is not found")


@test
def examples():
    names = {path.stem for path in value_examples()}
    if not names >= {"one-node", "production", "ephemeral", "daemonset", "bare-metal-clients"}:
        raise Failed(f"examples/ has only {sorted(names)}")
    readme = (CHART / "README.md").read_text()
    report(f"README.md does not mention examples/{path.name}" for path in EXAMPLES.iterdir() if f"(examples/{path.name})" not in readme)
    # The pod that is a client: as safe as ours, and it takes what the chart renders.
    (client,) = yaml.safe_load_all((EXAMPLES / "client-pod.yaml").read_text())
    made = of("default")
    pod = copy.deepcopy(client)
    pod["spec"]["containers"] += pod["spec"].pop("initContainers")
    for container in pod["spec"]["containers"]:
        report(rules.unlike("the client's image", container["image"], rules_image(made)))
        report(rules.unlike("the client's envFrom", container["envFrom"], [{"configMapRef": {"name": "larder-connection"}}]))
        report(f"the client has a flag: {argument}" for argument in container["args"] if argument.startswith("-"))
        container["args"] = []
    made.objects[:] = [pod]
    report([*rules.pod_security(made), *rules.no_shell(made)])


def rules_image(made):
    return made.node["image"]


# (values, words of what helm says with the schema, words of the chart's own sentence behind it)
REFUSED = [
    ({"maxVoters": 4}, "maxVoters must be one of the following: 1, 3, 5, 7, 9", "maxVoters is 4: an even number"),
    ({"maxVoters": 11}, "maxVoters must be one of the following", None),
    ({"replicas": -1}, "replicas: Must be greater than or equal to 0", None),
    ({"replicas": "3"}, "replicas: Invalid type. Expected: integer, given: string", None),
    ({"replica": 3}, "Additional property replica is not allowed", None),
    ({"persistence": {"storageclass": "fast"}}, "Additional property storageclass is not allowed", None),
    ({"mode": "deployment"}, "mode must be one of the following", None),
    ({"mode": "daemonset"}, "daemonset.seedNodes: Array must have at least 1 items", "daemonset.seedNodes names 0 machines"),
    ({"mode": "daemonset", "daemonset": {"seedNodes": ["a", "b"]}}, "daemonset.seedNodes names 2 machines: name the one or the three", None),
    ({"mode": "daemonset", "daemonset": {"seedNodes": ["a", "a"]}}, "array items[0,1] must be unique", None),
    ({"mode": "daemonset", "daemonset": {"seedNodes": list("abcd")}}, "at most 3 items", None),
    ({"mode": "daemonset", "daemonset": {"seedNodes": ["n_1"]}}, "daemonset.seedNodes.0: Does not match pattern", None),
    (laid_over(SEEDS, {"persistence": {"storageClass": "fast"}}), "persistence.storageClass must be one of the following: \"\"", "mode daemonset keeps its data in daemonset.hostPath"),
    (laid_over(SEEDS, {"maxVoters": 1}), "3 machines, which all vote, but maxVoters is 1", None),
    (laid_over(SEEDS, {"daemonset": {"initDir": {"enabled": True}}, "persistence": {"enabled": False}}), "initDir.enabled prepares", None),
    (laid_over(SEEDS, {"daemonset": {"initDir": {"enabled": True}}, "podSecurity": {"runAsUser": None}}), "whom to give the directory", None),
    (laid_over(SEEDS, {"daemonset": {"hostPath": "var/lib"}}), "daemonset.hostPath: Does not match pattern", None),
    ({"daemonset": {"seedNodes": ["n1"]}}, "daemonset.seedNodes: Array must have at most 0 items", "mean nothing in mode statefulset"),
    ({"resources": {"limits": None}}, "resources: limits is required", "resources.limits.memory is missing"),
    ({"resources": {"limits": {"memory": None}}}, "resources.limits: memory is required", "resources.limits.memory is missing"),
    ({"resources": None}, "(root): resources is required", "resources.limits.memory is missing"),
    ({"resources": {"limits": {"memory": "63Mi"}}}, "a node needs 64Mi or more", None),
    ({"resources": {"limits": {"memory": "0.06Gi"}}}, "a node needs 64Mi or more", None),
    ({"resources": {"limits": {"memory": "512MB"}}}, "resources.limits.memory: Does not match pattern", "\"512MB\": give a number of bytes"),
    ({"ephemeral": {"onMajorityLost": "recover"}}, "with persistence.enabled the data is on disk", None),
    ({"ephemeral": {"onMajorityLost": "panic"}}, "ephemeral.onMajorityLost must be one of", None),
    ({"persistence": {"accessModes": ["ReadWriteMany"]}}, "persistence.accessModes.0 must be one of", None),
    ({"extraEnv": [{"name": "LARDER_DATA_DIR", "value": "/x"}]}, "extraEnv sets LARDER_DATA_DIR, which the chart sets itself", None),
    ({"extraEnv": [{"name": "LARDER_SLOT", "value": "0"}]}, "extraEnv sets LARDER_SLOT, on which", None),
    ({"extraEnv": [{"value": "0"}]}, "extraEnv.0: name is required", None),
    ({"podLabels": {"app.kubernetes.io/name": "x"}}, "podLabels: Property name of \"app.kubernetes.io/name\" does not match", None),
    ({"service": {"nodePort": 30740}}, "service.type is ClusterIP: set it to NodePort", None),
    ({"service": {"type": "NodePort", "loadBalancerIP": "192.0.2.1"}}, "service.type is NodePort: set it to LoadBalancer", None),
    ({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4", "IPv6"]}, "ipFamilies names two", None),
    ({"ipFamilies": ["IPv5"]}, "ipFamilies.0 must be one of", None),
    ({"clusterDomain": "cluster.local."}, "clusterDomain: Does not match pattern", None),
    ({"clusterDomain": ""}, "clusterDomain: Does not match pattern", None),
    ({"config": {"data_dir": "/x"}}, "Additional property data_dir is not allowed", None),
    ({"podSecurity": {"runAsUser": 0}}, "podSecurity.runAsUser: Must be greater than or equal to 1", None),
    ({"image": {"digest": "sha256:abc"}}, "image.digest: Does not match pattern", None),
    ({"antiAffinity": "maybe"}, "antiAffinity must be one of", None),
    ({"fullnameOverride": "a" * 53}, "has 53 letters", None),
    ({"fullnameOverride": "2larder"}, "fullnameOverride: Does not match pattern", "cannot be a Service's"),
    ({"terminationGracePeriodSeconds": 1}, "terminationGracePeriodSeconds: Must be greater", None),
]


@test
def impossible_values_are_refused():
    for values, schema, sentence in REFUSED:
        said = template(values, ok=False)
        if schema not in said:
            raise Failed(f"{values}: helm should say `{schema}`, and says\n{said}")
        if sentence:
            said = template(values, "--skip-schema-validation", ok=False)
            if sentence not in said:
                raise Failed(f"{values} without the schema: the chart should say `{sentence}`, and says\n{said}")
    for release, word in (("2larder", "begins with a letter"), ("my.larder", "cannot be a Service's")):
        if word not in template({}, ok=False, release=release):
            raise Failed(f"the release name {release} should be refused with `{word}`")
    if "kubeVersion" not in template({}, "--kube-version", "1.26.0", ok=False):
        raise Failed("Kubernetes 1.26 should be refused by Chart.yaml's kubeVersion")
    # As a part of another chart: what helm adds there is no mistake.
    template({"global": {"registry": "x"}, "enabled": True})
    print(f"{len(REFUSED)} sets of values, each with the sentence that it should get")


@test
def the_schema_knows_every_value_and_no_other():
    schema = json.loads((CHART / "values.schema.json").read_text())

    def compare(values, part, path):
        known = part.get("properties", {})
        if part.get("additionalProperties") is False and part["type"] == "object":
            extra = {"global", "enabled"} if not path else set()
            for key in values.keys() ^ (known.keys() - extra):
                # The keys of config are optional; each must be one of the binary's.
                if path != "config":
                    yield f"{path}.{key} is in values.yaml or in the schema, and not in both"
        for key, value in values.items():
            if isinstance(value, dict) and key in known:
                yield from compare(value, known[key], f"{path}.{key}".lstrip("."))

    report(compare(defaults(), schema, ""))
    if not list(compare({**defaults(), "new": 1}, schema, "")):
        raise Failed("a value that the schema lacks is not found")
    keys = set(re.findall(r'^        "(\w+)",$', (REPOSITORY / "src/config.rs").read_text(), re.M))
    wanted = set(schema["properties"]["config"]["properties"])
    report(f"config.{key} is no key of larder's configuration file" for key in wanted - keys)
    comment = next(text for path, _, text in values_table.documented((CHART / "values.yaml").read_text()) if path == "config")
    report(f"the comment on config does not name {key}" for key in wanted if key not in comment)


@test
def the_binary_reads_what_the_chart_sets():
    """Names of variables and commands, in both directions as far as the chart goes: a misspelt one would be ignored at run time."""
    source = "".join(path.read_text() for path in (REPOSITORY / "src/cmd").rglob("*.rs"))
    known = set(re.findall(r'"(LARDER_[A-Z_]+)"', source))
    variables, commands = set(), set()
    for name in ("default", "ephemeral", "init", "norbac"):
        made = of(name)
        for _, _, pod in rules.pods(made.objects):
            for _, container in rules.containers(pod):
                variables |= {entry["name"] for entry in container.get("env", [])}
                commands.add(container["args"][0])
        commands.add(made.node["lifecycle"]["preStop"]["exec"]["command"][1])
        variables |= set(made.get("ConfigMap", f"{made.fullname}-connection")["data"])
    report(f"no command of larder reads {name}" for name in sorted(variables - known))
    variants = {re.sub(r"(?<!^)(?=[A-Z])", "-", word).lower() for word in re.findall(r"^    (\w+)(?:\(.*\))?,$", source, re.M)}
    report(f"larder has no command {name}" for name in sorted(commands - variants))
    print(f"{len(variables)} variables, commands {', '.join(sorted(commands))}")


@test
def the_readme_has_the_table_of_values():
    text, readme = (CHART / "values.yaml").read_text(), (CHART / "README.md").read_text()
    made = values_table.documented(text)
    if values_table.with_table(readme, values_table.table(made)) != readme:
        raise Failed("charts/larder/README.md has another table than values.yaml makes: run tests/chart/values_table.py --write")
    # That the reader sees what helm sees.
    for path, default, _ in made:
        value = defaults()
        for key in path.split("."):
            value = value[key]
        if yaml.safe_load(default) != value:
            raise Failed(f"{path} is {value!r} to helm, and {default} in the table")

    def leaves(values, path):
        for key, value in values.items():
            here = f"{path}.{key}".lstrip(".")
            group = isinstance(value, dict) and value and here != "metrics.dashboard.labels"
            yield from leaves(value, here) if group else [here]

    report(f"{path} is not in the table" for path in set(leaves(defaults(), "")) - {path for path, _, _ in made})
    # Drift is found, and so is a value without a comment.
    other = values_table.documented(text.replace("\nreplicas: 3\n", "\nreplicas: 4\n"))
    if values_table.with_table(readme, values_table.table(other)) == readme:
        raise Failed("another default for replicas is not found in the README")
    try:
        values_table.documented(text + "\nundocumented: 1\n")
        raise Failed("a value without a comment is not found")
    except values_table.Unreadable:
        pass


def notes(values):
    """NOTES.txt by the same engine: `helm install` prints it, but wants a cluster for that."""
    chart = WORK / "notes"
    if not chart.exists():
        shutil.copytree(CHART, chart)
        text = (chart / "templates/NOTES.txt").read_text()
        (chart / "templates/NOTES.txt").unlink()
        (chart / "templates/_notes.tpl").write_text('{{- define "notes" -}}\n' + text + "{{- end -}}\n")
        (chart / "templates/notes.yaml").write_text('notes: {{ include "notes" . | toJson }}\n')
    return yaml.safe_load(template(values, "--show-only", "templates/notes.yaml", chart=chart))["notes"]


@test
def the_notes_say_what_to_type_and_what_it_means():
    always = ["helm test larder -n cache", "kubectl -n cache", "larder.cache.svc.cluster.local:7400", "larder-connection"]
    table = [
        ({}, [*always, "3 nodes, 3 of which vote: it goes on without 1", "scale statefulset larder", "delete pvc"], ["NOTE"]),
        ({"rbac": {"create": False}}, ["NOTE: rbac.create=false", "larder member retire", "a second cluster"], []),
        (SEEDS, ["NOTE: mode daemonset", "privileged", "chown", "65532", "n1, n2, n3 found the cluster", "7401"], ["rbac.create", "statefulset", "pvc"]),
        (bases()["init"], ["init container with uid 0"], ["chown"]),
        ({"persistence": {"enabled": False}}, ["NOTE: persistence.enabled=false", "larder recover", "onMajorityLost=wait"], ["pvc"]),
        ({"persistence": {"enabled": False}, "ephemeral": {"onMajorityLost": "recover"}}, ["lone survivor", "onMajorityLost=recover"], []),
        ({"replicas": 1}, ["1 node, 1 of which votes: it goes on without 0"], ["NOTE"]),
        ({"replicas": 4}, ["NOTE: 4 replicas survive the loss of no more voters than 3 do"], []),
        ({"replicas": 0}, ["stopped"], ["helm test"]),
        ({"service": {"type": "NodePort"}}, ["outside"], ["port-forward"]),
        (bases()["domain"], ["larder.cache.svc.example.internal:7400"], ["cluster.local"]),
    ]
    for values, has, lacks in table:
        said = notes(values)
        report(f"the notes for {values} do not say `{word}`:\n{said}" for word in has if word not in said)
        report(f"the notes for {values} say `{word}`:\n{said}" for word in lacks if word in said)
    for name, values in matrix().items():
        said = notes(values)
        if "<no value>" in said or "%!" in said or "\n\n\n" in said:
            raise Failed(f"the notes for {name}:\n{said}")


@test
def cluster_local_is_written_once():
    """Where the domain is used, it is the value; the comments of values.yaml and the README may say what it is by default."""
    lines = [line for path in (CHART / "templates").rglob("*.*") for line in path.read_text().splitlines() if "cluster.local" in line]
    report(f"a template writes cluster.local: {line}" for line in lines)
    if sum("cluster.local" in line for line in (CHART / "values.yaml").read_text().splitlines()) != 1:
        raise Failed("values.yaml should say cluster.local once")


def main():
    global WORK
    WORK = Path(sys.argv[1])
    chosen = [function for function in TESTS if not sys.argv[2:] or any(part in function.__name__ for part in sys.argv[2:])]
    failed, start = 0, time.monotonic()
    for function in chosen:
        began = time.monotonic()
        try:
            function()
            print(f"test chart::{function.__name__} ... ok ({time.monotonic() - began:.1f}s)", flush=True)
        except Failed as found:
            failed += 1
            print(f"test chart::{function.__name__} ... FAILED\n{found}", flush=True)
        except Exception:
            failed += 1
            print(f"test chart::{function.__name__} ... FAILED\n{traceback.format_exc()}", flush=True)
    word = "FAILED" if failed or not chosen else "ok"
    passed = len(chosen) - failed
    print(f"\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; finished in {time.monotonic() - start:.2f}s")
    return 1 if failed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
