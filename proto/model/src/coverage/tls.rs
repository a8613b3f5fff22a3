//! Verdicts over the messages of TLS and of secrets.

use super::{Covered, carried, covered, honoured, refused, warned};

pub(super) const TABLE: &[Covered] = &[
    covered(
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        &[
            honoured(&["common_tls_context", "require_client_certificate"]),
            warned(
                &[
                    "session_ticket_keys",
                    "session_ticket_keys_sds_secret_config",
                    "disable_stateless_session_resumption",
                    "disable_stateful_session_resumption",
                    "session_timeout",
                ],
                "sessions are resumed with keys of this process only",
            ),
            warned(&["full_scan_certs_on_sni_mismatch", "prefer_client_ciphers"], ""),
            refused(&["require_sni"], "it decides who may connect; match server_names in the filter chains"),
            refused(&["ocsp_staple_policy"], "it decides what clients can check"),
        ],
    ),
    covered(
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        &[
            honoured(&["common_tls_context", "sni", "auto_host_sni", "auto_sni_san_validation"]),
            carried(&["enforce_rsa_key_usage"]),
            warned(&["allow_renegotiation"], "there is no renegotiation"),
            warned(&["max_session_keys"], ""),
        ],
    ),
    covered(
        "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext",
        &[
            honoured(&[
                "tls_params",
                "tls_certificates",
                "tls_certificate_sds_secret_configs",
                "validation_context",
                "validation_context_sds_secret_config",
                "combined_validation_context",
                "alpn_protocols",
            ]),
            warned(&["key_log"], "session keys are never written"),
            refused(
                &[
                    "tls_certificate_provider_instance",
                    "custom_tls_certificate_selector",
                    "tls_certificate_certificate_provider",
                    "tls_certificate_certificate_provider_instance",
                ],
                "it decides which certificate is presented; use files or SDS",
            ),
            refused(
                &["validation_context_certificate_provider", "validation_context_certificate_provider_instance"],
                "it decides which certificates are accepted; use files or SDS",
            ),
            refused(&["custom_handshaker"], "it decides what the handshake checks"),
        ],
    ),
    covered(
        "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext.CombinedCertificateValidationContext",
        &[
            honoured(&["default_validation_context", "validation_context_sds_secret_config"]),
            refused(
                &["validation_context_certificate_provider", "validation_context_certificate_provider_instance"],
                "it decides which certificates are accepted; use files or SDS",
            ),
        ],
    ),
    covered(
        "envoy.extensions.transport_sockets.tls.v3.TlsParameters",
        &[
            honoured(&["tls_minimum_protocol_version", "tls_maximum_protocol_version"]),
            warned(
                &["cipher_suites", "ecdh_curves", "signature_algorithms"],
                "only ECDHE with AES-GCM or ChaCha20 and their modern curves and signatures are offered",
            ),
            refused(&["compliance_policies"], "it promises what cannot be shown here"),
        ],
    ),
    covered(
        "envoy.extensions.transport_sockets.tls.v3.TlsCertificate",
        &[
            honoured(&["certificate_chain", "private_key", "watched_directory"]),
            warned(&["ocsp_staple", "signed_certificate_timestamp"], "it is not sent"),
            refused(
                &["pkcs12", "private_key_provider", "password"],
                "it decides which certificate is presented; give certificate_chain and an unencrypted private_key",
            ),
            refused(&["tls_params"], "it decides which protocol versions are accepted; use those of the context"),
        ],
    ),
    covered("envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig", &[honoured(&["name", "sds_config"])]),
    covered(
        "envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext",
        &[
            honoured(&[
                "trusted_ca",
                "system_root_certs",
                "watched_directory",
                "match_typed_subject_alt_names",
                "crl",
                "trust_chain_verification",
            ]),
            warned(&["suppress_client_ca_list"], ""),
            warned(&["allow_expired_certificate"], "an expired certificate is refused"),
            refused(
                &[
                    "ca_certificate_provider_instance",
                    "verify_certificate_spki",
                    "verify_certificate_hash",
                    "require_signed_certificate_timestamp",
                    "custom_validator_config",
                    "only_verify_leaf_cert_crl",
                    "max_verify_depth",
                ],
                "it decides which certificates are accepted",
            ),
            refused(
                &["match_subject_alt_names"],
                "it decides which certificates are accepted; use match_typed_subject_alt_names",
            ),
        ],
    ),
    covered("envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext.SystemRootCerts", &[]),
    covered(
        "envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher",
        &[honoured(&["san_type", "matcher"]), refused(&["oid"], "it decides which certificates are accepted")],
    ),
    covered(
        "envoy.extensions.transport_sockets.tls.v3.Secret",
        &[
            honoured(&["name", "tls_certificate", "validation_context", "generic_secret"]),
            refused(&["session_ticket_keys"], "sessions are resumed with keys of this process only"),
        ],
    ),
    covered(
        "envoy.extensions.transport_sockets.tls.v3.GenericSecret",
        &[honoured(&["secret"]), refused(&["secrets"], "put one secret into `secret`")],
    ),
];
