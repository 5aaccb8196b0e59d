//! Where a pipeline begins that was not there before, and what it tells those that begin to read it.

use arrow::datatypes::SchemaRef;
use sql::PipelinePlan;

use super::{Pipeline, PipelineError, Query};
use crate::heard::Heard;
use crate::shared::Local;

impl Pipeline {
    /// A pipeline that begins while its source is running: for each device with the windows that are open for it now.
    /// Those before are in the files of the source, and come by a repair.
    pub(crate) fn begin(plan: &PipelinePlan, source: SchemaRef, heard: Option<&Heard>) -> Result<Self, PipelineError> {
        let mut this = Self::new(plan, source)?;
        if let (Query::Windows { cut, marks, shared, .. }, Some(heard)) = (&mut this.query, heard) {
            **marks = heard.begin(cut.windows);
            if let Some(own) = shared {
                **own = Local::new(marks.slowest().unwrap_or(i64::MIN));
            }
        }
        Ok(this)
    }

    /// How far devices are in what this one gives, for those that begin to read it; `None`: as far as in what it reads.
    pub(crate) fn told(&self) -> Option<Heard> {
        match &self.query {
            Query::Rows { .. } => None,
            Query::Windows { cut, marks, shared: None, .. } => Some(Heard::of_results(marks, cut.windows)),
            // Its rows are of no device.
            Query::Windows { .. } => Some(Heard::default()),
        }
    }
}
