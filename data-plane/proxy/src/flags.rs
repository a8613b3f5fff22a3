//! Envoy's response flags as a closed set, and after them those of tunnels, which are ours: why a response is what it is.

/// One reason, in the order of Envoy's enumeration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ResponseFlag {
    NoHealthyUpstream,
    UpstreamRequestTimeout,
    LocalReset,
    UpstreamRemoteReset,
    UpstreamConnectionFailure,
    UpstreamConnectionTermination,
    UpstreamOverflow,
    NoRouteFound,
    RateLimited,
    DownstreamConnectionTermination,
    UpstreamRetryLimitExceeded,
    StreamIdleTimeout,
    DownstreamProtocolError,
    UpstreamMaxStreamDurationReached,
    DurationTimeout,
    UpstreamProtocolError,
    NoClusterFound,
    OverloadManager,
    DnsResolutionFailed,
    DropOverload,
    DownstreamRemoteReset,
    /// The request names a tunnel agent that never was here.
    TunnelAgentUnknown,
    /// It names one that has no tunnel now.
    TunnelAgentOffline,
    /// It names one that its route does not allow.
    TunnelAgentDenied,
    /// What came through a tunnel may not go to that host.
    TunnelDestinationDenied,
}

impl ResponseFlag {
    /// All flags, in Envoy's order.
    pub const ALL: [Self; 25] = [
        Self::NoHealthyUpstream,
        Self::UpstreamRequestTimeout,
        Self::LocalReset,
        Self::UpstreamRemoteReset,
        Self::UpstreamConnectionFailure,
        Self::UpstreamConnectionTermination,
        Self::UpstreamOverflow,
        Self::NoRouteFound,
        Self::RateLimited,
        Self::DownstreamConnectionTermination,
        Self::UpstreamRetryLimitExceeded,
        Self::StreamIdleTimeout,
        Self::DownstreamProtocolError,
        Self::UpstreamMaxStreamDurationReached,
        Self::DurationTimeout,
        Self::UpstreamProtocolError,
        Self::NoClusterFound,
        Self::OverloadManager,
        Self::DnsResolutionFailed,
        Self::DropOverload,
        Self::DownstreamRemoteReset,
        Self::TunnelAgentUnknown,
        Self::TunnelAgentOffline,
        Self::TunnelAgentDenied,
        Self::TunnelDestinationDenied,
    ];

    /// As `%RESPONSE_FLAGS%` prints it.
    #[must_use]
    pub const fn short(self) -> &'static str {
        match self {
            Self::NoHealthyUpstream => "UH",
            Self::UpstreamRequestTimeout => "UT",
            Self::LocalReset => "LR",
            Self::UpstreamRemoteReset => "UR",
            Self::UpstreamConnectionFailure => "UF",
            Self::UpstreamConnectionTermination => "UC",
            Self::UpstreamOverflow => "UO",
            Self::NoRouteFound => "NR",
            Self::RateLimited => "RL",
            Self::DownstreamConnectionTermination => "DC",
            Self::UpstreamRetryLimitExceeded => "URX",
            Self::StreamIdleTimeout => "SI",
            Self::DownstreamProtocolError => "DPE",
            Self::UpstreamMaxStreamDurationReached => "UMSDR",
            Self::DurationTimeout => "DT",
            Self::UpstreamProtocolError => "UPE",
            Self::NoClusterFound => "NC",
            Self::OverloadManager => "OM",
            Self::DnsResolutionFailed => "DF",
            Self::DropOverload => "DO",
            Self::DownstreamRemoteReset => "DR",
            Self::TunnelAgentUnknown => "TAU",
            Self::TunnelAgentOffline => "TAO",
            Self::TunnelAgentDenied => "TAD",
            Self::TunnelDestinationDenied => "TDD",
        }
    }

    /// As `%RESPONSE_FLAGS_LONG%` prints it.
    #[must_use]
    pub const fn long(self) -> &'static str {
        match self {
            Self::NoHealthyUpstream => "NoHealthyUpstream",
            Self::UpstreamRequestTimeout => "UpstreamRequestTimeout",
            Self::LocalReset => "LocalReset",
            Self::UpstreamRemoteReset => "UpstreamRemoteReset",
            Self::UpstreamConnectionFailure => "UpstreamConnectionFailure",
            Self::UpstreamConnectionTermination => "UpstreamConnectionTermination",
            Self::UpstreamOverflow => "UpstreamOverflow",
            Self::NoRouteFound => "NoRouteFound",
            Self::RateLimited => "RateLimited",
            Self::DownstreamConnectionTermination => "DownstreamConnectionTermination",
            Self::UpstreamRetryLimitExceeded => "UpstreamRetryLimitExceeded",
            Self::StreamIdleTimeout => "StreamIdleTimeout",
            Self::DownstreamProtocolError => "DownstreamProtocolError",
            Self::UpstreamMaxStreamDurationReached => "UpstreamMaxStreamDurationReached",
            Self::DurationTimeout => "DurationTimeout",
            Self::UpstreamProtocolError => "UpstreamProtocolError",
            Self::NoClusterFound => "NoClusterFound",
            Self::OverloadManager => "OverloadManagerTerminated",
            Self::DnsResolutionFailed => "DnsResolutionFailed",
            Self::DropOverload => "DropOverLoad",
            Self::DownstreamRemoteReset => "DownstreamRemoteReset",
            Self::TunnelAgentUnknown => "TunnelAgentUnknown",
            Self::TunnelAgentOffline => "TunnelAgentOffline",
            Self::TunnelAgentDenied => "TunnelAgentDenied",
            Self::TunnelDestinationDenied => "TunnelDestinationDenied",
        }
    }
}

/// A set of flags, in the order in which they were set: so Envoy logs them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResponseFlags {
    /// No more than a few ever come together; further ones are left out.
    list: [Option<ResponseFlag>; 6],
}

impl ResponseFlags {
    pub fn set(&mut self, flag: ResponseFlag) {
        if let Some(free) = self.list.iter_mut().find(|place| place.is_none_or(|set| set == flag)) {
            *free = Some(flag);
        }
    }

    #[must_use]
    pub fn contains(self, flag: ResponseFlag) -> bool {
        self.list.contains(&Some(flag))
    }

    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.list[0].is_none()
    }

    /// The flags in the order in which they were set.
    pub fn iter(self) -> impl Iterator<Item = ResponseFlag> {
        self.list.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_print_in_the_order_of_setting() {
        let mut flags = ResponseFlags::default();
        assert!(flags.is_empty(), "a fresh set is empty");
        flags.set(ResponseFlag::UpstreamRetryLimitExceeded);
        flags.set(ResponseFlag::UpstreamConnectionFailure);
        let short: Vec<&str> = flags.iter().map(ResponseFlag::short).collect();
        assert_eq!(short, ["URX", "UF"], "the first that was set comes first");
        for flag in ResponseFlag::ALL {
            flags.set(flag);
        }
        assert_eq!(flags.iter().count(), 6, "as many as there is room for");
    }

    #[test]
    fn every_flag_has_a_bit_of_its_own() {
        for (index, flag) in ResponseFlag::ALL.into_iter().enumerate() {
            assert_eq!(flag as usize, index, "{flag:?} stands at its discriminant");
        }
    }
}
