//! Looks after a change that only some nodes have yet: on to all, or back.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::args::Args;
use crate::control::Control;
use crate::nodes::Standing;

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
    Open,
    Refused(String),
}

/// Looks after every such change, for ever.
pub(crate) async fn watch(control: Arc<Control>, limits: Limits) {
    let mut generations = control.generations();
    while generations.changed().await.is_ok() {
        let begun = Instant::now();
        let generation = *generations.borrow_and_update();
        let mut accepted_since = None;
        // Until it is over, or another change takes its place.
        while control.generation() == generation && !control.canary_nodes().is_empty() {
            match verdict(&control, generation) {
                Verdict::Refused(reason) => {
                    control.end_canary(Some(&reason));
                }
                Verdict::Accepted => {
                    let since: Instant = *accepted_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= limits.quiet {
                        control.end_canary(None);
                    }
                }
                Verdict::Open if begun.elapsed() >= limits.answer => {
                    control.end_canary(Some("the nodes that had it first did not all answer in time"));
                }
                Verdict::Open => accepted_since = None,
            }
            sleep(LOOK).await;
        }
    }
}

fn verdict(control: &Control, generation: u64) -> Verdict {
    let ids = control.canary_nodes();
    let nodes = control.nodes.status().into_iter().filter(|node| node.connected && ids.contains(&node.key.id));
    let mut open = true;
    let mut all = true;
    for node in nodes {
        open = false;
        match node.standing(generation) {
            Standing::Settled => {}
            Standing::Pending => all = false,
            Standing::Refused(reason) => {
                return Verdict::Refused(format!("node {:?} refused it: {reason}", node.key.id));
            }
        }
    }
    if open || !all { Verdict::Open } else { Verdict::Accepted }
}
