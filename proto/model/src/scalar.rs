//! The small values of the API: durations, percentages, enums, header names, ports. Each parser reports at the field it
//! is given and yields nothing when the value is refused.

use std::sync::Arc;
use std::time::Duration;

use culvert_api::envoy::r#type::v3 as types;
use culvert_api::xdstp;

use crate::report::{Report, clip};

/// A duration that is not negative and at most [`MAX_DURATION`].
pub(crate) fn duration(
    report: &mut Report,
    field: &'static str,
    value: Option<&prost_types::Duration>,
) -> Option<Duration> {
    let value = value?;
    let seconds = u64::try_from(value.seconds).ok();
    let nanos = u32::try_from(value.nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
    let (Some(seconds), Some(nanos)) = (seconds, nanos) else {
        let (seconds, nanos) = (value.seconds, value.nanos);
        report.error_at(field, format!("{seconds} s and {nanos} ns: a duration is not negative"));
        return None;
    };
    let duration = Duration::new(seconds, nanos);
    if duration > MAX_DURATION {
        report.error_at(field, format!("{seconds} s is longer than {} s", MAX_DURATION.as_secs()));
        return None;
    }
    Some(duration)
}

/// A duration that is not zero, or the default.
pub(crate) fn positive(
    report: &mut Report,
    field: &'static str,
    value: Option<&prost_types::Duration>,
    default: Duration,
) -> Duration {
    match duration(report, field, value) {
        Some(Duration::ZERO) => {
            report.error_at(field, "is zero; leave it out to get the default");
            default
        }
        Some(duration) => duration,
        None => default,
    }
}

/// A time limit: unset is the default, zero is none.
pub(crate) fn limit(
    report: &mut Report,
    field: &'static str,
    value: Option<&prost_types::Duration>,
    default: Option<Duration>,
) -> Option<Duration> {
    if value.is_none() {
        return default;
    }
    duration(report, field, value).filter(|duration| !duration.is_zero())
}

/// A number of at least `least`, or the default.
pub(crate) fn at_least(report: &mut Report, field: &'static str, value: Option<u32>, least: u32, default: u32) -> u32 {
    within(report, field, value, least, u32::MAX, default)
}

/// A number from `least` to `most`, or the default.
pub(crate) fn within(
    report: &mut Report,
    field: &'static str,
    value: Option<u32>,
    least: u32,
    most: u32,
    default: u32,
) -> u32 {
    let Some(value) = value else { return default };
    if (least..=most).contains(&value) {
        return value;
    }
    let range = if most == u32::MAX { format!("less than {least}") } else { format!("not from {least} to {most}") };
    report.error_at(field, format!("{value} is {range}"));
    default
}

/// A percentage from 0 to 100, or the default.
pub(crate) fn percent(report: &mut Report, field: &'static str, value: Option<&types::Percent>, default: f64) -> f64 {
    let Some(value) = value else { return default };
    // NaN is in no range.
    if (0.0..=100.0).contains(&value.value) {
        return value.value;
    }
    report.error_at(field, format!("{} is not from 0 to 100 percent", value.value));
    default
}

/// A fraction, of 1,000,000.
pub(crate) fn fraction(report: &mut Report, field: &'static str, value: &types::FractionalPercent) -> u32 {
    use types::fractional_percent::DenominatorType;
    let Some(denominator) = enumeration::<DenominatorType>(report, field, value.denominator) else { return MILLION };
    let denominator = match denominator {
        DenominatorType::Hundred => 100,
        DenominatorType::TenThousand => 10_000,
        DenominatorType::Million => MILLION,
    };
    // Envoy: more than the denominator is always.
    value.numerator.min(denominator).saturating_mul(MILLION / denominator)
}

/// One of the API's enum values.
pub(crate) fn enumeration<E: TryFrom<i32>>(report: &mut Report, field: &'static str, value: i32) -> Option<E> {
    let parsed = E::try_from(value).ok();
    if parsed.is_none() {
        report.error_at(field, format!("value {value} is not known; this build has an older API"));
    }
    parsed
}

/// A port that is not 0.
pub(crate) fn port(report: &mut Report, field: &'static str, value: u32) -> Option<u16> {
    let port = u16::try_from(value).ok().filter(|port| *port != 0);
    if port.is_none() {
        report.error_at(field, format!("{value} is not a port from 1 to 65535"));
    }
    port
}

/// A header name, in lower case.
pub(crate) fn header_name(report: &mut Report, field: &'static str, name: &str) -> Option<Arc<str>> {
    let valid = !name.is_empty() && name.len() <= MAX_HEADER_NAME && name.bytes().all(is_token);
    if !valid {
        report.error_at(field, format!("{:?} is not a header name", clip(name)));
        return None;
    }
    Some(name.to_ascii_lowercase().into())
}

/// A header name or one of the pseudo-headers of a request, in lower case.
pub(crate) fn field_name(report: &mut Report, field: &'static str, name: &str) -> Option<Arc<str>> {
    match name {
        ":path" | ":method" | ":authority" | ":scheme" => Some(name.into()),
        _ => header_name(report, field, name),
    }
}

/// A text that may stand in a header: no control characters (RFC 9110 §5.5).
pub(crate) fn header_value(report: &mut Report, field: &'static str, value: &str) -> Option<Arc<str>> {
    if value.bytes().any(|byte| (byte < 0x20 && byte != b'\t') || byte == 0x7f) {
        report.error_at(field, format!("{:?} has control characters, which a header cannot hold", clip(value)));
        return None;
    }
    if value.len() > MAX_HEADER_VALUE {
        report.error_at(field, format!("has {} bytes, more than {MAX_HEADER_VALUE}", value.len()));
        return None;
    }
    Some(value.into())
}

/// A name that must be there; of an `xdstp:` name its one spelling.
pub(crate) fn name(report: &mut Report, field: &'static str, value: &str) -> Option<Arc<str>> {
    if value.is_empty() {
        report.error_at(field, "is empty; give a name");
        return None;
    }
    if value.len() > MAX_NAME {
        report.error_at(field, format!("has {} bytes, more than {MAX_NAME}", value.len()));
        return None;
    }
    Some(xdstp::canonical(value).into())
}

/// RFC 9110 §5.6.2: `tchar`.
pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// 10 years: what is longer is a mistake, and timers stay far from overflow.
pub(crate) const MAX_DURATION: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
pub(crate) const MILLION: u32 = 1_000_000;
const MAX_HEADER_NAME: usize = 256;
const MAX_HEADER_VALUE: usize = 16 * 1024;
const MAX_NAME: usize = 4096;
