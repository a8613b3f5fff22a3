//! Rules on numbers.

use std::fmt::Display;

use prost_reflect::Value;

use crate::rules::field_rules::Type;

/// What is wrong with a number; nothing if the rules are for another kind.
pub(super) fn check(rules: &Type, value: &Value) -> Option<String> {
    match (rules, value) {
        (Type::Float(r), Value::F32(v)) => {
            rules_of(*v, r.ignore_empty, [r.r#const, r.lt, r.lte, r.gt, r.gte], (&r.r#in, &r.not_in))
        }
        (Type::Double(r), Value::F64(v)) => {
            rules_of(*v, r.ignore_empty, [r.r#const, r.lt, r.lte, r.gt, r.gte], (&r.r#in, &r.not_in))
        }
        (Type::Int32(r), Value::I32(v)) => {
            rules_of(*v, r.ignore_empty, [r.r#const, r.lt, r.lte, r.gt, r.gte], (&r.r#in, &r.not_in))
        }
        (Type::Int64(r), Value::I64(v)) => {
            rules_of(*v, r.ignore_empty, [r.r#const, r.lt, r.lte, r.gt, r.gte], (&r.r#in, &r.not_in))
        }
        (Type::Uint32(r), Value::U32(v)) => {
            rules_of(*v, r.ignore_empty, [r.r#const, r.lt, r.lte, r.gt, r.gte], (&r.r#in, &r.not_in))
        }
        (Type::Uint64(r), Value::U64(v)) => {
            rules_of(*v, r.ignore_empty, [r.r#const, r.lt, r.lte, r.gt, r.gte], (&r.r#in, &r.not_in))
        }
        (Type::Sint32(r), Value::I32(v)) => {
            rules_of(*v, r.ignore_empty, [r.r#const, r.lt, r.lte, r.gt, r.gte], (&r.r#in, &r.not_in))
        }
        (Type::Sint64(r), Value::I64(v)) => {
            rules_of(*v, r.ignore_empty, [r.r#const, r.lt, r.lte, r.gt, r.gte], (&r.r#in, &r.not_in))
        }
        (Type::Fixed32(r), Value::U32(v)) => {
            rules_of(*v, r.ignore_empty, [r.r#const, r.lt, r.lte, r.gt, r.gte], (&r.r#in, &r.not_in))
        }
        (Type::Fixed64(r), Value::U64(v)) => {
            rules_of(*v, r.ignore_empty, [r.r#const, r.lt, r.lte, r.gt, r.gte], (&r.r#in, &r.not_in))
        }
        (Type::Sfixed32(r), Value::I32(v)) => {
            rules_of(*v, r.ignore_empty, [r.r#const, r.lt, r.lte, r.gt, r.gte], (&r.r#in, &r.not_in))
        }
        (Type::Sfixed64(r), Value::I64(v)) => {
            rules_of(*v, r.ignore_empty, [r.r#const, r.lt, r.lte, r.gt, r.gte], (&r.r#in, &r.not_in))
        }
        _ => None,
    }
}

/// The rules that all the number types have, each in its own type.
pub(super) struct Bounds<'a, T> {
    pub(super) equal: Option<T>,
    pub(super) lt: Option<T>,
    pub(super) lte: Option<T>,
    pub(super) gt: Option<T>,
    pub(super) gte: Option<T>,
    pub(super) within: &'a [T],
    pub(super) without: &'a [T],
}

fn rules_of<T: PartialOrd + Display + Copy + Default>(
    value: T,
    ignore_empty: Option<bool>,
    [equal, lt, lte, gt, gte]: [Option<T>; 5],
    (within, without): (&[T], &[T]),
) -> Option<String> {
    if ignore_empty == Some(true) && value == T::default() {
        return None;
    }
    compare(value, &Bounds { equal, lt, lte, gt, gte, within, without })
}

/// A comparison with NaN does not hold, so NaN violates every bound.
pub(super) fn compare<T: PartialOrd + Display + Copy>(value: T, bounds: &Bounds<'_, T>) -> Option<String> {
    let list = |values: &[T]| values.iter().map(T::to_string).collect::<Vec<_>>().join(", ");
    if let Some(wanted) = bounds.equal.filter(|wanted| value != *wanted) {
        return Some(format!("must be {wanted}, is {value}"));
    }
    if !bounds.within.is_empty() && !bounds.within.contains(&value) {
        return Some(format!("must be one of {}, is {value}", list(bounds.within)));
    }
    if bounds.without.contains(&value) {
        return Some(format!("must not be {value}"));
    }
    let above = bounds.gt.map(|gt| (value > gt, format!("greater than {gt}")));
    let above = above.or(bounds.gte.map(|gte| (value >= gte, format!("at least {gte}"))));
    let below = bounds.lt.map(|lt| (value < lt, format!("less than {lt}")));
    let below = below.or(bounds.lte.map(|lte| (value <= lte, format!("at most {lte}"))));
    // protoc-gen-validate: an upper bound that lies below the lower one makes the range exclusive: one must hold.
    let exclusive = match (bounds.gt.or(bounds.gte), bounds.lt.or(bounds.lte)) {
        (Some(lower), Some(upper)) => upper < lower,
        _ => false,
    };
    match (above, below) {
        (Some((false, above)), Some((false, below))) if exclusive => {
            Some(format!("must be {above} or {below}, is {value}"))
        }
        (Some(_), Some(_)) if exclusive => None,
        (Some((false, bound)), _) | (_, Some((false, bound))) => Some(format!("must be {bound}, is {value}")),
        _ => None,
    }
}
