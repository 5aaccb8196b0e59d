//! A hash that is the same in every build and on every machine (FNV-1a), so that it may be stored.
//!
//! Every part is closed by its length or a mark, so that `("ab", "c")` and `("a", "bc")` differ.

use arrow::array::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};

/// A fingerprint in the making.
pub(crate) struct Fingerprint(u64);

impl Fingerprint {
    pub(crate) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        self
    }

    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes()).number(text.len() as i64)
    }

    pub(crate) fn number(&mut self, number: i64) -> &mut Self {
        self.bytes(&number.to_le_bytes())
    }

    pub(crate) fn optional(&mut self, number: Option<i64>) -> &mut Self {
        match number {
            Some(number) => self.bytes(&[1]).number(number),
            None => self.bytes(&[0]),
        }
    }

    pub(crate) fn end(&self) -> u64 {
        self.0
    }
}

/// A hash of the values of a table, and of their order.
pub(crate) fn of_rows(rows: &RecordBatch) -> u64 {
    let mut print = Fingerprint::new();
    let options = FormatOptions::new().with_null("\u{0}");
    for column in rows.columns() {
        // Columns of reference tables can all be shown as text.
        let Ok(texts) = ArrayFormatter::try_new(column, &options) else { continue };
        for row in 0..rows.num_rows() {
            print.text(&texts.value(row).to_string());
        }
    }
    print.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_into_each_other() {
        let of = |parts: &[&str]| {
            let mut print = Fingerprint::new();
            parts.iter().for_each(|p| {
                print.text(p);
            });
            print.end()
        };
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_ne!(of(&["a"]), of(&["a", ""]));
        // Stored values must not change with a new build.
        assert_eq!(of(&["weir"]), 0x7307_9f2c_0a85_cb32);
    }
}
