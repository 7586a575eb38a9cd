//! The data operations.

use bytes::Bytes;
use tonic::transport::Channel;

use super::{
    BatchResult, Client, ClientError, Consistency, DeleteOptions, DeleteResult, GetResult, Header,
    IncrementResult, Operation, SetOptions, SetResult,
    pool::Prefer,
    remote::MAX_ANSWER_BYTES,
    retry::Kind,
    types::{batch_operation, batch_outcome, delete_request, read_options, set_request},
};
use crate::proto::v1::{self as pb, cache_client::CacheClient};

/// The stub on a connection. Costs nothing.
pub(super) fn stub(channel: Channel) -> CacheClient<Channel> {
    CacheClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}

impl Client {
    /// Who a read prefers.
    pub(super) fn prefer(&self, consistency: Consistency) -> Prefer {
        match consistency {
            Consistency::Local => Prefer::First,
            Consistency::Linearizable if self.pool.options.spread_reads => Prefer::Any,
            Consistency::Linearizable => Prefer::Leader,
        }
    }

    /// Reads a key (1 to 4,096 bytes), seeing every write acknowledged before.
    ///
    /// # Errors
    /// If nobody can answer in time, or the key has a wrong length. A missing key is no error.
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<GetResult, ClientError> {
        self.get_with(key, Consistency::Linearizable).await
    }

    /// Reads a key, as fresh as asked.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn get_with(
        &self,
        key: impl Into<Bytes>,
        consistency: Consistency,
    ) -> Result<GetResult, ClientError> {
        let request =
            pb::GetRequest { key: key.into(), read: read_options(consistency), ..pb::GetRequest::default() };
        let send = |channel, request| async move { stub(channel).get(request).await };
        Ok(self.call(Kind::Read, self.prefer(consistency), request, send).await?.into())
    }

    /// Writes a key (1 to 4,096 bytes) to a value (0 to 1,048,576 bytes). Answered once a majority has it on disk.
    ///
    /// # Errors
    /// [`ClientError::OutcomeUnknown`] if it may have been applied; any other error says that it was not.
    pub async fn set(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<SetResult, ClientError> {
        self.set_with(key, value, SetOptions::default()).await
    }

    /// Writes a key under a condition, or answering what was there.
    ///
    /// # Errors
    /// As [`Client::set`], and [`ClientError::is_condition_failed`].
    pub async fn set_with(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        options: SetOptions,
    ) -> Result<SetResult, ClientError> {
        let request = set_request(key.into(), value.into(), options);
        let send = |channel, request| async move { stub(channel).set(request).await };
        Ok(self.call(Kind::Write, Prefer::Leader, request, send).await?.into())
    }

    /// Removes a key. That there was none is an answer, not an error.
    ///
    /// # Errors
    /// As [`Client::set`].
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<DeleteResult, ClientError> {
        self.delete_with(key, DeleteOptions::default()).await
    }

    /// Removes a key at a version, or answering what was there.
    ///
    /// # Errors
    /// As [`Client::set`], and [`ClientError::is_condition_failed`].
    pub async fn delete_with(
        &self,
        key: impl Into<Bytes>,
        options: DeleteOptions,
    ) -> Result<DeleteResult, ClientError> {
        let request = delete_request(key.into(), options)?;
        let send = |channel, request| async move { stub(channel).delete(request).await };
        Ok(self.call(Kind::Write, Prefer::Leader, request, send).await?.into())
    }

    /// Adds to a number held as decimal text; a missing key counts as 0.
    ///
    /// # Errors
    /// As [`Client::set`], and [`ClientError::is_not_a_number`], [`ClientError::is_out_of_range`].
    pub async fn increment(&self, key: impl Into<Bytes>, delta: i64) -> Result<IncrementResult, ClientError> {
        self.increment_with(key, delta, None).await
    }

    /// Adds to a number; a missing key counts as `initial` before adding.
    ///
    /// # Errors
    /// As [`Client::increment`].
    pub async fn increment_with(
        &self,
        key: impl Into<Bytes>,
        delta: i64,
        initial: Option<i64>,
    ) -> Result<IncrementResult, ClientError> {
        let request =
            pb::IncrementRequest { key: key.into(), delta, initial, ..pb::IncrementRequest::default() };
        let send = |channel, request| async move { stub(channel).increment(request).await };
        Ok(self.call(Kind::Write, Prefer::Leader, request, send).await?.into())
    }

    /// Independent operations (1 to 1,024, 4 MiB of keys and values in all) in one round trip, in order, each with its
    /// own outcome. Not atomic.
    ///
    /// # Errors
    /// Of the batch as a whole: [`ClientError::OutcomeUnknown`] if some of its writes may have been applied; any other
    /// error says that nothing was. Errors of single operations are in the result.
    pub async fn batch(&self, operations: Vec<Operation>) -> Result<BatchResult, ClientError> {
        let kind = if operations.iter().any(Operation::is_write) { Kind::Write } else { Kind::Read };
        let count = operations.len();
        let operations = operations.into_iter().map(batch_operation).collect::<Result<_, _>>()?;
        let request = pb::BatchRequest { operations, read: None };
        let send = |channel, request| async move { stub(channel).batch(request).await };
        let answer = self.call(kind, Prefer::Leader, request, send).await?;
        if answer.results.len() != count {
            return Err(ClientError::BadAnswer(format!(
                "the node answered {} results to {count} operations; read the keys before writing again",
                answer.results.len()
            )));
        }
        let header = Header::from(answer.header);
        let results = answer.results.into_iter().map(|result| batch_outcome(result, &header)).collect();
        Ok(BatchResult { header, results })
    }
}
