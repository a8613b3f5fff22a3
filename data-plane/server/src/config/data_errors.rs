//! gRFC A88: options of the client half for what goes wrong with resources.

use std::sync::Arc;

use culvert_model::Name;
use culvert_model::bootstrap::Bootstrap;
use culvert_xds::client::ResourceTimer;

/// What is done about resources that something is wrong with.
#[derive(Debug, Clone, Default)]
pub(crate) struct DataErrors {
    /// What is said not to exist or to be denied, or is refused, is given up.
    pub(crate) fail: bool,
    /// Control planes that say what does not exist, by their clusters: one that says nothing is slow.
    pub(crate) transient_timer: Vec<String>,
}

impl DataErrors {
    /// Of a control plane.
    pub(crate) fn timer_of(&self, cluster: Option<&Name>) -> ResourceTimer {
        let transient = cluster.is_some_and(|cluster| self.transient_timer.iter().any(|other| **other == **cluster));
        if transient { ResourceTimer::TransientError } else { ResourceTimer::DoesNotExist }
    }

    /// Those that are not there: nothing would come of naming them.
    pub(super) fn unknown<'s>(&'s self, bootstrap: &Bootstrap) -> impl Iterator<Item = &'s String> {
        let known: Vec<Name> = bootstrap.clusters.iter().map(|cluster| Arc::clone(&cluster.name)).collect();
        self.transient_timer.iter().filter(move |name| known.iter().all(|known| **known != ***name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timer_of_a_control_plane_is_its_own() {
        let names = ["tells".to_owned()];
        let data_errors = DataErrors { transient_timer: names.into(), ..DataErrors::default() };
        let timer = |name: &str| data_errors.timer_of(Some(&name.into()));
        assert_eq!(timer("tells"), ResourceTimer::TransientError);
        assert_eq!(timer("does-not"), ResourceTimer::DoesNotExist);
        assert_eq!(data_errors.timer_of(None), ResourceTimer::DoesNotExist);
    }
}
