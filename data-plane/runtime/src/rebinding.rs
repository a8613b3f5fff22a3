//! Which hosts a request to an admin interface may be for: a page of somebody else's whose name resolves to this machine (DNS
//! rebinding) says that name.

use std::net::IpAddr;

/// Whether an authority (`host[:port]`) is an address, `localhost`, or nothing: what no foreign name server can make a
/// browser ask for.
#[must_use]
pub fn is_this_machine(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or(rest, |(host, _)| host),
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    host.is_empty() || host.parse::<IpAddr>().is_ok() || name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::is_this_machine;

    #[test]
    fn addresses_and_localhost_are_this_machine() {
        for ours in ["127.0.0.1:9901", "[::1]:9901", "10.0.0.7", "localhost:9901", "LOCALHOST.", "a.localhost:1", ""] {
            assert!(is_this_machine(ours), "{ours:?}");
        }
        for foreign in ["evil.example:9901", "127.0.0.1.evil.example", "notlocalhost", "localhost.evil.example", "?"] {
            assert!(!is_this_machine(foreign), "{foreign:?}");
        }
    }
}
