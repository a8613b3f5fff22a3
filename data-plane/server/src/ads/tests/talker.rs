//! A control plane that talks and does not listen.

use super::*;

/// Says everything at once when the first request has come, and reads on only when it is told to.
#[derive(Clone, Default)]
struct Talker {
    /// Responses that the transport has taken.
    said: Arc<Mutex<usize>>,
    /// Answers that were read.
    heard: Arc<Mutex<usize>>,
    listen: Arc<Notify>,
}

const RESPONSES: usize = 300;
/// An answer repeats it: a few fill whatever the transport holds.
const NONCE: usize = 60_000;
/// The transport's windows at both ends, and what the client keeps.
const MOST: usize = 100;

impl Talker {
    async fn talk(
        self,
        mut requests: Streaming<DiscoveryRequest>,
        out: mpsc::Sender<Result<DiscoveryResponse, Status>>,
    ) {
        let first = requests.next().await.unwrap().unwrap();
        let this = self.clone();
        tokio::spawn(async move {
            for number in 0..RESPONSES {
                let nonce = format!("{number:0NONCE$}");
                let type_url = first.type_url.clone();
                let response =
                    DiscoveryResponse { nonce, type_url, version_info: "1".to_owned(), ..Default::default() };
                if out.send(Ok(response)).await.is_err() {
                    return;
                }
                *this.said.lock() += 1;
            }
            // The stream stays open.
            out.closed().await;
        });
        self.listen.notified().await;
        while let Some(Ok(request)) = requests.next().await {
            *self.heard.lock() += usize::from(!request.response_nonce.is_empty());
        }
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Talker {
    type StreamAggregatedResourcesStream = Pin<Box<dyn Stream<Item = Result<DiscoveryResponse, Status>> + Send>>;
    type DeltaAggregatedResourcesStream = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (out, responses) = mpsc::channel(1);
        tokio::spawn(self.clone().talk(request.into_inner(), out));
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(responses))))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("state of the world alone"))
    }
}

/// Who reads no answers is read no further: what waits to be sent to it has a limit.
#[tokio::test]
async fn a_control_plane_that_reads_nothing_is_read_no_further() {
    let talker = Talker::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let service = AggregatedDiscoveryServiceServer::new(talker.clone());
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    let _data = DataPlane::start(port, false, None).await;
    // Until a second goes by in which nothing was taken.
    let (mut before, deadline) = (0, tokio::time::Instant::now() + Duration::from_secs(60));
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let said = *talker.said.lock();
        assert!(said < RESPONSES, "all of it was read, with nobody to read the answers");
        if said > 0 && said == before {
            break;
        }
        before = said;
        assert!(tokio::time::Instant::now() < deadline, "still reads, by now {said} responses");
    }
    assert!(before <= MOST, "expected {MOST} responses at most to be read, saw {before}");
    talker.listen.notify_one();
    eventually((RESPONSES, RESPONSES), || (*talker.said.lock(), *talker.heard.lock())).await;
}
