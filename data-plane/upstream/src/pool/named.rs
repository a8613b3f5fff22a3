//! Pools of clusters with `auto_sni`: a connection that was opened for one name serves no request for another.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use culvert_http::RequestHead;
use culvert_model::cluster::AutoSni;
use rustls::pki_types::ServerName;
use tokio::time::Instant;

use super::connection::SlotStats;
use super::host::HostPool;
use crate::host::Host;
use crate::slot::ClusterConfig;

/// By the name first: requests say it, and it is compared without a copy.
#[derive(Debug, Default)]
pub(super) struct Named(HashMap<Box<str>, HashMap<u64, Rc<HostPool>, foldhash::fast::RandomState>>);

impl Named {
    /// The pool of the host under that name.
    pub(super) fn of(
        &mut self,
        asked: &AskedName<'_>,
        host: &Arc<Host>,
        config: &Arc<ClusterConfig>,
        stats: &Rc<SlotStats>,
        clock: &Rc<Cell<Instant>>,
    ) -> Rc<HostPool> {
        if let Some(pool) = self.0.get(&*asked.text).and_then(|hosts| hosts.get(&host.id())) {
            pool.configure(config);
            return Rc::clone(pool);
        }
        if self.0.len() >= MAX_NAMES {
            // Clients choose the names: what nobody uses goes before the next sweep.
            self.retain(|pool| !pool.is_empty());
        }
        let pool = HostPool::new(host, stats, config, Some(asked.name.clone()), clock);
        self.0.entry((&*asked.text).into()).or_default().insert(host.id(), Rc::clone(&pool));
        pool
    }

    /// Keeps the pools that are of use: those in which exchanges are under way, and whatever `keep` says.
    pub(super) fn retain(&mut self, keep: impl Fn(&Rc<HostPool>) -> bool) {
        self.0.retain(|_, hosts| {
            hosts.retain(|_, pool| keep(pool) || Rc::strong_count(pool) > 1);
            !hosts.is_empty()
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Closes one idle connection; whether there was one.
    pub(super) fn evict_idle(&self) -> bool {
        self.0.values().flat_map(HashMap::values).any(|pool| pool.evict_idle())
    }
}

/// A host's name as a request has it, in lower case.
#[derive(Debug)]
pub(super) struct AskedName<'a> {
    text: Cow<'a, str>,
    name: ServerName<'static>,
}

/// The name that a request asks for its host by. `None`: what it says is no host name, or an address where nobody wants
/// the certificate to be for it (no server name is sent then, says RFC 6066 §3); the configuration's name is used.
pub(super) fn asked_name<'a>(auto: &AutoSni, request: &'a RequestHead) -> Option<AskedName<'a>> {
    let header = auto.header.as_ref().and_then(|name| request.fields.get(name.as_bytes()));
    let header = header.and_then(|value| std::str::from_utf8(value).ok()).filter(|value| !value.is_empty());
    let text = without_port(header.unwrap_or(&request.authority));
    let text = if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(text.to_ascii_lowercase())
    } else {
        Cow::Borrowed(text)
    };
    let address: Option<IpAddr> = text.parse().ok();
    if address.is_some() && !auto.validates {
        return None;
    }
    let name = match address {
        Some(address) => ServerName::IpAddress(address.into()),
        None => ServerName::try_from(text.clone().into_owned()).ok()?,
    };
    Some(AskedName { text, name })
}

/// The host of an authority.
fn without_port(authority: &str) -> &str {
    if let Some((address, _)) = authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return address;
    }
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// Of names with pools at a time; beyond it idle pools are looked for at each new name.
const MAX_NAMES: usize = 256;
