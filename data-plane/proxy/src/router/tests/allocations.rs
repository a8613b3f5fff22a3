//! What a request costs in allocations.

use std::io::{Read, Write};
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::testing::{Gateway, cluster, forward, manager_of, route, to, virtual_host};

const REQUEST: &[u8] = b"GET /a?b=c HTTP/1.1\r\nhost: a.example\r\nuser-agent: test\r\naccept: */*\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nserver: s\r\ncontent-length: 4\r\n\r\nbody";

/// On a thread of its own, where nothing is counted.
fn backend() -> SocketAddr {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = socket.accept().unwrap();
        let (mut seen, mut got) = ([0; 4096], 0);
        while let Ok(count @ 1..) = stream.read(&mut seen[got..]) {
            got += count;
            if seen[..got].ends_with(b"\r\n\r\n") {
                got = 0;
                stream.write_all(RESPONSE).unwrap();
            }
        }
    });
    address
}

async fn ask(client: &mut DuplexStream, times: usize) {
    let mut buffer = [0; 4096];
    for _ in 0..times {
        client.write_all(REQUEST).await.unwrap();
        let mut got = 0;
        while !buffer[..got].ends_with(b"\r\n\r\nbody") {
            let count = client.read(&mut buffer[got..]).await.unwrap();
            assert!(count > 0, "the connection ended");
            got += count;
        }
    }
}

#[test]
fn a_request_over_kept_connections_allocates_its_own_future_and_nothing_else() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    let (_gateway, mut client) = local.block_on(&runtime, async {
        let hosts = vec![virtual_host(vec![route("/", forward(to("a")))])];
        let gateway = Gateway::http(vec![cluster("a", &[backend()])], manager_of(hosts));
        let mut client = gateway.connect();
        ask(&mut client, 10).await;
        (gateway, client)
    });
    let mut measure = |times| allocation_counter::measure(|| local.block_on(&runtime, ask(&mut client, times)));
    let (few, many) = (measure(10), measure(110));
    let per_request = (many.count_total - few.count_total) as f64 / 100.0;
    // Now and then a second passes: a date is formatted, pools are swept.
    assert!(per_request <= 1.1, "{per_request} allocations a request: {few:?}, {many:?}");
    assert!(per_request >= 1.0, "the request's future is expected to be counted, seen {per_request}");
}
