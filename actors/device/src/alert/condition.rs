//! Expressions over the fields of one record.
//!
//! They mean what they mean in SQL, with one difference: NaN and the infinities are null. A condition that is null is
//! neither true nor false, so a reading of bad quality neither raises nor clears. What cannot be computed (division
//! by zero, an integer beyond 64 bits) is null, too.

use std::cmp::Ordering;
use std::collections::BTreeSet;

/// How two values are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Comparison {
    /// `=`
    Equal,
    /// `<>`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
}

impl Comparison {
    /// Whether values in this order compare so.
    pub fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Equal => order.is_eq(),
            Self::NotEqual => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterOrEqual => order.is_ge(),
        }
    }

    /// The same with its sides exchanged.
    pub fn flipped(self) -> Self {
        match self {
            Self::Less => Self::Greater,
            Self::LessOrEqual => Self::GreaterOrEqual,
            Self::Greater => Self::Less,
            Self::GreaterOrEqual => Self::LessOrEqual,
            same => same,
        }
    }
}

/// What is computed of two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// `+`
    Add,
    /// `-`
    Subtract,
    /// `*`
    Multiply,
    /// `/`; of two integers, an integer
    Divide,
    /// `%`
    Remainder,
}

/// Functions that conditions may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Function {
    /// Without its sign.
    Abs,
    /// To the nearest integer, halves away from zero.
    Round,
    /// Down to an integer.
    Floor,
    /// Up to an integer.
    Ceil,
    /// Square root; null of negative numbers.
    Sqrt,
    /// The largest that is not null.
    Greatest,
    /// The smallest that is not null.
    Least,
    /// The first that is not null.
    Coalesce,
}

impl Function {
    /// All, with their names and how many arguments they take at least and at most.
    pub const ALL: [(&'static str, Self, usize, usize); 8] = [
        ("abs", Self::Abs, 1, 1),
        ("ceil", Self::Ceil, 1, 1),
        ("coalesce", Self::Coalesce, 1, usize::MAX),
        ("floor", Self::Floor, 1, 1),
        ("greatest", Self::Greatest, 1, usize::MAX),
        ("least", Self::Least, 1, usize::MAX),
        ("round", Self::Round, 1, 1),
        ("sqrt", Self::Sqrt, 1, 1),
    ];
}

/// An expression.
#[derive(Debug, Clone, PartialEq)]
pub enum Expr {
    /// Column index of a field of the stream.
    Field(u16),
    /// Name of the device.
    Device,
    /// `NULL`
    Null,
    /// `TRUE`, `FALSE`
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A number with a fraction.
    Float(f64),
    /// A text.
    Text(Box<str>),
    /// With the other sign.
    Negative(Box<Self>),
    /// Two numbers.
    Arithmetic(Arithmetic, Box<(Self, Self)>),
    /// A function.
    Call(Function, Vec<Self>),
    /// Two values of one type.
    Compare(Comparison, Box<(Self, Self)>),
    /// `AND`
    All(Vec<Self>),
    /// `OR`
    Any(Vec<Self>),
    /// `NOT`
    Not(Box<Self>),
    /// `IS NULL`
    IsNull(Box<Self>),
}

/// A value while it is computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scalar<'a> {
    /// Not there, not known, or of bad quality.
    Null,
    /// A truth value.
    Bool(bool),
    /// Any integer that a field holds.
    Int(i128),
    /// Finite.
    Float(f64),
    /// A text.
    Text(&'a str),
}

impl Scalar<'_> {
    /// A number; null if it is none that is finite.
    pub fn float(value: f64) -> Self {
        if value.is_finite() { Self::Float(value) } else { Self::Null }
    }

    /// The number as a double.
    pub fn as_f64(self) -> Option<f64> {
        match self {
            Self::Int(value) => Some(value as f64),
            Self::Float(value) => Some(value),
            _ => None,
        }
    }

    fn as_bool(self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(value),
            _ => None,
        }
    }

    fn order(self, other: Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(&b)),
            (Self::Text(a), Self::Text(b)) => Some(a.cmp(b)),
            (Self::Int(a), Self::Int(b)) => Some(a.cmp(&b)),
            (a, b) => a.as_f64()?.partial_cmp(&b.as_f64()?),
        }
    }
}

/// Integers of 64 bits, signed or not: what a field can hold.
const INTEGERS: std::ops::RangeInclusive<i128> = i64::MIN as i128..=u64::MAX as i128;

fn whole<'a>(value: Option<i128>) -> Scalar<'a> {
    value.filter(|value| INTEGERS.contains(value)).map_or(Scalar::Null, Scalar::Int)
}

impl Expr {
    /// Adds the columns that it reads.
    pub fn fields(&self, into: &mut BTreeSet<u16>) {
        match self {
            Self::Field(index) => drop(into.insert(*index)),
            Self::Device | Self::Null | Self::Bool(_) | Self::Int(_) | Self::Float(_) | Self::Text(_) => {}
            Self::Negative(inner) | Self::Not(inner) | Self::IsNull(inner) => inner.fields(into),
            Self::Arithmetic(_, sides) | Self::Compare(_, sides) => {
                sides.0.fields(into);
                sides.1.fields(into);
            }
            Self::Call(_, parts) | Self::All(parts) | Self::Any(parts) => {
                parts.iter().for_each(|part| part.fields(into));
            }
        }
    }

    /// Whether the condition holds; `None`: it is null.
    pub fn holds<'a>(&'a self, device: &'a str, field: &impl Fn(u16) -> Scalar<'a>) -> Option<bool> {
        self.value(device, field).as_bool()
    }

    /// Its value for a record of `device` with the fields that `field` gives.
    pub fn value<'a>(&'a self, device: &'a str, field: &impl Fn(u16) -> Scalar<'a>) -> Scalar<'a> {
        let of = |expr: &'a Self| expr.value(device, field);
        match self {
            Self::Field(index) => field(*index),
            Self::Device => Scalar::Text(device),
            Self::Null => Scalar::Null,
            Self::Bool(value) => Scalar::Bool(*value),
            Self::Int(value) => Scalar::Int(i128::from(*value)),
            Self::Float(value) => Scalar::float(*value),
            Self::Text(value) => Scalar::Text(value),
            Self::Negative(inner) => match of(inner) {
                Scalar::Int(value) => whole(value.checked_neg()),
                Scalar::Float(value) => Scalar::Float(-value),
                _ => Scalar::Null,
            },
            Self::Arithmetic(what, sides) => arithmetic(*what, of(&sides.0), of(&sides.1)),
            Self::Call(function, arguments) => call(*function, arguments.iter().map(of)),
            Self::Compare(comparison, sides) => match of(&sides.0).order(of(&sides.1)) {
                Some(order) => Scalar::Bool(comparison.holds(order)),
                None => Scalar::Null,
            },
            Self::All(parts) => joined(parts.iter().map(of), false),
            Self::Any(parts) => joined(parts.iter().map(of), true),
            Self::Not(inner) => of(inner).as_bool().map_or(Scalar::Null, |value| Scalar::Bool(!value)),
            Self::IsNull(inner) => Scalar::Bool(of(inner) == Scalar::Null),
        }
    }
}

/// `decisive` settles it, whatever the others are; otherwise one null makes it null.
fn joined<'a>(parts: impl Iterator<Item = Scalar<'a>>, decisive: bool) -> Scalar<'a> {
    let mut unknown = false;
    for part in parts {
        match part.as_bool() {
            Some(value) if value == decisive => return Scalar::Bool(decisive),
            Some(_) => {}
            None => unknown = true,
        }
    }
    if unknown { Scalar::Null } else { Scalar::Bool(!decisive) }
}

fn arithmetic<'a>(what: Arithmetic, a: Scalar<'a>, b: Scalar<'a>) -> Scalar<'a> {
    if let (Scalar::Int(a), Scalar::Int(b)) = (a, b) {
        return whole(match what {
            Arithmetic::Add => a.checked_add(b),
            Arithmetic::Subtract => a.checked_sub(b),
            Arithmetic::Multiply => a.checked_mul(b),
            Arithmetic::Divide => a.checked_div(b),
            Arithmetic::Remainder => a.checked_rem(b),
        });
    }
    let (Some(a), Some(b)) = (a.as_f64(), b.as_f64()) else { return Scalar::Null };
    Scalar::float(match what {
        Arithmetic::Add => a + b,
        Arithmetic::Subtract => a - b,
        Arithmetic::Multiply => a * b,
        Arithmetic::Divide => a / b,
        Arithmetic::Remainder => a % b,
    })
}

fn call<'a>(function: Function, mut arguments: impl Iterator<Item = Scalar<'a>>) -> Scalar<'a> {
    let best = |wanted: Ordering, arguments: &mut dyn Iterator<Item = Scalar<'a>>| {
        arguments.filter(|value| *value != Scalar::Null).fold(Scalar::Null, |best, value| match value.order(best) {
            Some(order) if order != wanted => best,
            _ => value,
        })
    };
    match function {
        Function::Coalesce => arguments.find(|value| *value != Scalar::Null).unwrap_or(Scalar::Null),
        Function::Greatest => best(Ordering::Greater, &mut arguments),
        Function::Least => best(Ordering::Less, &mut arguments),
        Function::Abs | Function::Round | Function::Floor | Function::Ceil | Function::Sqrt => {
            match (function, arguments.next().unwrap_or(Scalar::Null)) {
                (Function::Abs, Scalar::Int(value)) => whole(value.checked_abs()),
                (Function::Sqrt, value) => value.as_f64().map_or(Scalar::Null, |value| Scalar::float(value.sqrt())),
                (_, Scalar::Int(value)) => Scalar::Int(value),
                (Function::Abs, Scalar::Float(value)) => Scalar::Float(value.abs()),
                (Function::Round, Scalar::Float(value)) => Scalar::Float(value.round()),
                (Function::Floor, Scalar::Float(value)) => Scalar::Float(value.floor()),
                (Function::Ceil, Scalar::Float(value)) => Scalar::Float(value.ceil()),
                _ => Scalar::Null,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(value: f64) -> Expr {
        Expr::Float(value)
    }

    fn compare(comparison: Comparison, a: Expr, b: Expr) -> Expr {
        Expr::Compare(comparison, Box::new((a, b)))
    }

    fn math(what: Arithmetic, a: Expr, b: Expr) -> Expr {
        Expr::Arithmetic(what, Box::new((a, b)))
    }

    fn check(expr: &Expr, field: Scalar<'static>, expected: Scalar<'static>) {
        assert_eq!(expr.value("pump-7", &|_| field), expected, "{expr:?} of {field:?}");
    }

    #[test]
    fn bad_quality_is_null_all_the_way() {
        let above = compare(Comparison::Greater, Expr::Field(0), number(80.0));
        check(&above, Scalar::Float(81.0), Scalar::Bool(true));
        check(&above, Scalar::Int(80), Scalar::Bool(false));
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            check(&above, Scalar::float(bad), Scalar::Null);
            check(&Expr::Not(Box::new(above.clone())), Scalar::float(bad), Scalar::Null);
            check(&Expr::IsNull(Box::new(Expr::Field(0))), Scalar::float(bad), Scalar::Bool(true));
        }
        let either = Expr::Any(vec![above.clone(), Expr::Bool(true)]);
        let both = Expr::All(vec![above.clone(), Expr::Bool(false)]);
        check(&either, Scalar::Null, Scalar::Bool(true));
        check(&both, Scalar::Null, Scalar::Bool(false));
        check(&Expr::All(vec![above, Expr::Bool(true)]), Scalar::Null, Scalar::Null);
    }

    #[test]
    fn numbers() {
        use Arithmetic::*;
        let field = || Expr::Field(0);
        check(&math(Divide, field(), Expr::Int(2)), Scalar::Int(7), Scalar::Int(3));
        check(&math(Divide, field(), number(2.0)), Scalar::Int(7), Scalar::Float(3.5));
        check(&math(Divide, field(), Expr::Int(0)), Scalar::Int(7), Scalar::Null);
        check(&math(Divide, field(), number(0.0)), Scalar::Int(7), Scalar::Null);
        check(&math(Multiply, field(), field()), Scalar::Int(i128::from(u64::MAX)), Scalar::Null);
        check(&math(Add, field(), Expr::Int(1)), Scalar::Int(i128::from(i64::MAX)), Scalar::Int(1 << 63));
        check(&Expr::Call(Function::Abs, vec![field()]), Scalar::Float(-2.5), Scalar::Float(2.5));
        check(&Expr::Call(Function::Round, vec![field()]), Scalar::Float(-2.5), Scalar::Float(-3.0));
        check(&Expr::Call(Function::Sqrt, vec![field()]), Scalar::Int(-1), Scalar::Null);
        check(&Expr::Call(Function::Greatest, vec![Expr::Null, field(), Expr::Int(3)]), Scalar::Int(9), Scalar::Int(9));
        check(&Expr::Call(Function::Least, vec![Expr::Null, field(), Expr::Int(3)]), Scalar::Int(9), Scalar::Int(3));
        check(&Expr::Call(Function::Coalesce, vec![field(), Expr::Int(3)]), Scalar::Null, Scalar::Int(3));
        check(&Expr::Negative(Box::new(field())), Scalar::Int(3), Scalar::Int(-3));
        let big = compare(Comparison::Greater, field(), Expr::Int(i64::MAX));
        check(&big, Scalar::Int(i128::from(i64::MAX) + 1), Scalar::Bool(true));
        check(&compare(Comparison::Equal, Expr::Device, Expr::Text("pump-7".into())), Scalar::Null, Scalar::Bool(true));
    }
}
