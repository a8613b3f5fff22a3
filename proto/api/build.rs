//! Generates the wire types.
//!
//! Envoy's API is not copied into this repository: the registry package `envoy-types` ships all its .proto files and a
//! descriptor set. That set, plus our own .proto files compiled against it, becomes (a) the descriptor set embedded in
//! the binaries (JSON, reflection, validation rules, config dumps) and (b) Rust types for the files that we handle in
//! typed form: the closure of [`ROOTS`].

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

use prost::Message;
use prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet, field_descriptor_proto,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Files that get Rust types, with everything they import.
const ROOTS: &[&str] = &[
    "culvert/control/v1/control.proto",
    "culvert/tunnel/v1/reverse_tunnel_reporting.proto",
    "culvert/tunnel/v1/tunnel_agent.proto",
    "culvert/tunnel/v1/tunnel_cluster.proto",
    "culvert/tunnel/v1/tunnel_control.proto",
    "culvert/tunnel/v1/tunnel_inventory.proto",
    "culvert/tunnel/v1/tunnel_policy.proto",
    "envoy/config/bootstrap/v3/bootstrap.proto",
    "envoy/config/cluster/v3/cluster.proto",
    "envoy/config/endpoint/v3/endpoint.proto",
    "envoy/config/listener/v3/listener.proto",
    "envoy/config/route/v3/route.proto",
    "envoy/admin/v3/certs.proto",
    "envoy/admin/v3/clusters.proto",
    "envoy/admin/v3/config_dump.proto",
    "envoy/admin/v3/listeners.proto",
    "envoy/admin/v3/server_info.proto",
    "envoy/extensions/access_loggers/file/v3/file.proto",
    "envoy/extensions/access_loggers/stream/v3/stream.proto",
    "envoy/extensions/bootstrap/reverse_tunnel/downstream_socket_interface/v3/downstream_reverse_connection_socket_interface.proto",
    "envoy/extensions/bootstrap/reverse_tunnel/upstream_socket_interface/v3/upstream_reverse_connection_socket_interface.proto",
    "envoy/extensions/clusters/dns/v3/dns_cluster.proto",
    "envoy/extensions/clusters/reverse_connection/v3/reverse_connection.proto",
    "envoy/extensions/filters/http/on_demand/v3/on_demand.proto",
    "envoy/extensions/filters/http/router/v3/router.proto",
    "envoy/extensions/filters/listener/tls_inspector/v3/tls_inspector.proto",
    "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto",
    "envoy/extensions/filters/network/reverse_tunnel/v3/drain_aware_hcm.proto",
    "envoy/extensions/filters/network/reverse_tunnel/v3/reverse_tunnel.proto",
    "envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto",
    "envoy/extensions/filters/udp/udp_proxy/v3/route.proto",
    "envoy/extensions/filters/udp/udp_proxy/v3/udp_proxy.proto",
    "envoy/extensions/load_balancing_policies/least_request/v3/least_request.proto",
    "envoy/extensions/load_balancing_policies/random/v3/random.proto",
    "envoy/extensions/load_balancing_policies/round_robin/v3/round_robin.proto",
    "envoy/extensions/transport_sockets/raw_buffer/v3/raw_buffer.proto",
    "envoy/extensions/transport_sockets/tls/v3/tls.proto",
    "envoy/extensions/upstreams/http/reverse_tunnel/v3/reverse_tunnel_codec.proto",
    "envoy/extensions/upstreams/http/v3/http_protocol_options.proto",
    "envoy/service/cluster/v3/cds.proto",
    "envoy/service/discovery/v3/ads.proto",
    "envoy/service/endpoint/v3/eds.proto",
    "envoy/service/listener/v3/lds.proto",
    "envoy/service/load_stats/v3/lrs.proto",
    "envoy/service/route/v3/rds.proto",
    "envoy/service/secret/v3/sds.proto",
    "envoy/service/status/v3/csds.proto",
];

fn main() -> Result<()> {
    let package = envoy_types()?;
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=../culvert");

    // Two encoded sets one after the other are the encoding of both together. They are never encoded anew: prost's
    // descriptor types would drop the extension options, among them the validation rules.
    let mut encoded = complete(&std::fs::read(package.join("src/generated/types.bin"))?)?;
    encoded.extend(own_files(&package)?);
    let set = FileDescriptorSet::decode(encoded.as_slice())?;

    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), encoded)?;

    let mut typed = closure(&set, ROOTS)?;
    // prost-build looks for the comments of every field where a file has any.
    for file in typed.file.iter_mut().filter(|file| MISSING.iter().any(|missing| missing.file == file.name())) {
        file.source_code_info = None;
    }
    let mut config = prost_build::Config::new();
    config.bytes(["."]).enable_type_names().type_name_domain(["."], "type.googleapis.com");
    // An `Any` whose bytes are shared, not copied, between all the streams that carry it.
    config.extern_path(".google.protobuf.Any", "crate::Any");
    // Maps in key order: equal messages have equal bytes, so that content hashes are stable.
    config.btree_map(["."]);
    config.include_file("all.rs");
    tonic_prost_build::configure().compile_well_known_types(false).compile_fds_with_config(typed, config)?;
    Ok(())
}

/// Fields that Envoy 1.40 has and the package's files do not have yet. (A field of these stays readable when the package
/// catches up: then its entry here is to go, as the build says.)
const MISSING: &[Missing] = &[
    Missing {
        file: "envoy/extensions/filters/network/reverse_tunnel/v3/reverse_tunnel.proto",
        message: &["ReverseTunnel"],
        name: "handshake_timeout",
        number: 11,
        type_name: ".google.protobuf.Duration",
    },
    Missing {
        file: "envoy/extensions/bootstrap/reverse_tunnel/downstream_socket_interface/v3/downstream_reverse_connection_socket_interface.proto",
        message: &["DownstreamReverseConnectionSocketInterface", "HttpHandshakeConfig"],
        name: "handshake_timeout",
        number: 5,
        type_name: ".google.protobuf.Duration",
    },
];

struct Missing {
    file: &'static str,
    /// The message, behind those that it is nested in.
    message: &'static [&'static str],
    name: &'static str,
    number: i32,
    type_name: &'static str,
}

/// The encoded set with [`MISSING`] added, every other byte as it was.
fn complete(set: &[u8]) -> Result<Vec<u8>> {
    // FileDescriptorSet.file
    edit(set, 1, &|file| {
        let name = FileDescriptorProto::decode(file)?.name().to_owned();
        MISSING.iter().filter(|missing| missing.file == name).try_fold(file.to_vec(), |file, missing| {
            // FileDescriptorProto.message_type
            edit(&file, 4, &|message| add(message, missing.message, missing))
        })
    })
}

/// Adds the field to an encoded `DescriptorProto` if that is what `path` leads to.
fn add(message: &[u8], path: &[&str], missing: &Missing) -> Result<Vec<u8>> {
    let Some((name, inner)) = path.split_first() else { return Err("a path of no messages".into()) };
    let decoded = DescriptorProto::decode(message)?;
    if decoded.name() != *name {
        return Ok(message.to_vec());
    }
    if !inner.is_empty() {
        // DescriptorProto.nested_type
        return edit(message, 3, &|nested| add(nested, inner, missing));
    }
    if decoded.field.iter().any(|field| field.number() == missing.number) {
        return Err(format!("{name} has {} by now: take it out of MISSING", missing.name).into());
    }
    let field = FieldDescriptorProto {
        name: Some(missing.name.to_owned()),
        number: Some(missing.number),
        label: Some(field_descriptor_proto::Label::Optional.into()),
        r#type: Some(field_descriptor_proto::Type::Message.into()),
        type_name: Some(missing.type_name.to_owned()),
        json_name: Some(
            missing.name.split('_').enumerate().map(|(place, word)| capitalized(word, place > 0)).collect(),
        ),
        ..FieldDescriptorProto::default()
    };
    let mut message = message.to_vec();
    // DescriptorProto.field: what is repeated may stand anywhere.
    prost::encoding::message::encode(2, &field, &mut message);
    Ok(message)
}

fn capitalized(word: &str, capitalize: bool) -> String {
    match word.split_at_checked(1) {
        Some((first, rest)) if capitalize => first.to_ascii_uppercase() + rest,
        _ => word.to_owned(),
    }
}

/// Has every length-delimited field of that number replaced by what `change` makes of it.
fn edit(message: &[u8], number: u32, change: &dyn Fn(&[u8]) -> Result<Vec<u8>>) -> Result<Vec<u8>> {
    use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field};
    let mut edited = Vec::with_capacity(message.len());
    let mut rest = message;
    while !rest.is_empty() {
        let start = rest;
        let (tag, wire) = decode_key(&mut rest)?;
        if tag == number && wire == WireType::LengthDelimited {
            let length = usize::try_from(decode_varint(&mut rest)?)?;
            let (value, after) = rest.split_at_checked(length).ok_or("a field is longer than its message")?;
            let value = change(value)?;
            encode_key(tag, wire, &mut edited);
            encode_varint(value.len() as u64, &mut edited);
            edited.extend_from_slice(&value);
            rest = after;
        } else {
            skip_field(wire, tag, &mut rest, prost::encoding::DecodeContext::default())?;
            edited.extend_from_slice(&start[..start.len() - rest.len()]);
        }
    }
    Ok(edited)
}

/// The folder of the `envoy-types` package, which Cargo fetched because it is a (never compiled) dependency.
fn envoy_types() -> Result<PathBuf> {
    let output = Command::new(std::env::var("CARGO")?)
        .args(["metadata", "--format-version=1", "--manifest-path"])
        .arg(Path::new(&std::env::var("CARGO_MANIFEST_DIR")?).join("Cargo.toml"))
        .output()?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata lists no packages")?;
    let manifest = packages
        .iter()
        .find(|package| package["name"] == "envoy-types")
        .and_then(|package| package["manifest_path"].as_str())
        .ok_or("cargo metadata does not list envoy-types")?;
    Ok(Path::new(manifest).parent().ok_or("envoy-types has no folder")?.to_owned())
}

/// The encoded descriptor set of our own .proto files (without what they import), compiled against the API's.
fn own_files(package: &Path) -> Result<Vec<u8>> {
    let own = Path::new("..");
    let mut files = Vec::new();
    let mut folders = vec![own.join("culvert")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "proto") {
                files.push(path);
            }
        }
    }
    files.sort();
    let mut includes = vec![own.to_owned()];
    for root in [
        "data-plane-api",
        "xds",
        "protoc-gen-validate",
        "googleapis",
        "opentelemetry-proto",
        "client_model",
        "cel-spec/proto",
        "ratelimit",
    ] {
        includes.push(package.join("proto").join(root));
    }
    let mut compiler = protox::Compiler::new(includes)?;
    compiler.include_imports(false).include_source_info(false).open_files(files)?;
    // Keeps extension options (the validation rules), which `file_descriptor_set` would drop.
    Ok(compiler.encode_file_descriptor_set())
}

/// The files named and everything that they import, in the set's order.
fn closure(set: &FileDescriptorSet, roots: &[&str]) -> Result<FileDescriptorSet> {
    let by_name: BTreeMap<&str, &FileDescriptorProto> = set.file.iter().map(|file| (file.name(), file)).collect();
    let mut wanted = BTreeSet::new();
    let mut todo: Vec<&str> = roots.to_vec();
    while let Some(name) = todo.pop() {
        let file = by_name.get(name).ok_or_else(|| format!("{name}: not in the descriptor set"))?;
        if wanted.insert(name) {
            todo.extend(file.dependency.iter().map(String::as_str));
        }
    }
    let file = set.file.iter().filter(|file| wanted.contains(file.name())).cloned().collect();
    Ok(FileDescriptorSet { file })
}
