//! What a set of rows holds, whatever its order: compared before files are deleted.

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;
use datafusion::common::hash_utils::{RandomState, create_hashes};
use datafusion::error::DataFusionError;

/// Sums over the rows of a table: of each column apart, so that a difference can be named, and of whole rows, so that
/// values that have changed places between rows are found.
#[derive(Debug, Clone)]
pub(super) struct Digest {
    names: Vec<String>,
    rows: u64,
    whole: u128,
    /// Hashes of values, and how many nulls.
    columns: Vec<(u128, u64)>,
    buffer: Vec<u64>,
    of_rows: Vec<u64>,
}

impl Digest {
    /// Of no rows.
    pub(super) fn new(schema: &SchemaRef) -> Self {
        let names: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
        let columns = vec![(0, 0); names.len()];
        Self { names, rows: 0, whole: 0, columns, buffer: Vec::new(), of_rows: Vec::new() }
    }

    /// Adds rows.
    pub(super) fn take(&mut self, batch: &RecordBatch) -> Result<(), DataFusionError> {
        let rows = batch.num_rows();
        let state = RandomState::with_seed(0);
        self.rows += rows as u64;
        self.of_rows.clear();
        self.of_rows.resize(rows, 0);
        for (column, (sum, nulls)) in batch.columns().iter().zip(&mut self.columns) {
            self.buffer.clear();
            self.buffer.resize(rows, 0);
            let column: &ArrayRef = column;
            create_hashes([column], &state, &mut self.buffer)?;
            *nulls += column.logical_null_count() as u64;
            for (hash, row) in self.buffer.iter().zip(&mut self.of_rows) {
                *sum = sum.wrapping_add(u128::from(*hash));
                // An odd factor and a rotation: the same value in another column counts otherwise.
                *row = (*row ^ *hash).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
            }
        }
        self.whole = self.of_rows.iter().fold(self.whole, |sum, row| sum.wrapping_add(u128::from(*row)));
        Ok(())
    }

    /// Rows added.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// The first difference, for people.
    pub(super) fn differs(&self, other: &Self) -> Option<String> {
        if self.rows != other.rows {
            return Some(format!("{} rows against {}", other.rows, self.rows));
        }
        if self.names != other.names {
            return Some("other columns".to_owned());
        }
        let pairs = self.names.iter().zip(self.columns.iter().zip(&other.columns));
        for (name, (own, others)) in pairs {
            if own != others {
                return Some(format!("other values in column {name}"));
            }
        }
        (self.whole != other.whole).then(|| "values have changed places between rows".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use arrow::array::{Float64Array, Int64Array};
    use arrow::datatypes::{DataType, Field, Schema};

    fn digest(batches: &[(Vec<Option<f64>>, Vec<i64>)]) -> Digest {
        let fields = vec![Field::new("a", DataType::Float64, true), Field::new("b", DataType::Int64, false)];
        let schema = Arc::new(Schema::new(fields));
        let mut digest = Digest::new(&schema);
        for (a, b) in batches {
            let columns: Vec<ArrayRef> =
                vec![Arc::new(Float64Array::from(a.clone())), Arc::new(Int64Array::from(b.clone()))];
            digest.take(&RecordBatch::try_new(schema.clone(), columns).unwrap()).unwrap();
        }
        digest
    }

    #[test]
    fn order_and_batches_do_not_matter_but_every_value_and_its_place_do() {
        let whole = digest(&[(vec![Some(1.0), None, Some(3.0)], vec![1, 2, 3])]);
        assert_eq!(whole.differs(&digest(&[(vec![Some(3.0)], vec![3]), (vec![None, Some(1.0)], vec![2, 1])])), None);
        for (other, what) in [
            (digest(&[(vec![Some(1.0), None], vec![1, 2])]), "2 rows against 3"),
            (digest(&[(vec![Some(1.0), None, Some(3.5)], vec![1, 2, 3])]), "column a"),
            (digest(&[(vec![Some(1.0), Some(0.0), Some(3.0)], vec![1, 2, 3])]), "column a"),
            (digest(&[(vec![Some(1.0), None, Some(3.0)], vec![1, 2, 4])]), "column b"),
            (digest(&[(vec![None, Some(1.0), Some(3.0)], vec![1, 2, 3])]), "changed places"),
            (digest(&[(vec![Some(1.0), None, Some(3.0)], vec![1, 3, 2])]), "changed places"),
        ] {
            let difference = whole.differs(&other).unwrap();
            assert!(difference.contains(what), "{difference}");
        }
    }
}
