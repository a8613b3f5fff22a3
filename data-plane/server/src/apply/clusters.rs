//! Clusters: their TLS, their endpoints, and those that wait for a secret.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use culvert_model::Name;
use culvert_model::cluster::{Cluster, Discovery};
use culvert_model::endpoint::Endpoints;
use culvert_runtime::telemetry::ScopePath;

use super::applier::Applier;
use super::{Applied, ApplyError};
use crate::overview::CertificateView;
use crate::stats::ManagerMetric;
use crate::tls::{Gathered, Material, MaterialError, files, gather};

/// One cluster.
#[derive(Debug, Default)]
pub(crate) struct ClusterEntry {
    active: Option<InForce>,
    /// Its secrets are still to come.
    warming: Option<Arc<Cluster>>,
}

impl ClusterEntry {
    /// What warms and what is in force.
    fn clusters(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.warming.iter().chain(self.active.as_ref().map(|active| &active.cluster))
    }
}

#[derive(Debug)]
struct InForce {
    cluster: Arc<Cluster>,
    /// Of what its TLS configuration was built from.
    digest: Option<u128>,
}

impl Applier {
    pub(super) fn set_cluster(&mut self, cluster: Arc<Cluster>) -> Result<Applied, ApplyError> {
        let material = match &cluster.tls {
            None => None,
            Some(tls) => match gather(&tls.common, &self.secrets)? {
                Gathered::Complete(material) => Some(material),
                Gathered::Awaiting(secrets) => return Ok(self.warm_cluster(cluster, &secrets)),
            },
        };
        self.put_cluster(&cluster, material.as_ref())?;
        Ok(Applied::Active)
    }

    fn warm_cluster(&mut self, cluster: Arc<Cluster>, secrets: &[Name]) -> Applied {
        let awaited: Vec<String> = secrets.iter().map(|name| format!("secret {name}")).collect();
        self.overview.warming_clusters.lock().insert(Arc::clone(&cluster.name), awaited.clone());
        let entry = self.clusters.entry(Arc::clone(&cluster.name)).or_default();
        entry.warming = Some(cluster);
        Applied::Warming(awaited)
    }

    fn put_cluster(&mut self, cluster: &Arc<Cluster>, material: Option<&Material>) -> Result<(), MaterialError> {
        let config = material.map(|material| material.cluster(cluster)).transpose()?.flatten();
        let owner = format!("cluster {}", cluster.name);
        let view = material.map(|material| {
            let (presented, trusted) = material.details();
            CertificateView { presented, trusted, chain: None }
        });
        match view {
            Some(view) => self.overview.show_certificates(owner, view),
            None => self.overview.hide_certificates(&owner),
        }
        self.overview.warming_clusters.lock().remove(&cluster.name);

        let entry = self.clusters.entry(Arc::clone(&cluster.name)).or_default();
        let metric = if entry.active.is_some() { ManagerMetric::ClusterModified } else { ManagerMetric::ClusterAdded };
        entry.warming = None;
        let in_force = InForce { cluster: Arc::clone(cluster), digest: material.map(Material::digest) };
        if let Some(before) = entry.active.replace(in_force) {
            self.unassign(&before.cluster);
        }
        if let Some(service) = service_name(cluster) {
            self.assigned.entry(Arc::clone(service)).or_default().insert(Arc::clone(&cluster.name));
        }
        self.process.clusters.apply(Arc::clone(cluster), config);
        let slot = self.process.clusters.slot(&cluster.name);
        self.process.registry.add(ScopePath::cluster(Arc::clone(&cluster.stat_name)), slot.stats());
        if let Some(endpoints) = service_name(cluster).and_then(|name| self.endpoints.get(name)) {
            self.process.clusters.update_endpoints(&cluster.name, Arc::clone(endpoints));
        }
        self.metrics.inc(metric);
        Ok(())
    }

    /// The cluster as it is in force.
    pub(super) fn cluster_in_force(&self, name: &Name) -> Option<&Arc<Cluster>> {
        self.clusters.get(name)?.active.as_ref().map(|active| &active.cluster)
    }

    fn unassign(&mut self, cluster: &Cluster) {
        let Some(service) = service_name(cluster) else { return };
        if let Some(clusters) = self.assigned.get_mut(service) {
            clusters.remove(&cluster.name);
            if clusters.is_empty() {
                self.assigned.remove(service);
            }
        }
    }

    pub(super) fn remove_cluster(&mut self, name: &Name) {
        if let Some(entry) = self.clusters.remove(name) {
            if let Some(active) = &entry.active {
                self.unassign(&active.cluster);
            }
            self.process.clusters.remove(name);
            self.overview.warming_clusters.lock().remove(name);
            self.overview.hide_certificates(&format!("cluster {name}"));
            self.metrics.inc(ManagerMetric::ClusterRemoved);
        }
    }

    /// To every cluster and agent that goes by the assignment's name.
    pub(super) fn set_endpoints(&mut self, endpoints: &Arc<Endpoints>) {
        let name = &endpoints.cluster;
        self.endpoints.insert(Arc::clone(name), Arc::clone(endpoints));
        for cluster in self.assigned.get(name).into_iter().flatten() {
            self.process.clusters.update_endpoints(cluster, Arc::clone(endpoints));
        }
        if let Some(assignment) = self.assignments.get(name) {
            assignment.send_replace(Some(Arc::clone(endpoints)));
        }
    }

    /// A file or a secret has changed.
    pub(super) fn refresh_clusters(&mut self) {
        let names: Vec<Name> = self.clusters.keys().cloned().collect();
        for name in names {
            if let Err(error) = self.refresh_cluster(&name) {
                self.metrics.inc(ManagerMetric::TlsUpdateRejected);
                tracing::warn!(cluster = %name, %error, "new TLS material cannot be used; the old stays in force");
            }
        }
    }

    fn refresh_cluster(&mut self, name: &Name) -> Result<(), MaterialError> {
        let Some(entry) = self.clusters.get(name) else { return Ok(()) };
        let newest = entry.warming.as_ref().or(entry.active.as_ref().map(|active| &active.cluster));
        let Some((cluster, tls)) = newest.and_then(|cluster| Some((Arc::clone(cluster), cluster.tls.clone()?))) else {
            return Ok(());
        };
        let Gathered::Complete(material) = gather(&tls.common, &self.secrets)? else { return Ok(()) };
        let same = entry
            .active
            .as_ref()
            .is_some_and(|active| Arc::ptr_eq(&active.cluster, &cluster) && active.digest == Some(material.digest()));
        if same {
            return Ok(());
        }
        self.put_cluster(&cluster, Some(&material))?;
        tracing::info!(cluster = %name, "TLS material is in force");
        Ok(())
    }

    /// Whether a cluster, in force or warming, speaks TLS.
    pub(super) fn has_tls(&self, name: &Name) -> bool {
        self.clusters.get(name).is_some_and(|entry| entry.clusters().any(|cluster| cluster.tls.is_some()))
    }

    pub(super) fn cluster_files(&self, paths: &mut BTreeSet<PathBuf>) {
        let clusters = self.clusters.values().flat_map(ClusterEntry::clusters);
        for tls in clusters.filter_map(|cluster| cluster.tls.as_ref()) {
            paths.extend(files(&tls.common, &self.secrets));
        }
    }
}

/// The name of the assignment that an EDS cluster goes by.
fn service_name(cluster: &Cluster) -> Option<&Name> {
    match &cluster.discovery {
        Discovery::Eds { service_name, .. } if service_name.is_empty() => Some(&cluster.name),
        Discovery::Eds { service_name, .. } => Some(service_name),
        Discovery::Static(_)
        | Discovery::StrictDns { .. }
        | Discovery::LogicalDns { .. }
        | Discovery::Reverse(_)
        | Discovery::Tunnels(_) => None,
    }
}
