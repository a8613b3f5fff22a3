//! A session within CONNECT-UDP: its stream, and datagrams as capsules on it.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use culvert_http::capsule::{CapsuleError, CapsuleReader};
use culvert_http::{BodyKind, Chunk, Method, RequestHead, ResponseHead, StreamError};
use culvert_model::listener::UdpTunneling;
use culvert_model::route::Priority;
use culvert_upstream::{Checkout, DownstreamProtocol, PickContext, UpstreamFailure};

use super::session::{End, Session};
use super::waiting::Waiting;
use crate::record::{Record, UpstreamSide};
use crate::router::rewrite;
use crate::stats::UdpClusterMetric;
use crate::worker::Worker;

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
enum NoStream {
    #[error(transparent)]
    Host(#[from] UpstreamFailure),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("the host answered {0}")]
    Refused(u16),
    #[error("there was no answer within {ESTABLISHED:?}")]
    Late,
}

/// Why a stream broke.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Capsule(#[from] CapsuleError),
}

/// Opens a stream, as often as it may be tried, and carries datagrams until it ends. Envoy: a session ends with its stream,
/// and the client's next datagram begins another.
pub(super) async fn carry(
    session: &Session,
    (waiting, tunneling): (&Waiting, &UdpTunneling),
    worker: &Rc<Worker>,
    record: &mut Record<'_>,
) -> End {
    let proxy = &session.proxy;
    for attempt in 1..=tunneling.max_connect_attempts {
        record.attempts = attempt;
        let opening = open(session, tunneling, worker, record);
        let opened = tokio::time::timeout(ESTABLISHED, opening).await.unwrap_or(Err(NoStream::Late));
        match opened {
            Ok(mut checkout) => {
                proxy.upstream.inc(UdpClusterMetric::TunnelSuccess);
                waiting.open();
                let (host, local, remote) =
                    (checkout.host().address(), checkout.local_address(), checkout.remote_address());
                let protocol = Some(checkout.protocol());
                record.upstream = Some(UpstreamSide { host, host_name: None, local, remote, protocol });
                return match relay(session, waiting, &mut checkout).await {
                    Ok(()) => End::Closed,
                    Err(error) => {
                        tracing::debug!(client = %session.client, %error, "a session's stream broke");
                        if matches!(error, Broken::Capsule(_)) {
                            proxy.upstream.inc(UdpClusterMetric::RxErrors);
                        }
                        End::Broken
                    }
                };
            }
            Err(error) => {
                let cluster = &proxy.proxy.config.cluster;
                tracing::debug!(client = %session.client, %cluster, %error, attempt, "no stream for a session");
                record.transport_failure = Some(error.to_string());
                proxy.upstream.inc(UdpClusterMetric::TunnelFailure);
            }
        }
    }
    waiting.close();
    // Further datagrams are dropped for a moment, and do not each begin an attempt.
    tokio::time::sleep(PAUSE).await;
    End::NoStream
}

async fn open(
    session: &Session,
    tunneling: &UdpTunneling,
    worker: &Rc<Worker>,
    record: &Record<'_>,
) -> Result<Checkout, NoStream> {
    let target = &session.proxy.proxy.target;
    let tls = target.config().is_some_and(|config| config.cluster.tls.is_some());
    let mut head = RequestHead {
        // Over HTTP/1 it is an upgrade; HTTP/2 makes an extended CONNECT of it (RFC 8441, 5).
        method: Method::Get,
        scheme: if tls { "https" } else { "http" },
        authority: String::from(&*tunneling.authority),
        path: String::from(&*tunneling.path),
        upgrade: Some("connect-udp".into()),
        ..RequestHead::default()
    };
    head.fields.push(b"capsule-protocol", b"?1");
    rewrite::mutate_request(&mut head, &tunneling.headers, record, &worker.process.hostname);
    let context = PickContext {
        priority: Priority::Default,
        agent: None,
        request: Some(&head),
        downstream: DownstreamProtocol::Http2,
        tried: &[],
        fresh_picks: 0,
        destinations: None,
    };
    let mut checkout = worker.pools.checkout(target, &context).await?;
    let exchange = checkout.exchange();
    exchange.send_head(&head, BodyKind::Empty).await?;
    let mut answer = ResponseHead::default();
    let kind = {
        let (mut sink, mut source) = exchange.split();
        sink.flush().await?;
        loop {
            let kind = source.head(&mut answer).await?;
            if kind == BodyKind::Tunnel || !answer.is_informational() {
                break kind;
            }
        }
    };
    checkout.response(answer.status);
    if kind == BodyKind::Tunnel { Ok(checkout) } else { Err(NoStream::Refused(answer.status)) }
}

/// Datagrams both ways until either end of the stream has ended.
async fn relay(session: &Session, waiting: &Waiting, checkout: &mut Checkout) -> Result<(), Broken> {
    let (mut sink, mut source) = checkout.exchange().split();
    let mut up = pin!(async {
        let mut batch = Vec::new();
        loop {
            let datagrams = waiting.take(&mut batch).await;
            sink.data(Chunk::Borrowed(&batch)).await?;
            session.proxy.upstream.add(UdpClusterMetric::TxDatagrams, datagrams);
            batch.clear();
            // An idle session holds little.
            batch.shrink_to(KEPT);
        }
    });
    let mut down = pin!(async {
        let mut reader = CapsuleReader::default();
        while let Some(chunk) = source.chunk().await? {
            let read = reader.read(&chunk, |datagram| session.answer(datagram));
            session.proxy.upstream.add(UdpClusterMetric::RxDropped, reader.take_foreign());
            read?;
            tokio::task::consume_budget().await;
        }
        Ok::<_, Broken>(reader.finish()?)
    });
    poll_fn(|cx| match down.as_mut().poll(cx) {
        Poll::Pending => up.as_mut().poll(cx),
        ended => ended,
    })
    .await
}

/// For a host, a connection and the answer, in each attempt.
const ESTABLISHED: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);
/// Bytes of memory that a session without datagrams keeps for the next ones.
const KEPT: usize = 4096;
