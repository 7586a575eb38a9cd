"""Writes Larder's image as a docker archive: the last stage of the Dockerfile around a static binary.

It reads that stage instead of repeating it, so that the two images are one. It knows the instructions used there, and
refuses any other. Every time in the archive is 0: the same binary makes the same bytes.

Not here: building the binary (`tests/k8s/image`).
"""

import argparse
import hashlib
import io
import json
import re
import shlex
import struct
import sys
import tarfile
from pathlib import Path

DOCKERFILE = Path(__file__).parents[2] / "Dockerfile"
ELF_MACHINES = {62: "amd64", 183: "arm64"}
PT_INTERP = 3


def architecture(binary: bytes) -> str:
    """The architecture of a static 64-bit ELF executable, as images name it; anything else is refused.

    An executable that names an interpreter (the dynamic loader) cannot start where there is none.
    """
    if binary[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a little-endian 64-bit ELF executable")
    machine, = struct.unpack_from("<H", binary, 18)
    offset, = struct.unpack_from("<Q", binary, 32)
    size, count = struct.unpack_from("<HH", binary, 54)
    kinds = [struct.unpack_from("<I", binary, offset + size * i)[0] for i in range(count)]
    if not kinds or PT_INTERP in kinds:
        raise ValueError("not static: it needs a dynamic loader; build it with RUSTFLAGS='-C target-feature=+crt-static'")
    if machine not in ELF_MACHINES:
        raise ValueError(f"for the ELF machine {machine}; images are made for {', '.join(ELF_MACHINES.values())}")
    return ELF_MACHINES[machine]


def last_stage(text: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile's last stage, `FROM` first, continued lines joined."""
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    instructions = [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]
    begins = max(i for i, (name, _) in enumerate(instructions) if name == "FROM")
    return instructions[begins:]


def seconds(flag: str) -> int:
    """Nanoseconds, as the image's configuration counts, of a time such as 10s."""
    return int(flag.removesuffix("s")) * 10**9


def tar(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def member(path: str, mode: int, owner: str = "0:0", directory: bool = False) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.mode, info.type = mode, tarfile.DIRTYPE if directory else tarfile.REGTYPE
    info.uid, info.gid = map(int, owner.split(":"))
    return info


class Stage:
    """What the stage says: the image's configuration and the files of its one layer."""

    def __init__(self, text: str, binary: bytes):
        self.config: dict = {"Env": [], "Labels": {}, "ExposedPorts": {}}
        self.binary = binary
        self.members: dict[str, tuple[tarfile.TarInfo, bytes]] = {}
        for name, rest in last_stage(text):
            take = getattr(self, f"take_{name.lower()}", None)
            if take is None:
                raise ValueError(f"{DOCKERFILE.name}: the last stage has {name}, which is not known here; add it")
            take(rest)

    def take_from(self, rest: str) -> None:
        if rest != "scratch":
            raise ValueError(f"the last stage is FROM {rest}; without an engine it can only be FROM scratch")

    def take_label(self, rest: str) -> None:
        self.config["Labels"].update(part.split("=", 1) for part in shlex.split(rest))

    def take_env(self, rest: str) -> None:
        self.config["Env"] += shlex.split(rest)

    def take_user(self, rest: str) -> None:
        self.config["User"] = rest.strip()

    def take_expose(self, rest: str) -> None:
        self.config["ExposedPorts"].update({f"{port}/tcp": {} for port in rest.split()})

    def take_entrypoint(self, rest: str) -> None:
        self.config["Entrypoint"] = json.loads(rest)

    def take_healthcheck(self, rest: str) -> None:
        flags, command = rest.split("CMD", 1)
        names = {"interval": "Interval", "timeout": "Timeout", "start-period": "StartPeriod"}
        check: dict = {"Test": ["CMD", *json.loads(command)]}
        for flag, value in re.findall(r"--([a-z-]+)=(\S+)", flags):
            check[names.get(flag, "Retries")] = seconds(value) if flag in names else int(value)
        self.config["Healthcheck"] = check

    def take_copy(self, rest: str) -> None:
        *flags, source, target = rest.split()
        owner = next((f.removeprefix("--chown=") for f in flags if f.startswith("--chown=")), "0:0")
        parents = Path(target.lstrip("/")).parents
        for parent in reversed(list(parents)[:-1]):
            self.members.setdefault(str(parent), (member(str(parent), 0o755, directory=True), b""))
        path = target.lstrip("/")
        if source.endswith("/larder"):
            self.members[path] = member(path, 0o755, owner), self.binary
        elif source.endswith("/data"):
            self.members[path] = member(path, 0o755, owner, directory=True), b""
        else:
            raise ValueError(f"COPY {source}: only the binary and the empty data directory are known here")


def archive(binary: bytes, name: str, dockerfile: str) -> bytes:
    """The docker archive: the manifest, the configuration and the layer."""
    machine = architecture(binary)
    stage = Stage(dockerfile, binary)
    layer = tar(list(stage.members.values()))
    config = json.dumps({
        "architecture": machine,
        "os": "linux",
        "config": stage.config,
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
        "history": [{"created_by": "tests/k8s/image"}],
    }, sort_keys=True).encode()
    digest = hashlib.sha256(config).hexdigest()
    manifest = json.dumps([{"Config": f"{digest}.json", "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
    files = {f"{digest}.json": config, "layer.tar": layer, "manifest.json": manifest}
    return tar([(member(path, 0o644), data) for path, data in files.items()])


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes Larder's image as a docker archive.")
    parser.add_argument("binary", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if not re.fullmatch(r"[a-z0-9][a-z0-9._/:-]*:[A-Za-z0-9_][A-Za-z0-9_.-]*", options.name):
        parser.error(f"`{options.name}` is no image name; write it as NAME:TAG")
    try:
        data = archive(options.binary.read_bytes(), options.name, DOCKERFILE.read_text())
    except (OSError, ValueError) as error:
        print(f"{options.binary}: {error}", file=sys.stderr)
        return 1
    options.out.write_bytes(data)
    print(f"{options.name}: {len(data) / 2**20:.1f} MiB", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
