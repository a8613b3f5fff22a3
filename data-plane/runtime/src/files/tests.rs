use std::os::unix::fs::symlink;

use super::*;

const QUIET: Duration = Duration::from_millis(10);
const DEADLINE: Duration = Duration::from_secs(10);

async fn expect_change(changes: &mut Changes, what: &str) {
    let changed = tokio::time::timeout(DEADLINE, changes.changed()).await;
    assert!(changed.is_ok(), "{what} was not noticed within {DEADLINE:?}");
}

#[tokio::test]
async fn writes_renames_and_deletions_are_seen() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cert.pem");
    std::fs::write(&file, "one").unwrap();
    let mut changes = FileWatcher::new().watch(vec![file.clone()], QUIET);
    std::fs::write(&file, "two").unwrap();
    expect_change(&mut changes, "a write").await;
    let fresh = dir.path().join("fresh");
    std::fs::write(&fresh, "three").unwrap();
    std::fs::rename(&fresh, &file).unwrap();
    expect_change(&mut changes, "a rename").await;
    std::fs::remove_file(&file).unwrap();
    expect_change(&mut changes, "a deletion").await;
}

#[tokio::test]
async fn a_swap_of_the_directory_behind_a_link_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    for (generation, content) in [("..1", "one"), ("..2", "two")] {
        std::fs::create_dir(dir.path().join(generation)).unwrap();
        std::fs::write(dir.path().join(generation).join("tls.crt"), content).unwrap();
    }
    symlink("..1", dir.path().join("..data")).unwrap();
    symlink("..data/tls.crt", dir.path().join("tls.crt")).unwrap();
    let mut changes = FileWatcher::new().watch(vec![dir.path().join("tls.crt")], QUIET);
    symlink("..2", dir.path().join("..next")).unwrap();
    std::fs::rename(dir.path().join("..next"), dir.path().join("..data")).unwrap();
    expect_change(&mut changes, "the swap").await;
}

#[tokio::test]
async fn a_directory_is_watched_with_all_below_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut changes = FileWatcher::new().watch(vec![dir.path().to_path_buf()], QUIET);
    let below = dir.path().join("below");
    std::fs::create_dir(&below).unwrap();
    std::fs::write(below.join("listener.yaml"), "a").unwrap();
    expect_change(&mut changes, "a new directory").await;
    std::fs::write(below.join("listener.yaml"), "b").unwrap();
    expect_change(&mut changes, "a write below").await;
}

#[tokio::test]
async fn a_directory_that_was_made_anew_is_watched_again() {
    let dir = tempfile::tempdir().unwrap();
    let below = dir.path().join("certs");
    let file = below.join("cert.pem");
    let mut changes = FileWatcher::new().watch(vec![file.clone()], QUIET);
    for content in ["one", "two", "three"] {
        std::fs::create_dir(&below).unwrap();
        std::fs::write(&file, content).unwrap();
        expect_change(&mut changes, "a directory that came").await;
        std::fs::write(&file, "again").unwrap();
        expect_change(&mut changes, "a write in it").await;
        std::fs::remove_dir_all(&below).unwrap();
        expect_change(&mut changes, "a directory that went").await;
    }
}

#[tokio::test]
async fn looking_at_a_file_is_no_event() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cert.pem");
    std::fs::write(&file, "one").unwrap();
    let watcher = FileWatcher::new();
    let mut changes = watcher.watch(vec![file.clone()], QUIET);
    std::fs::write(&file, "two").unwrap();
    expect_change(&mut changes, "a write").await;
    let seen = *watcher.shared.events.borrow();
    for _ in 0..20 {
        std::fs::read(&file).unwrap();
    }
    // The next write's events come after those of the reads, if there were any.
    std::fs::write(&file, "three").unwrap();
    expect_change(&mut changes, "another write").await;
    let more = *watcher.shared.events.borrow() - seen;
    assert!(more < 10, "{more} events for one write, so reading counts as a change");
}

#[tokio::test(start_paused = true)]
async fn the_same_bytes_again_are_no_change() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key.pem");
    std::fs::write(&file, "same").unwrap();
    let mut changes = FileWatcher::new().watch(vec![file.clone()], QUIET);
    std::fs::write(&file, "same").unwrap();
    let changed = tokio::time::timeout(DEADLINE, changes.changed()).await;
    assert!(changed.is_err(), "the content did not change");
}

/// Must come of whatever `path` is, and soon.
fn soon<T: Send + 'static>(what: &str, run: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || done.send(run()));
    result.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("{what} did not end within {DEADLINE:?}"))
}

fn pipe_in(dir: &Path) -> PathBuf {
    let path = dir.join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    path
}

#[test]
fn only_regular_files_are_read_and_only_so_much_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "12345").unwrap();
    assert_eq!(read(&file, 5).unwrap(), b"12345", "as much as is allowed");
    assert_eq!(read(&file, 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge, "one byte more");
    assert!(!read(Path::new("/proc/self/stat"), 4096).unwrap().is_empty(), "a file of the kernel's has no length");
    for path in [pipe_in(dir.path()), "/dev/zero".into(), dir.path().to_owned()] {
        let shown = path.display().to_string();
        let error = soon(&shown, move || read(&path, 4096)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{shown}: {error}");
    }
}

#[tokio::test]
async fn a_pipe_and_a_device_can_be_watched_and_are_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "one").unwrap();
    let paths = [pipe_in(dir.path()), PathBuf::from("/dev/zero"), file.clone()];
    let mut changes = soon("the first look", move || FileWatcher::new().watch(paths, QUIET));
    std::fs::write(&file, "two").unwrap();
    expect_change(&mut changes, "a write beside them").await;
}

#[tokio::test]
async fn a_change_outlives_whoever_gave_up_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cert.pem");
    std::fs::write(&file, "one").unwrap();
    let quiet = Duration::from_millis(300);
    let mut changes = FileWatcher::new().watch([file.clone()], quiet);
    std::fs::write(&file, "two").unwrap();
    let mut events = changes.events.clone();
    tokio::time::timeout(DEADLINE, events.changed()).await.expect("an event").unwrap();
    // Long enough to take the event, too short for the quiet time.
    let given_up = tokio::time::timeout(quiet / 3, changes.changed()).await;
    assert!(given_up.is_err(), "the quiet time was not kept");
    let again = tokio::time::timeout(SLOW_POLL / 2, changes.changed()).await;
    assert!(again.is_ok(), "the change was noticed by the slow poll only, if at all");
}

#[tokio::test]
async fn other_paths_do_not_hide_a_change_of_those_that_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (file, other) = (dir.path().join("cert.pem"), dir.path().join("other.pem"));
    std::fs::write(&file, "one").unwrap();
    std::fs::write(&other, "one").unwrap();
    let mut changes = FileWatcher::new().watch([file.clone()], QUIET);
    std::fs::write(&file, "two").unwrap();
    changes.follow([file, other]);
    expect_change(&mut changes, "a write before other paths were given").await;
}

/// What is urgent waits for those that follow if it follows one itself: no more often than once in the quiet time.
#[tokio::test]
async fn urgent_changes_come_no_faster_than_others() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("urgent");
    let quiet = Duration::from_millis(200);
    let mut changes = FileWatcher::new().watch([dir.path().to_path_buf()], quiet);
    changes.hurry(|path| path.ends_with("urgent").then_some(true));
    std::fs::write(&file, "one").unwrap();
    expect_change(&mut changes, "the first write").await;
    let first = Instant::now();
    std::fs::write(&file, "two").unwrap();
    expect_change(&mut changes, "the second write").await;
    assert!(first.elapsed() >= quiet, "the second one after {:?}", first.elapsed());
}

/// A file that somebody still writes is no whole one, however long that takes.
#[tokio::test]
async fn what_is_still_written_is_not_urgent() {
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("urgent");
    std::fs::write(&path, "one").unwrap();
    let mut changes = FileWatcher::new().watch([dir.path().to_path_buf()], Duration::from_secs(3600));
    changes.hurry(|path| path.ends_with("urgent").then_some(true));
    let mut file = File::create(&path).unwrap();
    file.write_all(b"tw").unwrap();
    let early = tokio::time::timeout(Duration::from_millis(300), changes.changed()).await;
    assert!(early.is_err(), "half a file was told of");
    file.write_all(b"o").unwrap();
    drop(file);
    expect_change(&mut changes, "the closed file").await;
}
