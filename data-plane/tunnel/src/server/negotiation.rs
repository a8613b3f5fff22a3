//! What a connection is to carry: the operator's word, else what the agent asks for, if it is one of ours.

use culvert_model::tunnel::{ProtocolChoice, TunnelProtocol};

use crate::dialect::Dialect;
use crate::wire::{CAPABILITY, CAPABILITY_HTTP2, Carried, Init};

/// What both ends hold to from the reply on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Agreed {
    pub(super) protocol: TunnelProtocol,
    /// [`Dialect::Culvert`] exactly when the agent announced [`CAPABILITY`]; else the one that the connection began with.
    pub(super) dialect: Dialect,
    /// HTTP/2 as our two ends speak it, and not only with prior knowledge.
    pub(super) ours: bool,
}

/// Never fails: an agent that asks for nothing, or for what it may not have, gets HTTP/1.
pub(super) fn agree(choice: ProtocolChoice, began: Dialect, init: &Init) -> Agreed {
    let capable = init.can(CAPABILITY);
    let speaks = capable && init.can(CAPABILITY_HTTP2);
    let protocol = match choice {
        ProtocolChoice::Fixed(protocol) => protocol,
        ProtocolChoice::Negotiated if speaks && init.protocol == Some(Carried::Http2) => TunnelProtocol::Http2,
        ProtocolChoice::Negotiated => TunnelProtocol::Http1,
    };
    let dialect = if capable { Dialect::Culvert } else { began };
    Agreed { protocol, dialect, ours: speaks && protocol == TunnelProtocol::Http2 }
}

impl Agreed {
    /// What the answer says, to agents that can read it.
    pub(super) fn announced(self, init: &Init) -> Option<Carried> {
        let carried = if self.ours { Carried::Http2 } else { Carried::Http1 };
        (init.can(CAPABILITY) && init.can(CAPABILITY_HTTP2)).then_some(carried)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operator_decides_and_else_the_agent_asks() {
        let (http1, http2) = (TunnelProtocol::Http1, TunnelProtocol::Http2);
        let negotiated = ProtocolChoice::Negotiated;
        let none: &[&str] = &[];
        for (choice, caps, wish, expected) in [
            // A stock agent.
            (negotiated, none, None, (http1, false, None)),
            (ProtocolChoice::Fixed(http2), none, None, (http2, false, None)),
            // One of ours that is older, or told to speak HTTP/1.
            (negotiated, &["culvert/1"], None, (http1, false, None)),
            (ProtocolChoice::Fixed(http2), &["culvert/1"], None, (http2, false, None)),
            (negotiated, &["culvert/1"], Some(Carried::Http2), (http1, false, None)),
            // A stranger that uses the name.
            (negotiated, &["h2"], Some(Carried::Http2), (http1, false, None)),
            (negotiated, &["culvert/1", "h2"], None, (http1, false, Some(Carried::Http1))),
            (negotiated, &["culvert/1", "h2"], Some(Carried::Http1), (http1, false, Some(Carried::Http1))),
            (negotiated, &["culvert/1", "h2"], Some(Carried::Http2), (http2, true, Some(Carried::Http2))),
            (
                ProtocolChoice::Fixed(http1),
                &["culvert/1", "h2"],
                Some(Carried::Http2),
                (http1, false, Some(Carried::Http1)),
            ),
            (
                ProtocolChoice::Fixed(http2),
                &["culvert/1", "h2"],
                Some(Carried::Http1),
                (http2, true, Some(Carried::Http2)),
            ),
        ] {
            let caps = caps.iter().map(|cap| (*cap).to_owned()).collect();
            let init = Init { caps, protocol: wish, ..Init::default() };
            let agreed = agree(choice, Dialect::Mosn, &init);
            let seen = (agreed.protocol, agreed.ours, agreed.announced(&init));
            assert_eq!(seen, expected, "{choice:?} and {init:?}");
        }
    }
}
