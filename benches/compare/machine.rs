//! What machine it is, and when: numbers without it say nothing.

use std::{fs, path::Path, time::Duration};

use larder::time::{Clock as _, SystemClock};

/// By name and value; what this system does not tell is left out.
pub(crate) fn describe(state: &Path) -> Vec<(&'static str, String)> {
    let processor = field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".into());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let mut facts = vec![("date", date()), ("processor", format!("{cores} cores of {processor}"))];
    if let Some(memory) = field("/proc/meminfo", "MemTotal") {
        facts.push(("memory", memory));
    }
    if let Ok(release) = fs::read_to_string("/proc/sys/kernel/osrelease") {
        facts.push(("kernel", release.trim().to_owned()));
    }
    if let Some(disk) = filesystem(state) {
        facts.push(("file system", disk));
    }
    facts
}

fn date() -> String {
    let millis = u64::try_from(SystemClock::new().wall().0).unwrap_or(0);
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + Duration::from_millis(millis)).to_string()
}

/// The first line of a file that starts with the name: what follows the colon.
fn field(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The type of the file system that holds a directory: of the longest mount point that it is below.
fn filesystem(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    let of = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind) = (fields.next()?.to_owned(), fields.next()?.to_owned());
        path.starts_with(&point).then_some((point.len(), kind))
    };
    mounts.lines().filter_map(of).max_by_key(|(length, _)| *length).map(|(_, kind)| kind)
}
