//! Requests that wait for what they lack (`envoy.filters.http.on_demand`): the routes of their scope, the virtual host of
//! their host, their cluster.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use culvert_http::RequestHead;
use culvert_model::Name;
use culvert_model::on_demand::OnDemandClusters;

use super::Stream;
use super::choice::Chosen;
use crate::demand::{Order, Wanted};
use crate::http_manager::HttpConnection;
use crate::local_reply::LocalReply;
use crate::routes::{Forward, Matched, RouteTable, Targets};
use crate::worker::PinnedTable;

/// The table of a request, once what it lacks has come or is known not to.
pub(super) async fn table(connection: &HttpConnection, head: &RequestHead) -> Option<Rc<PinnedTable>> {
    let (routing, worker) = (&connection.http.routes, &connection.worker);
    let wait = async |wanted, name, within| {
        worker.process.demands.wait(Order { wanted, name, source: None }, within).await;
    };
    if let Some(scope) = routing.lacking_scope(head) {
        wait(Wanted::Scope, scope, ROUTES_TIME).await;
    }
    let table = routing.table(worker, head)?;
    let config = table.config();
    let Some(source) = config.vhds.as_ref().filter(|_| !table.has_host(&head.authority)) else { return Some(table) };
    if head.authority.is_empty() || head.authority.len() > LONGEST_HOST {
        return Some(table);
    }
    let name = format!("{}/{}", config.name, head.authority.to_ascii_lowercase()).into();
    let within = Some(source.initial_fetch_timeout).filter(|time| !time.is_zero()).unwrap_or(ROUTES_TIME);
    wait(Wanted::VirtualHost, name, within).await;
    routing.table(worker, head)
}

impl<'a> Stream<'a> {
    /// Which cluster; where that is asked for on demand, once it has come or is known not to.
    pub(super) async fn choose_cluster(
        &mut self,
        table: Option<&'a RouteTable>,
        matched: Matched<'a>,
        action: &'a Forward,
    ) -> Result<Chosen<'a>, LocalReply> {
        let chosen = self.choose(table, action);
        match self.connection.http.manager.config.on_demand {
            None => chosen,
            Some(_) => Box::pin(self.choose_on_demand(chosen, (table, matched), action)).await,
        }
    }

    async fn choose_on_demand(
        &mut self,
        chosen: Result<Chosen<'a>, LocalReply>,
        (table, matched): (Option<&'a RouteTable>, Matched<'a>),
        action: &'a Forward,
    ) -> Result<Chosen<'a>, LocalReply> {
        let Some((clusters, name)) = self.clusters(table, matched).zip(self.lacking_cluster(&chosen, action)) else {
            return chosen;
        };
        let order = Order { wanted: Wanted::Cluster, name, source: Some(clusters.source.clone()) };
        self.connection.worker.process.demands.wait(order, clusters.timeout).await;
        match (&action.targets, chosen) {
            (Targets::Header(_), _) => self.choose(table, action),
            // Its slot is filled by now, or it is not.
            (Targets::One(_) | Targets::Weighted { .. }, chosen) => chosen,
        }
    }

    /// How clusters are asked for: as the route says, or its virtual host, or the routes, or the filter.
    fn clusters(&self, table: Option<&'a RouteTable>, matched: Matched<'a>) -> Option<&'a OnDemandClusters> {
        let of_routes = table.and_then(|table| table.config().on_demand.as_ref());
        let own = matched.route.on_demand.as_ref().or(matched.host.on_demand.as_ref()).or(of_routes);
        let connection: &'a HttpConnection = self.connection;
        own.or(connection.http.manager.config.on_demand.as_ref())?.clusters.as_ref()
    }

    /// The name of the chosen cluster, if there is none of that name.
    fn lacking_cluster(&self, chosen: &Result<Chosen<'a>, LocalReply>, action: &Forward) -> Option<Name> {
        match (chosen, &action.targets) {
            (Ok(chosen), _) => {
                let slot = chosen.slot();
                (slot.config().is_none()).then(|| Arc::clone(slot.name()))
            }
            (Err(_), Targets::Header(name)) => {
                let value = std::str::from_utf8(self.request.fields.get(name.as_bytes())?).ok()?;
                (!value.is_empty() && value.len() <= LONGEST_NAME).then(|| value.into())
            }
            (Err(_), Targets::One(_) | Targets::Weighted { .. }) => None,
        }
    }
}

/// How long a request waits for its routes, where its source says nothing: Envoy's `initial_fetch_timeout`.
const ROUTES_TIME: Duration = Duration::from_secs(15);
/// RFC 1035's 253, and a port.
const LONGEST_HOST: usize = 260;
const LONGEST_NAME: usize = 1024;
