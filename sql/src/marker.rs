//! The windows that DataFusion does not know, as functions that mark them in a plan.
//!
//! `hop(ts, slide, size)` gives the start of the *pane* of `ts`: panes are as long as the greatest common divisor of
//! both lengths, so that each window consists of whole panes ("No pane, no gain", Li et al., SIGMOD Record 34(1),
//! 2005). `session(ts, gap)` gives `ts` itself. The window operator makes windows of either.
//!
//! What is computed of a group is therefore not what stands in the result, and nothing may move a condition on the
//! result below the aggregate: [`crate::session_state_for`] plans such windows without the rules that do.

use std::sync::Arc;

use arrow::array::{AsArray, TimestampNanosecondArray};
use arrow::compute::kernels::cast::cast;
use arrow::datatypes::{DataType, TimestampNanosecondType};
use datafusion::common::ScalarValue;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};

use crate::project::Kind;

/// Name of the function that marks overlapping windows.
pub(crate) const HOP: &str = "hop";
/// Name of the function that marks windows that end with a gap.
pub(crate) const SESSION: &str = "session";

/// Both functions.
pub(crate) fn functions() -> Vec<Arc<ScalarUDF>> {
    let of = |name, arguments| {
        let signature = Signature::any(arguments, Volatility::Immutable);
        Arc::new(ScalarUDF::from(Marker { name, signature }))
    };
    vec![of(HOP, 3), of(SESSION, 2)]
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Marker {
    name: &'static str,
    signature: Signature,
}

impl ScalarUDFImpl for Marker {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType, DataFusionError> {
        types.first().cloned().ok_or_else(|| DataFusionError::Plan(format!("{}() without arguments", self.name)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue, DataFusionError> {
        let wrong = || DataFusionError::Execution(format!("{}() takes `ts` and literal lengths", self.name));
        let (time, lengths) = args.args.split_first().ok_or_else(wrong)?;
        let lengths = lengths.iter().map(length).collect::<Option<Vec<i64>>>().ok_or_else(wrong)?;
        let [slide_ns, size_ns] = lengths.as_slice() else { return Ok(time.clone()) };
        let pane = Kind::Hop { slide_ns: *slide_ns }.pane_ns(*size_ns);
        let times = time.to_array(args.number_rows)?;
        let nanos = times.as_primitive_opt::<TimestampNanosecondType>().ok_or_else(wrong)?;
        let panes: TimestampNanosecondArray = nanos.unary(|ts| ts.saturating_sub(ts.rem_euclid(pane)));
        Ok(ColumnarValue::Array(cast(&panes, times.data_type())?))
    }
}

/// Nanoseconds of an interval that has only such.
pub(crate) fn length(value: &ColumnarValue) -> Option<i64> {
    match value {
        ColumnarValue::Scalar(value) => nanoseconds(value),
        ColumnarValue::Array(_) => None,
    }
}

/// The same of a literal.
pub(crate) fn nanoseconds(value: &ScalarValue) -> Option<i64> {
    match value {
        ScalarValue::IntervalMonthDayNano(Some(i)) if i.months == 0 && i.days == 0 => Some(i.nanoseconds),
        _ => None,
    }
}
