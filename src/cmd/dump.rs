//! `dump`: keys and values as JSON lines, which `load` takes.

use std::{
    ffi::OsString,
    io::{self, BufWriter, Write},
    os::unix::ffi::OsStringExt,
};

use clap::Args;
use futures::TryStreamExt;

use super::{Failure, Printer, line};
use crate::client::{Client, ScanOptions};

/// Read many keys, as JSON lines.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
One line a key, in byte order: {\"key\":\"k\",\"value\":\"v\"}; what is not UTF-8 is in base64, as key_base64 or
value_base64. All lines are as of one revision. If the connection breaks, the dump goes on after the last key; the lines
after that are as of a later revision, and a message says so.

Examples:
  larder dump > everything.jsonl
  larder dump --prefix user: --keys-only
  larder dump | larder --endpoints other:7400 load -")]
pub struct DumpArgs {
    /// Only keys that begin with this.
    #[arg(
        long,
        env = "LARDER_DUMP_PREFIX",
        value_name = "PREFIX",
        default_value = "",
        hide_default_value = true
    )]
    pub prefix: OsString,
    /// Leave the values out.
    #[arg(long, env = "LARDER_DUMP_KEYS_ONLY")]
    pub keys_only: bool,
    /// At most so many keys; 0: all.
    #[arg(long, env = "LARDER_DUMP_LIMIT", value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub limit: u64,
}

/// `dump`.
pub(super) async fn run(client: &Client, printer: Printer, args: DumpArgs) -> Result<(), Failure> {
    let mut entries = client.scan(ScanOptions {
        prefix: args.prefix.into_vec().into(),
        keys_only: args.keys_only,
        limit: args.limit,
        resume: true,
        ..ScanOptions::default()
    });
    let mut out = BufWriter::with_capacity(256 * 1024, io::stdout().lock());
    let (mut count, mut revision) = (0_u64, None);
    while let Some(entry) = entries.try_next().await? {
        if revision.is_some_and(|revision| revision != entry.revision) {
            printer.note(&format!(
                "the connection broke after {count} keys; what follows is as of revision {}",
                entry.revision
            ));
        }
        revision = Some(entry.revision);
        let value = (!args.keys_only).then_some(entry.value.as_ref());
        writeln!(out, "{}", line::format(&entry.key, value)).map_err(Failure::stdout)?;
        count += 1;
    }
    out.flush().map_err(Failure::stdout)?;
    match revision {
        Some(revision) => printer.note(&format!("{count} keys as of revision {revision}")),
        None => printer.note("no keys"),
    }
    Ok(())
}
