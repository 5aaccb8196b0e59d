//! What can go wrong with a pipeline.

use arrow::error::ArrowError;
use datafusion::error::DataFusionError;

/// Why a pipeline cannot be made, fed or saved. The pipeline's name is the caller's to add.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The plan holds something that has no meaning, or no operator yet, over an endless stream.
    #[error("{what} cannot run over an endless stream; run `weir check` and rewrite the query without it")]
    Unsupported {
        /// The part of the plan.
        what: String,
    },
    /// The rows are not those that the plan was made for.
    #[error(
        "the source's column {column} is {found}, the pipeline was planned with {expected}; load the project again"
    )]
    Source {
        /// The column.
        column: String,
        /// Its type now.
        found: String,
        /// Its type when planned.
        expected: String,
    },
    /// The plan's result is not what the checker announced.
    #[error("the plan gives {found}, the checker announced {expected}; this is a fault of Weir, please report it")]
    Output {
        /// What the plan gives.
        found: String,
        /// What was announced.
        expected: String,
    },
    /// A saved state does not belong to this pipeline or this build.
    #[error("the saved state cannot be used: {reason}; start the pipeline anew from the window that is open now")]
    State {
        /// Why not.
        reason: String,
    },
    /// A saved state was written by a newer build.
    #[error(
        "the saved state has format {found}, this weir knows up to {known}: run the weir that wrote it, or a newer one"
    )]
    Newer {
        /// Its format.
        found: u8,
        /// The newest format this build knows.
        known: u8,
    },
    /// A checkpoint was asked for between barriers.
    #[error("a checkpoint is taken right after a barrier; {rows} rows came since")]
    NotAtBarrier {
        /// Rows since the last barrier.
        rows: usize,
    },
    /// DataFusion refused.
    #[error("query engine: {0}")]
    Engine(#[from] DataFusionError),
    /// Arrow refused.
    #[error("arrow: {0}")]
    Arrow(#[from] ArrowError),
}

impl PipelineError {
    pub(crate) fn state(reason: impl Into<String>) -> Self {
        Self::State { reason: reason.into() }
    }

    pub(crate) fn unsupported(what: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into() }
    }
}
