//! What is sent: shared resources and a little of its own.

mod pieces;

use std::fmt;
use std::sync::Arc;

use bytes::BufMut;
use culvert_api::envoy::config::core::v3::ControlPlane;
use culvert_api::envoy::service::discovery::v3 as discovery;
use culvert_api::google::rpc;
use culvert_api::{Any, type_url};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};

use super::StreamId;
use crate::resource::{Resource, TypeUrl, Version, field_len, put_field};
use crate::snapshot::TypeSet;
use crate::{Name, Variant};

pub use pieces::Pieces;

/// A response to one stream. Holds the resources themselves only by reference.
#[derive(Debug, Clone)]
pub struct Response {
    pub(crate) variant: Variant,
    pub(crate) type_url: TypeUrl,
    pub(crate) version: Version,
    pub(crate) nonce: Nonce,
    pub(crate) control_plane: Arc<str>,
    pub(crate) body: Body,
    /// Why names that were asked for have no resource.
    pub(crate) errors: Vec<(Name, Absent)>,
    /// The node takes TTLs: in state of the world a resource that has one is wrapped with it.
    pub(crate) with_ttl: bool,
}

/// Which response of which stream it is; 0 stands for none. The node's answer repeats its text. Of no other stream that the
/// caller numbers otherwise: there are clients (MOSN) that repeat a nonce of an earlier stream as if it were of this one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Nonce(pub(crate) u64);

impl Nonce {
    /// Responses that a stream may have before its nonces are those of the stream with the next number: 16 million.
    const BITS: u32 = 24;

    /// The one before the first of a stream.
    pub(crate) fn before(stream: StreamId) -> Self {
        Self(stream.0 << Self::BITS)
    }

    /// Goes on to the next one, and returns that.
    pub(crate) fn advance(&mut self) -> Self {
        self.0 = self.0.wrapping_add(1);
        *self
    }

    /// Whether a node's answer says this one.
    pub(crate) fn is(self, text: &str) -> bool {
        itoa::Buffer::new().format(self.0) == text
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why there is no resource of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absent {
    NotFound,
    /// There is one, and the node may not have it.
    Denied,
}

impl Absent {
    fn status(self) -> rpc::Status {
        let (code, message) = match self {
            Self::NotFound => (5, "there is no such resource"),
            Self::Denied => (7, "the node may not have this resource"),
        };
        rpc::Status { code, message: message.to_owned(), ..rpc::Status::default() }
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Body {
    /// State of the world: everything of a set.
    Whole(Arc<TypeSet>),
    /// State of the world: these.
    Sotw(Vec<Arc<Resource>>),
    Delta {
        resources: Vec<Arc<Resource>>,
        removed: Vec<Name>,
        /// Names that exist for nobody, answered with a resource without a body (on-demand VHDS waits for one).
        hollow: Vec<Name>,
    },
    /// Delta: these are as they were. Sent without a body for their TTL to begin anew.
    Alive(Vec<Arc<Resource>>),
}

impl Response {
    #[must_use]
    pub fn variant(&self) -> Variant {
        self.variant
    }

    #[must_use]
    pub fn type_url(&self) -> &TypeUrl {
        &self.type_url
    }

    /// `version_info`, `system_version_info`.
    #[must_use]
    pub fn version_info(&self) -> Version {
        self.version
    }

    /// Unique on the stream.
    #[must_use]
    pub fn nonce(&self) -> Nonce {
        self.nonce
    }

    /// The resources carried, without removals.
    #[must_use]
    pub fn resources(&self) -> Vec<&Arc<Resource>> {
        match &self.body {
            Body::Whole(set) => set.resources().collect(),
            Body::Sotw(resources) | Body::Delta { resources, .. } => resources.iter().collect(),
            Body::Alive(_) => Vec::new(),
        }
    }

    /// `removed_resources`; always empty in the state-of-the-world variant.
    #[must_use]
    pub fn removed(&self) -> &[Name] {
        match &self.body {
            Body::Delta { removed, .. } => removed,
            Body::Whole(_) | Body::Sotw(_) | Body::Alive(_) => &[],
        }
    }

    /// The encoded length.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let body: usize = match &self.body {
            Body::Whole(set) => set.encoded().len(),
            Body::Sotw(resources) => resources.iter().map(|resource| field_len(2, self.any_len(resource))).sum(),
            Body::Alive(resources) => {
                resources.iter().map(|resource| field_len(2, alive_resource(resource).encoded_len())).sum()
            }
            Body::Delta { resources, removed, hollow } => {
                let resources: usize = resources.iter().map(|resource| field_len(2, resource.wire().len())).sum();
                let removed: usize = removed.iter().map(|name| field_len(6, name.len())).sum();
                let hollow: usize = hollow.iter().map(|name| field_len(2, hollow_resource(name).encoded_len())).sum();
                resources + removed + hollow
            }
        };
        body + self.head_len()
    }

    /// The encoded `DiscoveryResponse` or `DeltaDiscoveryResponse` behind `prefix`, in pieces: bytes that are shared by every
    /// response with the same resources, and this response's own version, nonce and type.
    #[must_use]
    pub fn into_pieces(self, prefix: &[u8]) -> Pieces {
        Pieces::new(self, prefix)
    }

    /// Appends what [`Response::into_pieces`] gives.
    pub fn encode(&self, buf: &mut impl BufMut) {
        self.clone().into_pieces(&[]).for_each(|piece| buf.put(piece));
    }

    /// As a typed message. Resources share their bytes.
    #[must_use]
    pub fn to_sotw(&self) -> discovery::DiscoveryResponse {
        discovery::DiscoveryResponse {
            version_info: self.version.to_string(),
            nonce: self.nonce.to_string(),
            type_url: self.type_url.to_string(),
            resources: self.resources().into_iter().map(|resource| self.any(resource)).collect(),
            resource_errors: self.resource_errors(),
            control_plane: Some(self.control_plane()),
            ..discovery::DiscoveryResponse::default()
        }
    }

    /// As a typed message. Resources share their bytes.
    #[must_use]
    pub fn to_delta(&self) -> discovery::DeltaDiscoveryResponse {
        let mut resources: Vec<_> = self.resources().into_iter().map(|resource| delta_resource(resource)).collect();
        match &self.body {
            Body::Delta { hollow, .. } => resources.extend(hollow.iter().map(hollow_resource)),
            Body::Alive(alive) => resources.extend(alive.iter().map(|resource| alive_resource(resource))),
            Body::Whole(_) | Body::Sotw(_) => {}
        }
        discovery::DeltaDiscoveryResponse {
            system_version_info: self.version.to_string(),
            nonce: self.nonce.to_string(),
            type_url: self.type_url.to_string(),
            resources,
            removed_resources: self.removed().iter().map(ToString::to_string).collect(),
            resource_errors: self.resource_errors(),
            control_plane: Some(self.control_plane()),
            ..discovery::DeltaDiscoveryResponse::default()
        }
    }

    /// Whether a resource of a state-of-the-world response goes within a `Resource`, and its bytes then are those.
    fn wraps(&self, resource: &Resource) -> bool {
        self.with_ttl && resource.ttl().is_some()
    }

    fn any(&self, resource: &Resource) -> Any {
        if self.wraps(resource) {
            return Any { type_url: type_url::RESOURCE.to_owned(), value: resource.bytes() };
        }
        resource.any()
    }

    fn any_len(&self, resource: &Resource) -> usize {
        if self.wraps(resource) {
            return field_len(1, type_url::RESOURCE.len()) + field_len(2, resource.wire().len());
        }
        resource.any_wire().len()
    }

    fn resource_errors(&self) -> Vec<discovery::ResourceError> {
        let error = |(name, absent): &(Name, Absent)| discovery::ResourceError {
            resource_name: Some(discovery::ResourceName { name: name.to_string(), ..Default::default() }),
            error_detail: Some(absent.status()),
        };
        self.errors.iter().map(error).collect()
    }

    fn control_plane(&self) -> ControlPlane {
        ControlPlane { identifier: self.control_plane.to_string() }
    }

    /// The numbers of `control_plane` and `resource_errors`.
    fn tags(&self) -> (u32, u32) {
        match self.variant {
            Variant::Sotw => (6, 7),
            Variant::Delta => (7, 9),
        }
    }

    fn head_len(&self) -> usize {
        let (control_plane, errors) = self.tags();
        let nonce = itoa::Buffer::new().format(self.nonce.0).len();
        let fields = field_len(1, Version::TEXT_LEN) + field_len(4, self.type_url.len()) + field_len(5, nonce);
        let sender = field_len(control_plane, field_len(1, self.control_plane.len()));
        let errors = self.resource_errors().into_iter().map(|error| field_len(errors, error.encoded_len()));
        fields + sender + errors.sum::<usize>()
    }

    /// Everything but resources and removals.
    fn put_head(&self, buf: &mut impl BufMut) {
        let (control_plane, errors) = self.tags();
        // Alike in both variants.
        put_field(buf, 1, &self.version.text());
        put_field(buf, 4, self.type_url.as_bytes());
        put_field(buf, 5, itoa::Buffer::new().format(self.nonce.0).as_bytes());
        encode_key(control_plane, WireType::LengthDelimited, buf);
        encode_varint(field_len(1, self.control_plane.len()) as u64, buf);
        put_field(buf, 1, self.control_plane.as_bytes());
        for error in self.resource_errors() {
            put_field(buf, errors, &error.encode_to_vec());
        }
    }
}

fn delta_resource(resource: &Resource) -> discovery::Resource {
    discovery::Resource {
        name: resource.name().to_string(),
        version: resource.version().to_string(),
        resource: Some(resource.any()),
        aliases: resource.aliases().iter().map(ToString::to_string).collect(),
        ttl: ttl(resource),
        ..discovery::Resource::default()
    }
}

/// xDS, "Time to live": with its name, its version and no body.
fn alive_resource(resource: &Resource) -> discovery::Resource {
    discovery::Resource {
        name: resource.name().to_string(),
        version: resource.version().to_string(),
        ttl: ttl(resource),
        ..discovery::Resource::default()
    }
}

fn ttl(resource: &Resource) -> Option<prost_types::Duration> {
    resource.ttl().and_then(|ttl| ttl.try_into().ok())
}

fn hollow_resource(name: &Name) -> discovery::Resource {
    discovery::Resource { name: name.to_string(), aliases: vec![name.to_string()], ..discovery::Resource::default() }
}
