//! What a node reads off the machine it runs on where nobody tells it: its name, and how much memory it may use.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// What is taken from the machine where a setting is left open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// The hostname; of a pod, its name.
    pub hostname: String,
    /// The most bytes of memory that this process may use, if that is less than the machine has.
    pub memory_limit_bytes: Option<u64>,
}

impl Machine {
    /// The one that this process runs on.
    pub fn this() -> Self {
        Self { hostname: hostname(), memory_limit_bytes: memory_limit_bytes(Path::new("/")) }
    }
}

/// This machine's hostname; of a pod, its name.
pub fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The memory limit of this process's control group, in bytes: the lowest of its own and of those above it, by cgroup v2 or v1. `None`
/// without a limit, and for one that is not below the machine's memory: cgroup v1 writes "no limit" as a very large number.
fn memory_limit_bytes(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let limit = groups.lines().filter_map(|line| lowest_limit(root, line)).min()?;
    let physical = fs::read_to_string(root.join("proc/meminfo")).ok().and_then(|text| total_bytes(&text));
    Some(limit).filter(|limit| physical.is_none_or(|physical| *limit < physical))
}

/// The limit that one line of `/proc/self/cgroup` leads to: `hierarchy:controllers:path`.
fn lowest_limit(root: &Path, line: &str) -> Option<u64> {
    let mut parts = line.splitn(3, ':');
    let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let (mount, file) = if controllers.is_empty() {
        ("sys/fs/cgroup", "memory.max")
    } else if controllers.split(',').any(|name| name == "memory") {
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
    } else {
        return None;
    };
    // In a container the path may be the one outside, of which the mount shows only the end: what is not there is passed over, up to
    // the mount itself.
    let mut group = PathBuf::from(path.trim_start_matches('/'));
    let mut limits = Vec::new();
    loop {
        let limit = fs::read_to_string(root.join(mount).join(&group).join(file));
        // "max" is no number.
        limits.extend(limit.ok().and_then(|text| text.trim().parse::<u64>().ok()));
        if !group.pop() {
            return limits.into_iter().min();
        }
    }
}

/// `MemTotal` of `/proc/meminfo`, which is in KiB.
fn total_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A machine of 1 GiB with these files.
    fn limit(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        let meminfo = ("proc/meminfo", "MemTotal:        1048576 kB\nMemFree:          1000 kB\n");
        for (path, text) in files.iter().chain([&meminfo]) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        memory_limit_bytes(root.path())
    }

    #[test]
    fn cgroup_v2_of_a_container() {
        let own = ("proc/self/cgroup", "0::/\n");
        assert_eq!(limit(&[own, ("sys/fs/cgroup/memory.max", "268435456\n")]), Some(256 * MIB));
        assert_eq!(limit(&[own, ("sys/fs/cgroup/memory.max", "max\n")]), None);
        assert_eq!(limit(&[own]), None);
    }

    #[test]
    fn cgroup_v2_of_a_service_is_the_lowest_on_the_way_up() {
        let own = ("proc/self/cgroup", "0::/system.slice/larder.service\n");
        let service = "sys/fs/cgroup/system.slice/larder.service/memory.max";
        let slice = "sys/fs/cgroup/system.slice/memory.max";
        assert_eq!(limit(&[own, (service, "536870912\n"), (slice, "max\n")]), Some(512 * MIB));
        assert_eq!(limit(&[own, (service, "max\n"), (slice, "134217728\n")]), Some(128 * MIB));
        assert_eq!(limit(&[own, (service, "max\n"), (slice, "max\n")]), None);
    }

    #[test]
    fn cgroup_v1_of_a_container_whose_path_is_the_one_outside() {
        let own = ("proc/self/cgroup", "12:cpu,cpuacct:/docker/abc\n5:memory:/docker/abc\n0::/docker/abc\n");
        let file = "sys/fs/cgroup/memory/memory.limit_in_bytes";
        assert_eq!(limit(&[own, (file, "268435456\n")]), Some(256 * MIB));
        let nested = "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes";
        assert_eq!(
            limit(&[own, (file, "9223372036854771712\n"), (nested, "134217728\n")]),
            Some(128 * MIB),
            "seen from outside"
        );
    }

    #[test]
    fn a_limit_that_is_not_below_the_machines_memory_is_none() {
        let own = ("proc/self/cgroup", "5:memory:/\n");
        let file = "sys/fs/cgroup/memory/memory.limit_in_bytes";
        for unlimited in ["9223372036854771712\n", "1073741824\n", "18446744073709551616\n", "-1\n", ""] {
            assert_eq!(limit(&[own, (file, unlimited)]), None, "{unlimited}");
        }
        assert_eq!(limit(&[own, (file, "1073741823\n")]), Some(1024 * MIB - 1));
    }

    #[test]
    fn what_is_not_there_or_not_understood_is_no_limit() {
        assert_eq!(limit(&[]), None);
        for strange in ["", "nonsense", "0::/../elsewhere\n", "5:cpu:/\n"] {
            assert_eq!(limit(&[("proc/self/cgroup", strange)]), None, "{strange}");
        }
    }

    #[test]
    fn this_machine_has_a_name() {
        assert_eq!(Machine::this().hostname, hostname());
        assert!(!hostname().is_empty());
    }
}
