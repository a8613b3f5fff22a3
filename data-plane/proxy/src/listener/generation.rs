//! One generation of filter chains on one worker: what each chain's filter keeps there.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use foldhash::fast::RandomState;
use tokio::time::Instant;

use super::accept::Downstream;
use super::matching::Arrival;
use super::{Chain, Filter, FilterChains};
use crate::access_log::WorkerLogs;
use crate::http_manager::WorkerHttp;
use crate::record::{Record, Scene};
use crate::tcp_proxy::WorkerTcp;
use crate::tunnel::WorkerTunnel;
use crate::worker::Worker;

/// One generation of chains, with this worker's state of each.
#[derive(Debug)]
pub(super) struct Generation {
    pub(super) chains: Arc<FilterChains>,
    states: RefCell<HashMap<usize, Rc<WorkerChain>, RandomState>>,
    logs: WorkerLogs,
}

/// A chain's filter on this worker.
#[derive(Debug)]
pub(super) struct WorkerChain {
    pub(super) chain: Arc<Chain>,
    pub(super) filter: WorkerFilter,
}

#[derive(Debug)]
pub(super) enum WorkerFilter {
    Http(Rc<WorkerHttp>),
    Tcp(Rc<WorkerTcp>),
    Tunnel(Rc<WorkerTunnel>),
}

impl Generation {
    /// Takes over this worker's state of the chains that are the same objects as in the generation before.
    pub(super) fn new(chains: Arc<FilterChains>, before: Option<&Self>) -> Self {
        let mut states = before.map(|before| before.states.borrow().clone()).unwrap_or_default();
        states.retain(|_, state| chains.holds(&state.chain));
        Self { logs: chains.access_log.for_worker(), states: RefCell::new(states), chains }
    }

    pub(super) fn chain(&self, arrival: &Arrival<'_>, worker: &Worker) -> Option<Rc<WorkerChain>> {
        let found = self.chains.index.find(arrival).and_then(|index| self.chains.chains.get(index));
        let chain = found.or(self.chains.default.as_ref())?;
        let key = Arc::as_ptr(chain).addr();
        let mut states = self.states.borrow_mut();
        Some(Rc::clone(states.entry(key).or_insert_with(|| Rc::new(WorkerChain::new(chain, worker)))))
    }

    /// The listener's own access log: a line per connection.
    pub(super) fn log(&self, downstream: &Downstream, worker: &Worker) {
        if self.logs.is_empty() {
            return;
        }
        let mut record = Record::new(downstream, downstream.start);
        record.end = Some(Instant::now());
        let hostname = &*worker.process.hostname;
        self.logs.write(&Scene { record: &record, request: None, response: None, trailers: None, hostname });
    }
}

impl WorkerChain {
    fn new(chain: &Arc<Chain>, worker: &Worker) -> Self {
        let filter = match &chain.filter {
            Filter::Http(manager) => WorkerFilter::Http(WorkerHttp::new(manager, worker)),
            Filter::Tcp(proxy) => WorkerFilter::Tcp(WorkerTcp::new(proxy)),
            Filter::Tunnel(filter) => WorkerFilter::Tunnel(WorkerTunnel::new(filter)),
        };
        Self { chain: Arc::clone(chain), filter }
    }
}
