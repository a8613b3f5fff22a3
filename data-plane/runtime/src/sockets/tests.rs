use std::io::Read;

use super::*;

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn place(traffic: Traffic, address: SocketAddr) -> Place {
    Place { traffic, address, ipv4_too: false }
}

#[test]
fn with_port_zero_all_sockets_share_the_port_of_the_first() {
    let listeners = bind(loopback(), 4, ListenOptions::default()).unwrap();
    let ports: Vec<u16> = listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
    assert_eq!(ports.len(), 4, "one socket for each worker");
    assert!(ports[0] != 0 && ports.iter().all(|port| *port == ports[0]), "one port for all, got {ports:?}");
}

#[test]
fn an_address_that_shared_sockets_hold_is_refused() {
    let held = bind(loopback(), 2, ListenOptions::default()).unwrap();
    let address = held[0].local_addr().unwrap();
    let refused = bind(address, 2, ListenOptions::default());
    assert!(matches!(refused, Err(BindError::InUse(of)) if of == address), "{address} is held, got {refused:?}");
    drop(held);
    let again = bind(address, 2, ListenOptions::default());
    assert!(again.is_ok(), "{address} is free again, got {again:?}");
}

#[test]
fn the_wildcard_of_ipv6_is_that_of_ipv4_if_it_is_to_be() {
    let any = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 0));
    for ipv4_too in [false, true] {
        let place = Place { ipv4_too, ..place(Traffic::Connections, any) };
        let six = match reserve(place, 2) {
            Ok(reserved) => reserved.listen(ListenOptions::default()).unwrap(),
            Err(error) => return eprintln!("skipped: no IPv6 here ({error})"),
        };
        let port = six[0].local_addr().unwrap().port();
        let reached = TcpStream::connect(("127.0.0.1", port)).is_ok();
        assert_eq!(reached, ipv4_too, "whether somebody listens on port {port} of IPv4");
        let four = bind(SocketAddr::from(([0, 0, 0, 0], port)), 1, ListenOptions::default());
        assert_eq!(four.is_err(), ipv4_too, "whether port {port} of IPv4 is taken, got {four:?}");
    }
}

#[test]
fn a_successor_shares_the_address_and_has_it_alone_in_the_end() {
    let held = bind(loopback(), 2, ListenOptions::default()).unwrap();
    let address = held[0].local_addr().unwrap();
    let mut successors =
        share(place(Traffic::Connections, address), 1).unwrap().listen(ListenOptions::default()).unwrap();
    drop(held);
    for number in 0..32 {
        assert!(TcpStream::connect(address).is_ok(), "connection {number} finds the successor");
    }
    successors.clear();
    let alone = TcpListener::bind(loopback()).unwrap();
    let address = alone.local_addr().unwrap();
    let refused = share(place(Traffic::Connections, address), 1);
    assert!(matches!(refused, Err(BindError::InUse(of)) if of == address), "its owner does not share, got {refused:?}");
}

#[test]
fn an_address_that_was_taken_between_binding_and_listening_is_refused() {
    let first = reserve(place(Traffic::Connections, loopback()), 2).unwrap();
    let address = first.address();
    assert!(TcpStream::connect(address).is_err(), "nobody can connect to what is only bound");
    let second = reserve(place(Traffic::Connections, address), 2).unwrap();
    let _listening = first.listen(ListenOptions::default()).unwrap();
    let refused = second.listen(ListenOptions::default());
    assert!(matches!(refused, Err(BindError::InUse(of)) if of == address), "{address} is held, got {refused:?}");
}

#[test]
fn foreign_and_privileged_addresses_are_named() {
    let foreign = SocketAddr::from(([192, 0, 2, 1], 18000));
    let refused = bind(foreign, 1, ListenOptions::default());
    assert!(matches!(refused, Err(BindError::NotOurs(of)) if of == foreign), "not our address, got {refused:?}");
}

#[test]
fn what_waits_to_be_accepted_is_handed_over() {
    let mut listeners = bind(loopback(), 1, ListenOptions::default()).unwrap();
    let listener = listeners.remove(0);
    let address = listener.local_addr().unwrap();
    let mut clients: Vec<TcpStream> = (0..5).map(|_| TcpStream::connect(address).unwrap()).collect();
    let accepted = drain_accept_queue(&listener, 100);
    drop(listener);
    assert_eq!(accepted.len(), 5, "every connection that waited is taken");
    for (stream, peer) in accepted {
        let client = clients.iter_mut().find(|client| client.local_addr().unwrap() == peer).unwrap();
        drop(stream);
        let read = client.read(&mut [0; 1]);
        assert!(matches!(read, Ok(0)), "{peer} sees a clean close and no reset, got {read:?}");
    }
}

#[test]
fn options_are_set() {
    let listener = bind(loopback(), 1, ListenOptions::default()).unwrap().remove(0);
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    set_nodelay(&stream).unwrap();
    set_user_timeout(&stream, Duration::from_secs(5)).unwrap();
    let keepalive =
        KeepAlive { time: Some(Duration::from_secs(7)), interval: Some(Duration::from_secs(3)), probes: Some(4) };
    set_keepalive(&stream, keepalive).unwrap();
    let socket = SockRef::from(&stream);
    assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap(), "both are on");
    assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(5)), "user timeout");
    assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(7), "time to the first probe");
    assert_eq!(socket.tcp_keepalive_retries().unwrap(), 4, "probes");
}

#[test]
fn accepted_connections_inherit_no_delay_from_the_listening_socket() {
    let listener = bind(loopback(), 1, ListenOptions::default()).unwrap().remove(0);
    listener.set_nonblocking(false).unwrap();
    set_nodelay(&listener).unwrap();
    let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    assert!(accepted.nodelay().unwrap(), "the kernel copies the option");
}

#[test]
fn datagrams_have_sockets_of_their_own_beside_connections() {
    let connections = bind(loopback(), 1, ListenOptions::default()).unwrap();
    let address = connections[0].local_addr().unwrap();
    let held = reserve(place(Traffic::Datagrams, address), 2).unwrap().listen(ListenOptions::default()).unwrap();
    assert_eq!(held.len(), 2, "one socket for each worker, beside the listener of the same port");
    let refused = reserve(place(Traffic::Datagrams, address), 1);
    assert!(matches!(refused, Err(BindError::InUse(of)) if of == address), "{address} is held, got {refused:?}");
    let peer = UdpSocket::bind(loopback()).unwrap();
    peer.connect(address).unwrap();
    let own = connected(address, peer.local_addr().unwrap()).unwrap();
    peer.send(b"hello").unwrap();
    own.set_nonblocking(false).unwrap();
    own.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut buffer = [0; 10];
    assert_eq!(own.recv(&mut buffer).expect("it comes to the socket of its sender"), 5, "bytes");
}
