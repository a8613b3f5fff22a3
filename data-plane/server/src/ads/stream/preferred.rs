//! While a server serves that is not the first of its list, those before it are asked whether they answer again (gRFC A71).

use std::time::Duration;

use culvert_model::source::GrpcSource;
use culvert_runtime::backoff::Backoff;
use culvert_xds::client::Request;
use prost::Message;
use tokio::sync::mpsc;

use super::super::connect::{connect, with_causes};
use super::super::{Source, Sources};
use super::open::open;
use super::{FIRST_DELAY, GREATEST_DELAY, client};
use crate::config::type_url_of;

/// Returns the first of the servers before `server` that answers a request; never, if there is none.
pub(super) async fn answers<Q, R>(
    sources: &Sources,
    source: &Source,
    grpc: &GrpcSource,
    server: usize,
    pack: fn(Request) -> Option<Q>,
) -> usize
where
    Q: Message + Default + Send + Sync + 'static,
    R: Message + Default + Send + Sync + 'static,
{
    let mut backoff = Backoff::new(FIRST_DELAY, GREATEST_DELAY);
    loop {
        tokio::time::sleep(backoff.next_delay()).await;
        for preferred in 0..server {
            let attempt = backoff.attempts();
            let asked = ask::<Q, R>(sources, source, grpc, (preferred, attempt), pack);
            match tokio::time::timeout(ANSWER_TIME, asked).await {
                Ok(Ok(())) => return preferred,
                Ok(Err(reason)) => tracing::debug!(preferred, reason, "a server that comes first is still away"),
                Err(_) => {
                    tracing::debug!(preferred, within = ?ANSWER_TIME, "a server that comes first does not answer")
                }
            }
        }
    }
}

/// Only a response shows that a server is well: it is asked for what is wanted first, and what it says is forgotten.
async fn ask<Q, R>(
    sources: &Sources,
    source: &Source,
    grpc: &GrpcSource,
    (server, attempt): (usize, u32),
    pack: fn(Request) -> Option<Q>,
) -> Result<(), String>
where
    Q: Message + Default + Send + Sync + 'static,
    R: Message + Default + Send + Sync + 'static,
{
    let mut client = client(sources, grpc);
    for (kind, interest) in sources.interests_of(source) {
        client.watch(type_url_of(kind), interest);
    }
    client.on_connected();
    let request =
        client.poll_request(sources.configuration.now()).and_then(pack).ok_or("there is nothing to ask for")?;
    let connected = connect(&sources.bootstrap, grpc, server, &sources.client_tls, attempt).await;
    let (channel, _) = connected.map_err(|error| error.to_string())?;
    let (requests, sending) = mpsc::channel(1);
    requests.try_send(request).map_err(|error| error.to_string())?;
    let mut stream = open::<Q, R>(source, grpc, channel, sending).await.map_err(|status| with_causes(&status))?;
    match stream.message().await {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err("it closed the stream".to_owned()),
        Err(status) => Err(with_causes(&status)),
    }
}

/// For a connection and a first response, which may be a large one.
const ANSWER_TIME: Duration = Duration::from_secs(20);
