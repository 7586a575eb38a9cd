//! `load`: many keys from JSON lines.
//!
//! A thread reads lines and makes batches; some batches are in flight at once. What makes it safe to interrupt and to repeat:
//! * Setting a key to the value that it has already changes nothing but its version. So a batch whose outcome is unknown is
//!   simply sent again, and so may be the whole file.
//! * Lines for one key keep their order: within a batch only the last of them is sent, and a batch waits for those in
//!   flight that have a key of it. (If an outcome was unknown, the lost request may, within its deadline, still
//!   come after the one that was sent again; it has the same value.)
//! * [`Checkpoint`] is written behind the last line before which all are acknowledged, never ahead of it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    Failure, Printer,
    checkpoint::{Checkpoint, FileIdentity, Position},
    line, positive_duration,
};
use crate::{
    client::{Client, ClientError, Operation, SetOptions},
    state::MAX_BATCH_OPERATIONS,
};

/// The longest line: a value of the longest with every byte escaped as six, and the key.
const MAX_LINE_BYTES: u64 = 8 * 1024 * 1024;

/// A batch is sent once it has so many bytes; with the longest value on top it stays below the 4 MiB of a batch.
const BATCH_BYTES: usize = 1024 * 1024;

/// How many batches wait read for a place in flight.
const READ_AHEAD: usize = 4;

/// How often the checkpoint is written, at most.
const CHECKPOINT_PERIOD: Duration = Duration::from_secs(1);

/// How long to wait before a batch is sent again. The client has waited longer already.
const AGAIN: Duration = Duration::from_millis(200);

/// Write many keys, from JSON lines.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
One line a key: {\"key\":\"k\",\"value\":\"v\"}. What is not UTF-8 goes in base64, as key_base64 or value_base64. `larder dump`
writes such lines. If a key comes twice, the later line counts.

Safe to interrupt and to repeat: how far it came is kept in FILE.larder-progress, from where the same command goes on;
the file is removed at the end. Lines whose outcome is unknown are set again, to the same value. A line that is wrong
stops the load and is named; the lines before it are written.

Examples:
  larder load users.jsonl
  larder dump --prefix user: | larder --endpoints other:7400 load -
  larder load users.jsonl --restart       from the first line")]
pub struct LoadArgs {
    /// The file, or `-` for standard input (which cannot be gone on with).
    pub file: PathBuf,
    /// Begin at the first line, whatever was done before.
    #[arg(long, env = "LARDER_LOAD_RESTART")]
    pub restart: bool,
    /// How many lines go in one request.
    #[arg(long, env = "LARDER_LOAD_BATCH", value_name = "LINES", default_value_t = 256,
          value_parser = clap::value_parser!(u64).range(1..=MAX_BATCH_OPERATIONS as u64))]
    pub batch: u64,
    /// How many requests are in flight.
    #[arg(long, env = "LARDER_LOAD_IN_FLIGHT", value_name = "N", default_value_t = 8,
          value_parser = clap::value_parser!(u64).range(1..=256))]
    pub in_flight: u64,
    /// How long to keep trying when the cluster does not take a request.
    #[arg(long, env = "LARDER_LOAD_PATIENCE", value_name = "TIME", default_value = "1m", value_parser = positive_duration)]
    pub patience: Duration,
}

/// Lines to be sent together.
#[derive(Debug)]
struct Batch {
    /// Counted from 0.
    sequence: u64,
    sets: Vec<(Bytes, Bytes)>,
    /// Behind its last line.
    end: Position,
}

/// `load`.
pub(super) async fn run(client: &Client, printer: Printer, args: LoadArgs) -> Result<(), Failure> {
    let cluster_id = client.members().await?.header.cluster_id;
    let (source, checkpoint) = open(&args.file, cluster_id)?;
    let mut start = Position::default();
    if let Some(checkpoint) = checkpoint.as_ref().filter(|_| !args.restart) {
        match checkpoint.read() {
            Ok(Some(position)) => {
                printer.note(&format!("going on behind line {}", position.lines));
                start = position;
            }
            Ok(None) => {}
            Err(why) => printer.note(&format!(
                "{} does not count, {why}: beginning at the first line",
                checkpoint.path().display()
            )),
        }
    }
    let bar = progress(checkpoint.as_ref().map(|_| source.length), start.offset);
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    let lines_per_batch = usize::try_from(args.batch).unwrap_or(MAX_BATCH_OPERATIONS);
    // Ends by itself once the receiver is gone; waiting for more input then, it is left behind.
    std::thread::spawn(move || read(source, start, lines_per_batch, &sender));
    let mut load = Load {
        client,
        args: &args,
        checkpoint: checkpoint.as_ref(),
        tasks: JoinSet::new(),
        busy: HashSet::new(),
        done: BTreeMap::new(),
        next: 0,
        position: start,
        written: Instant::now(),
        bar: &bar,
        printer,
    };
    let result = load.drive(receiver).await;
    let position = load.position;
    bar.finish_and_clear();
    match (&result, &checkpoint) {
        (Ok(()), Some(checkpoint)) => checkpoint.remove().map_err(|error| Failure::Io {
            what: format!("{} cannot be removed", checkpoint.path().display()),
            error,
        })?,
        (Err(_), Some(_)) if position.lines > start.lines => load.write_checkpoint(),
        _ => {}
    }
    result?;
    if printer.is_json() {
        return printer.json(&json!({ "lines": position.lines, "resumed_after_line": start.lines }));
    }
    printer.note(&format!("loaded {} lines", position.lines - start.lines));
    Ok(())
}

/// Where lines come from.
struct Source {
    input: Box<dyn Input>,
    length: u64,
}

/// What can be read, and if it is a file, gone on with.
trait Input: Send {
    fn begin(self: Box<Self>, at: u64) -> io::Result<Box<dyn BufRead>>;
}

struct Stdin;

impl Input for Stdin {
    fn begin(self: Box<Self>, _: u64) -> io::Result<Box<dyn BufRead>> {
        Ok(Box::new(BufReader::with_capacity(256 * 1024, io::stdin())))
    }
}

/// A named pipe or a device.
struct Pipe(File);

impl Input for Pipe {
    fn begin(self: Box<Self>, _: u64) -> io::Result<Box<dyn BufRead>> {
        Ok(Box::new(BufReader::with_capacity(256 * 1024, self.0)))
    }
}

impl Input for File {
    fn begin(mut self: Box<Self>, at: u64) -> io::Result<Box<dyn BufRead>> {
        self.seek(SeekFrom::Start(at))?;
        Ok(Box::new(BufReader::with_capacity(256 * 1024, *self)))
    }
}

fn open(path: &Path, cluster_id: String) -> Result<(Source, Option<Checkpoint>), Failure> {
    if path == Path::new("-") {
        return Ok((Source { input: Box::new(Stdin), length: 0 }, None));
    }
    let failed = |error| Failure::Io { what: format!("{} cannot be read", path.display()), error };
    let file = File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        // A pipe can be read once only, and has no end to count to.
        return Ok((Source { input: Box::new(Pipe(file)), length: 0 }, None));
    }
    let identity = FileIdentity::of(&file).map_err(failed)?;
    let length = identity.length();
    let checkpoint = Checkpoint::new(path, identity, cluster_id);
    Ok((Source { input: Box::new(file), length }, Some(checkpoint)))
}

fn progress(length: Option<u64>, from: u64) -> ProgressBar {
    let (bar, template) = match length {
        Some(length) => (
            ProgressBar::new(length),
            "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {msg}, {eta} left",
        ),
        None => (ProgressBar::new_spinner(), "{spinner} {bytes}, {bytes_per_sec}, {msg}"),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_position(from);
    bar
}

/// Reads lines and makes batches, until the end, the first error, or until nobody takes them any more.
fn read(source: Source, start: Position, lines: usize, sender: &mpsc::Sender<Result<Batch, Failure>>) {
    let failed = |error| Failure::Io { what: "the input cannot be read".into(), error };
    let mut input = match source.input.begin(start.offset) {
        Ok(input) => input,
        Err(error) => {
            let _ = sender.blocking_send(Err(failed(error)));
            return;
        }
    };
    let mut position = start;
    for sequence in 0.. {
        let begin = position;
        let (batch, end) = read_batch(&mut *input, sequence, &mut position, lines);
        if batch.end != begin && sender.blocking_send(Ok(batch)).is_err() {
            return;
        }
        match end {
            End::Full => {}
            End::OfInput => return,
            End::Wrong(failure) => {
                let _ = sender.blocking_send(Err(failure));
                return;
            }
        }
    }
}

/// Why a batch is not longer.
enum End {
    Full,
    OfInput,
    Wrong(Failure),
}

fn read_batch(input: &mut dyn BufRead, sequence: u64, position: &mut Position, lines: usize) -> (Batch, End) {
    let mut sets: Vec<(Bytes, Bytes)> = Vec::new();
    let mut places: HashMap<Bytes, usize> = HashMap::new();
    let (mut count, mut bytes) = (0, 0);
    let mut line = Vec::new();
    let end = loop {
        if count >= lines || bytes >= BATCH_BYTES {
            break End::Full;
        }
        line.clear();
        let read = match input.take(MAX_LINE_BYTES).read_until(b'\n', &mut line) {
            Ok(0) => break End::OfInput,
            Ok(read) => read as u64,
            Err(error) => break End::Wrong(Failure::Io { what: "the input cannot be read".into(), error }),
        };
        let number = position.lines + 1;
        if read == MAX_LINE_BYTES && !line.ends_with(b"\n") {
            break End::Wrong(Failure::Input(format!(
                "line {number}: it is longer than {MAX_LINE_BYTES} bytes, more than any key and value need"
            )));
        }
        if !line.trim_ascii().is_empty() {
            let (key, value) = match line::parse(&line) {
                Ok(parsed) => parsed,
                Err(why) => {
                    break End::Wrong(Failure::Input(format!(
                        "line {number}: {why}; the lines before it are written"
                    )));
                }
            };
            bytes += key.len() + value.len();
            count += 1;
            match places.get(&key) {
                // The later line counts.
                Some(place) => sets[*place].1 = value,
                None => {
                    places.insert(key.clone(), sets.len());
                    sets.push((key, value));
                }
            }
        }
        position.lines = number;
        position.offset += read;
    };
    (Batch { sequence, sets, end: *position }, end)
}

/// A load under way.
struct Load<'a> {
    client: &'a Client,
    args: &'a LoadArgs,
    checkpoint: Option<&'a Checkpoint>,
    tasks: JoinSet<Result<Batch, ClientError>>,
    /// Keys in flight.
    busy: HashSet<Bytes>,
    /// Ends of the batches that are acknowledged while one before them is not.
    done: BTreeMap<u64, Position>,
    /// The sequence of the first batch that is not acknowledged.
    next: u64,
    /// Everything before it is acknowledged.
    position: Position,
    written: Instant,
    bar: &'a ProgressBar,
    printer: Printer,
}

impl Load<'_> {
    /// Sends everything. After an error, what is in flight is waited for: it is as good as done.
    async fn drive(&mut self, mut batches: mpsc::Receiver<Result<Batch, Failure>>) -> Result<(), Failure> {
        let mut ended = None;
        loop {
            tokio::select! {
                biased;
                Some(finished) = self.tasks.join_next(), if !self.tasks.is_empty() => self.finish(finished)?,
                batch = batches.recv(), if ended.is_none() => match batch {
                    Some(Ok(batch)) => self.send(batch).await?,
                    Some(Err(wrong)) => ended = Some(Err(wrong)),
                    None => ended = Some(Ok(())),
                },
                else => return ended.unwrap_or(Ok(())),
            }
        }
    }

    async fn send(&mut self, batch: Batch) -> Result<(), Failure> {
        let most = usize::try_from(self.args.in_flight).unwrap_or(usize::MAX);
        while self.tasks.len() >= most || batch.sets.iter().any(|(key, _)| self.busy.contains(key)) {
            let Some(finished) = self.tasks.join_next().await else { break };
            self.finish(finished)?;
        }
        self.busy.extend(batch.sets.iter().map(|(key, _)| key.clone()));
        self.tasks.spawn(store(self.client.clone(), batch, self.args.patience));
        Ok(())
    }

    fn finish(
        &mut self,
        finished: Result<Result<Batch, ClientError>, tokio::task::JoinError>,
    ) -> Result<(), Failure> {
        let stored = finished.map_err(|error| Failure::Io {
            what: "a request was given up".into(),
            error: io::Error::other(error),
        })?;
        let batch = stored.map_err(|cause| {
            let again = match self.checkpoint {
                Some(_) => "the same command goes on from there",
                None => "load it again from the first line, which does no harm",
            };
            let message = format!("stopped behind line {}: {cause}; {again}", self.position.lines);
            Failure::Stopped { cause, message }
        })?;
        for (key, _) in &batch.sets {
            self.busy.remove(key);
        }
        self.done.insert(batch.sequence, batch.end);
        while let Some(end) = self.done.remove(&self.next) {
            self.next += 1;
            self.position = end;
        }
        self.bar.set_position(self.position.offset);
        self.bar.set_message(format!("{} lines", self.position.lines));
        if self.written.elapsed() >= CHECKPOINT_PERIOD {
            self.write_checkpoint();
        }
        Ok(())
    }

    fn write_checkpoint(&mut self) {
        self.written = Instant::now();
        let Some(checkpoint) = self.checkpoint else { return };
        // Only the comfort of going on is lost, not the load.
        if let Err(error) = checkpoint.write(self.position) {
            let path = checkpoint.path().display();
            self.bar.suspend(|| self.printer.note(&format!("{path} cannot be written: {error}")));
            self.checkpoint = None;
        }
    }
}

/// Writes a batch, trying what was not acknowledged again until it is or patience ends.
async fn store(client: Client, batch: Batch, patience: Duration) -> Result<Batch, ClientError> {
    let mut left = batch.sets.clone();
    let until = Instant::now() + patience;
    while !left.is_empty() {
        let operations = left.iter().map(|(key, value)| Operation::Set {
            key: key.clone(),
            value: value.clone(),
            options: SetOptions::default(),
        });
        let mut last = None;
        match client.batch(operations.collect()).await {
            Ok(answer) => {
                let mut results = answer.results.into_iter();
                let mut fatal = None;
                left.retain(|_| match results.next() {
                    Some(Ok(_)) => false,
                    Some(Err(error)) if may_be_sent_again(&error) => {
                        last = Some(error);
                        true
                    }
                    Some(Err(error)) => {
                        fatal = Some(error);
                        true
                    }
                    None => true,
                });
                if let Some(error) = fatal {
                    return Err(error);
                }
            }
            Err(error) if may_be_sent_again(&error) => last = Some(error),
            Err(error) => return Err(error),
        }
        if let Some(error) = last {
            if Instant::now() + AGAIN >= until {
                return Err(error);
            }
            sleep(AGAIN).await;
        }
    }
    Ok(batch)
}

/// Setting to the same value once more does no harm, so an unknown outcome is as good as none.
fn may_be_sent_again(error: &ClientError) -> bool {
    error.is_outcome_unknown() || error.is_unavailable()
}
