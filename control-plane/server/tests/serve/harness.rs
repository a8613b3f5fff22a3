//! A directory, the binary on it, and streams to it.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use culvert_api::Any;
use culvert_api::envoy::config::cluster::v3::Cluster;
use culvert_api::envoy::config::core::v3::Node;
use culvert_api::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use culvert_api::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use culvert_api::google::rpc::Status as Refusal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// For anything that should happen.
const DEADLINE: Duration = Duration::from_secs(20);
/// For what should not happen: some times the directory's quiet time.
const QUIET: Duration = Duration::from_millis(400);

pub(crate) struct Folder {
    root: tempfile::TempDir,
}

impl Folder {
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        let folder = Self { root: tempfile::tempdir().unwrap() };
        std::fs::create_dir(folder.config()).unwrap();
        files.iter().for_each(|(name, text)| folder.write(name, text));
        folder
    }

    fn config(&self) -> PathBuf {
        self.root.path().join("config")
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.config().join(name), text).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        std::fs::remove_file(self.config().join(name)).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_culvert-control"));
        command.arg("--config").arg(self.config()).args(args).kill_on_drop(true).stdin(Stdio::null());
        command
    }

    /// Runs the binary to its end; its exit code and what it said.
    pub(crate) async fn run(&self, args: &[&str]) -> (Option<i32>, String) {
        let mut command = self.command(&["--listen", "127.0.0.1:0"]);
        if !args.contains(&"--admin") {
            command.args(["--admin", "127.0.0.1:0"]);
        }
        let output = tokio::time::timeout(DEADLINE, command.args(args).output()).await.unwrap().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), text)
    }
}

pub(crate) struct Daemon {
    child: Child,
    xds: String,
    admin: String,
}

impl Daemon {
    pub(crate) async fn start(folder: &Folder, args: &[&str]) -> Self {
        let file = |name: &str| folder.root.path().join(name);
        let child = folder
            .command(args)
            .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .arg("--listen-address-path")
            .arg(file("xds"))
            .arg("--admin-address-path")
            .arg(file("admin"))
            .spawn()
            .unwrap();
        let address = async |name: &str| {
            let deadline = tokio::time::Instant::now() + DEADLINE;
            loop {
                if let Ok(address) = std::fs::read_to_string(file(name)) {
                    return address;
                }
                assert!(tokio::time::Instant::now() < deadline, "no address of {name}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        // The admin address is written last.
        let admin = address("admin").await;
        Self { child, xds: address("xds").await, admin }
    }

    pub(crate) async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.xds)).unwrap().connect().await.unwrap()
    }

    pub(crate) async fn sotw(&self) -> Stream<DiscoveryRequest, DiscoveryResponse> {
        let (requests, queue) = mpsc::channel(8);
        let mut client = AggregatedDiscoveryServiceClient::new(self.channel().await);
        let responses = client.stream_aggregated_resources(ReceiverStream::new(queue)).await.unwrap();
        Stream { requests, responses: responses.into_inner() }
    }

    pub(crate) async fn delta(&self) -> Stream<DeltaDiscoveryRequest, DeltaDiscoveryResponse> {
        let (requests, queue) = mpsc::channel(8);
        let mut client = AggregatedDiscoveryServiceClient::new(self.channel().await);
        let responses = client.delta_aggregated_resources(ReceiverStream::new(queue)).await.unwrap();
        Stream { requests, responses: responses.into_inner() }
    }

    /// The body of an admin page.
    pub(crate) async fn get(&self, page: &str) -> String {
        let mut stream = TcpStream::connect(&self.admin).await.unwrap();
        let request = format!("GET {page} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
    }

    /// Waits until an admin page is as wanted.
    pub(crate) async fn eventually(&self, page: &str, wanted: impl Fn(&str) -> bool) {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        loop {
            let text = self.get(page).await;
            if wanted(&text) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{page} says: {text}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn hang_up(&self) {
        self.signal("-HUP");
    }

    /// SIGTERM, and exit code 0 in time.
    pub(crate) async fn terminate(mut self) {
        self.signal("-TERM");
        let status = tokio::time::timeout(DEADLINE, self.child.wait()).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(0), "exit code after SIGTERM");
    }

    fn signal(&self, signal: &str) {
        let id = self.child.id().unwrap().to_string();
        let status = std::process::Command::new("kill").args([signal, &id]).status().unwrap();
        assert!(status.success(), "kill {signal} {id}");
    }
}

/// An open discovery stream.
pub(crate) struct Stream<Request, Response> {
    requests: mpsc::Sender<Request>,
    responses: Streaming<Response>,
}

impl<Request, Response> Stream<Request, Response> {
    pub(crate) async fn send(&self, request: Request) {
        assert!(self.requests.send(request).await.is_ok(), "the stream takes requests");
    }

    pub(crate) async fn next(&mut self) -> Response {
        let response = tokio::time::timeout(DEADLINE, self.responses.message()).await;
        response.expect("a response in time").expect("no error").expect("no end")
    }

    /// Whether nothing comes for a while.
    pub(crate) async fn is_quiet(&mut self) -> bool {
        tokio::time::timeout(QUIET, self.responses.message()).await.is_err()
    }

    /// How the stream fails.
    pub(crate) async fn failure(&mut self) -> Status {
        let result = tokio::time::timeout(DEADLINE, self.responses.message()).await.expect("an answer in time");
        result.err().expect("a failure")
    }

    /// Whether the stream ends with OK.
    pub(crate) async fn ended(&mut self) -> bool {
        matches!(tokio::time::timeout(DEADLINE, self.responses.message()).await, Ok(Ok(None)))
    }
}

impl Stream<DiscoveryRequest, DiscoveryResponse> {
    /// ACK, or NACK with what the version before was.
    pub(crate) async fn answer(&self, response: &DiscoveryResponse, refusal: Option<Refusal>) {
        let accepted = refusal.is_none();
        let version_info = if accepted { response.version_info.clone() } else { "the one before".to_owned() };
        let request = DiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            version_info,
            error_detail: refusal,
            ..DiscoveryRequest::default()
        };
        self.send(request).await;
    }
}

impl Stream<DeltaDiscoveryRequest, DeltaDiscoveryResponse> {
    pub(crate) async fn answer(&self, response: &DeltaDiscoveryResponse, refusal: Option<Refusal>) {
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: refusal,
            ..DeltaDiscoveryRequest::default()
        };
        self.send(request).await;
    }
}

/// Names of the resources of a delta response.
pub(crate) fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|resource| resource.name.as_str()).collect()
}

pub(crate) fn node(id: &str) -> Option<Node> {
    Some(Node { id: id.to_owned(), ..Node::default() })
}

/// A cluster as a file.
pub(crate) fn cluster(name: &str, seconds: u32) -> String {
    format!(
        "{{\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: {name}, type: STATIC, connect_timeout: {seconds}s}}\n"
    )
}

pub(crate) fn cluster_names(resources: &[Any]) -> Vec<String> {
    resources.iter().map(|any| any.unpack::<Cluster>().unwrap().name).collect()
}

/// The `connect_timeout` of a cluster.
pub(crate) fn seconds(any: &Any) -> i64 {
    any.unpack::<Cluster>().unwrap().connect_timeout.unwrap().seconds
}
