//! Which numbers a simple condition is about: sets of numbers of one expression, so that a dead-band can be checked.
//!
//! Conditions over several expressions, or over texts, have no zone; then nothing is said about them.

use device::alert::{Comparison, Expr, Scalar};

/// A border between numbers: just before the number, or just after it.
type Cut = (f64, bool);

const LEAST: Cut = (f64::NEG_INFINITY, false);
const MOST: Cut = (f64::INFINITY, true);

/// A set of numbers, as intervals from cut to cut, in order and apart from each other.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Zone(Vec<(Cut, Cut)>);

fn before(a: Cut, b: Cut) -> bool {
    a.0 < b.0 || (a.0 == b.0 && !a.1 && b.1)
}

impl Zone {
    fn of(comparison: Comparison, number: f64) -> Self {
        let (below, above) = ((number, false), (number, true));
        Self(match comparison {
            Comparison::Equal => vec![(below, above)],
            Comparison::NotEqual => vec![(LEAST, below), (above, MOST)],
            Comparison::Less => vec![(LEAST, below)],
            Comparison::LessOrEqual => vec![(LEAST, above)],
            Comparison::Greater => vec![(above, MOST)],
            Comparison::GreaterOrEqual => vec![(below, MOST)],
        })
    }

    fn complement(&self) -> Self {
        let mut out = Vec::new();
        let mut from = LEAST;
        for (start, end) in &self.0 {
            if before(from, *start) {
                out.push((from, *start));
            }
            from = *end;
        }
        if before(from, MOST) {
            out.push((from, MOST));
        }
        Self(out)
    }

    /// What is in both.
    pub(super) fn and(&self, other: &Self) -> Self {
        let mut out = Vec::new();
        for (a, b) in &self.0 {
            for (c, d) in &other.0 {
                let start = if before(*a, *c) { *c } else { *a };
                let end = if before(*b, *d) { *b } else { *d };
                if before(start, end) {
                    out.push((start, end));
                }
            }
        }
        out.sort_by(|a, b| a.0.0.total_cmp(&b.0.0).then(a.0.1.cmp(&b.0.1)));
        Self(out)
    }

    fn or(&self, other: &Self) -> Self {
        self.complement().and(&other.complement()).complement()
    }

    /// Whether no number is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether every number is in it.
    pub(super) fn is_all(&self) -> bool {
        self.complement().is_empty()
    }

    /// Whether each of its numbers is in `other`.
    pub(super) fn within(&self, other: &Self) -> bool {
        self.and(&other.complement()).is_empty()
    }

    /// One of its numbers, as an example; it is not empty.
    pub(super) fn example(&self) -> Option<f64> {
        self.0.first().map(|((a, above), (b, _))| match (a.is_finite(), b.is_finite()) {
            (true, _) if !above => *a,
            (true, true) if a == b => *a,
            (true, true) => a + (b - a) / 2.0,
            (true, false) => a + 1.0,
            (false, true) => b - 1.0,
            (false, false) => 0.0,
        })
    }
}

/// The number that an expression without fields stands for.
fn constant(expr: &Expr) -> Option<f64> {
    fn varies(expr: &Expr) -> bool {
        match expr {
            Expr::Field(_) | Expr::Device => true,
            Expr::Null | Expr::Bool(_) | Expr::Int(_) | Expr::Float(_) | Expr::Text(_) => false,
            Expr::Negative(inner) | Expr::Not(inner) | Expr::IsNull(inner) => varies(inner),
            Expr::Arithmetic(_, sides) | Expr::Compare(_, sides) => varies(&sides.0) || varies(&sides.1),
            Expr::Call(_, parts) | Expr::All(parts) | Expr::Any(parts) => parts.iter().any(varies),
        }
    }
    if varies(expr) {
        return None;
    }
    expr.value("", &|_| Scalar::Null).as_f64()
}

/// The expression that a condition compares with numbers, and which numbers make it true.
pub(super) fn of(condition: &Expr) -> Option<(&Expr, Zone)> {
    match condition {
        Expr::Compare(comparison, sides) => match (constant(&sides.0), constant(&sides.1)) {
            (None, Some(number)) => Some((&sides.0, Zone::of(*comparison, number))),
            (Some(number), None) => Some((&sides.1, Zone::of(comparison.flipped(), number))),
            _ => None,
        },
        Expr::Not(inner) => of(inner).map(|(subject, zone)| (subject, zone.complement())),
        Expr::All(parts) | Expr::Any(parts) => {
            let all = matches!(condition, Expr::All(_));
            let mut zones = parts.iter().map(of);
            let (subject, mut zone) = zones.next()??;
            for next in zones {
                let (other, next) = next?;
                if other != subject {
                    return None;
                }
                zone = if all { zone.and(&next) } else { zone.or(&next) };
            }
            Some((subject, zone))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compare(comparison: Comparison, number: f64) -> Expr {
        Expr::Compare(comparison, Box::new((Expr::Field(0), Expr::Float(number))))
    }

    fn zone(expr: &Expr) -> Zone {
        of(expr).unwrap().1
    }

    #[test]
    fn sets_of_numbers() {
        use Comparison::*;
        let above = zone(&compare(Greater, 80.0));
        assert!(above.and(&zone(&compare(Less, 75.0))).is_empty());
        assert!(above.and(&zone(&compare(LessOrEqual, 80.0))).is_empty());
        assert_eq!(above.and(&zone(&compare(LessOrEqual, 80.5))).example(), Some(80.25));
        assert_eq!(zone(&compare(GreaterOrEqual, 80.0)).and(&zone(&compare(LessOrEqual, 80.0))).example(), Some(80.0));
        assert!(zone(&compare(Greater, 95.0)).within(&above) && !above.within(&zone(&compare(Greater, 95.0))));
        let outside = Expr::Any(vec![compare(Less, 5.0), compare(Greater, 80.0)]);
        let inside = Expr::All(vec![compare(GreaterOrEqual, 5.0), compare(LessOrEqual, 80.0)]);
        assert_eq!(zone(&outside).complement(), zone(&inside));
        assert_eq!(zone(&Expr::Not(Box::new(outside.clone()))), zone(&inside));
        assert!(zone(&Expr::Any(vec![outside, inside])).is_all());
        assert!(zone(&Expr::All(vec![compare(Greater, 5.0), compare(Less, 3.0)])).is_empty());
        assert!(zone(&compare(Equal, 3.0)).within(&zone(&compare(NotEqual, 4.0))));
        assert_eq!(zone(&compare(Less, 3.0)).example(), Some(2.0));
        let flipped = Expr::Compare(Greater, Box::new((Expr::Int(5), Expr::Field(0))));
        assert_eq!(zone(&flipped), zone(&compare(Less, 5.0)));
        let two = Expr::All(vec![compare(Less, 1.0), Expr::Compare(Less, Box::new((Expr::Field(1), Expr::Int(1))))]);
        assert!(of(&two).is_none());
    }
}
