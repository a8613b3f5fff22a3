//! Access logs: where lines go, what is logged, and as what.

mod format;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use culvert_api::Any;
use culvert_api::envoy::config::accesslog::v3 as api;
use culvert_api::envoy::config::core::v3 as core;
use culvert_api::envoy::extensions::access_loggers::file::v3 as file;
use culvert_api::envoy::extensions::access_loggers::stream::v3 as stream;
use prost::Name as _;
use prost_types::value::Kind;

use crate::matcher;
use crate::report::Report;
use crate::runtime::{self, Share};
use crate::scalar;

pub use format::{Format, Operator, Part};
pub(crate) use format::{Subject, parts};

#[derive(Debug, Clone, PartialEq)]
pub struct AccessLog {
    pub sink: Sink,
    pub format: LogFormat,
    pub filter: Option<Filter>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sink {
    File(PathBuf),
    Stdout,
    Stderr,
}

#[derive(Debug, Clone, PartialEq)]
pub enum LogFormat {
    Text(Format),
    /// Keys sorted, as Envoy writes them.
    Json(Vec<(Arc<str>, JsonValue)>),
}

#[derive(Debug, Clone, PartialEq)]
pub enum JsonValue {
    /// One operator alone keeps its type (number, string); several make a string.
    Format(Format),
    Object(Vec<(Arc<str>, Self)>),
    List(Vec<Self>),
    Number(f64),
    Bool(bool),
}

/// Which requests are logged.
#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
    StatusCode { op: Comparison, value: u32 },
    Duration { op: Comparison, milliseconds: u64 },
    Header(matcher::HeaderMatcher),
    ResponseFlags(Vec<Arc<str>>),
    Runtime(Share),
    NotHealthCheck,
    And(Vec<Self>),
    Or(Vec<Self>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    Equal,
    GreaterOrEqual,
    LessOrEqual,
    NotEqual,
}

/// Parses a repeated field of access logs. A logger that is not built in is left out with a warning.
pub(crate) fn list(report: &mut Report, field: &'static str, messages: &[api::AccessLog]) -> Vec<Arc<AccessLog>> {
    of_subject(report, field, messages, Subject::Request)
}

/// As [`list`], of formats that speak of that.
pub(crate) fn of_subject(
    report: &mut Report,
    field: &'static str,
    messages: &[api::AccessLog],
    subject: Subject,
) -> Vec<Arc<AccessLog>> {
    report.items(field, messages, |report, message| access_log(report, message, subject).map(Arc::new))
}

/// How the formats of a log are read.
#[derive(Debug, Clone, Copy)]
struct Style {
    omit_empty: bool,
    subject: Subject,
}

/// The log that a path alone asks for, in the default format.
pub(crate) fn to_file(path: &str) -> AccessLog {
    AccessLog { sink: sink(path), format: LogFormat::Text(Format::default_line()), filter: None }
}

fn access_log(report: &mut Report, message: &api::AccessLog, subject: Subject) -> Option<AccessLog> {
    use api::access_log::ConfigType;
    let filter = message.filter.as_ref();
    let filter = filter.and_then(|filter| report.field("filter", |report| parse_filter(report, filter)));
    let Some(ConfigType::TypedConfig(config)) = &message.config_type else {
        report.error_at("typed_config", "is missing; name a logger");
        return None;
    };
    let (sink, format) = report.field("typed_config", |report| logger(report, config, subject))?;
    Some(AccessLog { sink, format, filter })
}

fn logger(report: &mut Report, config: &Any, subject: Subject) -> Option<(Sink, LogFormat)> {
    let name = config.type_name();
    if name == file::FileAccessLog::full_name() {
        let message: file::FileAccessLog = report.unpack(config)?;
        return file_logger(report, &message, subject);
    }
    if name == stream::StdoutAccessLog::full_name() {
        use stream::stdout_access_log::AccessLogFormat;
        let message: stream::StdoutAccessLog = report.unpack(config)?;
        let format = message.access_log_format.as_ref().map(|AccessLogFormat::LogFormat(format)| format);
        return Some((Sink::Stdout, log_format(report, format, subject)?));
    }
    if name == stream::StderrAccessLog::full_name() {
        use stream::stderr_access_log::AccessLogFormat;
        let message: stream::StderrAccessLog = report.unpack(config)?;
        let format = message.access_log_format.as_ref().map(|AccessLogFormat::LogFormat(format)| format);
        return Some((Sink::Stderr, log_format(report, format, subject)?));
    }
    report.warn(format!("{name} is not built in; nothing is logged there (file, stdout and stderr are)"));
    None
}

#[expect(deprecated, reason = "format and json_format are still used")]
fn file_logger(report: &mut Report, message: &file::FileAccessLog, subject: Subject) -> Option<(Sink, LogFormat)> {
    use file::file_access_log::AccessLogFormat;
    if message.path.is_empty() || message.path.contains('\0') {
        report.error_at("path", "is not the path of a file");
        return None;
    }
    let style = Style { omit_empty: false, subject };
    let format = match &message.access_log_format {
        None => LogFormat::Text(Format::default_line()),
        Some(AccessLogFormat::Format(text)) if text.is_empty() => LogFormat::Text(Format::default_line()),
        Some(AccessLogFormat::Format(text)) => LogFormat::Text(text_format(report, "format", text, style)?),
        Some(AccessLogFormat::JsonFormat(json)) => {
            LogFormat::Json(report.field("json_format", |report| object(report, json, style)))
        }
        Some(AccessLogFormat::TypedJsonFormat(json)) => {
            LogFormat::Json(report.field("typed_json_format", |report| object(report, json, style)))
        }
        Some(AccessLogFormat::LogFormat(format)) => log_format(report, Some(format), subject)?,
    };
    Some((sink(&message.path), format))
}

fn sink(path: &str) -> Sink {
    match path {
        "/dev/stdout" => Sink::Stdout,
        "/dev/stderr" => Sink::Stderr,
        path => Sink::File(path.into()),
    }
}

fn log_format(
    report: &mut Report,
    message: Option<&core::SubstitutionFormatString>,
    subject: Subject,
) -> Option<LogFormat> {
    let Some(message) = message else { return Some(LogFormat::Text(Format::default_line())) };
    let style = Style { omit_empty: message.omit_empty_values, subject };
    report.field("log_format", |report| substitution_format(report, message, style))
}

fn text_format(report: &mut Report, field: &'static str, text: &str, style: Style) -> Option<Format> {
    let format = Format::parse_of(text, style.omit_empty, style.subject);
    format.map_err(|reason| report.error_at(field, reason)).ok()
}

#[expect(deprecated, reason = "text_format is still used")]
fn substitution_format(
    report: &mut Report,
    message: &core::SubstitutionFormatString,
    style: Style,
) -> Option<LogFormat> {
    use core::substitution_format_string::Format as Source;
    match &message.format {
        Some(Source::TextFormat(text)) => Some(LogFormat::Text(text_format(report, "text_format", text, style)?)),
        Some(Source::TextFormatSource(source)) => report.field("text_format_source", |report| {
            use core::data_source::Specifier;
            let text = match &source.specifier {
                Some(Specifier::InlineString(text)) => text,
                Some(Specifier::InlineBytes(bytes)) => std::str::from_utf8(bytes).unwrap_or_default(),
                _ => {
                    report.error("is not inline; give inline_string");
                    return None;
                }
            };
            Some(LogFormat::Text(text_format(report, "inline_string", text, style)?))
        }),
        Some(Source::JsonFormat(json)) => {
            Some(LogFormat::Json(report.field("json_format", |report| object(report, json, style))))
        }
        None => {
            report.error("names no format; set text_format_source or json_format");
            None
        }
    }
}

fn object(report: &mut Report, json: &prost_types::Struct, style: Style) -> Vec<(Arc<str>, JsonValue)> {
    let mut fields = Vec::with_capacity(json.fields.len());
    for (key, value) in &json.fields {
        if let Some(value) = report.key(key, |report| json_value(report, value, style)) {
            fields.push((key.as_str().into(), value));
        }
    }
    // Sorted already where the map is; Envoy writes sorted keys.
    fields.sort_by(|(left, _): &(Arc<str>, _), (right, _)| left.cmp(right));
    fields
}

fn json_value(report: &mut Report, value: &prost_types::Value, style: Style) -> Option<JsonValue> {
    match value.kind.as_ref() {
        Some(Kind::StringValue(text)) => {
            let format =
                Format::parse_of(text, style.omit_empty, style.subject).map_err(|reason| report.error(reason)).ok()?;
            Some(JsonValue::Format(format))
        }
        Some(Kind::NumberValue(number)) if number.is_finite() => Some(JsonValue::Number(*number)),
        Some(Kind::BoolValue(value)) => Some(JsonValue::Bool(*value)),
        Some(Kind::StructValue(inner)) => Some(JsonValue::Object(object(report, inner, style))),
        Some(Kind::ListValue(list)) => {
            let values = list.values.iter().enumerate();
            let value = |(index, value)| report.index(index, |report| json_value(report, value, style));
            Some(JsonValue::List(values.filter_map(value).collect()))
        }
        Some(Kind::NumberValue(_) | Kind::NullValue(_)) | None => {
            report.error("is neither text, number, bool, list nor object");
            None
        }
    }
}

/// `None`: every request passes.
fn parse_filter(report: &mut Report, message: &api::AccessLogFilter) -> Option<Filter> {
    use api::access_log_filter::FilterSpecifier as Specifier;
    let Some(specifier) = &message.filter_specifier else {
        report.error("names no filter");
        return None;
    };
    match specifier {
        Specifier::StatusCodeFilter(filter) => report.field("status_code_filter", |report| {
            let (op, value) = comparison(report, filter.comparison.as_ref())?;
            Some(Filter::StatusCode { op, value })
        }),
        Specifier::DurationFilter(filter) => report.field("duration_filter", |report| {
            let (op, value) = comparison(report, filter.comparison.as_ref())?;
            Some(Filter::Duration { op, milliseconds: value.into() })
        }),
        Specifier::NotHealthCheckFilter(_) => Some(Filter::NotHealthCheck),
        Specifier::RuntimeFilter(filter) => report.field("runtime_filter", |report| {
            // Envoy: without percent_sampled it is 0, and the runtime key decides.
            let sampled = filter.percent_sampled.as_ref();
            let default = sampled.map_or(0, |sampled| scalar::fraction(report, "percent_sampled", sampled));
            Some(Filter::Runtime(Share { default, key: runtime::key(&filter.runtime_key) }))
        }),
        Specifier::AndFilter(filter) => report
            .field("and_filter", |report| Some(Filter::And(report.items("filters", &filter.filters, parse_filter)))),
        Specifier::OrFilter(filter) => report.field("or_filter", |report| {
            let filters = report.items("filters", &filter.filters, parse_filter);
            // One that is not honoured passes everything.
            (filters.len() == filter.filters.len()).then_some(Filter::Or(filters))
        }),
        Specifier::HeaderFilter(filter) => report.field("header_filter", |report| {
            let header = filter.header.as_ref();
            Some(Filter::Header(report.field("header", |report| matcher::header(report, header?))?))
        }),
        Specifier::ResponseFlagFilter(filter) => {
            Some(Filter::ResponseFlags(filter.flags.iter().map(|flag| flag.as_str().into()).collect()))
        }
        // The coverage tables have warned.
        Specifier::TraceableFilter(_)
        | Specifier::GrpcStatusFilter(_)
        | Specifier::ExtensionFilter(_)
        | Specifier::MetadataFilter(_)
        | Specifier::LogTypeFilter(_) => None,
    }
}

fn comparison(report: &mut Report, message: Option<&api::ComparisonFilter>) -> Option<(Comparison, u32)> {
    use api::comparison_filter::Op;
    let Some(message) = message else {
        report.error_at("comparison", "is missing");
        return None;
    };
    let op = report.field("comparison", |report| scalar::enumeration::<Op>(report, "op", message.op))?;
    let op = match op {
        Op::Eq => Comparison::Equal,
        Op::Ge => Comparison::GreaterOrEqual,
        Op::Le => Comparison::LessOrEqual,
        Op::Ne => Comparison::NotEqual,
    };
    Some((op, message.value.as_ref().map_or(0, |value| value.default_value)))
}
