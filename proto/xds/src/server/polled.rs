//! Make before break for clients that poll: each poll says which version the client holds.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::snapshot::{Bridge, Snapshot};

/// What a client that polls is served on the way from one snapshot to the next.
#[derive(Debug)]
pub struct Polled {
    target: Arc<Snapshot>,
    /// `None`: the client is at the target.
    way: Option<Way>,
    subscriptions: HashMap<u64, Subscription>,
}

#[derive(Debug)]
struct Way {
    bridge: Arc<Bridge>,
    stage: Stage,
    /// When the stage began, by the caller's clock.
    since: Duration,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    Added,
    Switched,
}

/// What one subscription said when it polled last.
#[derive(Debug, Default)]
struct Subscription {
    last: Duration,
    given: String,
    /// It was given something in this stage that it did not have when it polled last.
    behind: bool,
}

/// One poll and its answer.
#[derive(Debug, Clone, Copy)]
pub struct Poll<'a> {
    /// Tells the type and the names apart from others of this client: Envoy polls for each cluster's endpoints by itself.
    pub subscription: u64,
    /// The version that the client says it has; empty: none, or it does not say.
    pub had: &'a str,
    /// It says that it refused what it was given before.
    pub refuses: bool,
    /// The version that it was answered with.
    pub given: &'a str,
}

impl Polled {
    /// A client that polls for the first time.
    #[must_use]
    pub fn new(target: Arc<Snapshot>) -> Self {
        Self { target, way: None, subscriptions: HashMap::new() }
    }

    /// What it should hold.
    #[must_use]
    pub fn target(&self) -> &Arc<Snapshot> {
        &self.target
    }

    /// What it is served at `now`, the time since whatever moment the caller counts from: first what is new and referred to
    /// beside all that was there, then what refers to it, and at last without what nothing refers to any more. A stage lasts for
    /// one `step`, within which the client polls every type and takes into use what it got, and until it has said that it did.
    /// Who refuses something goes no further, until the target changes.
    pub fn serve(&mut self, target: &Arc<Snapshot>, step: Duration, now: Duration) -> Arc<Snapshot> {
        self.advance(step, now);
        if !Arc::ptr_eq(&self.target, target) {
            let bridge = target.bridge_from(&self.present());
            self.target = Arc::clone(target);
            self.way = bridge.staged.then_some(Way { bridge, stage: Stage::Added, since: now });
            self.begin();
            self.advance(step, now);
        }
        self.present()
    }

    /// Whether the stage lasts longer than its `step` for a client that polls on and does not say that it took what it was given.
    #[must_use]
    pub fn is_held(&self, step: Duration, now: Duration) -> bool {
        let Some(way) = &self.way else { return false };
        let is_over = now.saturating_sub(way.since) >= step;
        is_over && self.subscriptions.values().any(|one| one.behind && one.last >= way.since)
    }

    /// The client was answered what [`Polled::serve`] gave at `now`.
    pub fn answered(&mut self, poll: Poll<'_>, now: Duration) {
        let known = self.subscriptions.contains_key(&poll.subscription);
        if !known && self.subscriptions.len() >= MAX_SUBSCRIPTIONS {
            return;
        }
        let subscription = self.subscriptions.entry(poll.subscription).or_default();
        let anew = subscription.behind || subscription.given != poll.given;
        let says = poll.refuses || !poll.had.is_empty();
        subscription.behind = anew && says && poll.had != poll.given;
        subscription.last = now;
        poll.given.clone_into(&mut subscription.given);
    }

    fn advance(&mut self, step: Duration, now: Duration) {
        while let Some(way) = &mut self.way {
            // Who did not poll for so long does not poll for that any more.
            self.subscriptions.retain(|_, one| now.saturating_sub(one.last) < PATIENCE * step);
            let waits = |one: &Subscription| one.behind || one.last < way.since;
            if now.saturating_sub(way.since) < step || self.subscriptions.values().any(waits) {
                return;
            }
            match way.stage {
                Stage::Added => (way.stage, way.since) = (Stage::Switched, now),
                Stage::Switched => self.way = None,
            }
            self.begin();
        }
    }

    /// What was refused before holds up nothing: it is what is given from now on that has to be accepted.
    fn begin(&mut self) {
        self.subscriptions.values_mut().for_each(|one| one.behind = false);
    }

    fn present(&self) -> Arc<Snapshot> {
        let Some(way) = &self.way else { return Arc::clone(&self.target) };
        let [added, switched] = way.bridge.unmarked();
        Arc::clone(match way.stage {
            Stage::Added => added,
            Stage::Switched => switched,
        })
    }
}

/// For a poll that is late, in steps.
const PATIENCE: u32 = 3;
/// That are remembered of a client; what others accept is not waited for.
const MAX_SUBSCRIPTIONS: usize = 1024;

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

    /// Polls of clusters and of routes, each with the version that was given last, or with another.
    struct Client<'a> {
        polled: Polled,
        target: &'a Arc<Snapshot>,
        has: [String; 2],
    }

    impl Client<'_> {
        const TYPES: [&'static str; 2] = [CLUSTER, ROUTE_CONFIGURATION];

        /// The names that it was given; it takes them into use unless it `refuses` them.
        fn poll(&mut self, of: usize, seconds: u64, refuses: bool) -> String {
            let now = Duration::from_secs(seconds);
            let served = self.polled.serve(self.target, STEP, now);
            let set = served.of_type(Self::TYPES[of]).expect("it is there");
            let names: Vec<&str> = set.resources().map(|one| &**one.name()).collect();
            let given = names.join(" ");
            self.polled
                .answered(Poll { subscription: of as u64, had: &self.has[of], refuses: false, given: &given }, now);
            if !refuses {
                self.has[of].clone_from(&given);
            }
            given
        }

        /// Both types, in each of these seconds; what came of it last.
        fn polls(&mut self, seconds: std::ops::RangeInclusive<u64>, refuses: bool) -> String {
            let all = seconds.map(|at| format!("{}/{}", self.poll(0, at, refuses), self.poll(1, at, false)));
            all.last().expect("there is a second")
        }
    }

    #[test]
    fn a_stage_lasts_until_what_it_gave_is_accepted() {
        let old = snapshot(&[(CLUSTER, "a"), (ROUTE_CONFIGURATION, "r")]);
        let new = snapshot(&[(CLUSTER, "b"), (ROUTE_CONFIGURATION, "s")]);
        let polled = Polled::new(Arc::clone(&old));
        let mut client = Client { polled, target: &old, has: Default::default() };
        assert_eq!(client.polls(0..=3, false), "a/r");
        client.target = &new;
        assert_eq!(client.polls(10..=11, false), "a b/r", "a step is as long as a client may need");
        assert_eq!(client.polls(12..=12, false), "a b/r s");
        // Late, and routes later than clusters: it has said nothing of the stage before that.
        assert_eq!(client.poll(0, 17, false), "a b", "nothing is taken away from under its routes");
        assert_eq!(client.poll(1, 17, false), "r s", "which it accepts only now");
        assert_eq!(client.polls(18..=18, false), "b/s");
    }

    #[test]
    fn who_refuses_goes_no_further_and_begins_anew_with_the_next_target() {
        let old = snapshot(&[(CLUSTER, "a"), (ROUTE_CONFIGURATION, "r")]);
        let new = snapshot(&[(CLUSTER, "b"), (ROUTE_CONFIGURATION, "s")]);
        let next = snapshot(&[(CLUSTER, "c"), (ROUTE_CONFIGURATION, "t")]);
        let polled = Polled::new(Arc::clone(&old));
        let mut client = Client { polled, target: &old, has: Default::default() };
        client.polls(0..=3, false);
        client.target = &new;
        client.polls(10..=11, true);
        let is_held = |client: &Client<'_>, seconds| client.polled.is_held(STEP, Duration::from_secs(seconds));
        assert!(!is_held(&client, 11), "it may still accept it within the step");
        assert_eq!(client.polls(12..=1000, true), "a b/r", "routes do not move to what was refused");
        assert!(is_held(&client, 1000), "it polls on without what it was given");
        client.target = &next;
        assert_eq!(client.polls(1001..=1001, true), "a b c/r", "what it may have stays beside what comes");
        assert_eq!(client.polls(1002..=1006, false), "c/t");
        assert!(!is_held(&client, 1007), "it took all of it");
    }

    #[test]
    fn neither_who_says_nothing_nor_who_stays_away_is_waited_for_without_end() {
        let old = snapshot(&[(CLUSTER, "a"), (ROUTE_CONFIGURATION, "r")]);
        let new = snapshot(&[(CLUSTER, "b"), (ROUTE_CONFIGURATION, "s")]);
        let mut polled = Polled::new(Arc::clone(&old));
        polled.serve(&old, STEP, Duration::ZERO);
        polled.answered(Poll { subscription: 0, had: "a", refuses: false, given: "a" }, Duration::ZERO);
        polled.answered(Poll { subscription: 1, had: "", refuses: false, given: "r" }, Duration::ZERO);
        expect(&mut polled, &new, 1, "Cluster/a Cluster/b RouteConfiguration/r");
        polled.answered(Poll { subscription: 1, had: "", refuses: false, given: "r" }, Duration::from_secs(1));
        let still = "Cluster/a Cluster/b RouteConfiguration/r";
        expect(&mut polled, &new, 5, still);
        // Six seconds after it polled for clusters last.
        expect(&mut polled, &new, 6, "Cluster/a Cluster/b RouteConfiguration/r RouteConfiguration/s");
        polled.answered(Poll { subscription: 1, had: "", refuses: false, given: "r s" }, Duration::from_secs(7));
        expect(&mut polled, &new, 8, "Cluster/b RouteConfiguration/s");
    }

    #[test]
    fn no_more_subscriptions_are_remembered_than_there_may_be() {
        let mut polled = Polled::new(snapshot(&[]));
        for subscription in 0..2 * MAX_SUBSCRIPTIONS as u64 {
            polled.answered(Poll { subscription, had: "", refuses: false, given: "v" }, Duration::ZERO);
        }
        assert_eq!(polled.subscriptions.len(), MAX_SUBSCRIPTIONS);
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
