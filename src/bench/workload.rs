//! What is sent: which operations, on which keys, with which values. Deterministic.

use std::{fmt, ops::Range};

use bytes::{Bytes, BytesMut};
use rand::{Rng, RngCore, SeedableRng, rngs::SmallRng};
use rand_distr::{Distribution as _, Uniform, Zipf};
use serde::{Serialize, Serializer};

use crate::error::{Error, Result};

/// The most keys of a workload: they are made beforehand, 16 bytes each.
const MAX_KEYS: u64 = 4 << 20;

/// The longest value, as in the API.
const MAX_VALUE_BYTES: usize = 1 << 20;

/// The most operations in a batch, as in the API.
const MAX_BATCH: u32 = 1024;

/// The most bytes of keys and values in a batch, as in the API.
const MAX_BATCH_BYTES: usize = 4 << 20;

/// The length of every key.
const KEY_BYTES: usize = 16;

/// A value starts somewhere in so many bytes more than its own length, so that values differ without being made anew.
const VALUE_SLACK: usize = 4096;

/// Set, get or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkloadKind {
    /// Writes only.
    Set,
    /// Reads only, of keys that were loaded before.
    Get,
    /// Both, mixed at random.
    Mixed,
}

/// How keys are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Distribution {
    /// Every key alike.
    Uniform,
    /// The key of rank *r* in proportion to 1/r^theta; 0.99 is usual, 0 is uniform.
    Zipf {
        /// The exponent, finite and not negative.
        theta: f64,
    },
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => f.write_str("uniform"),
            Self::Zipf { theta } => write!(f, "zipf({theta})"),
        }
    }
}

impl Serialize for Distribution {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What the operations of a run are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Workload {
    /// Which operations.
    pub kind: WorkloadKind,
    /// The share of gets in [`WorkloadKind::Mixed`], 0 to 1; nothing to the others.
    pub get_ratio: f64,
    /// How many different keys, 1 to 4,194,304 (2^22).
    pub keys: u64,
    /// How they are drawn.
    pub distribution: Distribution,
    /// The length of every value in bytes, 0 to 1,048,576 (1 MiB).
    pub value_bytes: usize,
    /// Operations in one Batch request, 1 to 1,024 and at most 4 MiB of keys and values; `None`: unary requests.
    pub batch: Option<u32>,
    /// What the random streams start from.
    pub seed: u64,
}

impl Workload {
    /// Checks every limit.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the limit.
    pub fn validate(&self) -> Result<()> {
        if self.keys == 0 || self.keys > MAX_KEYS {
            return Err(Error::Invalid(format!("the key count must be 1 to {MAX_KEYS}, not {}", self.keys)));
        }
        if self.value_bytes > MAX_VALUE_BYTES {
            return Err(Error::Invalid(format!(
                "a value has at most {MAX_VALUE_BYTES} bytes, not {}",
                self.value_bytes
            )));
        }
        if !(0.0..=1.0).contains(&self.get_ratio) {
            return Err(Error::Invalid(format!("the share of gets must be 0 to 1, not {}", self.get_ratio)));
        }
        if let Distribution::Zipf { theta } = self.distribution
            && !(theta.is_finite() && theta >= 0.0)
        {
            return Err(Error::Invalid(format!("zipf's theta must be a number from 0, not {theta}")));
        }
        if let Some(batch) = self.batch {
            let bytes = batch as usize * (KEY_BYTES + self.value_bytes);
            if batch == 0 || batch > MAX_BATCH || bytes > MAX_BATCH_BYTES {
                return Err(Error::Invalid(format!(
                    "a batch has 1 to {MAX_BATCH} operations and at most {MAX_BATCH_BYTES} bytes, not {batch} with {bytes} bytes"
                )));
            }
        }
        Ok(())
    }

    /// Whether keys must be there before it starts.
    pub fn reads(&self) -> bool {
        match self.kind {
            WorkloadKind::Set => false,
            WorkloadKind::Get | WorkloadKind::Mixed => true,
        }
    }

    /// Its name in reports: `set`, `get` or `mixed`, and `-batch-N` only where batches are meant.
    pub fn name(&self) -> String {
        let kind = match self.kind {
            WorkloadKind::Set => "set",
            WorkloadKind::Get => "get",
            WorkloadKind::Mixed => "mixed",
        };
        match self.batch {
            Some(batch) => format!("{kind}-batch-{batch}"),
            None => kind.to_owned(),
        }
    }
}

/// One operation. Its bytes are slices of buffers that all operations share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Write it.
    Set {
        /// 16 bytes.
        key: Bytes,
        /// As long as the workload says.
        value: Bytes,
    },
    /// Read it.
    Get {
        /// 16 bytes.
        key: Bytes,
    },
}

/// A workload with its keys and values made: where the clients' streams come from.
#[derive(Debug, Clone)]
pub struct Source {
    workload: Workload,
    keys: Bytes,
    values: Bytes,
}

impl Source {
    /// Makes keys and values: 16 bytes a key, and one value's length and 4 KiB.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the workload is past a limit.
    pub fn new(workload: Workload) -> Result<Self> {
        workload.validate()?;
        let mut keys = BytesMut::with_capacity(workload.keys as usize * KEY_BYTES);
        for index in 0..workload.keys {
            keys.extend_from_slice(format!("key-{index:012}").as_bytes());
        }
        // Random bytes: no layer below can gain by compressing them.
        let mut values = vec![0; workload.value_bytes + VALUE_SLACK];
        SmallRng::seed_from_u64(workload.seed).fill_bytes(&mut values);
        Ok(Self { workload, keys: keys.freeze(), values: values.into() })
    }

    /// The workload it was made for.
    pub fn workload(&self) -> &Workload {
        &self.workload
    }

    /// A set of each key of the range, for loading; every key belongs to `0..workload().keys`.
    pub fn load(&self, range: Range<u64>) -> Vec<Operation> {
        let value = self.values.slice(..self.workload.value_bytes);
        range.map(|index| Operation::Set { key: self.key(index), value: value.clone() }).collect()
    }

    /// The operations of a client: the same for the same workload, seed and client.
    pub fn stream(&self, client: usize) -> Stream {
        // An odd constant spreads neighbouring clients over the whole range of seeds (as in SplitMix64).
        let seed = self
            .workload
            .seed
            .wrapping_add((client as u64).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let keys = self.workload.keys;
        let sampler = match self.workload.distribution {
            Distribution::Uniform => {
                Sampler::Uniform(Uniform::new(0, keys).expect("validated: there is a key"))
            }
            Distribution::Zipf { theta } => {
                Sampler::Zipf(Zipf::new(keys as f64, theta).expect("validated: keys and theta are in range"))
            }
        };
        let get_ratio = match self.workload.kind {
            WorkloadKind::Set => 0.0,
            WorkloadKind::Get => 1.0,
            WorkloadKind::Mixed => self.workload.get_ratio,
        };
        Stream { source: self.clone(), rng: SmallRng::seed_from_u64(seed), sampler, get_ratio }
    }

    fn key(&self, index: u64) -> Bytes {
        let start = index as usize * KEY_BYTES;
        self.keys.slice(start..start + KEY_BYTES)
    }
}

#[derive(Debug, Clone)]
enum Sampler {
    Uniform(Uniform<u64>),
    Zipf(Zipf<f64>),
}

/// The endless operations of one client.
#[derive(Debug, Clone)]
pub struct Stream {
    source: Source,
    rng: SmallRng,
    sampler: Sampler,
    get_ratio: f64,
}

impl Stream {
    /// The next operation. Allocates nothing.
    pub fn next_operation(&mut self) -> Operation {
        let get = self.get_ratio > 0.0 && self.rng.random_bool(self.get_ratio);
        let index = match &self.sampler {
            Sampler::Uniform(uniform) => uniform.sample(&mut self.rng),
            // Ranks are whole numbers from 1; the minimum guards against rounding at the far end.
            Sampler::Zipf(zipf) => {
                ((zipf.sample(&mut self.rng) as u64).saturating_sub(1)).min(self.source.workload.keys - 1)
            }
        };
        let key = self.source.key(index);
        if get {
            return Operation::Get { key };
        }
        let offset = self.rng.random_range(0..VALUE_SLACK);
        Operation::Set {
            key,
            value: self.source.values.slice(offset..offset + self.source.workload.value_bytes),
        }
    }

    /// The next operations of one batch.
    pub fn next_batch(&mut self, operations: u32) -> Vec<Operation> {
        (0..operations).map(|_| self.next_operation()).collect()
    }
}
