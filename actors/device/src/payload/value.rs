//! From what a payload says to what a field holds: the type rules, in one place for all formats.
//!
//! An integer goes into any integer or floating-point field it fits; a fraction never goes into an integer; text,
//! booleans and numbers never become one another.

use std::borrow::Cow;

use super::base64;
use crate::schema::{FieldType, Value};

/// A scalar as it stands in a payload.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Raw<'a> {
    Null,
    Bool(bool),
    Int(i64),
    /// Above `i64::MAX`.
    Uint(u64),
    /// An integer beyond 64 bits, as the nearest double.
    Huge(f64),
    Float(f64),
    /// A number as text, exactly as it was written (JSON).
    Decimal(&'a str),
    Text(Cow<'a, str>),
    Bytes(&'a [u8]),
}

/// Why a scalar is not a value of a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Misfit {
    Type,
    Range,
    Fraction,
    Base64,
}

impl<'a> Raw<'a> {
    /// An integer of any size.
    pub(crate) fn integer(value: i128) -> Self {
        match (i64::try_from(value), u64::try_from(value)) {
            (Ok(value), _) => Self::Int(value),
            (_, Ok(value)) => Self::Uint(value),
            _ => Self::Huge(value as f64),
        }
    }

    /// What people call it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Int(_) | Self::Uint(_) | Self::Huge(_) => "an integer",
            Self::Float(_) | Self::Decimal(_) => "a number",
            Self::Text(_) => "text",
            Self::Bytes(_) => "bytes",
        }
    }

    /// The same, with numbers that were written as text made into numbers.
    #[inline]
    fn number(&self) -> Result<Self, Misfit> {
        let Self::Decimal(text) = self else {
            return Ok(self.clone());
        };
        if !text.bytes().any(|byte| matches!(byte, b'.' | b'e' | b'E')) {
            if let Ok(value) = text.parse::<i64>() {
                return Ok(Self::Int(value));
            }
            if let Ok(value) = text.parse::<u64>() {
                return Ok(Self::Uint(value));
            }
            return text.parse().map(Self::Huge).map_err(|_| Misfit::Type);
        }
        text.parse().map(Self::Float).map_err(|_| Misfit::Type)
    }

    #[inline]
    pub(crate) fn f64(&self) -> Result<f64, Misfit> {
        let value = match self {
            Self::Float(value) => return Ok(*value),
            Self::Int(value) => return Ok(*value as f64),
            Self::Uint(value) => return Ok(*value as f64),
            Self::Huge(value) => *value,
            Self::Decimal(text) => text.parse().map_err(|_| Misfit::Type)?,
            _ => return Err(Misfit::Type),
        };
        // Text has no infinities: what parses as one was too large.
        if value.is_finite() { Ok(value) } else { Err(Misfit::Range) }
    }

    #[inline]
    fn f32(&self) -> Result<f32, Misfit> {
        let wide = self.f64()?;
        let value = wide as f32;
        if value.is_infinite() && wide.is_finite() { Err(Misfit::Range) } else { Ok(value) }
    }

    #[inline]
    pub(crate) fn i64(&self) -> Result<i64, Misfit> {
        match self {
            Self::Int(value) => Ok(*value),
            Self::Uint(_) | Self::Huge(_) => Err(Misfit::Range),
            Self::Float(value) => whole(*value),
            Self::Decimal(_) => self.number()?.i64(),
            _ => Err(Misfit::Type),
        }
    }

    #[inline]
    fn u64(&self) -> Result<u64, Misfit> {
        match self {
            Self::Int(value) => u64::try_from(*value).map_err(|_| Misfit::Range),
            Self::Uint(value) => Ok(*value),
            Self::Huge(_) => Err(Misfit::Range),
            Self::Float(value) => u64::try_from(whole(*value)?).map_err(|_| Misfit::Range),
            Self::Decimal(_) => self.number()?.u64(),
            _ => Err(Misfit::Type),
        }
    }

    /// This raw value times `10^scale`, if it is an integer; anything else stays as it is. `integral` says that
    /// the field holds integers, so that nothing may be lost.
    #[inline]
    pub(crate) fn scaled(self, scale: i32, integral: bool) -> Result<Self, Misfit> {
        let raw = match self {
            _ if scale == 0 => return Ok(self),
            Self::Int(value) => i128::from(value),
            Self::Uint(value) => i128::from(value),
            other => return Ok(other),
        };
        if integral {
            let power = 10i128.checked_pow(scale.unsigned_abs()).ok_or(Misfit::Range)?;
            return if scale > 0 {
                raw.checked_mul(power).map(Self::integer).ok_or(Misfit::Range)
            } else if raw % power == 0 {
                Ok(Self::integer(raw / power))
            } else {
                Err(Misfit::Fraction)
            };
        }
        // Powers of ten up to 22 are exact doubles: one division rounds once, to the nearest double.
        let power = 10f64.powi(scale.saturating_abs());
        Ok(Self::Float(if scale > 0 { raw as f64 * power } else { raw as f64 / power }))
    }

    /// The value as a field of this type holds it. `bytes` takes what has to be decoded first.
    #[inline]
    pub(crate) fn fit<'v>(&'v self, kind: FieldType, bytes: &'v mut Vec<u8>) -> Result<Value<'v>, Misfit> {
        Ok(match (kind, self) {
            (FieldType::F64, raw) => Value::F64(raw.f64()?),
            (FieldType::I64, raw) => Value::I64(raw.i64()?),
            (FieldType::Bool, Self::Bool(value)) => Value::Bool(*value),
            (FieldType::U64, raw) => Value::U64(raw.u64()?),
            (FieldType::F32, raw) => Value::F32(raw.f32()?),
            (FieldType::Text, Self::Text(text)) => Value::Text(text),
            (FieldType::Bytes, Self::Bytes(bytes)) => Value::Bytes(bytes),
            (FieldType::Bytes, Self::Text(text)) => {
                bytes.clear();
                if !base64::decode(text, bytes) {
                    return Err(Misfit::Base64);
                }
                Value::Bytes(bytes)
            }
            _ => return Err(Misfit::Type),
        })
    }
}

/// A double that is an integer and of which no digit can have been lost.
fn whole(value: f64) -> Result<i64, Misfit> {
    if value.is_nan() || value.is_infinite() || value.abs() > 9_007_199_254_740_992.0 {
        return Err(Misfit::Range);
    }
    if value.fract() != 0.0 {
        return Err(Misfit::Fraction);
    }
    Ok(value as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(raw: Raw<'_>, kind: FieldType, expected: Result<Value<'_>, Misfit>) {
        assert_eq!(raw.fit(kind, &mut Vec::new()), expected, "{raw:?} as {kind:?}");
    }

    #[test]
    fn numbers_go_where_they_fit() {
        check(Raw::Int(-3), FieldType::F64, Ok(Value::F64(-3.0)));
        check(Raw::Int(-3), FieldType::U64, Err(Misfit::Range));
        check(Raw::Uint(u64::MAX), FieldType::U64, Ok(Value::U64(u64::MAX)));
        check(Raw::Uint(u64::MAX), FieldType::I64, Err(Misfit::Range));
        check(Raw::Float(2.0), FieldType::I64, Ok(Value::I64(2)));
        check(Raw::Float(2.5), FieldType::I64, Err(Misfit::Fraction));
        check(Raw::Float(1e300), FieldType::F32, Err(Misfit::Range));
        check(Raw::Float(f64::INFINITY), FieldType::F32, Ok(Value::F32(f32::INFINITY)));
        check(Raw::Float(f64::NAN), FieldType::I64, Err(Misfit::Range));
        check(Raw::Decimal("9223372036854775807"), FieldType::I64, Ok(Value::I64(i64::MAX)));
        check(Raw::Decimal("9223372036854775808"), FieldType::I64, Err(Misfit::Range));
        check(Raw::Decimal("18446744073709551615"), FieldType::U64, Ok(Value::U64(u64::MAX)));
        check(Raw::Decimal("1e3"), FieldType::I64, Ok(Value::I64(1000)));
        check(Raw::Decimal("9007199254740993.0"), FieldType::I64, Ok(Value::I64(9_007_199_254_740_992)));
        check(Raw::Decimal("9007199254740995.0"), FieldType::I64, Err(Misfit::Range));
        check(Raw::Decimal("0.1"), FieldType::F64, Ok(Value::F64(0.1)));
        check(Raw::Decimal("1e999"), FieldType::F64, Err(Misfit::Range));
        check(Raw::Decimal("100000000000000000000"), FieldType::F64, Ok(Value::F64(1e20)));
    }

    #[test]
    fn kinds_never_become_one_another() {
        check(Raw::Text("1".into()), FieldType::F64, Err(Misfit::Type));
        check(Raw::Bool(true), FieldType::I64, Err(Misfit::Type));
        check(Raw::Int(1), FieldType::Bool, Err(Misfit::Type));
        check(Raw::Int(1), FieldType::Text, Err(Misfit::Type));
        check(Raw::Int(1), FieldType::F64List, Err(Misfit::Type));
        check(Raw::Text("AQID".into()), FieldType::Bytes, Ok(Value::Bytes(&[1, 2, 3])));
        check(Raw::Text("AQ-".into()), FieldType::Bytes, Err(Misfit::Base64));
    }

    #[test]
    fn scale_rounds_once() {
        let scaled = |raw: i64, scale| Raw::Int(raw).scaled(scale, false).unwrap();
        assert_eq!(scaled(1234, -3), Raw::Float(1.234));
        assert_eq!(scaled(3, -1), Raw::Float(0.3));
        assert_eq!(scaled(7, 2), Raw::Float(700.0));
        assert_eq!(Raw::Float(7.5).scaled(2, false), Ok(Raw::Float(7.5)));
        assert_eq!(Raw::Int(1200).scaled(-2, true), Ok(Raw::Int(12)));
        assert_eq!(Raw::Int(1234).scaled(-2, true), Err(Misfit::Fraction));
        assert_eq!(Raw::Int(i64::MAX).scaled(30, true), Err(Misfit::Range));
    }
}
