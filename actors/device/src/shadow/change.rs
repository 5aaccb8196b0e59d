//! What the log and the table `_shadow_history` hold of a shadow: one entry for each change of it, with its outcome.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::document::{self, Path, get_json, get_object, get_time, put_json, put_object, put_time};
use crate::time::Timestamp;
use crate::varint::{self, Broken, Cursor};

const DESIRED: u8 = 1;
const REPORTED: u8 = 2;
const CONFLICT: u8 = 3;
const EXPIRED: u8 = 4;
const DELETED: u8 = 5;

/// One change of one shadow.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The name of the shadow.
    pub shadow: Arc<str>,
    /// Who made it.
    pub by: Arc<str>,
    /// The request that asked for it, if it had an id.
    pub request: Option<Arc<str>>,
    /// What has changed.
    pub what: What,
}

/// What has changed.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// What is desired.
    Desired {
        /// Its version from now on.
        dv: u64,
        /// A JSON merge patch.
        patch: Map<String, Value>,
        /// Until when its values count.
        expires: Option<Timestamp>,
        /// Taken over from the device, by policy.
        adopted: bool,
    },
    /// What the device reports.
    Reported(Box<Reported>),
    /// Both sides have changed a value, and differ.
    Conflict(Box<Conflict>),
    /// Values whose time is over are no longer desired.
    Expired {
        /// The version of what is desired from now on.
        dv: u64,
        /// Which.
        paths: Vec<Path>,
    },
    /// The shadow is emptied; its versions go on from here.
    Deleted {
        /// The version of what is desired from now on.
        dv: u64,
        /// The version of what is reported from now on.
        rv: u64,
    },
}

/// A report that was accepted.
#[derive(Debug, Clone, PartialEq)]
pub struct Reported {
    /// The version of what is reported from now on.
    pub rv: u64,
    /// A JSON merge patch that makes what was reported before into what is reported now.
    pub patch: Map<String, Value>,
    /// The device gave all it has.
    pub full: bool,
    /// The version of what is desired that the device has applied.
    pub applied: Option<u64>,
    /// Session and number of the report within it.
    pub turn: Option<(u64, u64)>,
    /// When values were changed on the device, where it says so.
    pub times: Vec<(Path, Timestamp)>,
    /// Paths where neither side gives way.
    pub open: Vec<Path>,
}

/// Who won a conflict, and what the sides were. `null`: nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct Conflict {
    /// Where.
    pub path: Path,
    /// What was desired when the device last applied it.
    pub base: Value,
    /// What is desired.
    pub desired: Value,
    /// What the device reports.
    pub reported: Value,
    /// When that became desired.
    pub desired_at: Option<Timestamp>,
    /// When the device changed it, if it says so.
    pub reported_at: Option<Timestamp>,
    /// The policy that decided.
    pub policy: super::Policy,
    /// `server`, `device`, `merged` or `nobody`.
    pub winner: Winner,
}

/// Who won a conflict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Winner {
    /// What is desired.
    Server = 0,
    /// What is reported.
    Device = 1,
    /// A value made of both.
    Merged = 2,
    /// It stays open.
    Nobody = 3,
}

impl Winner {
    const ALL: [Self; 4] = [Self::Server, Self::Device, Self::Merged, Self::Nobody];

    /// Its name in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Device => "device",
            Self::Merged => "merged",
            Self::Nobody => "nobody",
        }
    }
}

impl Change {
    /// The name of what has happened, as in `_shadow_history`.
    pub fn event(&self) -> &'static str {
        match &self.what {
            What::Desired { adopted: false, .. } => "desired",
            What::Desired { adopted: true, .. } => "desired.adopted",
            What::Reported(_) => "reported",
            What::Conflict(_) => "shadow.conflict",
            What::Expired { .. } => "desired.expired",
            What::Deleted { .. } => "deleted",
        }
    }

    /// The version that the change made: of what is desired, or of what is reported.
    pub fn version(&self) -> Option<u64> {
        match &self.what {
            What::Desired { dv, .. } | What::Expired { dv, .. } | What::Deleted { dv, .. } => Some(*dv),
            What::Reported(reported) => Some(reported.rv),
            What::Conflict(_) => None,
        }
    }

    /// The merge patch it made, as JSON.
    pub fn patch(&self) -> Option<Value> {
        match &self.what {
            What::Desired { patch, .. } => Some(Value::Object(patch.clone())),
            What::Reported(reported) => Some(Value::Object(reported.patch.clone())),
            What::Expired { paths, .. } => {
                let mut patch = Map::new();
                for path in paths {
                    document::place(&mut patch, path, Value::Null);
                }
                Some(Value::Object(patch))
            }
            What::Conflict(_) | What::Deleted { .. } => None,
        }
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        varint::put_bytes(out, self.shadow.as_bytes());
        varint::put_bytes(out, self.by.as_bytes());
        varint::put_bytes(out, self.request.as_deref().unwrap_or_default().as_bytes());
        match &self.what {
            What::Desired { dv, patch, expires, adopted } => {
                out.push(DESIRED);
                varint::put(out, *dv);
                put_object(out, patch);
                put_time(out, *expires);
                out.push(u8::from(*adopted));
            }
            What::Reported(reported) => {
                out.push(REPORTED);
                reported.put(out);
            }
            What::Conflict(conflict) => {
                out.push(CONFLICT);
                put_path(out, &conflict.path);
                for value in [&conflict.base, &conflict.desired, &conflict.reported] {
                    put_json(out, value);
                }
                put_time(out, conflict.desired_at);
                put_time(out, conflict.reported_at);
                varint::put_bytes(out, conflict.policy.as_str().as_bytes());
                out.push(conflict.winner as u8);
            }
            What::Expired { dv, paths } => {
                out.push(EXPIRED);
                varint::put(out, *dv);
                put_paths(out, paths);
            }
            What::Deleted { dv, rv } => {
                out.push(DELETED);
                varint::put(out, *dv);
                varint::put(out, *rv);
            }
        }
    }

    pub(crate) fn get(cursor: &mut Cursor<'_>) -> Result<Self, Broken> {
        let shadow = Arc::from(cursor.text("the name of a shadow")?);
        let by = Arc::from(cursor.text("who changed it")?);
        let request = cursor.text("the id of a request")?;
        let request = (!request.is_empty()).then(|| Arc::from(request));
        let what = match cursor.byte("a kind of change")? {
            DESIRED => What::Desired {
                dv: cursor.unsigned("a version")?,
                patch: get_object(cursor)?,
                expires: get_time(cursor)?,
                adopted: cursor.byte("whether it was adopted")? != 0,
            },
            REPORTED => What::Reported(Box::new(Reported::get(cursor)?)),
            CONFLICT => What::Conflict(Box::new(Conflict {
                path: get_path(cursor)?,
                base: get_json(cursor)?,
                desired: get_json(cursor)?,
                reported: get_json(cursor)?,
                desired_at: get_time(cursor)?,
                reported_at: get_time(cursor)?,
                policy: match super::Policy::from_name(cursor.text("a policy")?) {
                    Some(policy) => policy,
                    None => return cursor.broken("a policy"),
                },
                winner: match Winner::ALL.get(usize::from(cursor.byte("a winner")?)) {
                    Some(winner) => *winner,
                    None => return cursor.broken("a winner"),
                },
            })),
            EXPIRED => What::Expired { dv: cursor.unsigned("a version")?, paths: get_paths(cursor)? },
            DELETED => What::Deleted { dv: cursor.unsigned("a version")?, rv: cursor.unsigned("a version")? },
            _ => return cursor.broken("a kind of change"),
        };
        Ok(Self { shadow, by, request, what })
    }
}

impl Reported {
    fn put(&self, out: &mut Vec<u8>) {
        varint::put(out, self.rv);
        put_object(out, &self.patch);
        out.push(u8::from(self.full));
        varint::put(out, self.applied.map_or(0, |applied| applied.saturating_add(1)));
        match self.turn {
            None => out.push(0),
            Some((session, rseq)) => {
                out.push(1);
                varint::put(out, session);
                varint::put(out, rseq);
            }
        }
        varint::put(out, self.times.len() as u64);
        for (path, at) in &self.times {
            put_path(out, path);
            varint::put_signed(out, at.0);
        }
        put_paths(out, &self.open);
    }

    fn get(cursor: &mut Cursor<'_>) -> Result<Self, Broken> {
        Ok(Self {
            rv: cursor.unsigned("a version")?,
            patch: get_object(cursor)?,
            full: cursor.byte("whether it is all")? != 0,
            applied: cursor.unsigned("a version")?.checked_sub(1),
            turn: match cursor.byte("whether there is a session")? {
                0 => None,
                _ => Some((cursor.unsigned("a session")?, cursor.unsigned("a number")?)),
            },
            times: {
                let count = cursor.count(2, "a number of times")?;
                let pair = |cursor: &mut Cursor<'_>| Ok((get_path(cursor)?, Timestamp(cursor.signed("a time")?)));
                (0..count).map(|_| pair(cursor)).collect::<Result<_, Broken>>()?
            },
            open: get_paths(cursor)?,
        })
    }
}

pub(super) fn put_path(out: &mut Vec<u8>, path: &[Arc<str>]) {
    varint::put(out, path.len() as u64);
    for name in path {
        varint::put_bytes(out, name.as_bytes());
    }
}

pub(super) fn get_path(cursor: &mut Cursor<'_>) -> Result<Path, Broken> {
    let count = cursor.count(1, "a number of names")?;
    (0..count).map(|_| cursor.text("a name").map(Arc::from)).collect()
}

pub(super) fn put_paths(out: &mut Vec<u8>, paths: &[Path]) {
    varint::put(out, paths.len() as u64);
    for path in paths {
        put_path(out, path);
    }
}

pub(super) fn get_paths(cursor: &mut Cursor<'_>) -> Result<Vec<Path>, Broken> {
    let count = cursor.count(1, "a number of paths")?;
    (0..count).map(|_| get_path(cursor)).collect()
}
