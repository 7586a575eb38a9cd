"""Checks of the Dockerfile, the archive, compose.yaml and the end-to-end run's steps that need neither engine nor cluster."""

import hashlib
import io
import json
import os
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import traceback
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PACKAGE = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]


def run(*command, **more) -> subprocess.CompletedProcess:
    return subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, **more)


def elf(machine: int = 62, segment: int = 1) -> bytes:
    """The head of an executable with one segment: of kind 1 (to be loaded), or 3 (it names a dynamic loader)."""
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return head + struct.pack("<IIQQQQQQ", segment, 5, 0, 0, 0, 0, 0, 0)


def make(folder: Path, binary: bytes, name: str = "larder.test/larder:check") -> subprocess.CompletedProcess:
    (folder / "larder").write_bytes(binary)
    return run(ROOT / "tests/k8s/image", "--binary", folder / "larder", "--out", folder / "image.tar", "--name", name)


def archive_holds_the_binary_and_nothing_else(folder: Path) -> None:
    binary = elf()
    made = make(folder, binary)
    assert made.returncode == 0, made.stderr
    assert made.stdout == f"{folder / 'image.tar'}\n", made.stdout
    with tarfile.open(folder / "image.tar") as image:
        read = {member.name: image.extractfile(member).read() for member in image}
    manifest, = json.loads(read["manifest.json"])
    assert manifest["RepoTags"] == ["larder.test/larder:check"], manifest
    config, layer = read[manifest["Config"]], read[manifest["Layers"][0]]
    assert len(read) == 3 and len(manifest["Layers"]) == 1, list(read)
    image = json.loads(config)
    assert image["architecture"] == "amd64" and image["os"] == "linux", image
    assert image["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(layer).hexdigest()]
    says = image["config"]
    assert says["User"] == "65532:65532", says
    assert says["Entrypoint"] == ["/usr/local/bin/larder"], says
    assert says["Env"] == ["PATH=/usr/local/bin"], says
    assert says["ExposedPorts"] == {"7400/tcp": {}, "7401/tcp": {}, "7402/tcp": {}}, says
    assert says["Labels"]["org.opencontainers.image.version"] == PACKAGE["version"], says
    assert says["Labels"]["org.opencontainers.image.licenses"] == PACKAGE["license"], says
    assert says["Healthcheck"]["Test"] == ["CMD", "/usr/local/bin/larder", "healthcheck"], says
    assert says["Healthcheck"]["Interval"] == 10**10, says
    assert "Volumes" not in says, "a VOLUME makes nameless volumes that nobody finds again"
    with tarfile.open(fileobj=io.BytesIO(layer)) as files:
        members = {member.name: member for member in files}
        assert files.extractfile("usr/local/bin/larder").read() == binary
    assert [name for name, member in members.items() if not member.isdir()] == ["usr/local/bin/larder"], members
    program, data = members["usr/local/bin/larder"], members["var/lib/larder"]
    assert (program.mode, program.uid, program.gid) == (0o755, 0, 0), "the process must not be able to replace its binary"
    assert (data.uid, data.gid, data.mode) == (65532, 65532, 0o755), data.get_info()


def archive_is_reproducible(folder: Path) -> None:
    assert make(folder, elf()).returncode == 0
    first = (folder / "image.tar").read_bytes()
    assert make(folder, elf()).returncode == 0
    assert first == (folder / "image.tar").read_bytes()
    assert make(folder, elf(machine=183)).returncode == 0
    assert first != (folder / "image.tar").read_bytes()


def archive_refuses_what_cannot_start(folder: Path) -> None:
    for binary, why in {
        elf(segment=3): "not static: it needs a dynamic loader",
        elf(machine=3): "for the ELF machine 3",
        b"#!/bin/sh\n": "not a little-endian 64-bit ELF",
    }.items():
        made = make(folder, binary)
        assert made.returncode == 1 and why in made.stderr, (made.returncode, made.stderr)
    made = make(folder, elf(), name="Larder")
    assert made.returncode == 2 and "write it as NAME:TAG" in made.stderr, made.stderr


def dockerfile_is_sound(folder: Path) -> None:
    found = run("hadolint", "--failure-threshold", "info", ROOT / "Dockerfile")
    assert found.returncode == 0, found.stdout
    # The check can fail.
    (folder / "Dockerfile").write_text("FROM rust\nCMD larder serve\n")
    assert run("hadolint", folder / "Dockerfile").returncode != 0


def dockerfile_builds_as_the_script_does(_: Path) -> None:
    script = (ROOT / "tests/k8s/image").read_text()
    command = re.compile(r"cargo build --release[^\\>\n]*[^\\>\s]")
    in_script, in_dockerfile = command.findall(script), command.findall(DOCKERFILE)
    assert len(in_script) == 1 and len(in_dockerfile) == 2, (in_script, in_dockerfile)
    assert set(in_script) == set(in_dockerfile), (in_script, in_dockerfile)
    flags = 'RUSTFLAGS="-C target-feature=+crt-static"'
    assert f"export {flags}" in script and f"ENV {flags}" in DOCKERFILE
    assert f"ARG RUST_VERSION={PACKAGE['rust-version']}\n" in DOCKERFILE, "the Dockerfile's Rust is the one of Cargo.toml"


def dockerfile_layer_of_dependencies_is_a_crate(folder: Path) -> None:
    """What the first RUN makes of Cargo.toml, Cargo.lock and proto/ is something that cargo can build."""
    prepare = re.search(r"^RUN (mkdir .*?)\\\n\s*&& cargo build", DOCKERFILE, re.MULTILINE | re.DOTALL).group(1)
    for name in ("Cargo.toml", "Cargo.lock"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    (folder / "proto").symlink_to(ROOT / "proto")
    subprocess.run(["sh", "-ec", prepare], cwd=folder, check=True)
    known = subprocess.run(["cargo", "metadata", "--locked", "--offline", "--no-deps", "--format-version", "1"],
                           cwd=folder, capture_output=True, text=True)
    assert known.returncode == 0, known.stderr
    targets = json.loads(known.stdout)["packages"][0]["targets"]
    assert {"lib", "bin", "custom-build"} <= {kind for target in targets for kind in target["kind"]}, targets


def dockerignore_lets_the_build_through(_: Path) -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {source for line in re.findall(r"^COPY (?!--)(.*)$", DOCKERFILE, re.MULTILINE) for source in line.split()[:-1]}
    assert copied == allowed, f"copied {sorted(copied)}, let through {sorted(allowed)}"
    assert all((ROOT / source).exists() for source in copied), copied


def compose_fits_its_schema(folder: Path) -> None:
    schema = ("check-jsonschema", "--builtin-schema", "vendor.compose-spec")
    found = run(*schema, ROOT / "compose.yaml")
    assert found.returncode == 0, found.stdout
    (folder / "compose.yaml").write_text("services: {larder: {imagee: larder}}\n")
    assert run(*schema, folder / "compose.yaml").returncode != 0, "the check can fail"


def compose_is_one_cluster(_: Path) -> None:
    compose = YAML(typ="safe").load((ROOT / "compose.yaml").read_text())
    services = compose["services"]
    settings = {name: service["environment"] for name, service in services.items()}
    peers, = {each["LARDER_PEERS"] for each in settings.values()}
    named = dict(peer.split("=") for peer in peers.split(","))
    assert named == {each["LARDER_SLOT"]: f"{name}:7401" for name, each in settings.items()}, (named, settings)
    published, volumes = [], []
    for name, service in services.items():
        assert service["healthcheck"]["test"] == ["CMD", "/usr/local/bin/larder", "healthcheck", "--ready"], name
        assert service["command"] == ["serve"], name
        ports = [port.rsplit(":", 1) for port in service["ports"]]
        assert [inside for _, inside in ports] == ["7400", "7402"], "the peers' port is not published: nobody else must reach it"
        assert ports[0][0] == settings[name]["LARDER_ADVERTISE_CLIENT"], "clients are told where they can connect"
        published += [outside for outside, _ in ports]
        volume, = service["volumes"]
        assert volume.endswith(":" + settings[name]["LARDER_DATA_DIR"]), volume
        volumes.append(volume.split(":")[0])
    assert len(set(published)) == len(published) and len(set(volumes)) == len(volumes), (published, volumes)
    assert set(volumes) == set(compose["volumes"]), volumes


def end_to_end_run_renders_every_step(_: Path) -> None:
    """The dry run: all steps' values render, what helm must refuse is refused, and the client finds what was planted."""
    done = run(ROOT / "tests/k8s/run", "--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr
    listed = run(ROOT / "tests/k8s/run", "--list").stdout.splitlines()
    assert len(listed) >= 20, listed
    missing = [line for line in listed if f"test k8s::dry::{line.split()[0]} ... ok" not in done.stdout]
    assert not missing, missing
    assert done.stdout.count("test k8s::planted::") == 4, done.stdout
    wrong = run(ROOT / "tests/k8s/run", "--dry-run", "--only", "no-such-step")
    assert wrong.returncode == 2 and "--list names them" in wrong.stderr, wrong.stderr
    assert run(ROOT / "tests/k8s/run", "--dry-run", "--only", "install", "--image", "no-tag").returncode == 2


def end_to_end_run_says_that_there_is_no_cluster(folder: Path) -> None:
    empty = {"KUBECONFIG": str(folder / "none"), "PATH": os.environ["PATH"]}
    done = run(ROOT / "tests/k8s/run", "--only", "install", env={**os.environ, **empty})
    assert done.returncode == 2 and "no cluster can be asked" in done.stderr, (done.returncode, done.stderr)


TESTS = [
    archive_holds_the_binary_and_nothing_else,
    archive_is_reproducible,
    archive_refuses_what_cannot_start,
    dockerfile_is_sound,
    dockerfile_builds_as_the_script_does,
    dockerfile_layer_of_dependencies_is_a_crate,
    dockerignore_lets_the_build_through,
    compose_fits_its_schema,
    compose_is_one_cluster,
    end_to_end_run_renders_every_step,
    end_to_end_run_says_that_there_is_no_cluster,
]


def main() -> int:
    failed, start = 0, time.monotonic()
    for test in TESTS:
        verdict = "ok"
        with tempfile.TemporaryDirectory(prefix="larder-image-") as folder:
            try:
                test(Path(folder))
            except Exception:
                failed += 1
                verdict = f"FAILED\n{traceback.format_exc()}"
        print(f"test image::{test.__name__} ... {verdict}", flush=True)
    word = "FAILED" if failed else "ok"
    print(f"\ntest result: {word}. {len(TESTS) - failed} passed; {failed} failed; 0 ignored; "
          f"finished in {time.monotonic() - start:.2f}s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
