//! The descriptors behind everything that works by reflection.

use std::sync::LazyLock;

use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost_reflect::{DescriptorPool, Kind, MessageDescriptor};

use crate::{DESCRIPTOR_SET, type_url};

#[expect(clippy::expect_used, reason = "the embedded set is fixed at build time; a test loads it")]
static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(DESCRIPTOR_SET).expect("the embedded descriptor set is sound"));

/// Every message of Envoy's API and of ours. The first call takes some milliseconds.
#[must_use]
pub fn pool() -> &'static DescriptorPool {
    &POOL
}

/// The descriptor of the message that a type URL names.
#[must_use]
pub fn message(type_url: &str) -> Option<MessageDescriptor> {
    POOL.get_message_by_name(type_url::message_name(type_url))
}

/// The name of a resource: its field `name`, or `cluster_name` where there is none (ClusterLoadAssignment). `None` if the
/// type is not known, has neither, or the bytes do not decode; empty if the field is not set.
#[must_use]
pub fn resource_name(type_url: &str, mut value: &[u8]) -> Option<String> {
    let descriptor = message(type_url)?;
    let field = ["name", "cluster_name"].into_iter().find_map(|name| descriptor.get_field_by_name(name))?;
    if field.kind() != Kind::String || field.is_list() {
        return None;
    }
    let mut name = String::new();
    while value.has_remaining() {
        let (tag, wire_type) = decode_key(&mut value).ok()?;
        if tag == field.number() && wire_type == WireType::LengthDelimited {
            let length = usize::try_from(decode_varint(&mut value).ok()?).ok()?;
            // The last one wins, as in every protobuf decoder.
            name = std::str::from_utf8(value.get(..length)?).ok()?.to_owned();
            value = value.get(length..)?;
        } else {
            skip_field(wire_type, tag, &mut value, DecodeContext::default()).ok()?;
        }
    }
    Some(name)
}
