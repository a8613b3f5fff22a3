//! Rehearsal: whether changes could be applied, without applying them, so that a control plane is told in its answer what
//! would fail. **Nothing changes**; what passes may still fail later, if the machine changes in between.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use culvert_model::Name;
use culvert_model::listener::{Listener, Transport};
use culvert_model::resource::Resource;
use culvert_model::route::{Action, Body, RouteConfiguration};
use culvert_model::scope::ScopeRoutes;
use culvert_model::tls::UpstreamTls;
use culvert_proxy::{ListenerSlot, RouteTable};
use culvert_runtime::sockets;

use super::applier::Applier;
use super::listeners::{compile_for_check, socket_place};
use super::policies::material;
use super::{ApplyError, Change, leaving};
use crate::overview::Overview;
use crate::remote_keys::RemoteKeys;
use crate::tls::{Gathered, MaterialError, check_secret, gather};

/// What the listeners of a rehearsed push take.
struct Claims {
    taken: HashSet<(SocketAddr, Transport)>,
    /// All that would have an address.
    listeners: usize,
}

impl Applier {
    /// One answer for each change, in the same order: why it would be refused.
    pub(super) fn rehearse(&self, changes: &[Change]) -> Vec<Result<(), ApplyError>> {
        let leaving = leaving(changes);
        let mut claims = Claims { taken: HashSet::new(), listeners: self.listeners.staying(&leaving) };
        let mut conflicts = self.rehearse_scopes(changes);
        conflicts.extend(self.rehearse_hosts(changes));
        let answers = changes.iter().map(|change| match change {
            Change::Remove { .. } | Change::Set(Resource::Endpoints(_) | Resource::Runtime(_)) => Ok(()),
            Change::Set(Resource::Secret(secret)) => Ok(check_secret(secret)?),
            Change::Set(Resource::Cluster(cluster)) => Ok(self.rehearse_client(cluster.tls.as_deref())?),
            Change::Set(Resource::Agent(agent)) => Ok(self.rehearse_client(agent.tls.as_deref())?),
            Change::Set(Resource::Extension(extension)) => self.rehearse_extension(extension),
            Change::Set(Resource::Policy(policy)) => {
                material(policy, &RemoteKeys::default()).map(drop).map_err(Into::into)
            }
            Change::Set(Resource::Routes(routes)) => self.rehearse_routes(routes),
            Change::Set(Resource::Scope(scope)) => match (conflicts.remove(&scope.name), &scope.routes) {
                (Some(conflict), _) => Err(conflict),
                (None, ScopeRoutes::Inline(routes)) => self.rehearse_routes(routes),
                (None, ScopeRoutes::Named(_)) => Ok(()),
            },
            Change::Set(Resource::VirtualHost(host)) => conflicts.remove(&host.name).map_or(Ok(()), Err),
            Change::Set(Resource::Listener(listener)) => self.rehearse_listener(listener, &leaving, &mut claims),
        });
        answers.collect()
    }

    fn rehearse_client(&self, tls: Option<&UpstreamTls>) -> Result<(), MaterialError> {
        if let Some(tls) = tls
            && let Gathered::Complete(material) = gather(&tls.common, &self.secrets)?
        {
            material.client(tls)?;
        }
        Ok(())
    }

    /// Parsing has compiled every expression: what is left are files.
    fn rehearse_routes(&self, routes: &Arc<RouteConfiguration>) -> Result<(), ApplyError> {
        let mut actions = routes.virtual_hosts.iter().flat_map(|host| &host.routes).map(|route| &route.action);
        if actions.any(|action| matches!(action, Action::Direct(direct) if matches!(direct.body, Body::Source(_)))) {
            RouteTable::compile(Arc::clone(routes), &self.process.clusters, &self.process.shares)?;
        }
        Ok(())
    }

    fn rehearse_listener(
        &self,
        listener: &Arc<Listener>,
        leaving: &HashSet<Name>,
        claims: &mut Claims,
    ) -> Result<(), ApplyError> {
        let slot = self.listeners.slot_in_place(listener);
        if listener.address.is_some() && slot.is_none() {
            // One that moves has its old address until the new one serves, as it does in earnest.
            self.check_descriptors(claims.listeners + 1)?;
            claims.listeners += 1;
        }
        if let Some(place) = listener.place().filter(|place| slot.is_none() && place.address.port() != 0) {
            let address = place.address;
            if !claims.taken.insert((address, place.transport)) {
                return Err(ApplyError::Duplicate { address, listener: "another one of this response".into() });
            }
            if self.listeners.handed_over(place, leaving).is_none() {
                self.listeners.check_unclaimed(&listener.name, place)?;
                if !self.successor {
                    sockets::probe(socket_place(place))?;
                }
            }
        }
        let Some(listener) = self.extensions.try_resolve(listener)? else { return Ok(()) };
        let slot =
            slot.unwrap_or_else(|| ListenerSlot::new(Arc::clone(&listener.name), listener.address, &self.process));
        compile_for_check(&listener, &slot, &self.process, &Overview::default(), &self.secrets)
    }
}
