//! Scan: a stream of keys, which knows whether it is whole.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{
    Stream, StreamExt,
    stream::{BoxStream, try_unfold},
};
use tokio::time::timeout;
use tonic::{Code, Streaming};

use super::{
    Client, ClientError, Entry, ScanOptions,
    error::{Failure, classify},
    ops::stub,
    retry::Kind,
    types::read_options,
};
use crate::proto::v1 as pb;

/// How often a scan is taken up again without one more key in between.
const MAX_RESUMES: u32 = 8;

/// The keys of a scan, in byte order. Ends after the last one; a stream that was cut off ends with an error instead, so
/// that its end always means "all".
pub struct Scan {
    entries: BoxStream<'static, Result<Entry, ClientError>>,
}

impl fmt::Debug for Scan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scan").finish_non_exhaustive()
    }
}

impl Stream for Scan {
    type Item = Result<Entry, ClientError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().entries.poll_next_unpin(cx)
    }
}

impl Client {
    /// Streams keys in byte order, all as of one revision. Nothing is sent before the stream is polled.
    ///
    /// The stream ends with an error if it cannot begin, or is cut off and is not (or no longer) to be taken up again.
    pub fn scan(&self, options: ScanOptions) -> Scan {
        let progress = Progress {
            client: self.clone(),
            after: options.start_after.clone(),
            left: options.limit,
            options,
            stream: None,
            entries: VecDeque::new(),
            done: false,
            resumes: 0,
            count: 0,
        };
        Scan { entries: try_unfold(progress, Progress::next).boxed() }
    }
}

/// How far a scan is.
struct Progress {
    client: Client,
    options: ScanOptions,
    /// The last key received.
    after: Bytes,
    /// How many keys may still come, if there is a limit.
    left: u64,
    stream: Option<Streaming<pb::ScanResponse>>,
    /// Received and not given yet.
    entries: VecDeque<Entry>,
    done: bool,
    /// Since the last key.
    resumes: u32,
    count: u64,
}

impl Progress {
    async fn next(mut self) -> Result<Option<(Entry, Self)>, ClientError> {
        loop {
            if let Some(entry) = self.entries.pop_front() {
                self.count += 1;
                return Ok(Some((entry, self)));
            }
            if self.done {
                return Ok(None);
            }
            let stream = match &mut self.stream {
                Some(stream) => stream,
                None => {
                    let stream = self.begin().await?;
                    self.stream.insert(stream)
                }
            };
            let cut = match timeout(self.client.timeout, stream.message()).await {
                Ok(Ok(Some(chunk))) => {
                    self.take(chunk);
                    continue;
                }
                Ok(Ok(None)) => "the stream ended early".to_owned(),
                Ok(Err(status)) => match classify(&status) {
                    Failure::Answered(refusal)
                        if !matches!(refusal.code, Code::Unavailable | Code::Unknown) =>
                    {
                        return Err(ClientError::Refused(Box::new(refusal)));
                    }
                    Failure::Answered(refusal) => refusal.message,
                    Failure::NotSent(why) | Failure::Broken(why) => why,
                    Failure::TimedOut => "no answer in time".to_owned(),
                },
                Err(_) => format!("nothing came for {:?}", self.client.timeout),
            };
            self.stream = None;
            self.resumes += 1;
            if !self.options.resume || self.resumes > MAX_RESUMES {
                return Err(ClientError::Broken(format!(
                    "the scan was cut off after {} keys ({cut}); what came is not all: scan again, or go on after the \
                     last key",
                    self.count
                )));
            }
        }
    }

    async fn begin(&self) -> Result<Streaming<pb::ScanResponse>, ClientError> {
        let request = pb::ScanRequest {
            keyspace: String::new(),
            prefix: self.options.prefix.clone(),
            start_after: self.after.clone(),
            limit: self.left,
            keys_only: self.options.keys_only,
            read: read_options(self.options.consistency),
        };
        let send = |channel, mut request: tonic::Request<pb::ScanRequest>| async move {
            // The deadline is for the answer to begin, which this side watches; a long scan may take longer.
            request.metadata_mut().remove("grpc-timeout");
            stub(channel).scan(request).await
        };
        self.client.call(Kind::Read, self.client.prefer(self.options.consistency), request, send).await
    }

    fn take(&mut self, chunk: pb::ScanResponse) {
        let revision = chunk.header.map_or(0, |header| header.revision);
        for entry in chunk.entries {
            self.resumes = 0;
            self.after = entry.key.clone();
            self.entries.push_back(Entry {
                key: entry.key,
                value: entry.value,
                version: entry.version,
                revision,
            });
            if self.options.limit > 0 {
                self.left = self.left.saturating_sub(1);
                // A limit of 0 would ask for everything.
                if self.left == 0 {
                    self.done = true;
                    return;
                }
            }
        }
        self.done |= chunk.done;
    }
}
