//! Scan: chunks out of a frozen view, made when the client takes them.
//!
//! The stream is pulled: a chunk is collected when HTTP/2 has room for it, so that a slow client costs the view it
//! keeps and one chunk, and no task or queue. Every chunk goes on after the last key of the one before.

use std::{pin::Pin, sync::Arc, task};

use bytes::Bytes;
use futures::Stream;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::{
    admission::Pass,
    cache::{Api, wrong_answer},
    convert::{self, Scan},
};
use crate::{
    error::Result,
    observe::RequestMethod,
    proto::v1 as pb,
    service::Ctx,
    state::{Found, Query, Versioned, View},
};

/// About the most bytes of a chunk: past it no entry is added.
const CHUNK_BYTES: usize = 1024 * 1024;
/// What an entry costs in a chunk besides its key and value, about.
const ENTRY_BYTES: usize = 24;

/// The entries of a view in byte order: those whose keys begin with `prefix` and come after `start_after`.
fn entries<'a>(
    view: &'a View,
    prefix: &'a [u8],
    start_after: &'a [u8],
) -> impl Iterator<Item = (&'a [u8], &'a Versioned)> {
    view.range(prefix, start_after)
}

/// Freezes the state and starts to stream it.
///
/// # Errors
/// If the read is refused, or too many scans are under way.
pub(super) async fn start(api: &Arc<Api>, scan: Scan, ctx: Ctx) -> Result<ScanStream> {
    let room = api.admission.scan()?;
    let begun = Instant::now();
    let query = Query::Scan { keyspace: convert::DEFAULT_KEYSPACE };
    let answer = api.deps.cache.read(query, scan.consistency, ctx).await?;
    let Found::View(view) = answer.found else { return Err(wrong_answer()) };
    Ok(ScanStream {
        view,
        cursor: Cursor { left: scan.limit, after: scan.start_after.clone(), scan, clock_ms: answer.clock.0 },
        header: api.header(answer.revision, answer.clock.0),
        ended: false,
        begun,
        api: Arc::clone(api),
        _room: room,
    })
}

/// A scan under way.
pub(super) struct ScanStream {
    view: View,
    cursor: Cursor,
    header: Option<pb::ResponseHeader>,
    ended: bool,
    begun: Instant,
    api: Arc<Api>,
    _room: Pass,
}

/// How far a scan is.
struct Cursor {
    scan: Scan,
    /// The last key given.
    after: Bytes,
    /// How many keys may still be given; `None`: all.
    left: Option<u64>,
    clock_ms: i64,
}

impl Cursor {
    /// The next entries, and whether they are the last. `found` gives everything after [`Self::after`].
    fn chunk<'a>(
        &mut self,
        found: impl Iterator<Item = (&'a [u8], &'a Versioned)>,
    ) -> (Vec<pb::Entry>, bool) {
        let mut entries = Vec::new();
        let mut bytes = 0;
        for (key, found) in found {
            if self.left == Some(0) {
                return (entries, true);
            }
            let value = if self.scan.keys_only { Bytes::new() } else { found.value.clone() };
            let size = key.len() + value.len() + ENTRY_BYTES;
            if bytes + size > CHUNK_BYTES && !entries.is_empty() {
                return (entries, false);
            }
            bytes += size;
            self.left = self.left.map(|left| left - 1);
            let key = Bytes::copy_from_slice(key);
            self.after = key.clone();
            let ttl_ms = convert::ttl_ms(found, self.clock_ms);
            entries.push(pb::Entry { key, value, version: found.version, ttl_ms });
        }
        (entries, true)
    }
}

impl Stream for ScanStream {
    type Item = Result<pb::ScanResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, _: &mut task::Context<'_>) -> task::Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.ended {
            return task::Poll::Ready(None);
        }
        let (prefix, after) = (this.cursor.scan.prefix.clone(), this.cursor.after.clone());
        let (entries, done) = this.cursor.chunk(entries(&this.view, &prefix, &after));
        this.ended = done;
        task::Poll::Ready(Some(Ok(pb::ScanResponse { header: this.header.clone(), entries, done })))
    }
}

impl Drop for ScanStream {
    fn drop(&mut self) {
        let code = if self.ended { Code::Ok } else { Code::Cancelled };
        self.api.deps.metrics.request(RequestMethod::Scan, code as u8, self.begun.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::service::Consistency;

    fn cursor(limit: Option<u64>, keys_only: bool) -> Cursor {
        let scan = Scan {
            prefix: Bytes::new(),
            start_after: Bytes::new(),
            limit,
            keys_only,
            consistency: Consistency::Local,
        };
        Cursor { scan, after: Bytes::new(), left: limit, clock_ms: 0 }
    }

    fn drain(mut cursor: Cursor, keys: &BTreeMap<Bytes, Versioned>) -> Vec<Vec<pb::Entry>> {
        let mut chunks = Vec::new();
        loop {
            let after = cursor.after.clone();
            let rest = keys.iter().filter(|(key, _)| **key > after).map(|(k, v)| (&k[..], v));
            let (entries, done) = cursor.chunk(rest);
            chunks.push(entries);
            if done {
                return chunks;
            }
        }
    }

    fn keys(count: usize, value: usize) -> BTreeMap<Bytes, Versioned> {
        let value = Bytes::from(vec![7; value]);
        (0..count)
            .map(|i| {
                (format!("{i:06}").into(), Versioned { value: value.clone(), version: 1, deadline: None })
            })
            .collect()
    }

    #[test]
    fn chunks_stay_at_a_mebibyte_and_together_give_every_key_once_and_in_order() {
        let keys = keys(3000, 1000);
        let chunks = drain(cursor(None, false), &keys);
        assert!(chunks.len() > 2);
        for chunk in &chunks {
            assert!(chunk.iter().map(|e| e.key.len() + e.value.len()).sum::<usize>() <= CHUNK_BYTES);
            assert!(!chunk.is_empty());
        }
        assert!(chunks.iter().flatten().map(|e| &e.key).eq(keys.keys()));
    }

    #[test]
    fn a_value_at_the_limit_gets_a_chunk_of_its_own() {
        let chunks = drain(cursor(None, false), &keys(3, crate::state::MAX_VALUE_BYTES));
        assert_eq!(chunks.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1]);
    }

    #[test]
    fn a_limit_ends_the_scan_and_keys_only_leaves_values_out() {
        let chunks = drain(cursor(Some(10), true), &keys(3000, 1000));
        assert_eq!(chunks.iter().map(Vec::len).collect::<Vec<_>>(), [10]);
        assert!(chunks[0].iter().all(|e| e.value.is_empty()));
        assert_eq!(drain(cursor(None, false), &BTreeMap::new()), [vec![]]);
    }
}
