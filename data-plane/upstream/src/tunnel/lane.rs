//! Which of an agent's tunnels a request takes: an agent may keep plain connections, where nobody's lost packets hold up
//! another's request and large bodies stay within the kernel, beside one that carries HTTP/2 and everything else.
//!
//! **A preference, never a condition**: what does not suit is better than to wait.

use std::sync::Arc;

use culvert_model::tunnel::TunnelProtocol;

use super::{Lent, Opening, Phase, TunnelConnection};
use crate::balance::{Choice, HostSet};
use crate::host::Host;

/// What a request does best on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// A plain connection: an HTTP/1 request.
    Plain,
    /// A stream: an HTTP/2 request, which may be answered while it is sent, and a TCP connection, which would take a
    /// plain one for good.
    Stream,
}

impl Lane {
    fn suits(self, connection: &TunnelConnection) -> bool {
        match connection.claim().protocol {
            TunnelProtocol::Http1 => self == Self::Plain,
            TunnelProtocol::Http2 => self == Self::Stream,
        }
    }

    /// Lends the chosen tunnel if it suits and is free; else another of the same agent that does; else whatever of the
    /// agent's is free; else any of those with the same rights.
    pub(crate) fn lend<'a>(
        self,
        choice: &Choice<'a>,
        hosts: &'a HostSet,
        cluster: u64,
    ) -> Option<(&'a Arc<Host>, Lent)> {
        let lend = |host| lend(host, &Opening::default(), cluster);
        let suited = |host: &&'a Arc<Host>| host.tunnel().is_some_and(|connection| self.suits(connection));
        let same_agent = |connection: &'a TunnelConnection| hosts.of_agent(&connection.claim().agent).iter();
        let chosen = Some(least_loaded(choice.host, same_agent));
        // Nearly always the end of it.
        if let Some(lent) = chosen.filter(suited).and_then(lend) {
            return Some(lent);
        }
        let siblings = choice.host.tunnel().map_or(&[][..], |connection| hosts.of_agent(&connection.claim().agent));
        let of_agent = siblings.iter().filter(suited).chain(chosen).chain(siblings);
        of_agent.chain(choice.among.iter().filter(suited)).chain(choice.among).find_map(lend)
    }
}

/// Lends the chosen agent's tunnel if one is free, else any with the same rights. For agents in Envoy's dialect: others that
/// have the same name may be another tenant's.
pub(crate) fn lend_among<'a>(
    choice: &Choice<'a>,
    hosts: &'a HostSet,
    opening: &Opening,
    cluster: u64,
) -> Option<(&'a Arc<Host>, Lent)> {
    let same_agent = |connection: &'a TunnelConnection| {
        let names = &connection.claim().reverse;
        let of_node = names.as_ref().map_or(&[][..], |names| hosts.of_node(names));
        of_node.iter().filter(move |host| host.tunnel().is_some_and(|other| other.claim().reverse == *names))
    };
    let chosen = least_loaded(choice.host, same_agent);
    std::iter::once(chosen).chain([choice.host]).chain(choice.among).find_map(|host| lend(host, opening, cluster))
}

/// `cluster`: the id of the slot for which.
fn lend<'a>(host: &'a Arc<Host>, opening: &Opening, cluster: u64) -> Option<(&'a Arc<Host>, Lent)> {
    let free = |connection: &&Arc<TunnelConnection>| matches!(connection.phase(), Phase::Idle | Phase::Open);
    Some((host, host.tunnel().filter(free)?.try_lend(opening, cluster)?))
}

/// Of the chosen agent's HTTP/2 tunnels the one with the fewest streams for its weight; the chosen one when they are even,
/// or when it is plain.
fn least_loaded<'a, H: Iterator<Item = &'a Arc<Host>>>(
    chosen: &'a Arc<Host>,
    same_agent: impl Fn(&'a TunnelConnection) -> H,
) -> &'a Arc<Host> {
    let in_use = |connection: &&Arc<TunnelConnection>| connection.phase() == Phase::Open && connection.active() > 0;
    let Some(connection) = chosen.tunnel().filter(in_use) else { return chosen };
    let load = |connection: &TunnelConnection| (u64::from(connection.active()), connection.weight().max(1));
    let (mut best, mut least) = (chosen, load(connection));
    for host in same_agent(connection) {
        let open = |other: &&Arc<TunnelConnection>| other.phase() == Phase::Open && !other.is_draining();
        let Some(other) = host.tunnel().filter(open).map(|other| load(other)) else { continue };
        if other.0 * u64::from(least.1) < least.0 * u64::from(other.1) {
            (best, least) = (host, other);
        }
    }
    best
}
