//! Verdicts over the messages of access logs.

use super::{Covered, carried, covered, honoured, warned};

pub(super) const TABLE: &[Covered] = &[
    covered("envoy.config.accesslog.v3.AccessLog", &[honoured(&["filter", "typed_config"]), carried(&["name"])]),
    covered(
        "envoy.config.accesslog.v3.AccessLogFilter",
        &[
            honoured(&[
                "status_code_filter",
                "duration_filter",
                "not_health_check_filter",
                "runtime_filter",
                "and_filter",
                "or_filter",
                "header_filter",
                "response_flag_filter",
            ]),
            warned(
                &["traceable_filter", "grpc_status_filter", "extension_filter", "metadata_filter", "log_type_filter"],
                "every request passes it",
            ),
        ],
    ),
    covered("envoy.config.accesslog.v3.ComparisonFilter", &[honoured(&["op", "value"])]),
    covered("envoy.config.accesslog.v3.StatusCodeFilter", &[honoured(&["comparison"])]),
    covered("envoy.config.accesslog.v3.DurationFilter", &[honoured(&["comparison"])]),
    covered("envoy.config.accesslog.v3.NotHealthCheckFilter", &[]),
    covered(
        "envoy.config.accesslog.v3.RuntimeFilter",
        &[honoured(&["percent_sampled", "runtime_key"]), carried(&["use_independent_randomness"])],
    ),
    covered("envoy.config.accesslog.v3.AndFilter", &[honoured(&["filters"])]),
    covered("envoy.config.accesslog.v3.OrFilter", &[honoured(&["filters"])]),
    covered("envoy.config.accesslog.v3.HeaderFilter", &[honoured(&["header"])]),
    covered("envoy.config.accesslog.v3.ResponseFlagFilter", &[honoured(&["flags"])]),
    covered(
        "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        &[honoured(&["path", "format", "json_format", "typed_json_format", "log_format"])],
    ),
    covered("envoy.extensions.access_loggers.stream.v3.StdoutAccessLog", &[honoured(&["log_format"])]),
    covered("envoy.extensions.access_loggers.stream.v3.StderrAccessLog", &[honoured(&["log_format"])]),
    covered(
        "envoy.config.core.v3.SubstitutionFormatString",
        &[
            honoured(&["text_format", "json_format", "text_format_source", "omit_empty_values"]),
            carried(&["content_type", "json_format_options"]),
            warned(&["formatters"], "only the built-in operators are known"),
        ],
    ),
];
