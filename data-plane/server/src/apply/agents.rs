//! Tunnel agents: started on every worker, replaced make before break.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use culvert_model::Name;
use culvert_model::agent::{ServerSource, TunnelAgent};
use culvert_model::endpoint::Endpoints;
use culvert_proxy::Process;
use culvert_runtime::telemetry::ScopePath;
use culvert_runtime::workers::Workers;
use culvert_tunnel::agent::{Agent, AgentInputs, Resolver, Worker};
use culvert_tunnel::metrics::AgentMetric;
use tokio::sync::watch;

use super::applier::{Applier, OnWorker};
use super::hand_over::hand_over;
use super::{Applied, ApplyError};
use crate::overview::CertificateView;
use crate::stats::ManagerMetric;
use crate::tls::{Gathered, MaterialError, files, gather};

/// The agents that run, by name.
#[derive(Debug, Default)]
pub(crate) struct Agents {
    running: HashMap<Name, Running>,
}

type TlsSender = watch::Sender<Option<Arc<rustls::ClientConfig>>>;

#[derive(Debug)]
struct Running {
    config: Arc<TunnelAgent>,
    agent: Arc<Agent>,
    /// The same, for those of its name that are still to be closed.
    latest: watch::Sender<Arc<Agent>>,
    tls: Option<TlsSender>,
    digest: Option<u128>,
}

impl Agents {
    pub(super) fn names(&self) -> Vec<Name> {
        self.running.keys().cloned().collect()
    }
}

impl Applier {
    pub(super) async fn set_agent(&mut self, config: Arc<TunnelAgent>) -> Result<Applied, ApplyError> {
        let name = Arc::clone(&config.name);
        if self.agents.running.get(&name).is_some_and(|running| running.config == config) {
            return Ok(Applied::Active);
        }
        if let Some(running) = self.agents.running.get_mut(&name)
            && *running.config == (TunnelAgent { weight: running.config.weight, ..(*config).clone() })
            && running.agent.reweigh(config.weight)
        {
            // Its servers are told while it serves.
            running.config = config;
            return Ok(Applied::Active);
        }
        let (client, digest, awaited) = self.agent_tls(&config)?;
        let (tls, tls_receiver) = match &config.tls {
            Some(_) => {
                let (sender, receiver) = watch::channel(client);
                (Some(sender), Some(receiver))
            }
            None => (None, None),
        };
        let inputs = AgentInputs {
            node_id: Arc::clone(&self.node_id),
            tls: tls_receiver,
            eds: self.agent_eds(&config),
            journal: self.agent_journal.clone(),
            resolver: Resolver::System,
        };
        let agent = Agent::new(Arc::clone(&config), inputs);
        run_agent(&self.process, &self.workers, &name, &agent).await;
        self.overview.agents.lock().insert(Arc::clone(&name), Arc::clone(&agent));
        let latest = match self.agents.running.remove(&name) {
            Some(before) => {
                before.latest.send_replace(Arc::clone(&agent));
                tokio::spawn(hand_over(before.agent, before.latest.subscribe()));
                before.latest
            }
            None => watch::Sender::new(Arc::clone(&agent)),
        };
        self.agents.running.insert(name, Running { config, agent, latest, tls, digest });
        if awaited.is_empty() { Ok(Applied::Active) } else { Ok(Applied::Warming(awaited)) }
    }

    /// What the agent's TLS context gives now: the configuration, its digest, and what is still to come.
    #[expect(clippy::type_complexity, reason = "three parts of one answer, taken apart at once")]
    fn agent_tls(
        &self,
        config: &TunnelAgent,
    ) -> Result<(Option<Arc<rustls::ClientConfig>>, Option<u128>, Vec<String>), MaterialError> {
        let Some(tls) = &config.tls else { return Ok((None, None, Vec::new())) };
        match gather(&tls.common, &self.secrets)? {
            Gathered::Complete(material) => {
                let (presented, trusted) = material.details();
                let view = CertificateView { presented, trusted, chain: None };
                self.overview.show_certificates(format!("agent {}", config.name), view);
                Ok((Some(material.client(tls)?), Some(material.digest()), Vec::new()))
            }
            Gathered::Awaiting(names) => Ok((None, None, names.iter().map(|name| format!("secret {name}")).collect())),
        }
    }

    fn agent_eds(&mut self, config: &TunnelAgent) -> Vec<(Name, watch::Receiver<Option<Arc<Endpoints>>>)> {
        let names = config.servers.iter().filter_map(|source| match source {
            ServerSource::Eds { service_name, .. } => Some(service_name),
            ServerSource::Address { .. } => None,
        });
        let mut receivers = Vec::new();
        for name in names {
            let known = self.endpoints.get(name).cloned();
            let sender = self.assignments.entry(Arc::clone(name)).or_insert_with(|| watch::Sender::new(known));
            receivers.push((Arc::clone(name), sender.subscribe()));
        }
        receivers
    }

    pub(super) fn remove_agent(&mut self, name: &Name) {
        if let Some(running) = self.agents.running.remove(name) {
            running.agent.stop();
            self.overview.agents.lock().remove(name);
            self.overview.hide_certificates(&format!("agent {name}"));
            let used: BTreeSet<Name> =
                self.agents.running.values().flat_map(|running| eds_names(&running.config)).collect();
            self.assignments.retain(|name, _| used.contains(name));
        }
    }

    /// A file or a secret has changed. Dials from now on use what it gives.
    pub(super) fn refresh_agents(&mut self) {
        for name in self.agents.names() {
            let Some(running) = self.agents.running.get(&name).filter(|running| running.tls.is_some()) else {
                continue;
            };
            match self.agent_tls(&running.config) {
                Ok((Some(client), digest, _)) if digest != running.digest => {
                    if let Some(running) = self.agents.running.get_mut(&name) {
                        running.digest = digest;
                        running.tls.iter().for_each(|tls| drop(tls.send_replace(Some(Arc::clone(&client)))));
                        tracing::info!(agent = %name, "TLS material is in force");
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    self.metrics.inc(ManagerMetric::TlsUpdateRejected);
                    tracing::warn!(agent = %name, %error, "new TLS material cannot be used; the old stays in force");
                }
            }
        }
    }

    pub(super) fn agent_files(&self, paths: &mut BTreeSet<PathBuf>) {
        for tls in self.agents.running.values().filter_map(|running| running.config.tls.as_ref()) {
            paths.extend(files(&tls.common, &self.secrets));
        }
    }
}

/// Starts the agent on every worker.
async fn run_agent(process: &Arc<Process>, workers: &Arc<Workers<OnWorker>>, name: &Name, agent: &Arc<Agent>) {
    let path = ScopePath::named("tunnel_agent", "culvert_tunnel_agent", Arc::clone(name));
    let scope = process.registry.scope::<AgentMetric>(path);
    let (count, agent, drain) = (workers.len(), Arc::clone(agent), process.drain.clone());
    let started = workers
        .run_all(move |index, state| {
            let (hosting, metrics, blocker) = (state.hosting.clone(), scope.block(), drain.block());
            tokio::task::spawn_local(async move {
                agent.run(Worker { index, count }, hosting, metrics).await;
                drop(blocker);
            });
        })
        .await;
    if let Err(error) = started {
        tracing::error!(agent = %name, %error, "an agent does not run on every worker");
    }
}

fn eds_names(config: &TunnelAgent) -> impl Iterator<Item = Name> {
    config.servers.iter().filter_map(|source| match source {
        ServerSource::Eds { service_name, .. } => Some(Arc::clone(service_name)),
        ServerSource::Address { .. } => None,
    })
}
