//! Make before break for clients that poll: they answer nothing, so each step takes its time.

use std::sync::Arc;
use std::time::Duration;

use crate::snapshot::{Bridge, Snapshot};

/// What a client that polls is served on the way from one snapshot to the next.
#[derive(Debug)]
pub struct Polled {
    target: Arc<Snapshot>,
    /// The way to it and since when the client is on it; `None`: it is there.
    way: Option<(Arc<Bridge>, Duration)>,
}

impl Polled {
    /// A client that polls for the first time.
    #[must_use]
    pub fn new(target: Arc<Snapshot>) -> Self {
        Self { target, way: None }
    }

    /// What it should hold.
    #[must_use]
    pub fn target(&self) -> &Arc<Snapshot> {
        &self.target
    }

    /// What it is served at `now`, the time since whatever moment the caller counts from: first what is new and referred to
    /// beside all that was there, one `step` later what refers to it, and after another one without what nothing refers to
    /// any more. Within a step it has polled every type and taken into use what it got.
    pub fn serve(&mut self, target: &Arc<Snapshot>, step: Duration, now: Duration) -> Arc<Snapshot> {
        let present = self.present(step, now);
        if Arc::ptr_eq(&self.target, target) {
            return present;
        }
        let bridge = target.bridge_from(&present);
        self.way = bridge.staged.then_some((bridge, now));
        self.target = Arc::clone(target);
        self.present(step, now)
    }

    fn present(&mut self, step: Duration, now: Duration) -> Arc<Snapshot> {
        let Some((bridge, since)) = &self.way else { return Arc::clone(&self.target) };
        let passed = now.saturating_sub(*since);
        let [added, switched] = bridge.unmarked();
        if passed < step {
            Arc::clone(added)
        } else if passed < 2 * step {
            Arc::clone(switched)
        } else {
            self.way = None;
            Arc::clone(&self.target)
        }
    }
}

#[cfg(test)]
mod tests {
    use culvert_api::type_url::{self, CLUSTER, LISTENER, ROUTE_CONFIGURATION};

    use super::*;
    use crate::resource::Resource;

    fn snapshot(entries: &[(&str, &str)]) -> Arc<Snapshot> {
        let mut builder = Snapshot::builder();
        for (of, name) in entries {
            builder.insert(Arc::new(Resource::new(&(*of).into(), *name, name.as_bytes())));
        }
        Arc::new(builder.build())
    }

    const STEP: Duration = Duration::from_secs(2);

    #[track_caller]
    fn expect(polled: &mut Polled, target: &Arc<Snapshot>, seconds: u64, expected: &str) {
        let served = polled.serve(target, STEP, Duration::from_secs(seconds));
        let shown = served.types().flat_map(|(of, set)| {
            assert!(!set.frozen && set.retained.is_empty(), "who polls is told all of {of}");
            set.resources().map(|one| format!("{}/{}", type_url::short_name(of), one.name()))
        });
        let shown: Vec<String> = shown.collect();
        assert_eq!(shown.join(" "), expected, "at {seconds} s");
    }

    #[test]
    fn who_polls_is_led_from_one_snapshot_to_the_next_by_time() {
        let old = snapshot(&[(CLUSTER, "a"), (LISTENER, "l"), (ROUTE_CONFIGURATION, "r")]);
        let new = snapshot(&[(CLUSTER, "b"), (LISTENER, "m"), (ROUTE_CONFIGURATION, "s")]);
        let mut polled = Polled::new(Arc::clone(&old));
        let at_first = "Cluster/a Listener/l RouteConfiguration/r";
        expect(&mut polled, &old, 0, at_first);
        expect(&mut polled, &new, 10, "Cluster/a Cluster/b Listener/l RouteConfiguration/r");
        expect(&mut polled, &new, 11, "Cluster/a Cluster/b Listener/l RouteConfiguration/r");
        let switched = "Cluster/a Cluster/b Listener/m RouteConfiguration/r RouteConfiguration/s";
        expect(&mut polled, &new, 12, switched);
        // A change in the middle of another begins at what the client has by now.
        expect(&mut polled, &old, 13, switched);
        expect(&mut polled, &old, 15, "Cluster/a Cluster/b Listener/l RouteConfiguration/r RouteConfiguration/s");
        expect(&mut polled, &old, 17, at_first);
    }

    #[test]
    fn what_nothing_refers_to_anew_takes_no_steps() {
        let old = snapshot(&[(CLUSTER, "a"), (ROUTE_CONFIGURATION, "r")]);
        let new = snapshot(&[(CLUSTER, "a"), (CLUSTER, "b"), (ROUTE_CONFIGURATION, "r")]);
        let mut polled = Polled::new(old);
        expect(&mut polled, &new, 0, "Cluster/a Cluster/b RouteConfiguration/r");
        assert!(Arc::ptr_eq(polled.target(), &new), "it is there");
    }
}
