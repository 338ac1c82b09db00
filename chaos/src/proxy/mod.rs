//! A proxy between one replica and the API server that understands HTTP: it cuts, delays, holds back, and answers with
//! errors instead of the API server, request by request.
//!
//! The replica trusts it because its kubeconfig names the certificate authority that the proxy created.

mod bodies;
mod rules;
mod serve;
#[cfg(test)]
mod tests;
mod tls;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use testbed::ControlPlane;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

pub use rules::{Crash, Rules};
use serve::Shared;

/// A proxy for one replica. Dropping it ends it.
pub struct Proxy {
    port: u16,
    authority: PathBuf,
    rules: watch::Sender<Rules>,
    shared: Arc<Shared>,
    crashed: mpsc::Receiver<()>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy to this control plane's API server.
    ///
    /// # Errors
    /// When it cannot listen, or its certificates cannot be created.
    pub async fn start(control_plane: &ControlPlane) -> Result<Self> {
        let upstream = std::fs::read(control_plane.certificate_authority())
            .context("read the API server's authority")?;
        Self::to(
            &control_plane.server(),
            &upstream,
            control_plane.folder().to_owned(),
        )
        .await
    }

    /// Starts a proxy to a server with a certificate of this authority; writes its own authority's file into `folder`.
    ///
    /// # Errors
    /// As [`Proxy::start`].
    pub async fn to(server: &str, server_authority: &[u8], folder: PathBuf) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .context("listen for a replica")?;
        let port = listener.local_addr()?.port();
        let (acceptor, own_authority) = tls::acceptor()?;
        let authority = folder.join(format!("proxy-{port}-ca.pem"));
        std::fs::write(&authority, own_authority).context("write the proxy's authority")?;
        let (rules, watched) = watch::channel(Rules::default());
        let (crash, crashed) = mpsc::channel(1);
        let shared = Arc::new(Shared {
            server: server.to_owned(),
            client: tls::client(server_authority)?,
            rules: watched,
            bites: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            draws: AtomicU64::new(0),
            crash,
        });
        let task = tokio::spawn(serve::serve(listener, acceptor, Arc::clone(&shared)));
        Ok(Self {
            port,
            authority,
            rules,
            shared,
            crashed,
            task,
        })
    }

    /// Where the replica finds it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The file of the authority that signed its certificate.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.authority.clone()
    }

    /// Sets these rules; requests that the previous rules held back continue.
    pub fn set(&self, rules: Rules) {
        self.shared.writes.store(0, Ordering::SeqCst);
        self.rules.send_replace(rules);
    }

    /// How many requests were disturbed so far.
    #[must_use]
    pub fn bites(&self) -> u64 {
        self.shared.bites.load(Ordering::SeqCst)
    }

    /// How many writes, except of Leases, arrived since the rules were last set.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.shared.writes.load(Ordering::SeqCst)
    }

    /// Completes when the write arrives at which the replica is to crash.
    pub async fn crash_is_due(&mut self) {
        if self.crashed.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }

    /// Discards a crash that came due and was not awaited.
    pub fn forget_crash(&mut self) {
        while self.crashed.try_recv().is_ok() {}
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
