//! A second API server on the same etcd, whose view of the Leases and the shard table can be made to lag.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::ControlPlane;
use crate::error::{Context, Error, Result, failed};
use crate::ports::free_ports;
use crate::process::ProcessId;
use crate::wait::{Progress, wait_for};

const START_TIMEOUT: Duration = Duration::from_secs(60);
const CHUNK_BYTES: usize = 64 << 10;
/// Keys of delayed objects. Nothing else is delayed: a request that has to wait for etcd itself would find the cache
/// caught up. The API server has a connection for each kind.
const LATE: [&[u8]; 2] = [b"/registry/leases/", b"/registry/database.io/shardtables/"];
/// Chunks in flight; more make etcd wait.
const CHUNKS_MAX: usize = 1024;

/// A second API server. Dropping it ends it.
pub struct SecondApiServer {
    child: Child,
    port: u16,
    lag_ms: Arc<AtomicU64>,
    proxy: JoinHandle<()>,
}

impl ControlPlane {
    /// Starts a second API server with the flags of the first, on a port of its own, and waits until it serves.
    ///
    /// # Errors
    /// When it cannot be started or does not serve in time.
    pub async fn second_api_server(&self) -> Result<SecondApiServer> {
        self.second_api_server_with(&[]).await
    }

    /// The same, with some flags set otherwise (`("--feature-gates", "A=false")`).
    ///
    /// # Errors
    /// When it cannot be started or does not serve in time.
    pub async fn second_api_server_with(
        &self,
        otherwise: &[(&str, &str)],
    ) -> Result<SecondApiServer> {
        let first = self.component("kube-apiserver")?.process;
        let what = "read the API server's command line";
        let line = std::fs::read(format!("/proc/{}/cmdline", first.pid)).context(what)?;
        let line = String::from_utf8_lossy(&line).into_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.context("listen for the second API server")?;
        let proxied = listener
            .local_addr()
            .context("know the proxy's port")?
            .port();
        let [port] = free_ports()?;
        let mut words = line.split('\0').filter(|word| !word.is_empty());
        let Some(program) = words.next() else {
            return failed("the API server has no command line");
        };
        let set = |flag: &str| otherwise.iter().find(|(name, _)| *name == flag);
        let arguments = words.map(|word| match word.split_once('=') {
            Some((flag, _)) if set(flag).is_some() => {
                set(flag).map_or_else(String::new, |(flag, value)| format!("{flag}={value}"))
            }
            Some(("--secure-port", _)) => format!("--secure-port={port}"),
            Some(("--etcd-servers", _)) => format!("--etcd-servers=http://127.0.0.1:{proxied}"),
            // One writer for each log.
            Some(("--audit-log-path", _)) => "--audit-log-path=/dev/null".to_owned(),
            _ => word.to_owned(),
        });
        let lag_ms = Arc::new(AtomicU64::new(0));
        let proxy = tokio::spawn(proxy(listener, self.ports.etcd, Arc::clone(&lag_ms)));
        let log =
            std::fs::File::create(self.log_of_second()).context("log of the second API server")?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env(self.guardian.mark().0, self.guardian.mark().1)
            .current_dir(self.folder())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = command.spawn().context("start a second API server")?;
        self.guardian.register(ProcessId::of(child.id())?)?;
        let second = SecondApiServer {
            child,
            port,
            lag_ms,
            proxy,
        };
        second.wait_until_serving(self).await?;
        Ok(second)
    }

    fn log_of_second(&self) -> PathBuf {
        self.folder().join("second-kube-apiserver.log")
    }
}

impl SecondApiServer {
    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on, its events of Leases and shard tables from etcd are delayed this much.
    pub fn set_lag(&self, lag: Duration) {
        let lag_ms = u64::try_from(lag.as_millis()).unwrap_or(u64::MAX);
        self.lag_ms.store(lag_ms, Ordering::Relaxed);
    }

    /// A client of it, with the credentials of a kubeconfig for the first.
    ///
    /// # Errors
    /// When the kubeconfig cannot be read.
    pub async fn client(&self, kubeconfig: &std::path::Path) -> Result<Client> {
        let what = || format!("use {} for the second API server", kubeconfig.display());
        let text = Kubeconfig::read_from(kubeconfig).context(what())?;
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(text, &options).await;
        let mut config = config.context(what())?;
        let url = format!("https://127.0.0.1:{}", self.port).parse();
        config.cluster_url = url.map_err(|_| Error::Failed(what()))?;
        Client::try_from(config).context(what())
    }

    async fn wait_until_serving(&self, of: &ControlPlane) -> Result<()> {
        let client = self.client(&of.kubeconfig()).await?;
        let waited = wait_for(
            "the second API server to be ready",
            START_TIMEOUT,
            || async {
                let request = http::Request::get("/readyz").body(Vec::new());
                let request = request.map_err(|error| Error::Failed(error.to_string()))?;
                Ok(match client.request_text(request).await {
                    Ok(_) => Progress::Done(()),
                    Err(error) => Progress::pending(error),
                })
            },
        )
        .await;
        waited.map_err(|error| {
            let log = std::fs::read_to_string(of.log_of_second()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines
                .get(lines.len().saturating_sub(8)..)
                .unwrap_or_default();
            Error::Failed(format!("{error}\n{}", tail.join("\n")))
        })
    }
}

impl Drop for SecondApiServer {
    fn drop(&mut self) {
        self.proxy.abort();
        // One that has ended already returns errors, which are ignored.
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

async fn proxy(listener: TcpListener, etcd: u16, lag_ms: Arc<AtomicU64>) {
    while let Ok((server, _)) = listener.accept().await {
        let lag_ms = Arc::clone(&lag_ms);
        tokio::spawn(async move {
            let Ok(etcd) = TcpStream::connect(("127.0.0.1", etcd)).await else {
                return;
            };
            let (from_server, to_server) = server.into_split();
            let (from_etcd, to_etcd) = etcd.into_split();
            let is_late = Arc::new(AtomicBool::new(false));
            let asked = requests(from_server, to_etcd, Arc::clone(&is_late));
            tokio::join!(asked, delayed(from_etcd, to_server, lag_ms, is_late));
        });
    }
}

/// Passes on requests of the API server, and notes whether they concern delayed keys.
async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, is_late: Arc<AtomicBool>) {
    let mut chunk = vec![0; CHUNK_BYTES];
    while let Ok(length @ 1..) = from.read(&mut chunk).await {
        let piece = chunk.get(..length).unwrap_or_default();
        let names = |key: &[u8]| piece.windows(key.len()).any(|window| window == key);
        if LATE.into_iter().any(names) {
            is_late.store(true, Ordering::Relaxed);
        }
        if to.write_all(piece).await.is_err() {
            return;
        }
    }
}

/// Passes on responses, each piece with the delay that was set when it arrived.
async fn delayed(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    lag_ms: Arc<AtomicU64>,
    is_late: Arc<AtomicBool>,
) {
    let (sender, mut pieces) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_MAX);
    let read = async move {
        let mut chunk = vec![0; CHUNK_BYTES];
        while let Ok(length @ 1..) = from.read(&mut chunk).await {
            let lag_ms = match is_late.load(Ordering::Relaxed) {
                true => lag_ms.load(Ordering::Relaxed),
                false => 0,
            };
            let due = Instant::now() + Duration::from_millis(lag_ms);
            let piece = chunk.get(..length).unwrap_or_default().to_vec();
            if sender.send((due, piece)).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, piece)) = pieces.recv().await {
            sleep_until(due).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(read, write);
}
