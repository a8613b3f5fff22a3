//! An agent's configuration changes: **what the old one serves goes on until the new one serves in its place**, server by server.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_tunnel::agent::Agent;
use culvert_tunnel::status::{AgentStatus, ConnectionState, PeerStatus};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

/// Closes an agent gracefully once a later one of its name has taken its place, or there is none any more. `latest` is the one
/// that is in force, which may itself be replaced before it has a tunnel.
pub(super) async fn hand_over(before: Arc<Agent>, mut latest: watch::Receiver<Arc<Agent>>) {
    if before.established() > 0 {
        loop {
            let successor = Arc::clone(&latest.borrow_and_update());
            tokio::select! {
                biased;
                changed = latest.changed() => if changed.is_err() {
                    break;
                },
                () = taken_over(&before, &successor) => break,
            }
        }
    }
    before.stop();
}

/// Returns when the successor has all that it is to have of what `before` has; after [`PATIENCE`], any tunnel.
async fn taken_over(before: &Agent, successor: &Agent) {
    let (began, mut told) = (Instant::now(), false);
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let (old, new) = (before.status(), successor.status());
        let is_late = began.elapsed() >= PATIENCE;
        match Takeover::of(&old, &new) {
            Takeover::Complete => return,
            Takeover::Elsewhere => return sleep(OVERLAP).await,
            Takeover::Partial if is_late => {
                tracing::warn!(agent = %new.name, "the changed agent does not reach all its servers; the old tunnels close");
                return;
            }
            Takeover::Nothing if is_late && !told => {
                told = true;
                tracing::warn!(agent = %new.name, "the changed agent has no tunnel; those of its old configuration stay");
            }
            Takeover::Partial | Takeover::Nothing => {}
        }
    }
}

/// How far a successor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takeover {
    /// It has no tunnel.
    Nothing,
    /// It has some, and none yet to a server to which the old agent has one, or to none of its own.
    Partial,
    /// It has a tunnel wherever the old agent has one.
    Complete,
    /// It has one to each of its own servers, and the old agent has some to others: who sends requests there has to notice.
    Elsewhere,
}

impl Takeover {
    fn of(old: &AgentStatus, new: &AgentStatus) -> Self {
        let (had, has) = (connected(old), connected(new));
        let wanted: BTreeSet<SocketAddr> =
            new.peers.iter().filter(|peer| !peer.closing).map(|peer| peer.address).collect();
        if has.is_empty() {
            return Self::Nothing;
        }
        let moves = had.iter().any(|server| !wanted.contains(server));
        let awaited = if moves { wanted } else { had };
        match (awaited.is_subset(&has), moves) {
            (false, _) => Self::Partial,
            (true, true) => Self::Elsewhere,
            (true, false) => Self::Complete,
        }
    }
}

/// Servers to which a tunnel stands.
fn connected(status: &AgentStatus) -> BTreeSet<SocketAddr> {
    let stands = |peer: &&PeerStatus| {
        !peer.closing && peer.connections.iter().any(|connection| connection.state == ConnectionState::Established)
    };
    status.peers.iter().filter(stands).map(|peer| peer.address).collect()
}

const LOOK: Duration = Duration::from_millis(50);
/// For a successor that reaches some of its servers and not all.
const PATIENCE: Duration = Duration::from_secs(30);
/// As for an agent whose list of servers changes: a load balancer has moved by then.
const OVERLAP: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use culvert_tunnel::status::{AsideState, ConnectionStatus};

    use super::*;

    /// An agent by its servers: `a+` has a tunnel, `a-` has none yet, `a!` is being closed.
    fn agent(servers: &str) -> AgentStatus {
        let peer = |text: &str| {
            let (name, mark) = text.split_at(1);
            let state = if mark == "-" { ConnectionState::BackingOff } else { ConnectionState::Established };
            let connection = |state| ConnectionStatus {
                index: 0,
                worker: 0,
                state,
                since_seconds: 0,
                local: None,
                id: None,
                dialect: None,
                protocol: None,
                round_trip_us: None,
                last_error: None,
                last_end: None,
                reconnects: 0,
                received_bytes: 0,
                sent_bytes: 0,
                events: Vec::new(),
            };
            PeerStatus {
                address: SocketAddr::from(([10, 0, 0, name.as_bytes()[0]], 1)),
                server_name: name.to_owned(),
                closing: mark == "!",
                aside: AsideState::None,
                connections: vec![connection(ConnectionState::Dialing), connection(state)],
            }
        };
        AgentStatus {
            name: "agent".into(),
            cluster: "edge".into(),
            hosting_listener: "in".into(),
            host_name: "site".into(),
            stopping: false,
            sources_waiting: Vec::new(),
            peers: servers.split_whitespace().map(peer).collect(),
        }
    }

    #[test]
    fn an_old_agent_is_closed_when_the_new_one_has_a_tunnel_wherever_it_has_one() {
        for (old, new, expected) in [
            ("a+ b+", "", Takeover::Nothing),
            ("a+ b+", "a- b-", Takeover::Nothing),
            ("a+ b+", "a+ b-", Takeover::Partial),
            ("a+ b+", "a- b+", Takeover::Partial),
            ("a+ b+", "a+ b+", Takeover::Complete),
            // What the old one does not reach, the new one need not reach first.
            ("a+ b-", "a+ b-", Takeover::Complete),
            ("a+ b!", "a+ b-", Takeover::Complete),
            ("a+", "a+ b-", Takeover::Complete),
            // Another list of servers.
            ("a+ b+", "a+ c-", Takeover::Partial),
            ("a+ b+", "a- c+", Takeover::Partial),
            ("a+ b+", "a+ c+", Takeover::Elsewhere),
            ("a+ b+", "a+", Takeover::Elsewhere),
            ("a+", "c+ d-", Takeover::Partial),
            ("a+", "c+ d+ a!", Takeover::Elsewhere),
        ] {
            assert_eq!(Takeover::of(&agent(old), &agent(new)), expected, "from {old:?} to {new:?}");
        }
    }
}
