//! Rules on durations and times.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use prost_reflect::DynamicMessage;
use prost_types::{Duration, Timestamp};

use super::numbers::{Bounds, compare};
use crate::rules::{DurationRules, TimestampRules};

/// Seconds and nanoseconds, in order.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
struct Span(i64, i32);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Duration { seconds: self.0, nanos: self.1 }.fmt(f)
    }
}

impl From<Duration> for Span {
    fn from(duration: Duration) -> Self {
        Self(duration.seconds, duration.nanos)
    }
}

#[derive(Clone, Copy, PartialEq, PartialOrd)]
struct Moment(i64, i32);

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Timestamp { seconds: self.0, nanos: self.1 }.fmt(f)
    }
}

impl From<Timestamp> for Moment {
    fn from(time: Timestamp) -> Self {
        Self(time.seconds, time.nanos)
    }
}

pub(super) fn duration(message: &DynamicMessage, rules: &DurationRules) -> Option<String> {
    let duration: Duration = message.transcode_to().ok()?;
    // google/protobuf/duration.proto: the range, and both parts of one sign.
    let (seconds, nanos) = (duration.seconds, duration.nanos);
    if seconds.unsigned_abs() > 315_576_000_000
        || nanos.unsigned_abs() > 999_999_999
        || (seconds > 0 && nanos < 0)
        || (seconds < 0 && nanos > 0)
    {
        return Some(format!("{seconds} s and {nanos} ns are no duration"));
    }
    let within: Vec<Span> = rules.r#in.iter().copied().map(Span::from).collect();
    let without: Vec<Span> = rules.not_in.iter().copied().map(Span::from).collect();
    let bounds = Bounds {
        equal: rules.r#const.map(Span::from),
        lt: rules.lt.map(Span::from),
        lte: rules.lte.map(Span::from),
        gt: rules.gt.map(Span::from),
        gte: rules.gte.map(Span::from),
        within: &within,
        without: &without,
    };
    compare(Span::from(duration), &bounds)
}

pub(super) fn timestamp(message: &DynamicMessage, rules: &TimestampRules) -> Option<String> {
    let time: Timestamp = message.transcode_to().ok()?;
    let moment = Moment::from(time);
    let bounds = Bounds {
        equal: rules.r#const.map(Moment::from),
        lt: rules.lt.map(Moment::from),
        lte: rules.lte.map(Moment::from),
        gt: rules.gt.map(Moment::from),
        gte: rules.gte.map(Moment::from),
        within: &[],
        without: &[],
    };
    if let Some(finding) = compare(moment, &bounds) {
        return Some(finding);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let now = i64::try_from(now.as_secs()).ok()?;
    if rules.lt_now() && moment.0 >= now {
        return Some(format!("must be in the past, is {moment}"));
    }
    if rules.gt_now() && moment.0 <= now {
        return Some(format!("must be in the future, is {moment}"));
    }
    let within = rules.within.map(|within| within.seconds.unsigned_abs());
    let far = within.filter(|within| moment.0.abs_diff(now) > *within)?;
    Some(format!("must be within {far} s of now, is {moment}"))
}
