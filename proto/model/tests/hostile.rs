//! Whatever a message holds, parsing it ends in a value or in findings, never in a panic.

#![expect(clippy::expect_used, reason = "a test may fail")]

use std::path::Path;

use culvert_api::document::{self, Limits, Syntax};
use culvert_api::{envoy, type_url};
use culvert_model::{parse_any, report::Parsed};
use proptest::prelude::*;
use proptest::test_runner::TestRng;
use prost::Message;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};

/// What fields get: the values where parsers go wrong.
const NUMBERS: [i64; 10] = [0, 1, -1, 2, 80, 65_535, 65_536, i32::MAX as i64, i64::MAX, i64::MIN];
const FLOATS: [f64; 6] = [0.0, -1.0, 50.0, 101.0, f64::NAN, f64::INFINITY];
const TEXTS: [&str; 16] = [
    "",
    "a",
    "*",
    "*.a",
    "127.0.0.1",
    "::1%lo",
    "a b",
    "%REQ(x",
    "%%",
    "(",
    "((a{100}){100}){100}",
    "\u{0}",
    "/a?b",
    "https",
    "websocket",
    "\u{1f600}\u{fffd}",
];
/// Messages that an `Any` gets, by name.
const PACKED: [&str; 15] = [
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
    "envoy.extensions.filters.http.router.v3.Router",
    "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
    "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
    "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
    "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
    "envoy.extensions.access_loggers.file.v3.FileAccessLog",
    "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
    "envoy.config.route.v3.FilterConfig",
    "culvert.tunnel.v1.TunnelServer",
    "culvert.tunnel.v1.TunnelAgents",
    "culvert.tunnel.v1.TunnelPolicies",
    "envoy.config.core.v3.Node",
];
const RESOURCES: [&str; 7] = [
    type_url::LISTENER,
    type_url::ROUTE_CONFIGURATION,
    type_url::CLUSTER,
    type_url::CLUSTER_LOAD_ASSIGNMENT,
    type_url::SECRET,
    type_url::TUNNEL_AGENT,
    type_url::TUNNEL_POLICY,
];

/// Fills messages from a seed, to a depth.
struct Filler<'r> {
    rng: &'r mut TestRng,
    /// Fields in a hundred that are set.
    density: u32,
}

impl Filler<'_> {
    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.rng.next_u32() as usize % of.len()]
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.next_u32() % 100 < percent
    }

    fn message(&mut self, descriptor: &MessageDescriptor, depth: usize) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        if descriptor.full_name() == "google.protobuf.Any" {
            let name = self.pick(&PACKED);
            let inner = culvert_api::pool::pool().get_message_by_name(name).expect("the message is known");
            let mut bytes = if depth == 0 { Vec::new() } else { self.message(&inner, depth - 1).encode_to_vec() };
            if self.chance(3) {
                bytes.push(0xff);
            }
            message.set_field_by_name("type_url", Value::String(type_url::of_name(name)));
            message.set_field_by_name("value", Value::Bytes(bytes.into()));
            return message;
        }
        for field in descriptor.fields() {
            let leaf = !matches!(field.kind(), Kind::Message(_));
            if self.chance(self.density) && (leaf || depth > 0) {
                let value = self.field(&field, depth);
                message.set_field(&field, value);
            }
        }
        message
    }

    fn field(&mut self, field: &FieldDescriptor, depth: usize) -> Value {
        let count = self.pick(&[1, 1, 2, 3]);
        if field.is_map() {
            let Kind::Message(entry) = field.kind() else { unreachable!("maps are messages") };
            let value = entry.map_entry_value_field();
            let keys = ["", "culvert.tunnel", "envoy.lb", "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"];
            let entries = (0..count).map(|_| {
                let key = MapKey::String(self.pick(&keys).to_owned());
                (key, self.value(&value.kind(), depth.saturating_sub(1)))
            });
            return Value::Map(entries.collect());
        }
        if field.is_list() {
            return Value::List((0..count).map(|_| self.value(&field.kind(), depth.saturating_sub(1))).collect());
        }
        self.value(&field.kind(), depth.saturating_sub(1))
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "any number will do")]
    fn value(&mut self, kind: &Kind, depth: usize) -> Value {
        let number = self.pick(&NUMBERS);
        match kind {
            Kind::Double => Value::F64(self.pick(&FLOATS)),
            Kind::Float => Value::F32(self.pick(&FLOATS) as f32),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(number as i32),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(number),
            Kind::Uint32 | Kind::Fixed32 => Value::U32(number as u32),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(number as u64),
            Kind::Bool => Value::Bool(number != 0),
            Kind::String => Value::String(self.pick(&TEXTS).to_owned()),
            Kind::Bytes => Value::Bytes(self.pick(&TEXTS).as_bytes().to_vec().into()),
            Kind::Enum(_) => Value::EnumNumber(self.pick(&[0, 1, 2, 3, 4, 5, 99, -1])),
            Kind::Message(message) => Value::Message(self.message(message, depth)),
        }
    }
}

/// The filler must get past the first checks, or the properties below would hold of nothing.
#[test]
fn the_filler_reaches_values_and_deep_findings() {
    let mut rng = TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha);
    const ROUNDS: u32 = 10_000;
    let (mut values, mut deepest) = (0, 0);
    for round in 0_u32..ROUNDS {
        let url = RESOURCES[rng.next_u32() as usize % RESOURCES.len()];
        let bytes = filled(type_url::message_name(url), 2 + round % 43, &mut rng);
        match parse_any(url, &bytes).value {
            Ok(_) => values += 1,
            Err(errors) => {
                let depths = errors.iter().map(|error| error.path.matches('.').count());
                deepest = deepest.max(depths.max().unwrap_or_default());
            }
        }
    }
    assert!(values > 20, "only {values} of {ROUNDS} messages were accepted");
    assert!(deepest >= 8, "no finding lies deeper than {deepest} fields");
}

/// The files of configs/, and what is put into them.
fn texts() -> Vec<Vec<u8>> {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let folders = ["", "control/cloud", "control/edge"].map(|folder| configs.join(folder));
    let mut paths: Vec<_> = folders
        .iter()
        .flat_map(|folder| std::fs::read_dir(folder).expect("the folder can be read"))
        .map(|entry| entry.expect("the folder can be read").path())
        .filter(|path| Syntax::of(path).is_some())
        .collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("the file can be read")).collect()
}

const TOKENS: [&str; 14] =
    ["\n", "\n- ", ": ", "{", "]", "&a ", "*a ", "\t", "\u{feff}", "9e999", "'", "<<: *a\n", "\n---\n", "'@type': x\n"];

/// A refusal says why, a value comes without reasons against it.
fn sound<T>(parsed: &Parsed<T>) {
    if let Err(errors) = &parsed.value {
        assert!(!errors.is_empty(), "a refusal without a reason");
    }
}

fn filled(name: &str, density: u32, rng: &mut TestRng) -> Vec<u8> {
    let descriptor = culvert_api::pool::pool().get_message_by_name(name).expect("the message is known");
    Filler { rng, density }.message(&descriptor, 9).encode_to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn filled_resources(density in 2_u32..45, rng in any::<()>().prop_perturb(|(), rng| rng)) {
        let mut rng = rng;
        let url = RESOURCES[rng.next_u32() as usize % RESOURCES.len()];
        let bytes = filled(type_url::message_name(url), density, &mut rng);
        sound(&parse_any(url, &bytes));
    }

    #[test]
    fn filled_bootstraps(density in 2_u32..20, rng in any::<()>().prop_perturb(|(), rng| rng)) {
        let mut rng = rng;
        let bytes = filled("envoy.config.bootstrap.v3.Bootstrap", density, &mut rng);
        if let Ok(message) = envoy::config::bootstrap::v3::Bootstrap::decode(bytes.as_slice()) {
            sound(&culvert_model::bootstrap::parse(&message));
        }
    }

    #[test]
    fn damaged_resources(
        cut in any::<prop::sample::Index>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        rng in any::<()>().prop_perturb(|(), rng| rng),
    ) {
        let mut rng = rng;
        let url = RESOURCES[rng.next_u32() as usize % RESOURCES.len()];
        let mut bytes = filled(type_url::message_name(url), 15, &mut rng);
        for (at, value) in &flips {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] ^= value;
            }
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        sound(&parse_any(url, &bytes));
    }

    /// Files that somebody edited badly: from text to the model.
    #[test]
    fn damaged_texts(
        file in any::<prop::sample::Index>(),
        edits in prop::collection::vec(any::<(prop::sample::Index, u8, u8)>(), 1..8),
    ) {
        let files = texts();
        let mut text = files[file.index(files.len())].clone();
        for (at, kind, value) in &edits {
            let at = at.index(text.len().max(1)).min(text.len());
            match kind % 3 {
                0 => text.iter_mut().skip(at).take(1).for_each(|byte| *byte = *value),
                1 => drop(text.drain(at..(at + usize::from(value % 40)).min(text.len()))),
                _ => drop(text.splice(at..at, TOKENS[usize::from(*value) % TOKENS.len()].bytes())),
            }
        }
        match document::load::<envoy::config::bootstrap::v3::Bootstrap>(&text, Syntax::Yaml) {
            Ok(loaded) => sound(&culvert_model::bootstrap::parse(&loaded.message)),
            Err(problems) => assert!(!problems.is_empty(), "a refusal without a reason"),
        }
        let documents = document::parse(&text, Syntax::Yaml, &Limits::default());
        for any in documents.unwrap_or_default().iter().filter_map(|node| document::load_any(node).ok()) {
            sound(&parse_any(&any.type_url, &any.value));
        }
    }

    #[test]
    fn noise(url in prop::sample::select(RESOURCES.to_vec()), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        sound(&parse_any(url, &bytes));
    }
}

/// A decoded route takes a thousand times what an empty one takes on the wire: they are never decoded all at once.
#[test]
fn a_million_empty_routes_are_refused_with_few_words() {
    let mut host = b"\x0a\x01h\x12\x01*".to_vec();
    host.extend(b"\x1a\x00".repeat(1_000_000));
    let mut bytes = b"\x0a\x01r\x12".to_vec();
    prost::encoding::encode_varint(host.len() as u64, &mut bytes);
    bytes.extend(host);
    let findings = parse_any(type_url::ROUTE_CONFIGURATION, &bytes).value.expect_err("a route needs a match");
    assert!((1..=1100).contains(&findings.len()), "{} findings", findings.len());
}
