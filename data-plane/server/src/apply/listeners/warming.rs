//! Generations that wait for what they need: secrets for ever, routes as long as their source says.

use std::sync::Arc;
use std::time::Duration;

use culvert_model::Name;
use culvert_model::http::RouteSource;
use culvert_model::listener::{Listener, NetworkFilter};
use culvert_proxy::FilterChains;
use culvert_proxy::RouteSlots;
use tokio::time::Instant;

use super::super::applier::Applier;
use super::super::{Applied, ApplyError};
use crate::stats::ManagerMetric;

/// A generation that is not in force yet.
#[derive(Debug)]
pub(super) struct Warming {
    pub(super) chains: Arc<FilterChains>,
    /// Secrets that had not come when it was compiled.
    secrets: Vec<Name>,
    /// Route configurations that its connection managers go by.
    routes: Vec<Name>,
    /// When it comes into force without its routes (xDS: `initial_fetch_timeout`). `None`: never.
    until: Option<Instant>,
    /// It waits for nothing but its address, which somebody else took before it was listened on.
    blocked: Option<Blocked>,
}

/// An address is asked for again after a while, and the next time after twice as long.
#[derive(Debug, Clone, Copy)]
struct Blocked {
    until: Instant,
    pause: Duration,
}

impl Warming {
    pub(super) fn new(chains: Arc<FilterChains>, secrets: Vec<Name>) -> Self {
        let named = route_names(chains.listener());
        let longest = named.iter().map(|(_, timeout)| *timeout).filter(|timeout| !timeout.is_zero()).max();
        let until = longest.map(|timeout| Instant::now() + timeout);
        Self { chains, secrets, routes: named.into_iter().map(|(name, _)| name).collect(), until, blocked: None }
    }

    /// When there is something to do although nothing came.
    pub(super) fn due(&self) -> Option<Instant> {
        self.blocked.map(|blocked| blocked.until).or(self.until)
    }

    fn block(&mut self) {
        let pause = self.blocked.map_or(FIRST_PAUSE, |blocked| (blocked.pause * 2).min(LONGEST_PAUSE));
        self.blocked = Some(Blocked { until: Instant::now() + pause, pause });
    }

    /// What it still waits for, for people.
    fn awaited(&self, routes: &RouteSlots) -> Vec<String> {
        if let (Some(blocked), Some(address)) = (self.blocked, self.chains.listener().address)
            && blocked.until > Instant::now()
        {
            return vec![format!("address {address}")];
        }
        if !self.chains.is_warm() {
            return self.secrets.iter().map(|name| format!("secret {name}")).collect();
        }
        if self.until.is_some_and(|until| until <= Instant::now()) {
            return Vec::new();
        }
        let missing = self.routes.iter().filter(|name| routes.slot(name).current().is_none());
        missing.map(|name| format!("routes {name}")).collect()
    }
}

/// The route configurations that come by name, and how long a listener waits for each.
fn route_names(listener: &Listener) -> Vec<(Name, Duration)> {
    let sources = listener.chains().filter_map(|chain| match &chain.filter {
        NetworkFilter::Http(manager) => match &manager.routes {
            RouteSource::Rds { name, config } => Some((Arc::clone(name), config.initial_fetch_timeout)),
            RouteSource::Inline(_) | RouteSource::Scoped(_) => None,
        },
        // What is served was resolved.
        NetworkFilter::Tcp(_) | NetworkFilter::Tunnel(_) | NetworkFilter::Discovered(_) => None,
    });
    sources.collect()
}

impl Applier {
    /// Puts the listener's next generation in force if it waits for nothing any more.
    pub(super) async fn advance(&mut self, name: &Name) -> Result<Applied, ApplyError> {
        let Some(running) = self.listeners.running.get_mut(name) else { return Ok(Applied::Active) };
        let Some(warming) = &mut running.warming else { return Ok(Applied::Active) };
        let awaited = warming.awaited(&self.process.routes);
        if !awaited.is_empty() {
            if warming.until.is_some_and(|until| until <= Instant::now()) {
                // Only secrets are left, and they are waited for as long as it takes.
                warming.until = None;
            }
            self.show(name, awaited.clone());
            return Ok(Applied::Warming(awaited));
        }
        let missing = warming.routes.iter().find(|name| self.process.routes.slot(name).current().is_none());
        if let Some(routes) = missing {
            tracing::warn!(listener = %name, %routes, "its routes did not come in time; it serves without them");
        }
        let chains = Arc::clone(&warming.chains);
        self.activate(name, chains).await?;
        Ok(Applied::Active)
    }

    /// Something came that listeners may have waited for.
    pub(in super::super) async fn advance_all(&mut self) {
        let waiting = self.listeners.running.iter().filter(|(_, running)| running.warming.is_some());
        for name in waiting.map(|(name, _)| Arc::clone(name)).collect::<Vec<_>>() {
            match self.advance(&name).await {
                Ok(Applied::Active) => tracing::info!(listener = %name, "it waits for nothing any more and serves"),
                Ok(Applied::Warming(_)) => {}
                Err(error) => {
                    self.metrics.inc(ManagerMetric::ListenerCreateFailure);
                    tracing::error!(listener = %name, %error, "it cannot serve yet; it is tried again");
                    let running = self.listeners.running.get_mut(&name);
                    let Some(warming) = running.and_then(|running| running.warming.as_mut()) else { continue };
                    warming.block();
                    let awaited = warming.awaited(&self.process.routes);
                    self.show(&name, awaited);
                }
            }
        }
    }
}

/// Between two attempts to get an address back.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
