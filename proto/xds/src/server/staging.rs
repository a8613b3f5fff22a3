//! Make before break: what a node is served on the way from one snapshot to the next.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use culvert_api::type_url;

use crate::Name;
use crate::resource::TypeUrl;
use crate::snapshot::{Bridge, Snapshot, is_referred_to, refers};

/// How far a node is on the way to what it should hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// It is served what it should hold.
    Settled,
    /// It is sent what is new and referred to (clusters, assignments, secrets); what refers to that is as it was.
    Adding,
    /// It is sent what refers to them; what nothing will refer to any more is still there.
    Switching,
    /// It refused something: what it was not sent yet it is not sent, and nothing is taken from it, until there is a
    /// new snapshot.
    Halted {
        type_url: TypeUrl,
        /// What the node said.
        reason: Arc<str>,
    },
}

/// **Invariant:** outside [`Progress::Settled`] everything that what the node accepted refers to is served.
#[derive(Debug)]
pub(crate) struct Staging {
    target: Arc<Snapshot>,
    served: Arc<Snapshot>,
    stage: Stage,
    /// Assignments of clusters that earlier changes brought, which were not over when the present one began.
    carried: BTreeSet<Name>,
    /// The node came with contents of its own, and was not sent yet what refers to others.
    meeting: bool,
}

#[derive(Debug)]
enum Stage {
    Settled,
    Adding(Step),
    Switching(Step),
    Halted { type_url: TypeUrl, reason: Arc<str> },
}

#[derive(Debug)]
struct Step {
    bridge: Arc<Bridge>,
    since: Duration,
    /// Since when there is nothing to wait for but the delay of removals.
    quiet_since: Option<Duration>,
}

/// What a session says of its subscriptions when it is asked whether a step is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answers {
    /// Something is unanswered, or not sent yet.
    Awaited,
    /// All was answered.
    In,
    /// All was answered, and something that is needed was refused.
    Refused { type_url: TypeUrl, reason: Arc<str> },
}

impl Staging {
    pub(crate) fn new(target: Arc<Snapshot>) -> Self {
        Self { served: Arc::clone(&target), target, stage: Stage::Settled, carried: BTreeSet::new(), meeting: false }
    }

    /// What the node should hold.
    pub(crate) fn target(&self) -> &Arc<Snapshot> {
        &self.target
    }

    /// What its subscriptions see now.
    pub(crate) fn served(&self) -> &Arc<Snapshot> {
        &self.served
    }

    pub(crate) fn progress(&self) -> Progress {
        match &self.stage {
            Stage::Settled => Progress::Settled,
            Stage::Adding(_) => Progress::Adding,
            Stage::Switching(_) => Progress::Switching,
            Stage::Halted { type_url, reason } => {
                Progress::Halted { type_url: Arc::clone(type_url), reason: Arc::clone(reason) }
            }
        }
    }

    /// There is a new target. What is served stays served until nothing refers to it, also if the node was in the middle
    /// of another change.
    pub(crate) fn start(&mut self, target: Arc<Snapshot>, now: Duration) {
        if Arc::ptr_eq(&self.target, &target) {
            return;
        }
        self.target = target;
        self.restart(now);
    }

    /// Goes to the target from what is served, from the first step on.
    pub(crate) fn restart(&mut self, now: Duration) {
        self.carry();
        let bridge = self.target.bridge_from(&self.served);
        if bridge.staged || !matches!(self.stage, Stage::Settled) {
            self.served = Arc::clone(&bridge.added);
            self.stage = Stage::Adding(Step { bridge, since: now, quiet_since: None });
        } else {
            self.served = Arc::clone(&bridge.reached);
            self.stage = Stage::Settled;
        }
    }

    /// Clusters that are new to the node stay so until it asks for their assignments, whatever changes meanwhile.
    fn carry(&mut self) {
        match &self.stage {
            Stage::Settled => self.carried.clear(),
            Stage::Adding(step) | Stage::Switching(step) => {
                self.carried.extend(step.bridge.new_assignments.iter().cloned());
            }
            Stage::Halted { .. } => {}
        }
        let served = &self.served;
        self.carried.retain(|name| has_assignment(served, name));
    }

    /// A node came that this session does not know, with contents of its own: it is led from those as in any change. What is
    /// referred to comes first, and what refers to it when the former was answered.
    pub(crate) fn meet(&mut self, now: Duration) {
        let mut types = self.target.types();
        let may_lack = types.any(|(type_url, set)| is_referred_to(type_url) && !set.is_empty());
        if may_lack && !self.meeting {
            // Wherever a change was: nobody has got anything of it.
            let bridge = Arc::new(Bridge::over(&self.target));
            self.served = Arc::clone(&self.target);
            self.stage = Stage::Adding(Step { bridge, since: now, quiet_since: None });
            self.meeting = true;
        }
    }

    pub(crate) fn is_meeting(&self) -> bool {
        self.meeting
    }

    /// Whether nothing of this type is sent yet. (Types of which nobody knows here that they refer to anything never wait: a
    /// client of theirs may not even ask for clusters.)
    pub(crate) fn withholds(&self, type_url: &str) -> bool {
        self.meeting && refers(type_url)
    }

    /// Clusters that the node did not come with need these.
    pub(crate) fn add_assignments(&mut self, names: Vec<Name>) {
        self.carried.extend(names);
    }

    /// The node came with something that is gone since, of which this session knew nothing: that is taken away as in any
    /// change, after what refers to it was answered. Waits no longer than any other step, also if that step's time ran out
    /// while the node was away.
    pub(crate) fn hold_back(&mut self, limits: &Limits, now: Duration) {
        let late = self.is_late(limits, now);
        match &mut self.stage {
            Stage::Settled => {
                let bridge = Arc::new(Bridge::over(&self.target));
                self.stage = Stage::Switching(Step { bridge, since: now, quiet_since: None });
            }
            Stage::Adding(step) | Stage::Switching(step) if late => step.since = now,
            Stage::Adding(_) | Stage::Switching(_) | Stage::Halted { .. } => {}
        }
    }

    /// Assignments that a node that takes all clusters has to ask for before what leads there is switched.
    pub(crate) fn new_assignments(&self) -> impl Iterator<Item = &Name> {
        let carried = self.carried.iter().filter(|name| has_assignment(&self.target, name));
        carried.chain(self.bridge().into_iter().flat_map(|bridge| &bridge.new_assignments))
    }

    /// Goes to the target at once.
    pub(crate) fn jump(&mut self, target: Arc<Snapshot>) {
        *self = Self::new(target);
    }

    /// The bridge of the step that is under way.
    pub(crate) fn bridge(&self) -> Option<&Arc<Bridge>> {
        match &self.stage {
            Stage::Adding(step) | Stage::Switching(step) => Some(&step.bridge),
            Stage::Settled | Stage::Halted { .. } => None,
        }
    }

    /// When to look again although nothing was heard.
    pub(crate) fn deadline(&self, limits: &Limits) -> Option<Duration> {
        match &self.stage {
            Stage::Adding(step) => Some(step.since + limits.answer),
            Stage::Switching(step) => {
                let removal = step.quiet_since.map(|since| since + limits.removal);
                Some(removal.unwrap_or(Duration::MAX).min(step.since + limits.answer))
            }
            Stage::Settled | Stage::Halted { .. } => None,
        }
    }

    /// Whether the step's time is over.
    pub(crate) fn is_late(&self, limits: &Limits, now: Duration) -> bool {
        match &self.stage {
            Stage::Adding(step) | Stage::Switching(step) => now >= step.since + limits.answer,
            Stage::Settled | Stage::Halted { .. } => false,
        }
    }

    /// Ends the step if it is over. True: what is served changed. `keeps`: something that the node came with waits to be removed.
    pub(crate) fn advance(&mut self, answers: &Answers, keeps: bool, limits: &Limits, now: Duration) -> bool {
        let late = self.is_late(limits, now);
        match (&mut self.stage, answers) {
            (Stage::Settled | Stage::Halted { .. }, _) => false,
            (_, Answers::Refused { type_url, reason }) => {
                self.halt(type_url, reason);
                false
            }
            (Stage::Adding(_), Answers::Awaited) if !late => false,
            (Stage::Adding(step), _) => {
                let bridge = Arc::clone(&step.bridge);
                self.served = Arc::clone(&bridge.switched);
                let is_over = std::mem::take(&mut self.meeting) && !keeps && bridge.leads_nowhere();
                let switching = Stage::Switching(Step { bridge, since: now, quiet_since: None });
                self.stage = if is_over { Stage::Settled } else { switching };
                true
            }
            (Stage::Switching(step), Answers::Awaited) if !late => {
                step.quiet_since = None;
                false
            }
            (Stage::Switching(step), _) => {
                let since = *step.quiet_since.get_or_insert(now);
                if !late && now < since + limits.removal {
                    return false;
                }
                self.served = Arc::clone(&step.bridge.reached);
                self.stage = Stage::Settled;
                true
            }
        }
    }

    /// The node refused a response: that ends the change, unless what was refused does not belong to its present step.
    /// True: it does end it.
    pub(crate) fn on_refusal(&mut self, type_url: &TypeUrl, reason: &Arc<str>) -> bool {
        let counts = match &self.stage {
            Stage::Adding(_) => is_referred_to(type_url),
            Stage::Switching(_) => true,
            Stage::Settled | Stage::Halted { .. } => false,
        };
        if counts {
            self.halt(type_url, reason);
        }
        counts
    }

    fn halt(&mut self, type_url: &TypeUrl, reason: &Arc<str>) {
        self.carry();
        self.stage = Stage::Halted { type_url: Arc::clone(type_url), reason: Arc::clone(reason) };
    }
}

/// Whether there is one, if only an empty one: every cluster that has any has one.
fn has_assignment(snapshot: &Snapshot, name: &str) -> bool {
    snapshot.of_type(type_url::CLUSTER_LOAD_ASSIGNMENT).is_some_and(|set| set.get(name).is_some())
}

/// How long the steps of a change may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For the answers that a step waits for; then the change goes on without them.
    pub answer: Duration,
    /// Between the answer to what was switched and the removal of what it referred to before: a node that has a stream per
    /// type may answer for a listener before it asks for the listener's routes.
    pub removal: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { answer: Duration::from_secs(5), removal: Duration::from_millis(100) }
    }
}
