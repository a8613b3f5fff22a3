//! A response's encoding, piece by piece: **what is large is handed on by reference, so that a response of any size costs a stream
//! no more than a piece**.

use bytes::{Bytes, BytesMut};
use culvert_api::type_url;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};

use super::{Body, Response, alive_resource, hollow_resource};
use crate::resource::{field_len, put_field};

/// The encoding of a [`Response`]; see [`Response::into_pieces`].
#[derive(Debug)]
pub struct Pieces {
    body: Body,
    with_ttl: bool,
    /// Of the body's parts the next one.
    part: usize,
    /// What is copied, until it is worth a piece.
    copied: BytesMut,
    /// What comes behind the copied bytes.
    shared: Option<Bytes>,
}

impl Pieces {
    /// What is copied is sent once it is so large.
    const PIECE: usize = 32 * 1024;

    /// What is larger is handed on in several pieces: a transport that takes nothing more is noticed between two.
    const LARGEST: usize = 128 * 1024;

    /// From this size on bytes are not copied.
    const LARGE: usize = 4 * 1024;

    pub(super) fn new(response: Response, prefix: &[u8]) -> Self {
        let mut copied = BytesMut::with_capacity(prefix.len() + response.encoded_len().min(Self::PIECE));
        copied.extend_from_slice(prefix);
        // protobuf: fields may come in any order. First, so that a small response is one piece.
        response.put_head(&mut copied);
        Self { body: response.body, with_ttl: response.with_ttl, part: 0, copied, shared: None }
    }

    /// Takes the next part of the body. False: there is none.
    fn advance(&mut self) -> bool {
        let part = self.part;
        self.part += 1;
        match &self.body {
            Body::Whole(set) if part == 0 => self.shared = Some(set.encoded().clone()),
            Body::Sotw(resources) => match resources.get(part) {
                Some(resource) if self.with_ttl && resource.ttl().is_some() => {
                    let wire = resource.bytes();
                    let len = field_len(1, type_url::RESOURCE.len()) + field_len(2, wire.len());
                    encode_key(2, WireType::LengthDelimited, &mut self.copied);
                    encode_varint(len as u64, &mut self.copied);
                    put_field(&mut self.copied, 1, type_url::RESOURCE.as_bytes());
                    // The value of the `Any` is field 2 as well.
                    field(&mut self.copied, &mut self.shared, wire);
                }
                Some(resource) => field(&mut self.copied, &mut self.shared, resource.any_bytes()),
                None => return false,
            },
            Body::Alive(resources) => match resources.get(part) {
                Some(resource) => put_field(&mut self.copied, 2, &alive_resource(resource).encode_to_vec()),
                None => return false,
            },
            Body::Delta { resources, removed, hollow } => {
                let names = part.checked_sub(resources.len());
                if let Some(resource) = resources.get(part) {
                    field(&mut self.copied, &mut self.shared, resource.bytes());
                } else if let Some(name) = names.and_then(|at| hollow.get(at)) {
                    put_field(&mut self.copied, 2, &hollow_resource(name).encode_to_vec());
                } else if let Some(name) = names.and_then(|at| removed.get(at.checked_sub(hollow.len())?)) {
                    put_field(&mut self.copied, 6, name.as_bytes());
                } else {
                    return false;
                }
            }
            Body::Whole(_) => return false,
        }
        true
    }
}

/// Field 2 of a response.
fn field(copied: &mut BytesMut, shared: &mut Option<Bytes>, payload: Bytes) {
    if payload.len() < Pieces::LARGE {
        return put_field(copied, 2, &payload);
    }
    encode_key(2, WireType::LengthDelimited, copied);
    encode_varint(payload.len() as u64, copied);
    *shared = Some(payload);
}

impl Iterator for Pieces {
    type Item = Bytes;

    /// Never an empty one.
    fn next(&mut self) -> Option<Bytes> {
        while self.copied.len() < Self::PIECE && self.shared.is_none() {
            if !self.advance() {
                break;
            }
        }
        // A small set is copied too: one piece is one frame.
        if let Some(small) = self.shared.take_if(|shared| shared.len() < Self::LARGE) {
            self.copied.extend_from_slice(&small);
            return self.next();
        }
        if !self.copied.is_empty() {
            return Some(std::mem::take(&mut self.copied).freeze());
        }
        match &mut self.shared {
            Some(shared) if shared.len() > Self::LARGEST => Some(shared.split_to(Self::LARGEST)),
            _ => self.shared.take(),
        }
    }
}
