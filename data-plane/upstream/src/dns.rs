//! STRICT_DNS and LOGICAL_DNS: names of endpoints become addresses, on the control runtime.
//!
//! One task per name lives as long as its cluster's configuration says. **A failed lookup keeps the addresses of
//! before**: a name server that is away fails no request.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use culvert_model::cluster::{DnsFamily, DnsOptions};
use culvert_runtime::backoff::Backoff;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;

use crate::slot::{ClusterSlot, DnsName};

/// Resolves names. Cheap to clone.
#[derive(Clone)]
pub struct Resolver(Source);

#[derive(Clone)]
enum Source {
    /// One resolver per family strategy, made when first used.
    System(Arc<[OnceLock<Result<TokioResolver, LookupError>>; STRATEGIES.len()]>),
    Scripted(Script),
}

type Script = Arc<dyn Fn(&str, DnsFamily) -> Result<Answer, LookupError> + Send + Sync>;

/// What a name stands for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Never empty.
    pub addresses: Vec<IpAddr>,
    /// How long the answer holds.
    pub ttl: Duration,
}

/// Why a name has no addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct LookupError {
    pub reason: String,
}

impl Resolver {
    /// By the system's configuration (`/etc/resolv.conf`, `/etc/hosts`), read when the first name is looked up. Where
    /// there is none, only the hosts file answers.
    #[must_use]
    pub fn system() -> Self {
        Self(Source::System(Arc::default()))
    }

    /// By a function: for tests, and for embedders that know better.
    #[must_use]
    pub fn scripted(answer: impl Fn(&str, DnsFamily) -> Result<Answer, LookupError> + Send + Sync + 'static) -> Self {
        Self(Source::Scripted(Arc::new(answer)))
    }

    /// Looks a name up once, within 15 seconds.
    ///
    /// # Errors
    /// No server answered, or the name has no address of the family.
    pub async fn lookup(&self, name: &str, family: DnsFamily) -> Result<Answer, LookupError> {
        match &self.0 {
            Source::Scripted(answer) => answer(name, family),
            Source::System(resolvers) => {
                let strategy = strategy(family);
                let place = STRATEGIES.iter().position(|candidate| *candidate == strategy).unwrap_or(0);
                let resolver = match resolvers[place].get_or_init(|| build(strategy)) {
                    Ok(resolver) => resolver,
                    Err(error) => return Err(error.clone()),
                };
                let found = tokio::time::timeout(LOOKUP_TIMEOUT, resolver.lookup_ip(name))
                    .await
                    .map_err(|_| LookupError { reason: format!("no answer within {LOOKUP_TIMEOUT:?}") })?
                    .map_err(|error| LookupError { reason: error.to_string() })?;
                let addresses: Vec<IpAddr> = found.iter().collect();
                if addresses.is_empty() {
                    return Err(LookupError { reason: "the name has no address of the wanted family".to_owned() });
                }
                let ttl = found.valid_until().saturating_duration_since(tokio::time::Instant::now().into_std());
                Ok(Answer { addresses, ttl })
            }
        }
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Source::System(_) => "Resolver(system)",
            Source::Scripted(_) => "Resolver(scripted)",
        })
    }
}

/// Keeps one name of a slot resolved until the slot is gone or the task is ended.
pub(crate) async fn watch(slot: Weak<ClusterSlot>, name: DnsName, options: DnsOptions, resolver: Resolver) {
    let retry_base = options.refresh.min(RETRY_BASE).max(MIN_REFRESH);
    let mut backoff = Backoff::new(retry_base, options.refresh.max(MIN_REFRESH));
    loop {
        let answer = resolver.lookup(&name.0, options.family).await;
        let Some(slot) = slot.upgrade() else { return };
        let pause = match answer {
            Ok(answer) => {
                backoff.reset();
                let pause = if options.respect_ttl { answer.ttl } else { options.refresh };
                slot.resolved(&name, Some(endpoints(&answer, name.1)));
                pause
            }
            Err(error) => {
                tracing::warn!(cluster = %slot.name(), name = %name.0, %error, "cannot resolve, keeping the addresses of before");
                slot.resolved(&name, None);
                backoff.next_delay()
            }
        };
        drop(slot);
        tokio::time::sleep(pause.max(MIN_REFRESH)).await;
    }
}

/// In a stable order, so that an answer that is only shuffled changes nothing. The first stays first: LOGICAL_DNS uses it.
fn endpoints(answer: &Answer, port: u16) -> Vec<SocketAddr> {
    let mut addresses: Vec<SocketAddr> = answer.addresses.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
    if let Some((_, rest)) = addresses.split_first_mut() {
        rest.sort_unstable();
    }
    addresses.dedup();
    addresses
}

fn build(strategy: LookupIpStrategy) -> Result<TokioResolver, LookupError> {
    let mut builder = TokioResolver::builder_tokio().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read the system's DNS configuration, only the hosts file answers");
        TokioResolver::builder_with_config(
            ResolverConfig::from_name_servers(Vec::new()),
            TokioRuntimeProvider::default(),
        )
    });
    let options = builder.options_mut();
    options.ip_strategy = strategy;
    // The refresh rate decides how old an answer may be.
    options.cache_size = 0;
    builder.build().map_err(|error| LookupError { reason: error.to_string() })
}

const fn strategy(family: DnsFamily) -> LookupIpStrategy {
    match family {
        // Envoy: AUTO asks for IPv6 first and for IPv4 if there is none.
        DnsFamily::Auto => LookupIpStrategy::Ipv6thenIpv4,
        DnsFamily::V4Only => LookupIpStrategy::Ipv4Only,
        DnsFamily::V6Only => LookupIpStrategy::Ipv6Only,
        DnsFamily::V4Preferred => LookupIpStrategy::Ipv4thenIpv6,
        DnsFamily::All => LookupIpStrategy::Ipv4AndIpv6,
    }
}

/// Every strategy that [`strategy`] gives.
const STRATEGIES: [LookupIpStrategy; 5] = [
    LookupIpStrategy::Ipv6thenIpv4,
    LookupIpStrategy::Ipv4Only,
    LookupIpStrategy::Ipv6Only,
    LookupIpStrategy::Ipv4thenIpv6,
    LookupIpStrategy::Ipv4AndIpv6,
];

const LOOKUP_TIMEOUT: Duration = Duration::from_secs(15);

/// The first ceiling of the pause after a failed lookup.
const RETRY_BASE: Duration = Duration::from_secs(1);

/// Whatever a TTL or a configuration says, no name is asked for more often.
const MIN_REFRESH: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
