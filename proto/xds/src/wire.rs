//! The little of protobuf's wire format that is read here without knowing the message.

use bytes::{Buf, Bytes};
use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

/// The name of a resource: field 1, a string, in every resource type of the API that goes by name (`name`, or
/// `cluster_name` of an assignment). Walks over all top-level fields, so that bytes that are no message at all are
/// seen here.
pub(crate) fn name_of(mut message: Bytes) -> Result<String, Unnamed> {
    let mut name = Bytes::new();
    while message.has_remaining() {
        let (tag, wire_type) = decode_key(&mut message)?;
        if (tag, wire_type) == (1, WireType::LengthDelimited) {
            let len = usize::try_from(decode_varint(&mut message)?).unwrap_or(usize::MAX);
            if len > message.remaining() {
                return Err(Unnamed::Truncated);
            }
            // protobuf: the last value of a field counts.
            name = message.split_to(len);
        } else {
            skip_field(wire_type, tag, &mut message, DecodeContext::default())?;
        }
    }
    match std::str::from_utf8(&name) {
        Ok("") => Err(Unnamed::Empty),
        Ok(name) => Ok(name.to_owned()),
        Err(_) => Err(Unnamed::NotText),
    }
}

/// Why bytes yield no resource name.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum Unnamed {
    #[error("does not decode: {0}")]
    Decode(#[from] DecodeError),
    #[error("does not decode: a field is longer than the message")]
    Truncated,
    #[error("its name is not UTF-8")]
    NotText,
    #[error("it has no name")]
    Empty,
}

#[cfg(test)]
mod tests {
    use culvert_api::envoy::config::cluster::v3::Cluster;
    use prost::Message;

    use super::*;

    #[test]
    fn finds_the_name_among_other_fields() {
        let cluster = Cluster { name: "c".into(), alt_stat_name: "s".into(), ..Cluster::default() };
        assert_eq!(name_of(cluster.encode_to_vec().into()).unwrap(), "c");
    }

    #[test]
    fn bytes_that_are_no_message_are_an_error() {
        for bytes in
            [&b""[..], b"\xff\xff", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x0a\x02\xff\xfe", b"\x0a\x05a"]
        {
            assert!(name_of(Bytes::copy_from_slice(bytes)).is_err(), "{bytes:?} yielded a name");
        }
    }
}
