//! Rows of `_shadow_history`, `_commands` and `_connections`: what entries say of shadows, commands and presence.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::TimestampNanosecondType;
use arrow::error::ArrowError;
use device::command::Step;
use device::shadow::{Change, What, shown};
use device::status::Status;
use device::time::Timestamp;

use super::column::Numbers;
use super::stream::times;
use crate::schema::{commands_schema, connections_schema, shadow_history_schema};

/// Changes of shadows, with their device and time. They are few: kept as they are until a batch is made.
#[derive(Default)]
pub(super) struct Changes(Vec<(String, Timestamp, Change)>);

impl Changes {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn push(&mut self, device: &str, received: Timestamp, change: &Change) {
        self.0.push((device.to_owned(), received, change.clone()));
    }

    pub(super) fn finish(self) -> Result<RecordBatch, ArrowError> {
        let rows = self.0;
        let text = |of: fn(&Change) -> &str| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(rows.iter().map(|(_, _, change)| of(change))))
        };
        let maybe = |of: fn(&Change) -> Option<String>| -> ArrayRef {
            Arc::new(StringArray::from_iter(rows.iter().map(|(_, _, change)| of(change))))
        };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(rows.iter().map(|(device, _, _)| device))),
            text(|change| &change.shadow),
            Arc::new(times(rows.iter().map(|(_, received, _)| received.0).collect())),
            text(Change::event),
            Arc::new(UInt64Array::from_iter(rows.iter().map(|(_, _, change)| change.version()))),
            maybe(|change| change.patch().map(|patch| patch.to_string())),
            text(|change| &change.by),
            maybe(|change| change.request.as_ref().map(ToString::to_string)),
            maybe(|change| detail(change).map(|detail| detail.to_string())),
        ];
        RecordBatch::try_new(shadow_history_schema(), columns)
    }
}

/// What a change has besides its patch.
fn detail(change: &Change) -> Option<serde_json::Value> {
    let detail = match &change.what {
        What::Desired { expires: Some(expires), .. } => serde_json::json!({ "expires": expires.0 }),
        What::Desired { .. } | What::Expired { .. } => return None,
        What::Reported(reported) => {
            let open: Vec<String> = reported.open.iter().map(|path| shown(path)).collect();
            let session = reported.turn.map(|(session, _)| session.to_string());
            serde_json::json!({
                "applied_dv": reported.applied, "full": reported.full, "open": open,
                "session": session, "rseq": reported.turn.map(|(_, rseq)| rseq),
            })
        }
        What::Conflict(conflict) => serde_json::json!({
            "path": shown(&conflict.path), "base": conflict.base, "desired": conflict.desired,
            "reported": conflict.reported, "desired_at": conflict.desired_at.map(|at| at.0),
            "reported_at": conflict.reported_at.map(|at| at.0), "policy": conflict.policy.as_str(),
            "winner": conflict.winner.as_str(),
        }),
        What::Deleted { rv, .. } => serde_json::json!({ "rv": rv }),
    };
    Some(detail)
}

/// Steps of commands, with their device and time.
#[derive(Default)]
pub(super) struct Steps(Vec<(String, Timestamp, Step)>);

impl Steps {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn push(&mut self, device: &str, received: Timestamp, step: &Step) {
        self.0.push((device.to_owned(), received, step.clone()));
    }

    pub(super) fn finish(self) -> Result<RecordBatch, ArrowError> {
        let rows = self.0;
        let maybe = |of: fn(&Step) -> Option<String>| -> ArrayRef {
            Arc::new(StringArray::from_iter(rows.iter().map(|(_, _, step)| of(step))))
        };
        let mut deadline = Numbers::<TimestampNanosecondType>::new();
        for (at, (_, _, step)) in rows.iter().enumerate() {
            if let Step::Queued(order) = step {
                deadline.set(at, order.deadline.0);
            }
        }
        let state = |step: &Step| match step {
            Step::Queued(_) => "queued",
            Step::Moved { state, .. } => state.as_str(),
        };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(rows.iter().map(|(device, _, _)| device))),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|(_, _, step)| step.id()))),
            Arc::new(times(rows.iter().map(|(_, received, _)| received.0).collect())),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|(_, _, step)| state(step)))),
            maybe(|step| match step {
                Step::Queued(order) => Some(order.name.to_string()),
                Step::Moved { .. } => None,
            }),
            maybe(|step| match step {
                Step::Queued(order) => Some(order.args.to_string()),
                Step::Moved { .. } => None,
            }),
            Arc::new(deadline.finish(rows.len()).with_timezone("UTC")),
            maybe(|step| match step {
                Step::Queued(order) => Some(order.by.to_string()),
                Step::Moved { .. } => None,
            }),
            maybe(|step| match step {
                Step::Moved { out, .. } if !out.is_null() => Some(out.to_string()),
                _ => None,
            }),
        ];
        RecordBatch::try_new(commands_schema(), columns)
    }
}

/// Devices that came or went.
#[derive(Default)]
pub(super) struct Connections(Vec<(String, Status)>);

impl Connections {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn push(&mut self, device: &str, status: &Status) {
        self.0.push((device.to_owned(), status.clone()));
    }

    pub(super) fn finish(self) -> Result<RecordBatch, ArrowError> {
        let rows = self.0;
        let number = |of: fn(&Status) -> Option<u64>| -> ArrayRef {
            Arc::new(UInt64Array::from_iter(rows.iter().map(|(_, status)| of(status))))
        };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(rows.iter().map(|(device, _)| device))),
            Arc::new(times(rows.iter().map(|(_, status)| status.since.0).collect())),
            Arc::new(BooleanArray::from_iter(rows.iter().map(|(_, status)| Some(status.online)))),
            number(|status| status.session),
            number(|status| status.boot_no),
            Arc::new(StringArray::from_iter(rows.iter().map(|(_, status)| status.fw.as_deref()))),
        ];
        RecordBatch::try_new(connections_schema(), columns)
    }
}
