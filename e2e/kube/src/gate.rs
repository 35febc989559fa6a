//! A way to the API server on which connections can die without a word, as behind a firewall that forgets them.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::AbortHandle;

use crate::failed::{Failed, Trying};

/// Forwards TCP connections until it is told to let them die.
#[derive(Debug)]
pub struct Gate {
    /// Where it listens.
    pub address: SocketAddr,
    /// Connections with a lower number pass nothing on.
    dead_below: Arc<AtomicU64>,
    made: Arc<AtomicU64>,
    task: AbortHandle,
}

impl Gate {
    /// A gate to `target` that lets everything through.
    ///
    /// # Errors
    /// There is no free port.
    pub fn open(runtime: &Runtime, target: SocketAddr) -> Result<Self, Failed> {
        Self::open_at(runtime, (Ipv4Addr::LOCALHOST, 0).into(), target)
    }

    /// The same at this address.
    ///
    /// # Errors
    /// It cannot be had.
    pub fn open_at(runtime: &Runtime, listen: SocketAddr, target: SocketAddr) -> Result<Self, Failed> {
        let listener = runtime.block_on(TcpListener::bind(listen)).trying("listen")?;
        let address = listener.local_addr().trying("listen")?;
        let (dead_below, made) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (dead, count) = (Arc::clone(&dead_below), Arc::clone(&made));
        let task = runtime.spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let number = count.fetch_add(1, Ordering::SeqCst);
                let dead = Arc::clone(&dead);
                tokio::spawn(async move {
                    // Whoever asked sees that nobody answers.
                    let Ok(far) = TcpStream::connect(target).await else { return };
                    let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
                    tokio::join!(pass(from_near, to_far, number, &dead), pass(from_far, to_near, number, &dead));
                });
            }
        });
        Ok(Self { address, dead_below, made, task: task.abort_handle() })
    }

    /// Every connection that is open passes nothing on from here on, and stays open. New ones work.
    pub fn kill_open(&self) {
        self.dead_below.store(self.made.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// New connections die, too.
    pub fn kill_all(&self) {
        self.dead_below.store(u64::MAX, Ordering::SeqCst);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, number: u64, dead: &AtomicU64) {
    let mut bytes = vec![0; 16 << 10];
    loop {
        let read = from.read(&mut bytes).await.unwrap_or(0);
        if number < dead.load(Ordering::SeqCst) {
            // Neither what was read nor that there is no more.
            std::future::pending::<()>().await;
        }
        if read == 0 || to.write_all(&bytes[..read]).await.is_err() {
            // The other end may have gone first.
            let _ = to.shutdown().await;
            return;
        }
    }
}
