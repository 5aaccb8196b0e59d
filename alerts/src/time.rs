//! Times as people and programs read them.

use std::time::{Duration, UNIX_EPOCH};

use device::time::Timestamp;

/// RFC 3339, in UTC. Times before 1970 are shown as its beginning.
pub fn shown(time: Timestamp) -> String {
    let since = Duration::from_nanos(u64::try_from(time.0).unwrap_or(0));
    humantime::format_rfc3339_nanos(UNIX_EPOCH + since).to_string()
}

/// A time as [`shown`].
pub(crate) fn rfc3339<S: serde::Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&shown(*time))
}

/// The same where there may be none.
pub(crate) fn maybe_shown<S: serde::Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => rfc3339(time, serializer),
        None => serializer.serialize_none(),
    }
}

/// A time as a number of nanoseconds.
pub(crate) mod nanos {
    use device::time::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(time.0)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        i64::deserialize(deserializer).map(Timestamp)
    }
}

/// The same where there may be none.
pub(crate) mod maybe_nanos {
    use device::time::Timestamp;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
        time.map(|time| time.0).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
        Ok(Option::<i64>::deserialize(deserializer)?.map(Timestamp))
    }
}
