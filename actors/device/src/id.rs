//! Names: devices, shards.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use thiserror::Error;

/// Longest device id in bytes. It is a topic level and a Parquet key; 128 holds any serial number or URN in use.
pub const MAX_DEVICE_ID: usize = 128;

/// The name of one device: 1 to [`MAX_DEVICE_ID`] characters of `A-Z a-z 0-9 . _ : @ = ~ -`.
///
/// It is one MQTT topic level (`devices/{id}/...`), so no `/`, `+`, `#`, space, control or non-ASCII character.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(Arc<str>);

/// Why a text is not a device id.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IdError {
    /// No characters.
    #[error("a device id must not be empty")]
    Empty,
    /// More than [`MAX_DEVICE_ID`] bytes.
    #[error("a device id has at most {MAX_DEVICE_ID} characters, this one has {0}")]
    TooLong(usize),
    /// A character outside the allowed set.
    #[error("a device id may hold only letters, digits and . _ : @ = ~ -, found {0:?}")]
    Character(char),
}

impl DeviceId {
    /// Checks and takes a name.
    pub fn new(text: &str) -> Result<Self, IdError> {
        if text.is_empty() {
            return Err(IdError::Empty);
        }
        if text.len() > MAX_DEVICE_ID {
            return Err(IdError::TooLong(text.len()));
        }
        match text.chars().find(|c| !(c.is_ascii_alphanumeric() || "._:@=~-".contains(*c))) {
            Some(c) => Err(IdError::Character(c)),
            None => Ok(Self(Arc::from(text))),
        }
    }

    /// The id that stands in entries whose sender named no valid device. It cannot collide: `~` alone is
    /// reserved and refused by the gateway.
    pub fn nobody() -> Self {
        Self(Arc::from("~"))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The shard of `shards` that owns this device: FNV-1a (64 bit) modulo `shards`.
    ///
    /// The mapping is part of the stored format: it must never change for an existing data directory.
    pub fn shard(&self, shards: u16) -> ShardId {
        ShardId::of(self.0.as_bytes(), shards)
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceId({})", self.0)
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for DeviceId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// One of the fixed number of shards of a data directory, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u16);

impl ShardId {
    /// The shard of a key: FNV-1a (64 bit) modulo `shards`; 0 when `shards` is 0.
    pub fn of(key: &[u8], shards: u16) -> Self {
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        for byte in key {
            hash ^= u64::from(*byte);
            hash = hash.wrapping_mul(0x0100_0000_01b3);
        }
        // The low bits of FNV are weak for short, similar keys; fold the high half in.
        hash ^= hash >> 32;
        Self((hash % u64::from(shards.max(1))) as u16)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}", self.0)
    }
}
