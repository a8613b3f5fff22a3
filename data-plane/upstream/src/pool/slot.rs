//! One worker's view of one cluster: its generation, its cursors, its hosts' pools.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;
use culvert_http::RequestHead;
use culvert_model::cluster::{Balancer, Discovery, ReverseConnection};
use tokio::time::Instant;

use super::checkout::{Checkout, Held, TcpCheckout};
use super::connection::SlotStats;
use super::dial::Offer;
use super::host::HostPool;
use super::line::Line;
use super::named::{Named, asked_name};
use super::open::{Open, Wait};
use super::{DownstreamProtocol, PickContext};
use crate::balance::{Choice, Cursors, HostSet};
use crate::failure::UpstreamFailure;
use crate::host::Host;
use crate::slot::{ClusterConfig, ClusterSlot, Generation};
use crate::stats::ClusterMetric;
use crate::tunnel::{Lane, Lent, Phase, TunnelConnection, Wish, lend_among};

#[derive(Debug)]
pub(super) struct SlotPool {
    pub(super) stats: Rc<SlotStats>,
    generation: RefCell<Cache<Arc<ArcSwap<Generation>>, Arc<Generation>>>,
    /// What `reverse_connection` clusters choose from.
    reverse: Arc<ClusterSlot>,
    agents: RefCell<Cache<Arc<ArcSwap<Generation>>, Arc<Generation>>>,
    cursors: RefCell<Cursors>,
    pub(super) hosts: RefCell<HashMap<u64, Rc<HostPool>, foldhash::fast::RandomState>>,
    /// Of a cluster with `auto_sni`: each name has connections of its own.
    pub(super) named: RefCell<Named>,
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

/// A host, as far as it is ready. `least_request`: the balancer compares the hosts' loads.
pub(super) enum Picked {
    Host {
        host: Rc<HostPool>,
        least_request: bool,
    },
    Lent {
        host: Rc<HostPool>,
        lent: Lent,
        least_request: bool,
    },
    /// No tunnel is free, or none is there and one is expected back.
    Busy {
        line: Line,
        least_request: bool,
    },
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
            named: RefCell::default(),
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
        let (host, least_request) = match self.pick(context, lane)? {
            Picked::Host { host, least_request } => (host, least_request),
            Picked::Lent { host, lent, least_request } => {
                let held = Held::Tunnel(lent);
                return Checkout::begin(host, held, context.priority, least_request).map(Step::Ready);
            }
            Picked::Busy { line, least_request } => {
                return Ok(Step::Wait(Wait::new(context, Rc::clone(self), line, least_request)));
            }
        };
        context.check(host.host().address()).map_err(|failure| self.counted(failure))?;
        let offer = host.offer(context.downstream);
        if let Some(held) = host.reuse(offer) {
            return Checkout::begin(host, held, context.priority, least_request).map(Step::Ready);
        }
        Ok(Step::Open(self.open(host, least_request, offer, context)))
    }

    /// As [`Self::start`], for a connection that the caller has for itself.
    pub(super) fn start_tcp(self: &Rc<Self>, context: &PickContext<'_>) -> Result<TcpStep, UpstreamFailure> {
        match self.pick(context, Lane::Stream)? {
            Picked::Host { host, least_request } => {
                context.check(host.host().address()).map_err(|failure| self.counted(failure))?;
                Ok(TcpStep::Open(self.open(host, least_request, Offer::Raw, context)))
            }
            Picked::Lent { host, lent, least_request } => {
                let checkout = TcpCheckout::tunnel(host, lent, context.priority, least_request)?;
                Ok(TcpStep::Ready(Box::new(checkout)))
            }
            Picked::Busy { line, least_request } => {
                Ok(TcpStep::Wait(Wait::new(context, Rc::clone(self), line, least_request)))
            }
        }
    }

    fn open(self: &Rc<Self>, host: Rc<HostPool>, least_request: bool, offer: Offer, context: &PickContext<'_>) -> Open {
        let (pool, config) = (Rc::clone(self), host.config());
        Open { pool, config, host, offer, priority: context.priority, least_request }
    }

    pub(super) fn pick(&self, context: &PickContext<'_>, lane: Lane) -> Result<Picked, UpstreamFailure> {
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
        let least_request = matches!(hosts.balancer(), Balancer::LeastRequest { .. });
        let choice = choose(hosts, context.agent, &mut cursors);
        let Some(mut choice) = choice else {
            return self.nobody([self.own_line(context.agent)], least_request);
        };
        for _ in 0..context.fresh_picks {
            if choice.host.address().is_none_or(|address| !context.tried.contains(&address)) {
                break;
            }
            choice = choose(hosts, context.agent, &mut cursors).unwrap_or(choice);
        }
        if choice.panic {
            self.count(ClusterMetric::LbHealthyPanic);
        }
        let Some(connection) = choice.host.tunnel() else {
            return Ok(Picked::Host { host: self.host_for(context.request, choice.host, config), least_request });
        };
        match lane.lend(&choice, hosts, self.stats.slot.id()) {
            Some((host, lent)) => Ok(Picked::Lent { host: self.host(host, config), lent, least_request }),
            None => Ok(self.queued(self.own_line(context.agent), connection, least_request)),
        }
    }

    /// A connection of the agent that the request names.
    fn pick_reverse(
        &self,
        cluster: &ReverseConnection,
        context: &PickContext<'_>,
        config: &Arc<ClusterConfig>,
        cursors: &mut Cursors,
    ) -> Result<Picked, UpstreamFailure> {
        let Some(wish) = Wish::of(cluster, context.request) else {
            self.count(ClusterMetric::RqNoneHealthy);
            return Err(UpstreamFailure::NoHealthyHost);
        };
        let line = |name| Line::reverse(&self.reverse, name, &config.opening);
        let mut cache = self.agents.borrow_mut();
        let hosts = &cache.load().hosts;
        let picked = hosts.pick_reverse(&wish, cursors);
        let Some((choice, is_group)) = picked else { return self.nobody([line(wish.group), line(wish.node)], false) };
        let wished = if is_group { wish.group } else { wish.node };
        if let Some((host, lent)) = lend_among(&choice, hosts, &config.opening, self.stats.slot.id()) {
            return Ok(Picked::Lent { host: self.host(host, config), lent, least_request: false });
        }
        let suits = |connection: &&Arc<TunnelConnection>| connection.suits(&config.opening);
        let tunnels = std::iter::once(choice.host).chain(choice.among).filter_map(|host| host.tunnel());
        match tunnels.clone().find(suits) {
            Some(connection) => Ok(self.queued(line(wished), connection, false)),
            None if tunnels.count() > 0 => Err(self.counted(UpstreamFailure::OtherTransport)),
            None => self.nobody([line(wished)], false),
        }
    }

    fn own_line(&self, agent: Option<&str>) -> Line {
        Line::own(&self.stats.slot, agent)
    }

    fn queued(&self, line: Line, chosen: &Arc<TunnelConnection>, least_request: bool) -> Picked {
        self.count(ClusterMetric::TunnelQueued);
        Picked::Busy { line: line.at(chosen), least_request }
    }

    /// No host may be chosen: the request waits if a tunnel has just ended and is expected back.
    fn nobody<const N: usize>(&self, lines: [Line; N], least_request: bool) -> Result<Picked, UpstreamFailure> {
        let mut absent = None;
        for line in lines {
            if line.is_hopeful() {
                self.count(ClusterMetric::TunnelParked);
                return Ok(Picked::Busy { line, least_request });
            }
            // Of those that it could have been, one that was here says more than one that never was.
            absent = absent.filter(|failure| *failure != UpstreamFailure::AgentUnknown).or_else(|| line.absence());
        }
        self.count(ClusterMetric::RqNoneHealthy);
        Err(absent.map_or(UpstreamFailure::NoHealthyHost, |failure| self.counted(failure)))
    }

    /// The tunnel ended, and none took its place.
    pub(super) fn nobody_left(&self, line: &Line) -> UpstreamFailure {
        line.absence().map_or(UpstreamFailure::TunnelClosed, |failure| self.counted(failure))
    }

    pub(super) fn counted(&self, failure: UpstreamFailure) -> UpstreamFailure {
        self.count(match failure {
            UpstreamFailure::AgentUnknown => ClusterMetric::TunnelAgentUnknown,
            UpstreamFailure::DestinationDenied { .. } => ClusterMetric::TunnelDestinationDenied,
            UpstreamFailure::OtherTransport => ClusterMetric::TunnelOtherTransport,
            _ => ClusterMetric::TunnelAgentOffline,
        });
        failure
    }

    /// The worker's pool of a host for a request.
    fn host_for(&self, request: Option<&RequestHead>, host: &Arc<Host>, config: &Arc<ClusterConfig>) -> Rc<HostPool> {
        let asked = config.cluster.auto_sni.as_ref().zip(request).and_then(|(auto, request)| asked_name(auto, request));
        let Some(asked) = asked else { return self.host(host, config) };
        self.named.borrow_mut().of(&asked, host, config, &self.stats, &self.clock)
    }

    /// The worker's pool of a host, under the configuration of the moment.
    fn host(&self, host: &Arc<Host>, config: &Arc<ClusterConfig>) -> Rc<HostPool> {
        if let Some(pool) = self.hosts.borrow().get(&host.id()) {
            pool.configure(config);
            return Rc::clone(pool);
        }
        let pool = HostPool::new(host, &self.stats, config, None, &self.clock);
        self.hosts.borrow_mut().insert(host.id(), Rc::clone(&pool));
        pool
    }

    /// The pool of a tunnel's host, once it has been lent after a wait; `None`: it is in no generation any more.
    pub(super) fn host_of(&self, line: &Line, connection: &TunnelConnection) -> Option<Rc<HostPool>> {
        let host = connection.host_in(line.queue())?;
        let mut cache = self.generation.borrow_mut();
        let config = cache.load().config.as_ref()?;
        Some(self.host(&host, config))
    }

    /// Lends what the line's tunnels have free to those that wait.
    pub(super) fn serve_waiters(&self, line: &Line) {
        let mut cache = self.candidates(line).borrow_mut();
        let free = |connection: &&Arc<TunnelConnection>| matches!(connection.phase(), Phase::Idle | Phase::Open);
        for connection in tunnels(&cache.load().hosts, line).filter(free) {
            line.queue().serve(connection);
            if !line.queue().has_waiters() {
                return;
            }
        }
    }

    /// Has one more of the line's tunnels opened, if one rests that is not among the `asked` ones.
    pub(super) fn want_another(&self, line: &Line, asked: &mut Vec<Arc<TunnelConnection>>) {
        let mut cache = self.candidates(line).borrow_mut();
        let rests = |connection: &&Arc<TunnelConnection>| {
            connection.phase() == Phase::Pending
                && connection.suits(line.opening())
                && !asked.iter().any(|other| Arc::ptr_eq(other, connection))
        };
        let next = line.chosen.iter().chain(tunnels(&cache.load().hosts, line)).find(rests).map(Arc::clone);
        if let Some(next) = next {
            next.want(line.opening());
            asked.push(next);
        }
    }

    fn candidates(&self, line: &Line) -> &RefCell<Cache<Arc<ArcSwap<Generation>>, Arc<Generation>>> {
        if line.is_of(&self.reverse) { &self.agents } else { &self.generation }
    }

    /// Closes an idle connection of any host, so that its place in the breaker is free; whether there was one.
    pub(super) fn evict_idle(&self) -> bool {
        self.hosts.borrow().values().any(|host| host.evict_idle()) || self.named.borrow().evict_idle()
    }
}

fn choose<'a>(hosts: &'a HostSet, agent: Option<&str>, cursors: &mut Cursors) -> Option<Choice<'a>> {
    match agent {
        Some(agent) => hosts.pick_agent(agent, cursors),
        None => hosts.pick(cursors),
    }
}

/// Those that serve the line.
fn tunnels<'a>(hosts: &'a HostSet, line: &Line) -> impl Iterator<Item = &'a Arc<TunnelConnection>> {
    let tunnels = hosts.members().iter().filter_map(|member| member.host.tunnel());
    tunnels.filter(move |connection| connection.answers_to(line.queue(), line.name()))
}
