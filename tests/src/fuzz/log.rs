//! Records of the shard log.

use bytes::Bytes;
use device::entry::{LogBody, LogRecord};

use super::meter::bounded;

/// Any bytes as a log record.
pub fn log(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    let Ok(record) = bounded(data.len(), 4096, 128, || LogRecord::decode(bytes.clone())) else { return };
    if let LogBody::Batch(entries) = &record.body {
        assert!(entries.len() <= data.len());
    }
    let mut once = Vec::new();
    record.encode(&mut once);
    assert!(once.len() <= data.len(), "no encoding is shorter than ours");
    let back = LogRecord::decode(Bytes::from(once.clone())).expect("what was written reads back");
    assert_eq!(back, record);
    let mut twice = Vec::new();
    back.encode(&mut twice);
    assert_eq!(once, twice);
}
