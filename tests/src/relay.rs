//! A stretch of network that can break: passes TCP connections on, and resets them when it is told to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::Result;

/// A relay on a free port of loopback; ends when dropped.
#[derive(Debug)]
pub struct Relay {
    pub address: SocketAddr,
    resets: watch::Sender<u64>,
    open: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Relay {
    /// Passes every connection on to `target`.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (resets, _) = watch::channel(0);
        let (commands, open) = (resets.clone(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&open);
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (mut reset, count) = (commands.subscribe(), Arc::clone(&count));
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(target).await else { return };
                    count.fetch_add(1, Ordering::SeqCst);
                    if let Err(error) = pass(near, far, &mut reset).await {
                        eprintln!("relay: {error}");
                    }
                    count.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Ok(Self { address, resets, open, task })
    }

    /// Resets every connection, at both ends.
    pub fn reset(&self) {
        self.resets.send_modify(|resets| *resets += 1);
    }

    /// Connections that are passed on at the moment.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

async fn pass(mut near: TcpStream, mut far: TcpStream, reset: &mut watch::Receiver<u64>) -> std::io::Result<()> {
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let passed = tokio::select! {
        passed = tokio::io::copy_bidirectional(&mut near, &mut far) => passed.map(drop),
        _ = reset.changed() => Ok(()),
    };
    if passed.is_ok() && reset.has_changed().is_ok() {
        // Closed with a linger time of zero a socket says RST.
        for socket in [&near, &far] {
            socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO))?;
        }
    }
    passed
}
