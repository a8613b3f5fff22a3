mod serving;

use std::net::SocketAddr;

use culvert_model::listener::{Cidr, FilterChainMatch, SourceType, TransportProtocol};

use super::matching::{Arrival, ChainIndex};

fn cidr(text: &str) -> Cidr {
    let (address, length) = text.split_once('/').unwrap();
    Cidr { address: address.parse().unwrap(), length: length.parse().unwrap() }
}

/// A connection from `remote` to `local`; "tls:NAME:ALPN" says what its hello says.
fn find(index: &ChainIndex, local: &str, remote: &str, hello: &str) -> Option<usize> {
    let (local, remote): (SocketAddr, SocketAddr) = (local.parse().unwrap(), remote.parse().unwrap());
    let mut parts = hello.split(':');
    let tls = parts.next() == Some("tls");
    let server_name = parts.next().filter(|name| !name.is_empty());
    let alpn: Vec<Vec<u8>> =
        parts.next().map(|list| list.split(',').map(|name| name.as_bytes().to_vec()).collect()).unwrap_or_default();
    index.find(&Arrival {
        local,
        remote,
        direct: remote.ip(),
        transport: if tls { TransportProtocol::Tls } else { TransportProtocol::RawBuffer },
        server_name,
        alpn: &alpn,
    })
}

fn on_names(names: &[&str]) -> FilterChainMatch {
    FilterChainMatch { server_names: names.iter().map(|name| (*name).into()).collect(), ..FilterChainMatch::default() }
}

#[test]
fn envoys_documented_server_name_example() {
    // "a.b.com" over "*.b.com" over "*.com" over none.
    let chains = [on_names(&["a.b.com"]), on_names(&["*.b.com"]), on_names(&["*.com"]), FilterChainMatch::default()];
    let index = ChainIndex::compile(chains.iter());
    for (hello, expected) in
        [("tls:a.b.com", 0), ("tls:x.b.com", 1), ("tls:x.y.b.com", 1), ("tls:b.com", 2), ("tls:a.org", 3), ("raw", 3)]
    {
        assert_eq!(find(&index, "10.0.0.1:443", "192.0.2.1:5000", hello), Some(expected), "{hello}");
    }
}

#[test]
fn there_is_no_way_back_to_a_less_specific_value() {
    // Envoy's own words: once the destination port has matched, a chain without one is not considered again.
    let chains =
        [FilterChainMatch { destination_port: Some(443), ..on_names(&["a.com"]) }, FilterChainMatch::default()];
    let index = ChainIndex::compile(chains.iter());
    assert_eq!(find(&index, "10.0.0.1:443", "192.0.2.1:5000", "tls:a.com"), Some(0), "both match");
    assert_eq!(find(&index, "10.0.0.1:443", "192.0.2.1:5000", "tls:b.com"), None, "the port decided already");
    assert_eq!(find(&index, "10.0.0.1:80", "192.0.2.1:5000", "tls:b.com"), Some(1), "another port");
}

#[test]
fn each_criterion_by_itself() {
    let any = FilterChainMatch::default;
    let cases: Vec<(FilterChainMatch, &str, &str, &str)> = vec![
        (FilterChainMatch { prefix_ranges: vec![cidr("10.0.0.0/8")], ..any() }, "10.1.2.3:1", "192.0.2.1:5", "raw"),
        (
            FilterChainMatch { transport_protocol: Some(TransportProtocol::Tls), ..any() },
            "10.1.2.3:1",
            "1.1.1.1:5",
            "tls",
        ),
        (
            FilterChainMatch { application_protocols: vec![b"h2".as_slice().into()], ..any() },
            "10.1.2.3:1",
            "1.1.1.1:5",
            "tls:a:http/1.1,h2",
        ),
        (
            FilterChainMatch { direct_source_prefix_ranges: vec![cidr("1.1.0.0/16")], ..any() },
            "10.1.2.3:1",
            "1.1.1.1:5",
            "",
        ),
        (FilterChainMatch { source_type: SourceType::SameIpOrLoopback, ..any() }, "10.1.2.3:1", "127.0.0.1:5", ""),
        (FilterChainMatch { source_type: SourceType::SameIpOrLoopback, ..any() }, "10.1.2.3:1", "10.1.2.3:5", ""),
        (FilterChainMatch { source_type: SourceType::External, ..any() }, "10.1.2.3:1", "10.1.2.4:5", ""),
        (
            FilterChainMatch { source_prefix_ranges: vec![cidr("2001:db8::/32")], ..any() },
            "[::1]:1",
            "[2001:db8::9]:5",
            "",
        ),
        (FilterChainMatch { source_ports: vec![5], ..any() }, "10.1.2.3:1", "1.1.1.1:5", ""),
    ];
    for (matches, local, remote, hello) in cases {
        let chains = [any(), matches.clone()];
        let index = ChainIndex::compile(chains.iter());
        assert_eq!(find(&index, local, remote, hello), Some(1), "{matches:?} is more specific than nothing");
        assert_eq!(
            find(&index, "[::2]:9", "[::3]:9", "raw:x:y").filter(|at| *at == 1).is_some(),
            matches.source_type == SourceType::External,
            "{matches:?} does not match another connection"
        );
    }
}

#[test]
fn the_client_s_first_protocol_that_a_chain_names_wins() {
    let alpn =
        |name: &[u8]| FilterChainMatch { application_protocols: vec![name.into()], ..FilterChainMatch::default() };
    let chains = [alpn(b"http/1.1"), alpn(b"h2")];
    let index = ChainIndex::compile(chains.iter());
    assert_eq!(find(&index, "10.0.0.1:443", "1.1.1.1:5", "tls:a:h2,http/1.1"), Some(1), "h2 is offered first");
    assert_eq!(find(&index, "10.0.0.1:443", "1.1.1.1:5", "tls:a:http/1.1,h2"), Some(0), "http/1.1 is offered first");
    assert_eq!(find(&index, "10.0.0.1:443", "1.1.1.1:5", "tls:a:spdy"), None, "nothing that is offered is served");
}

#[test]
fn the_longest_prefix_wins() {
    let on = |text: &str| FilterChainMatch { source_prefix_ranges: vec![cidr(text)], ..FilterChainMatch::default() };
    let chains = [on("0.0.0.0/0"), on("10.0.0.0/8"), on("10.1.0.0/16"), on("10.1.2.3/32")];
    let index = ChainIndex::compile(chains.iter());
    for (remote, expected) in [("192.0.2.1:1", 0), ("10.9.9.9:1", 1), ("10.1.9.9:1", 2), ("10.1.2.3:1", 3)] {
        assert_eq!(find(&index, "10.0.0.1:80", remote, "raw"), Some(expected), "{remote}");
    }
}

#[test]
fn prefixes_hold_their_addresses() {
    for (range, address, expected) in [
        ("10.0.0.0/8", "10.255.0.1", true),
        ("10.0.0.0/8", "11.0.0.1", false),
        ("0.0.0.0/0", "1.2.3.4", true),
        ("0.0.0.0/0", "::1", false),
        ("::/0", "::1", true),
        ("10.0.0.0/8", "::ffff:10.0.0.1", true),
        ("192.0.2.1/32", "192.0.2.2", false),
    ] {
        assert_eq!(cidr(range).contains(address.parse().unwrap()), expected, "{address} in {range}");
    }
}
