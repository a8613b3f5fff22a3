//! Looks after a change that only some nodes have yet: on to all, or back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::args::Args;
use crate::control::Control;
use crate::nodes::{NodeStatus, Standing};

/// How often it is looked what the nodes answered.
const LOOK: Duration = Duration::from_millis(100);

/// How long what takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// For which the nodes must have accepted everything.
    quiet: Duration,
    /// Within which they must have answered.
    answer: Duration,
}

impl Limits {
    pub(crate) fn new(args: &Args) -> Self {
        Self { quiet: Duration::from_secs(args.canary_quiet), answer: Duration::from_secs(args.canary_timeout) }
    }
}

/// What the nodes that have a change first say of it.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Accepted,
    /// With what is lacking.
    Open(Lacking),
    Refused(String),
}

/// The nodes whose acceptance is lacking, by id.
#[derive(Debug, Default, PartialEq, Eq)]
struct Lacking {
    /// They have no stream, poll no more, or have asked for nothing since they came back.
    gone: Vec<String>,
    silent: Vec<String>,
}

impl Lacking {
    fn reason(&self) -> String {
        let named = |what: &str, ids: &[String]| (!ids.is_empty()).then(|| format!("{what}: {}", ids.join(", ")));
        let parts = [named("gone", &self.gone), named("without an answer", &self.silent)];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        format!("not all of the nodes that had it first accepted it in time ({})", parts.join("; "))
    }
}

/// Whether a node is connected, asks for something, and has all of what that generation gives it.
pub(crate) fn has_all(node: &NodeStatus, generation: u64) -> bool {
    asks(node) && node.standing(generation) == Standing::Settled
}

/// A node that has just come back has what it did not ask for yet.
fn asks(node: &NodeStatus) -> bool {
    node.connected && node.types.iter().any(|of_type| of_type.variant.is_some())
}

/// Looks after every such change, for ever.
pub(crate) async fn watch(control: Arc<Control>, limits: Limits) {
    let mut generations = control.generations();
    // What came before this looked for the first time is looked after too.
    generations.mark_changed();
    while generations.changed().await.is_ok() {
        let begun = Instant::now();
        let generation = *generations.borrow_and_update();
        let mut accepted_since = None;
        // Until it is over, or another change takes its place.
        while control.generation() == generation && !control.canary_nodes().is_empty() {
            match verdict(&control, generation) {
                Verdict::Refused(reason) => {
                    control.end_canary(Some(generation), Some(&reason));
                }
                Verdict::Accepted => {
                    let since: Instant = *accepted_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= limits.quiet {
                        control.end_canary(Some(generation), None);
                    }
                }
                Verdict::Open(lacking) if begun.elapsed() >= limits.answer => {
                    control.end_canary(Some(generation), Some(&lacking.reason()));
                }
                Verdict::Open(_) => accepted_since = None,
            }
            sleep(LOOK).await;
        }
    }
}

fn verdict(control: &Control, generation: u64) -> Verdict {
    let ids = control.canary_nodes();
    judge(&ids, &control.status_of(&ids), generation)
}

/// A node of which nothing is known any more has accepted nothing: it may be gone for what it was given.
fn judge(ids: &BTreeSet<String>, known: &[NodeStatus], generation: u64) -> Verdict {
    let mut lacking = Lacking::default();
    for id in ids {
        let mut sessions = known.iter().filter(|node| node.key.id == *id && asks(node)).peekable();
        if sessions.peek().is_none() {
            lacking.gone.push(id.clone());
        }
        let mut silent = false;
        for node in sessions {
            match node.standing(generation) {
                Standing::Settled => {}
                Standing::Pending => silent = true,
                Standing::Refused(reason) => return Verdict::Refused(format!("node {id:?} refused it: {reason}")),
            }
        }
        if silent {
            lacking.silent.push(id.clone());
        }
    }
    if lacking == Lacking::default() { Verdict::Accepted } else { Verdict::Open(lacking) }
}

#[cfg(test)]
mod tests;
