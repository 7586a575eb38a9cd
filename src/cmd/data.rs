//! `get`, `set`, `del`, `incr`: one key.

use std::{
    ffi::OsString,
    io::{self, Read},
    os::unix::ffi::OsStringExt,
};

use bytes::Bytes;
use clap::Args;
use serde_json::{Map, Value};

use super::{
    Failure, Printer,
    output::{put_bytes, shown},
};
use crate::{
    client::{Client, Condition, Consistency, DeleteOptions, SetOptions, Versioned},
    state::MAX_VALUE_BYTES,
};

/// Read a key.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
The value's bytes and one newline go to standard output, and nothing else does. A key that does not exist is exit
code 3.

Examples:
  larder get greeting
  larder get picture > picture.png        one byte longer than the picture: the newline
  larder get greeting --output json       {\"key\":\"greeting\",\"value\":\"hello\",\"version\":7,\"revision\":9}
  larder get greeting --local --endpoints 127.0.0.1:7410    what that node has applied; may be old")]
pub struct GetArgs {
    /// The key.
    pub key: OsString,
    /// What the first endpoint that is up has applied, instead of a read that is never stale.
    #[arg(long, env = "LARDER_GET_LOCAL")]
    pub local: bool,
}

/// Write a key.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Done once a majority of the nodes has it on disk. A condition that does not hold is exit code 3.

Examples:
  larder set greeting hello
  larder set picture - < picture.png      the value from standard input, byte for byte
  larder set lock me --if-absent          only if there is no such key
  larder set greeting bye --if-version 7 --return-previous
  larder set -- -key- -value-             what begins with a dash comes after --")]
pub struct SetArgs {
    /// The key, 1 to 4096 bytes.
    pub key: OsString,
    /// The value, up to 1 MiB; `-` for standard input.
    pub value: OsString,
    /// Only if the key does not exist.
    #[arg(long, env = "LARDER_SET_IF_ABSENT", conflicts_with_all = ["if_present", "if_version"])]
    pub if_absent: bool,
    /// Only if the key exists.
    #[arg(long, env = "LARDER_SET_IF_PRESENT", conflicts_with = "if_version")]
    pub if_present: bool,
    /// Only if the key exists at this version.
    #[arg(long, env = "LARDER_SET_IF_VERSION", value_name = "VERSION", value_parser = clap::value_parser!(u64).range(1..))]
    pub if_version: Option<u64>,
    /// Write what was there before to standard output.
    #[arg(long, env = "LARDER_SET_RETURN_PREVIOUS")]
    pub return_previous: bool,
}

/// Remove a key.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
A key that does not exist is exit code 3, as is one at another version.

Examples:
  larder del greeting
  larder del greeting --if-version 7")]
pub struct DelArgs {
    /// The key.
    pub key: OsString,
    /// Only if the key is at this version.
    #[arg(long, env = "LARDER_DEL_IF_VERSION", value_name = "VERSION", value_parser = clap::value_parser!(u64).range(1..))]
    pub if_version: Option<u64>,
}

/// Add to a number.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
The number is held as decimal text of 64 bits. The sum goes to standard output. If the outcome is unknown (the
connection broke), it is not tried again: read the key first.

Examples:
  larder incr visits
  larder incr stock -3
  larder incr ticket 1 --initial 1000     a missing key counts as 1000 before adding")]
pub struct IncrArgs {
    /// The key.
    pub key: OsString,
    /// What to add; may be negative.
    #[arg(default_value_t = 1, allow_negative_numbers = true)]
    pub delta: i64,
    /// What a missing key counts as before adding [default: 0].
    #[arg(long, env = "LARDER_INCR_INITIAL", value_name = "NUMBER", allow_negative_numbers = true)]
    pub initial: Option<i64>,
}

fn bytes(argument: OsString) -> Bytes {
    argument.into_vec().into()
}

/// `get`.
pub(super) async fn get(client: &Client, printer: Printer, args: GetArgs) -> Result<(), Failure> {
    let key = bytes(args.key);
    let consistency = if args.local { Consistency::Local } else { Consistency::Linearizable };
    let got = client.get_with(key.clone(), consistency).await?;
    let Some(found) = got.found else { return Err(missing(&key)) };
    if !printer.is_json() {
        return printer.bytes(&found.value);
    }
    let mut answer = object(&key);
    put_bytes(&mut answer, "value", &found.value);
    answer.insert("version".into(), found.version.into());
    answer.insert("revision".into(), got.header.revision.into());
    printer.json(&answer.into())
}

/// `set`.
pub(super) async fn set(client: &Client, printer: Printer, args: SetArgs) -> Result<(), Failure> {
    let value = if args.value == "-" { read_value()? } else { bytes(args.value) };
    let condition = match args.if_version {
        Some(version) => Condition::IfVersion(version),
        None if args.if_absent => Condition::IfAbsent,
        None if args.if_present => Condition::IfPresent,
        None => Condition::None,
    };
    let options = SetOptions { condition, return_previous: args.return_previous };
    let key = bytes(args.key);
    let set = client.set_with(key.clone(), value, options).await?;
    if !printer.is_json() {
        printer.note(&format!("set {} at version {}", shown(&key), set.version));
        return match set.previous {
            Some(previous) => printer.bytes(&previous.value),
            None => Ok(()),
        };
    }
    let mut answer = object(&key);
    answer.insert("version".into(), set.version.into());
    answer.insert("revision".into(), set.header.revision.into());
    if args.return_previous {
        answer.insert("previous".into(), set.previous.map_or(Value::Null, previous));
    }
    printer.json(&answer.into())
}

/// `del`.
pub(super) async fn del(client: &Client, printer: Printer, args: DelArgs) -> Result<(), Failure> {
    let key = bytes(args.key);
    let options = DeleteOptions { if_version: args.if_version, return_previous: false };
    let deleted = client.delete_with(key.clone(), options).await?;
    if !deleted.deleted {
        return Err(missing(&key));
    }
    if !printer.is_json() {
        printer.note(&format!("deleted {} at revision {}", shown(&key), deleted.header.revision));
        return Ok(());
    }
    let mut answer = object(&key);
    answer.insert("deleted".into(), true.into());
    answer.insert("revision".into(), deleted.header.revision.into());
    printer.json(&answer.into())
}

/// `incr`.
pub(super) async fn incr(client: &Client, printer: Printer, args: IncrArgs) -> Result<(), Failure> {
    let key = bytes(args.key);
    let sum = client.increment_with(key.clone(), args.delta, args.initial).await?;
    if !printer.is_json() {
        return printer.bytes(sum.value.to_string().as_bytes());
    }
    let mut answer = object(&key);
    answer.insert("value".into(), sum.value.into());
    answer.insert("version".into(), sum.version.into());
    answer.insert("revision".into(), sum.header.revision.into());
    printer.json(&answer.into())
}

fn missing(key: &[u8]) -> Failure {
    Failure::NotFound(format!("there is no key {}", shown(key)))
}

fn object(key: &[u8]) -> Map<String, Value> {
    let mut object = Map::new();
    put_bytes(&mut object, "key", key);
    object
}

fn previous(previous: Versioned) -> Value {
    let mut object = Map::new();
    put_bytes(&mut object, "value", &previous.value);
    object.insert("version".into(), previous.version.into());
    object.into()
}

/// The whole of standard input, as far as a value may go.
fn read_value() -> Result<Bytes, Failure> {
    let mut value = Vec::new();
    let most = MAX_VALUE_BYTES as u64;
    io::stdin()
        .lock()
        .take(most + 1)
        .read_to_end(&mut value)
        .map_err(|error| Failure::Io { what: "standard input cannot be read".into(), error })?;
    if value.len() > MAX_VALUE_BYTES {
        return Err(Failure::Input(format!(
            "standard input is longer than a value may be ({MAX_VALUE_BYTES} bytes); split it over several keys"
        )));
    }
    Ok(value.into())
}
