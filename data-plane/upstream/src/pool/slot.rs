//! One worker's view of one cluster: its generation, its cursors, its hosts' pools.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;
use culvert_model::cluster::{Balancer, Discovery, ReverseConnection};
use tokio::time::Instant;

use super::checkout::{Checkout, Held, TcpCheckout};
use super::connection::SlotStats;
use super::dial::Offer;
use super::host::HostPool;
use super::open::{Open, Wait};
use super::{DownstreamProtocol, PickContext};
use crate::balance::{Choice, Cursors, HostSet};
use crate::failure::UpstreamFailure;
use crate::host::Host;
use crate::slot::{ClusterConfig, ClusterSlot, Generation};
use crate::stats::ClusterMetric;
use crate::tunnel::{Lane, Lent, TunnelConnection, Wish, lend_among};

#[derive(Debug)]
pub(super) struct SlotPool {
    pub(super) stats: Rc<SlotStats>,
    generation: RefCell<Cache<Arc<ArcSwap<Generation>>, Arc<Generation>>>,
    /// What `reverse_connection` clusters choose from.
    reverse: Arc<ClusterSlot>,
    agents: RefCell<Cache<Arc<ArcSwap<Generation>>, Arc<Generation>>>,
    cursors: RefCell<Cursors>,
    pub(super) hosts: RefCell<HashMap<u64, Rc<HostPool>, foldhash::fast::RandomState>>,
    clock: Rc<Cell<Instant>>,
}

/// What a checkout comes to without waiting.
pub(super) enum Step {
    Ready(Checkout),
    Open(Open),
    Wait(Wait),
}

/// As [`Step`], for TCP.
pub(super) enum TcpStep {
    Ready(Box<TcpCheckout>),
    Open(Open),
    Wait(Wait),
}

/// A host with what a connection to it needs.
struct Picked {
    host: Rc<HostPool>,
    least_request: bool,
    tunnel: Option<Tunnel>,
    /// Whom it may wait for.
    awaited: Option<Box<str>>,
}

enum Tunnel {
    Lent(Lent),
    /// None is free: those that the request may wait for.
    Busy(Arc<TunnelConnection>, Vec<Arc<TunnelConnection>>),
}

impl SlotPool {
    pub(super) fn new(slot: &Arc<ClusterSlot>, reverse: &Arc<ClusterSlot>, clock: &Rc<Cell<Instant>>) -> Rc<Self> {
        Rc::new(Self {
            stats: Rc::new(SlotStats { slot: Arc::clone(slot), block: slot.stats().block() }),
            generation: RefCell::new(Cache::new(Arc::clone(slot.current()))),
            agents: RefCell::new(Cache::new(Arc::clone(reverse.current()))),
            reverse: Arc::clone(reverse),
            cursors: RefCell::new(Cursors::new(fastrand::Rng::new())),
            hosts: RefCell::default(),
            clock: Rc::clone(clock),
        })
    }

    pub(super) fn count(&self, metric: ClusterMetric) {
        self.stats.block.inc(metric);
    }

    pub(super) fn answered(&self, status: u16) {
        self.stats.answered(status);
    }

    /// Whether the cluster is there.
    pub(super) fn is_present(&self) -> bool {
        self.generation.borrow_mut().load().config.is_some()
    }

    /// Picks a host and takes what is free of it.
    pub(super) fn start(self: &Rc<Self>, context: &PickContext<'_>) -> Result<Step, UpstreamFailure> {
        let lane = match context.downstream {
            DownstreamProtocol::Http1 => Lane::Plain,
            DownstreamProtocol::Http2 => Lane::Stream,
        };
        let picked = self.pick(context, lane)?;
        let offer = match picked.tunnel {
            Some(Tunnel::Lent(lent)) => {
                let held = Held::Tunnel(lent);
                return Checkout::begin(picked.host, held, context.priority, picked.least_request).map(Step::Ready);
            }
            Some(Tunnel::Busy(first, among)) => {
                let wait = Wait::new(
                    picked.host,
                    first,
                    among,
                    context,
                    Rc::clone(self),
                    picked.least_request,
                    picked.awaited,
                );
                return Ok(Step::Wait(wait));
            }
            None => picked.host.offer(context.downstream),
        };
        if let Some(held) = picked.host.reuse(offer) {
            return Checkout::begin(picked.host, held, context.priority, picked.least_request).map(Step::Ready);
        }
        Ok(Step::Open(self.open(picked, offer, context)))
    }

    /// As [`Self::start`], for a connection that the caller has for itself.
    pub(super) fn start_tcp(self: &Rc<Self>, context: &PickContext<'_>) -> Result<TcpStep, UpstreamFailure> {
        let picked = self.pick(context, Lane::Stream)?;
        match picked.tunnel {
            Some(Tunnel::Lent(lent)) => {
                let checkout = TcpCheckout::tunnel(picked.host, lent, context.priority, picked.least_request)?;
                Ok(TcpStep::Ready(Box::new(checkout)))
            }
            Some(Tunnel::Busy(first, among)) => {
                let wait = Wait::new(
                    picked.host,
                    first,
                    among,
                    context,
                    Rc::clone(self),
                    picked.least_request,
                    picked.awaited,
                );
                Ok(TcpStep::Wait(wait))
            }
            None => Ok(TcpStep::Open(self.open(picked, Offer::Raw, context))),
        }
    }

    fn open(self: &Rc<Self>, picked: Picked, offer: Offer, context: &PickContext<'_>) -> Open {
        Open {
            pool: Rc::clone(self),
            config: picked.host.config(),
            host: picked.host,
            offer,
            priority: context.priority,
            least_request: picked.least_request,
        }
    }

    fn pick(&self, context: &PickContext<'_>, lane: Lane) -> Result<Picked, UpstreamFailure> {
        let mut cache = self.generation.borrow_mut();
        let generation = cache.load();
        let Some(config) = &generation.config else { return Err(UpstreamFailure::NoCluster) };
        let hosts = &generation.hosts;
        let mut cursors = self.cursors.borrow_mut();
        if let Discovery::Reverse(reverse) = &config.cluster.discovery {
            return self.pick_reverse(reverse, context, config, &mut cursors);
        }
        if hosts.drops(&mut cursors.random) {
            self.count(ClusterMetric::RqDropOverload);
            return Err(UpstreamFailure::DropOverload);
        }
        let mut choice = self.choose(hosts, context.agent, &mut cursors)?;
        for _ in 0..context.fresh_picks {
            if choice.host.address().is_none_or(|address| !context.tried.contains(&address)) {
                break;
            }
            choice = self.choose(hosts, context.agent, &mut cursors)?;
        }
        let least_request = matches!(hosts.balancer(), Balancer::LeastRequest { .. });
        let Some(connection) = choice.host.tunnel() else {
            let host = self.host(choice.host, config);
            return Ok(Picked { host, least_request, tunnel: None, awaited: None });
        };
        let awaited = connection.awaited_as(context.agent);
        Ok(self.borrow(&choice, connection, lane.lend(&choice, hosts), config, least_request, awaited))
    }

    /// A connection of the agent that the request names.
    fn pick_reverse(
        &self,
        cluster: &ReverseConnection,
        context: &PickContext<'_>,
        config: &Arc<ClusterConfig>,
        cursors: &mut Cursors,
    ) -> Result<Picked, UpstreamFailure> {
        let failed = |failure| {
            self.count(ClusterMetric::RqNoneHealthy);
            Err(failure)
        };
        let Some(wish) = Wish::of(cluster, context.request) else { return failed(UpstreamFailure::NoHealthyHost) };
        let mut cache = self.agents.borrow_mut();
        let Some((choice, is_group)) = cache.load().hosts.pick_reverse(&wish, cursors) else {
            return failed(self.reverse.agent_failure(&wish.node));
        };
        let Some(connection) = choice.host.tunnel() else { return failed(UpstreamFailure::NoHealthyHost) };
        let awaited = if is_group { wish.group } else { wish.node };
        Ok(self.borrow(&choice, connection, lend_among(&choice), config, false, Some(awaited.into())))
    }

    /// What was lent, or whom to wait for.
    fn borrow(
        &self,
        choice: &Choice<'_>,
        connection: &Arc<TunnelConnection>,
        lent: Option<(&Arc<Host>, Lent)>,
        config: &Arc<ClusterConfig>,
        least_request: bool,
        awaited: Option<Box<str>>,
    ) -> Picked {
        let (host, tunnel) = match lent {
            Some((host, lent)) => (host, Tunnel::Lent(lent)),
            None => {
                self.count(ClusterMetric::TunnelQueued);
                let among = choice.among.iter().filter_map(|host| host.tunnel()).map(Arc::clone).collect();
                (choice.host, Tunnel::Busy(Arc::clone(connection), among))
            }
        };
        Picked { host: self.host(host, config), least_request, tunnel: Some(tunnel), awaited }
    }

    fn choose<'a>(
        &self,
        hosts: &'a HostSet,
        agent: Option<&str>,
        cursors: &mut Cursors,
    ) -> Result<Choice<'a>, UpstreamFailure> {
        let choice = match agent {
            Some(agent) => hosts.pick_agent(agent, cursors).ok_or_else(|| self.stats.slot.agent_failure(agent)),
            None => hosts.pick(cursors).ok_or(UpstreamFailure::NoHealthyHost),
        };
        match &choice {
            Ok(choice) if choice.panic => self.count(ClusterMetric::LbHealthyPanic),
            Ok(_) => {}
            Err(_) => self.count(ClusterMetric::RqNoneHealthy),
        }
        choice
    }

    /// The worker's pool of a host, under the configuration of the moment.
    fn host(&self, host: &Arc<Host>, config: &Arc<ClusterConfig>) -> Rc<HostPool> {
        if let Some(pool) = self.hosts.borrow().get(&host.id()) {
            pool.configure(config);
            return Rc::clone(pool);
        }
        let pool = HostPool::new(host, &self.stats, config, &self.clock);
        self.hosts.borrow_mut().insert(host.id(), Rc::clone(&pool));
        pool
    }

    /// The pool of a tunnel's host, once it has been lent after a wait.
    pub(super) fn host_of(&self, connection: &TunnelConnection, otherwise: &Rc<HostPool>) -> Rc<HostPool> {
        let (mut cache, mut agents) = (self.generation.borrow_mut(), self.agents.borrow_mut());
        let generation = cache.load();
        let hosts = if connection.claim().reverse.is_some() { &agents.load().hosts } else { &generation.hosts };
        let member = hosts
            .members()
            .iter()
            .find(|member| member.host.tunnel().is_some_and(|candidate| std::ptr::eq(&**candidate, connection)));
        match (member, &generation.config) {
            (Some(member), Some(config)) => self.host(&member.host, config),
            (None, _) | (_, None) => Rc::clone(otherwise),
        }
    }

    /// Closes an idle connection of any host, so that its place in the breaker is free; whether there was one.
    pub(super) fn evict_idle(&self) -> bool {
        self.hosts.borrow().values().any(|host| host.evict_idle())
    }
}
