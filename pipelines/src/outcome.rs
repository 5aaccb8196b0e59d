//! What a pipeline gives at a barrier, and what it says of itself.

use arrow::array::RecordBatch;
use device::time::Timestamp;

/// What a barrier gave.
#[derive(Debug, Default)]
pub struct Closed {
    /// Rows of the result, with the columns that the plan announced. Of a windowed pipeline: sorted by device and
    /// window start. Else in the order of the log; of joined rows, by device, then the first row, then the second.
    pub rows: Vec<RecordBatch>,
    /// What did not become part of the result, by device, window and reason.
    pub late: Vec<LateRow>,
}

/// Rows that did not become part of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LateRow {
    /// The device that sent them.
    pub device: String,
    /// Start of the window they belong to; for a pipeline without windows, the row's `ts`. Of rows that are late to be
    /// joined, the first one's.
    pub window_start: Timestamp,
    /// Just after the window's last instant, or that of the last row.
    pub window_end: Timestamp,
    /// How many.
    pub records: u64,
    /// Why not.
    pub reason: String,
}

/// Why a row was late, as [`LateRow::reason`] says it.
pub const LATE: &str = "late: the window was closed for this device";

/// Figures of a pipeline. Counts are since this process made it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Rows taken in.
    pub rows: u64,
    /// Rows given out.
    pub emitted: u64,
    /// Rows that came after their window was closed; once for each such window.
    pub late_records: u64,
    /// Rows on which an expression failed.
    pub failed_records: u64,
    /// Windows with state.
    pub open_panes: usize,
    /// Groups with state; an upper bound, as a group may have state in several places.
    pub groups: usize,
    /// Devices whose watermark is kept.
    pub devices: usize,
    /// Memory of the state and of rows gathered.
    pub state_bytes: usize,
}
