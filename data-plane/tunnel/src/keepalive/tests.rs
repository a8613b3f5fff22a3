use std::process::Command;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::*;

const INTERVAL: Duration = Duration::from_secs(2);

#[test]
fn silence_counts_only_when_something_was_asked() {
    for (unanswered, silence, expected) in
        [(0, 0, false), (0, 3_600_000, false), (1, 3499, false), (1, 3500, true), (7, 60_000, true), (7, 10, false)]
    {
        let silence = Duration::from_millis(silence);
        let diagnosis = Diagnosis { unacknowledged: 0, unanswered, silence };
        assert_eq!(is_silent(diagnosis, patience(INTERVAL)), expected, "{diagnosis:?}");
    }
}

async fn pair() -> (Io, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let reader = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let writer = Io::tcp(listener.accept().await.unwrap().0);
    enable(&writer, INTERVAL);
    (writer, reader)
}

/// Fills the reader's buffers; how much it took.
async fn fill(writer: &mut Io) -> usize {
    let mut filled = 0;
    while let Ok(Ok(written)) = timeout(Duration::from_millis(200), writer.write(&[0; 65_536])).await {
        filled += written;
    }
    filled
}

#[tokio::test]
async fn an_idle_peer_is_not_lost() {
    let (writer, _reader) = pair().await;
    assert!(timeout(Duration::from_secs(9), lost(ends(&writer), INTERVAL, || {})).await.is_err(), "taken for lost");
}

/// For longer than a dead one would be given.
#[tokio::test]
async fn a_peer_that_does_not_read_is_not_lost() {
    let (mut writer, mut reader) = pair().await;
    let filled = fill(&mut writer).await;
    assert!(timeout(Duration::from_secs(9), lost(ends(&writer), INTERVAL, || {})).await.is_err(), "taken for lost");
    let mut all = vec![0; filled];
    reader.read_exact(&mut all).await.unwrap();
    assert!(writer.write_all(b"more").await.is_ok(), "ended while its peer did not read");
}

/// The cable is cut: no FIN, no RST, nothing.
#[test]
fn a_peer_that_is_silently_gone_is_lost() {
    if !entered_namespace("keepalive::tests::a_peer_that_is_silently_gone_is_lost") {
        return;
    }
    let run = |command: &str| {
        let mut words = command.split(' ');
        let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
        assert!(status.success(), "{command}");
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        run("ip link set lo up");
        let (idle, _idle_reader) = pair().await;
        let (mut busy, _busy_reader) = pair().await;
        let (mut full, _full_reader) = pair().await;
        fill(&mut full).await;
        run("ip link set lo down");
        busy.write_all(b"request").await.unwrap();
        let cut = tokio::time::Instant::now();
        let noticed = async |name: &str, io: &Io| {
            let noticed = timeout(Duration::from_secs(20), lost(ends(io), INTERVAL, || {})).await;
            assert!(noticed.is_ok(), "{name}: not noticed");
            let after = cut.elapsed();
            assert!(after < 3 * INTERVAL, "{name}: noticed after {after:?}");
        };
        tokio::join!(noticed("busy", &busy), noticed("idle", &idle), noticed("with a closed window", &full));
    });
}

/// While the first look falls into a time without descriptors, the peer goes.
#[test]
fn a_look_that_fails_is_repeated() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    if !entered_namespace("keepalive::tests::a_look_that_fails_is_repeated") {
        return;
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        let (idle, _reader) = pair().await;
        assert!(Command::new("ip").args(["link", "set", "lo", "down"]).status().unwrap().success());
        let before = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..before }).unwrap();
        let mut lost = std::pin::pin!(lost(ends(&idle), INTERVAL, || {}));
        let (local, peer) = ends(&idle).unwrap();
        assert!(timeout(patience(INTERVAL) + INTERVAL / 4, &mut lost).await.is_err(), "lost, and nobody could look");
        let refused = diagnose(local, peer).expect_err("a look without descriptors");
        assert_ne!(refused.kind(), ErrorKind::NotFound, "{refused}");
        setrlimit(Resource::Nofile, before).unwrap();
        assert!(timeout(Duration::from_secs(20), lost).await.is_ok(), "not looked at again");
    });
}

/// Runs the test of that name once more, in a network namespace of its own, and says whether this is that run. Where
/// namespaces cannot be made the test says so and is skipped; in CI it fails.
fn entered_namespace(test: &str) -> bool {
    const INSIDE: &str = "CULVERT_TEST_NAMESPACE";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--net", "--map-root-user"]);
        command
    };
    let possible = unshare().arg("true").output();
    if !possible.as_ref().is_ok_and(|output| output.status.success()) {
        let why = format!("no network namespace can be made here: {possible:?}");
        assert!(std::env::var_os("CI").is_none(), "{why}");
        eprintln!("SKIPPED: {why}");
        return false;
    }
    let this = std::env::current_exe().unwrap();
    let output = unshare().arg(this).args(["--exact", test, "--nocapture"]).env(INSIDE, "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "the test was not run: {text}");
    false
}

#[tokio::test]
async fn a_cord_ends_the_connection_whoever_holds_it() {
    let (writer, mut reader) = pair().await;
    let cord = Cord::of(&writer);
    let mut held = writer;
    cord.pull();
    assert_eq!(held.read(&mut [0]).await.unwrap(), 0, "read by the holder");
    assert!(held.write_all(b"x").await.is_err(), "written by the holder");
    assert_eq!(reader.read(&mut [0]).await.unwrap(), 0, "read by the peer");
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_socket_is_never_lost() {
    assert!(timeout(Duration::from_secs(3600), lost(None, INTERVAL, || {})).await.is_err(), "lost");
    let nobody = Some(("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap()));
    assert!(timeout(Duration::from_secs(3600), lost(nobody, INTERVAL, || {})).await.is_err(), "lost");
}
