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
use culvert_api::type_url::CLUSTER;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};
use tonic::{Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// For anything that should happen.
const DEADLINE: Duration = Duration::from_secs(60);
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

    /// Writes a file beside the directory; its path.
    pub(crate) fn beside(&self, name: &str, text: &str) -> String {
        let path = self.root.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_string_lossy().into_owned()
    }

    /// Has a name lead nowhere, as a volume that is not mounted.
    pub(crate) fn dangle(&self, name: &str) {
        std::os::unix::fs::symlink("/nowhere/at/all", self.config().join(name)).unwrap();
    }

    /// Takes the directory away, or brings it back.
    pub(crate) fn set_there(&self, is_there: bool) {
        let (config, aside) = (self.config(), self.root.path().join("aside"));
        let moved = if is_there { std::fs::rename(aside, config) } else { std::fs::rename(config, aside) };
        moved.unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        std::fs::remove_file(self.config().join(name)).unwrap();
    }

    /// Has `name` be a link into a volume's version, and swaps the volume to it as Kubernetes does.
    pub(crate) fn mount(&self, version: &str, name: &str, text: &str) {
        use std::os::unix::fs::symlink;
        let config = self.config();
        let hidden = format!("..{version}");
        std::fs::create_dir(config.join(&hidden)).unwrap();
        std::fs::write(config.join(&hidden).join(name), text).unwrap();
        symlink(&hidden, config.join("..data_tmp")).unwrap();
        std::fs::rename(config.join("..data_tmp"), config.join("..data")).unwrap();
        if !config.join(name).exists() {
            symlink(format!("..data/{name}"), config.join(name)).unwrap();
        }
    }

    /// An authority, a server's and a client's certificate, beside the directory.
    pub(crate) fn certificates(&self) -> Certificates {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let write = |name: &str, pem: String| {
            let path = self.root.path().join(name);
            std::fs::write(&path, pem).unwrap();
            path.to_string_lossy().into_owned()
        };
        let issue = |name: &str, san: SanType| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.subject_alt_names = vec![san];
            let certificate = params.signed_by(&key, &issuer).unwrap();
            (write(&format!("{name}.pem"), certificate.pem()), write(&format!("{name}.key"), key.serialize_pem()))
        };
        let (cert, key) = issue("server", SanType::DnsName("control.culvert.test".try_into().unwrap()));
        let (client_cert, client_key) =
            issue("client", SanType::URI("spiffe://culvert.test/node/n".try_into().unwrap()));
        Certificates { authority: write("authority.pem", authority.pem()), cert, key, client_cert, client_key }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_culvert-control"));
        command.arg("--config").arg(self.config()).args(args).kill_on_drop(true).stdin(Stdio::null());
        command
    }

    /// Runs the binary to its end; its exit code and what it said.
    pub(crate) async fn run(&self, args: &[&str]) -> (Option<i32>, String) {
        let mut command = self.command(&[]);
        for address in ["--listen", "--admin"].into_iter().filter(|address| !args.contains(address)) {
            command.args([address, "127.0.0.1:0"]);
        }
        let output = tokio::time::timeout(DEADLINE, command.args(args).output()).await.unwrap().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), text)
    }
}

/// Paths of PEM files.
pub(crate) struct Certificates {
    pub(crate) authority: String,
    pub(crate) cert: String,
    pub(crate) key: String,
    pub(crate) client_cert: String,
    pub(crate) client_key: String,
}

pub(crate) struct Daemon {
    child: Child,
    xds: String,
    admin: String,
}

impl Daemon {
    pub(crate) async fn start(folder: &Folder, args: &[&str]) -> Self {
        let file = |name: &str| folder.root.path().join(name);
        for name in ["xds", "admin"] {
            // Of a daemon before.
            drop(std::fs::remove_file(file(name)));
        }
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

    /// A TLS connection, with the client's certificate or without one.
    pub(crate) async fn tls_channel(&self, files: &Certificates, identity: Option<()>) -> Result<Channel, String> {
        let read = |path: &str| std::fs::read(path).unwrap();
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read(&files.authority)))
            .domain_name("control.culvert.test");
        if identity.is_some() {
            tls = tls.identity(Identity::from_pem(read(&files.client_cert), read(&files.client_key)));
        }
        let endpoint = Channel::from_shared(format!("https://{}", self.xds)).unwrap().tls_config(tls).unwrap();
        let channel = endpoint.connect().await.map_err(|error| error.to_string())?;
        // TLS 1.3: the server's refusal of a certificate shows with the first request.
        let mut health = HealthClient::new(channel.clone());
        health.check(HealthCheckRequest::default()).await.map_err(|status| status.to_string())?;
        Ok(channel)
    }

    pub(crate) async fn sotw(&self) -> Stream<DiscoveryRequest, DiscoveryResponse> {
        let (mut stream, queue) = Stream::queue();
        let mut client = AggregatedDiscoveryServiceClient::new(self.channel().await);
        stream.responses = Some(client.stream_aggregated_resources(queue).await.unwrap().into_inner());
        stream
    }

    /// A stream of a node that takes all clusters, and the first response, which it has accepted.
    pub(crate) async fn settled(&self, id: &str) -> (Stream<DiscoveryRequest, DiscoveryResponse>, DiscoveryResponse) {
        let mut stream = self.sotw().await;
        stream.send(asks(id, CLUSTER)).await;
        let first = stream.next().await;
        stream.answer(&first, None).await;
        (stream, first)
    }

    pub(crate) async fn delta(&self) -> Stream<DeltaDiscoveryRequest, DeltaDiscoveryResponse> {
        let (mut stream, queue) = Stream::queue();
        let mut client = AggregatedDiscoveryServiceClient::new(self.channel().await);
        stream.responses = Some(client.delta_aggregated_resources(queue).await.unwrap().into_inner());
        stream
    }

    /// The body of an admin page.
    pub(crate) async fn get(&self, page: &str) -> String {
        self.answer(page, "localhost").await
    }

    /// The body of an admin page, as a browser gets it that was told a name for this machine.
    pub(crate) async fn answer(&self, page: &str, host: &str) -> String {
        let mut stream = TcpStream::connect(&self.admin).await.unwrap();
        let request = format!("GET {page} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
    }

    /// Status and body of the answer to a POST.
    pub(crate) async fn post(&self, page: &str, headers: &str, body: &str) -> (u16, String) {
        Self::post_to(&self.admin, page, headers, body).await
    }

    /// The same on another socket.
    pub(crate) async fn post_to(address: &str, page: &str, headers: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let length = body.len();
        let head = format!("POST {page} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}");
        stream.write_all(format!("{head}\r\n{headers}\r\n{body}").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
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

    /// Resident memory, in kB.
    pub(crate) fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
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
    /// From the moment that the server answered the call.
    pub(crate) responses: Option<Streaming<Response>>,
}

impl<Request, Response> Stream<Request, Response> {
    /// A stream to be, and what it sends.
    pub(crate) fn queue() -> (Self, ReceiverStream<Request>) {
        let (requests, queue) = mpsc::channel(8);
        (Self { requests, responses: None }, ReceiverStream::new(queue))
    }

    async fn message(&mut self, within: Duration) -> Option<Result<Option<Response>, Status>> {
        let responses = self.responses.as_mut().expect("an open stream");
        tokio::time::timeout(within, responses.message()).await.ok()
    }

    pub(crate) async fn send(&self, request: Request) {
        assert!(self.requests.send(request).await.is_ok(), "the stream takes requests");
    }

    pub(crate) async fn next(&mut self) -> Response {
        self.message(DEADLINE).await.expect("a response in time").expect("no error").expect("no end")
    }

    /// Whether nothing comes for a while.
    pub(crate) async fn is_quiet(&mut self) -> bool {
        self.message(QUIET).await.is_none()
    }

    /// The next response, or how the stream fails.
    pub(crate) async fn answer_or_failure(&mut self) -> Result<Response, Status> {
        self.message(DEADLINE).await.expect("an answer in time").map(|response| response.expect("no end"))
    }

    /// How the stream fails.
    pub(crate) async fn failure(&mut self) -> Status {
        self.message(DEADLINE).await.expect("an answer in time").err().expect("a failure")
    }

    /// Whether the stream ends with OK.
    pub(crate) async fn ended(&mut self) -> bool {
        matches!(self.message(DEADLINE).await, Some(Ok(None)))
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

/// The first request of a node for a type.
pub(crate) fn asks(id: &str, type_url: &str) -> DiscoveryRequest {
    DiscoveryRequest { node: node(id), type_url: type_url.to_owned(), ..DiscoveryRequest::default() }
}

/// The same, of a delta stream.
pub(crate) fn delta_asks(id: &str, type_url: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { node: node(id), type_url: type_url.to_owned(), ..DeltaDiscoveryRequest::default() }
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
