//! The tables `devices` and `shadows` of a running engine: every device as it is now.
//!
//! They are made anew whenever a query asks for them, from the states of all devices, awake or asleep: what they cost
//! grows with the fleet, and only queries that name them pay it.

use std::collections::HashMap;
use std::sync::Arc;

use access::registry::Registry;
use actors::node::Node;
use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, UInt16Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::DataFusionError;
use datafusion::datasource::MemTable;
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use device::id::DeviceId;
use device::machine::Device;
use device::shadow::{DEFAULT, shown};
use device::time::Timestamp;

use crate::groups::Groups;

/// Which of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One row a device.
    Devices,
    /// One row a shadow.
    Shadows,
}

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Devices, Self::Shadows];

    /// The name of the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Devices => "devices",
            Self::Shadows => "shadows",
        }
    }

    fn schema(self) -> SchemaRef {
        let field = |name: &str, kind: DataType, nullable: bool| Field::new(name, kind, nullable);
        let (text, number, flag) = (DataType::Utf8, DataType::UInt64, DataType::Boolean);
        Arc::new(Schema::new(match self {
            Self::Devices => vec![
                field("device", text, false),
                field("shard", DataType::UInt16, false),
                field("awake", flag.clone(), false),
                field("epochs", number.clone(), false),
                field("stored", number.clone(), false),
                field("duplicates", number.clone(), false),
                field("lost", number.clone(), false),
                field("unnumbered", number.clone(), false),
                field("dv", number.clone(), true),
                field("rv", number.clone(), true),
                field("in_sync", flag, true),
                field("commands_waiting", number.clone(), false),
                field("online", DataType::Boolean, true),
                field("status_since", storage::schema::timestamp(), true),
                field("fw", DataType::Utf8, true),
                field("boot_no", number, true),
                field("clock_offset_ns", DataType::Int64, true),
                field("clock_err_ns", DataType::Int64, true),
                field("clock_rate_ppb", DataType::Int64, true),
                field("drifting", DataType::Boolean, false),
                field("groups", DataType::Utf8, true),
                field("labels", DataType::Utf8, true),
                field("hw", DataType::Utf8, true),
                field("enrolled", storage::schema::timestamp(), true),
            ],
            Self::Shadows => vec![
                field("device", text.clone(), false),
                field("shadow", text.clone(), false),
                field("desired", text.clone(), false),
                field("reported", text.clone(), false),
                field("delta", text.clone(), false),
                field("dv", number.clone(), false),
                field("rv", number.clone(), false),
                field("applied_dv", number, false),
                field("in_sync", flag, false),
                field("conflicts", text, true),
                field("changed", storage::schema::timestamp(), false),
            ],
        }))
    }
}

/// One of the tables.
pub struct Fleet {
    kind: Kind,
    node: Arc<Node>,
    groups: Arc<Groups>,
    enrolled: Option<Arc<Registry>>,
}

impl std::fmt::Debug for Fleet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fleet").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl Fleet {
    /// The table over the devices of `node`; `enrolled`: who of them has asked for a certificate.
    pub fn new(kind: Kind, node: Arc<Node>, (groups, enrolled): (Arc<Groups>, Option<Arc<Registry>>)) -> Self {
        Self { kind, node, groups, enrolled }
    }

    async fn rows(&self) -> Result<RecordBatch, DataFusionError> {
        let mut rows = Rows::default();
        if self.kind == Kind::Devices {
            rows.listings = self.groups.listings();
        }
        for shard in self.node.shards() {
            let shard_id = shard.id.0;
            let now = self.node.time(shard);
            let failed = |error| DataFusionError::External(Box::new(error));
            match self.kind {
                Kind::Devices => {
                    let look = |device: &Device| {
                        rows.device(device, (shard_id, shard.is_awake(device.id())), (shard.floor, now));
                        rows.origin(device.id(), self.enrolled.as_deref());
                    };
                    shard.each(look).await.map_err(failed)?;
                }
                Kind::Shadows => shard.each(|device| rows.shadows(device, now)).await.map_err(failed)?,
            }
        }
        rows.finish(self.kind).map_err(Into::into)
    }
}

#[async_trait]
impl TableProvider for Fleet {
    fn schema(&self) -> SchemaRef {
        self.kind.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        let rows = self.rows().await?;
        let table = MemTable::try_new(self.kind.schema(), vec![vec![rows]])?;
        table.scan(state, projection, filters, limit).await
    }
}

/// Rows of either table, column by column.
#[derive(Default)]
struct Rows {
    device: Vec<String>,
    shard: Vec<u16>,
    flags: Vec<Option<bool>>,
    awake: Vec<bool>,
    online: Vec<Option<bool>>,
    since: Vec<Option<i64>>,
    fw: Vec<Option<String>>,
    numbers: [Vec<Option<u64>>; 9],
    texts: [Vec<String>; 5],
    changed: Vec<i64>,
    /// Offset, error and rate.
    clock: [Vec<Option<i64>>; 3],
    drifting: Vec<bool>,
    groups: Vec<Option<String>>,
    listings: HashMap<String, Vec<String>>,
    labels: Vec<Option<String>>,
    hw: Vec<Option<String>>,
    enrolled: Vec<Option<i64>>,
}

impl Rows {
    /// `floor`: what a device said of its presence before was said to an earlier life of the engine.
    fn device(&mut self, device: &Device, (shard, awake): (u16, bool), (floor, now): (Timestamp, Timestamp)) {
        let ledger = device.ledger();
        let shadow = device.shadow(DEFAULT, now);
        let status = device.status();
        let waiting = device.commands().map_or(0, |commands| commands.waiting(now).count());
        let sum = |of: fn(&device::machine::EpochLedger) -> u64| Some(ledger.iter().map(of).sum());
        let numbers = [
            Some(ledger.len() as u64),
            sum(|epoch| epoch.stored),
            sum(|epoch| epoch.duplicate),
            sum(|epoch| epoch.lost),
            Some(device.unnumbered()),
            shadow.as_ref().map(|shadow| shadow.dv),
            shadow.as_ref().map(|shadow| shadow.rv),
            Some(waiting as u64),
            status.and_then(|status| status.boot_no),
        ];
        self.online.push(status.map(|status| status.online && status.since >= floor));
        self.since.push(status.map(|status| status.since.0));
        self.fw.push(status.and_then(|status| status.fw.as_ref().map(ToString::to_string)));
        let clock = device.clock();
        let of_clock = [clock.map(|of| of.offset), clock.map(|of| of.err), clock.and_then(|of| of.rate)];
        self.clock.iter_mut().zip(of_clock).for_each(|(column, value)| column.push(value));
        self.drifting.push(clock.is_some_and(|of| of.drifting));
        self.groups.push(self.listings.get(device.id().as_str()).map(|names| names.join(", ")));
        self.device.push(device.id().to_string());
        self.shard.push(shard);
        self.awake.push(awake);
        self.flags.push(shadow.map(|shadow| shadow.in_sync));
        for (column, number) in self.numbers.iter_mut().zip(numbers) {
            column.push(number);
        }
    }

    /// How it came by its certificate.
    fn origin(&mut self, device: &DeviceId, registry: Option<&Registry>) {
        let known = registry.and_then(|registry| {
            registry.look(|state| {
                let enrolled = state.enrolled(device.as_str())?;
                let labels = (!enrolled.labels.is_empty()).then(|| serde_json::json!(enrolled.labels).to_string());
                let hw = (!enrolled.hw.is_empty()).then(|| enrolled.hw.clone());
                Some((labels, hw, state.enrolled_at(device.as_str()).map(|at| at.0)))
            })
        });
        let (labels, hw, at) = known.unwrap_or_default();
        self.labels.push(labels);
        self.hw.push(hw);
        self.enrolled.push(at);
    }

    fn shadows(&mut self, device: &Device, now: Timestamp) {
        let names: Vec<Arc<str>> =
            device.shadows().map(|shadows| shadows.names().cloned().collect()).unwrap_or_default();
        for name in names {
            let Some(view) = device.shadow(&name, now) else { continue };
            let json = |object| serde_json::Value::Object(object).to_string();
            self.device.push(device.id().to_string());
            let open: Vec<String> = view.open.iter().map(|path| shown(path)).collect();
            let texts = [name.to_string(), json(view.desired), json(view.reported), json(view.delta), open.join(", ")];
            for (column, text) in self.texts.iter_mut().zip(texts) {
                column.push(text);
            }
            for (column, number) in self.numbers.iter_mut().zip([view.dv, view.rv, view.applied_dv]) {
                column.push(Some(number));
            }
            self.flags.push(Some(view.in_sync));
            self.changed.push(view.changed.0);
        }
    }

    fn finish(self, kind: Kind) -> Result<RecordBatch, arrow::error::ArrowError> {
        let text = |values: Vec<String>| -> ArrayRef { Arc::new(StringArray::from(values)) };
        let number = |values: Vec<Option<u64>>| -> ArrayRef { Arc::new(UInt64Array::from(values)) };
        let flags: ArrayRef = Arc::new(BooleanArray::from(self.flags));
        let mut columns = vec![text(self.device)];
        match kind {
            Kind::Devices => {
                columns.push(Arc::new(UInt16Array::from(self.shard)));
                columns.push(Arc::new(BooleanArray::from(self.awake)));
                let [epochs, stored, duplicates, lost, unnumbered, dv, rv, waiting, boots] = self.numbers.map(number);
                columns.extend([epochs, stored, duplicates, lost, unnumbered, dv, rv, flags, waiting]);
                columns.push(Arc::new(BooleanArray::from(self.online)));
                let since = arrow::array::TimestampNanosecondArray::from(self.since);
                columns.push(Arc::new(since.with_timezone("UTC")));
                columns.push(Arc::new(StringArray::from(self.fw)));
                columns.push(boots);
                columns.extend(self.clock.map(|column| Arc::new(Int64Array::from(column)) as ArrayRef));
                columns.push(Arc::new(BooleanArray::from(self.drifting)));
                columns.extend(
                    [self.groups, self.labels, self.hw].map(|column| Arc::new(StringArray::from(column)) as ArrayRef),
                );
                let enrolled = arrow::array::TimestampNanosecondArray::from(self.enrolled);
                columns.push(Arc::new(enrolled.with_timezone("UTC")));
            }
            Kind::Shadows => {
                let [name, desired, reported, delta, open] = self.texts;
                columns.extend([name, desired, reported, delta].map(text));
                let [dv, rv, applied, ..] = self.numbers.map(number);
                columns.extend([dv, rv, applied, flags]);
                let open = open.into_iter().map(|open| (!open.is_empty()).then_some(open));
                columns.push(Arc::new(StringArray::from_iter(open)));
                let changed = arrow::array::TimestampNanosecondArray::from(self.changed).with_timezone("UTC");
                columns.push(Arc::new(changed));
            }
        }
        RecordBatch::try_new(kind.schema(), columns)
    }
}
