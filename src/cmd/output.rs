//! Writing answers and messages, in text or JSON.

use std::io::{self, Write};

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde_json::{Map, Value, json};

use super::Failure;

/// How answers and errors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people and for pipes.
    Text,
    /// For programs: one JSON value a line.
    Json,
}

/// Writes a command's answer.
#[derive(Debug, Clone, Copy)]
pub struct Printer {
    /// The form.
    pub output: Output,
}

impl Printer {
    /// A printer of that form.
    pub fn new(output: Output) -> Self {
        Self { output }
    }

    /// Whether it writes JSON.
    pub fn is_json(self) -> bool {
        self.output == Output::Json
    }

    /// Bytes and a newline, to standard output.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn bytes(self, bytes: &[u8]) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)
            .and_then(|()| out.write_all(b"\n"))
            .and_then(|()| out.flush())
            .map_err(Failure::stdout)
    }

    /// A JSON value on a line, to standard output.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn json(self, value: &Value) -> Result<(), Failure> {
        self.bytes(value.to_string().as_bytes())
    }

    /// A message to standard error. In JSON mode there are none: the answer says it.
    pub fn note(self, message: &str) {
        if !self.is_json() {
            complain(message);
        }
    }

    /// Why the command failed, to standard error.
    pub fn error(self, failure: &Failure) {
        if self.is_json() {
            complain(&error_json(failure.code(), failure.reason(), failure.applied(), &failure.to_string()));
        } else {
            complain(&format!("larder: {failure}"));
        }
    }
}

/// The form of every error in JSON.
pub(super) fn error_json(code: &str, reason: &str, applied: &str, message: &str) -> String {
    json!({ "error": { "code": code, "reason": reason, "message": message, "applied": applied } }).to_string()
}

/// A line to standard error. If that is closed there is nobody to tell, and nothing to do about it.
pub(super) fn complain(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Puts bytes in an object: as text under the name if they are UTF-8, else in base64 under the name with `_base64`.
pub(super) fn put_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_base64"), STANDARD.encode(bytes).into()),
    };
}

/// Bytes for a message: as text, with what is not UTF-8 or not to be printed escaped.
pub(super) fn shown(bytes: &[u8]) -> String {
    const MOST: usize = 64;
    let text = bytes[..bytes.len().min(MOST)].escape_ascii().to_string();
    match std::str::from_utf8(bytes) {
        Ok(whole) if bytes.len() <= MOST && !whole.contains(char::is_control) => whole.to_owned(),
        _ if bytes.len() > MOST => format!("{text}..."),
        _ => text,
    }
}

/// A table for a terminal and for pipes alike: columns, no lines. Those whose names are given are numbers.
pub(super) fn table(columns: &[&str], numbers: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(columns);
    for (index, name) in columns.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, 2));
            if numbers.contains(name) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    table
}

/// The table's lines without what is blank at their ends.
pub(super) fn trimmed(table: &Table) -> String {
    let lines: Vec<_> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}
