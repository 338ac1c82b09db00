//! Each component runs and listens on its own ports: otherwise the others may use a foreign server.

use std::time::{Duration, Instant};

use super::{ControlPlane, components, run_kwokctl};
use crate::error::{Result, failed};

const TIMEOUT: Duration = Duration::from_secs(60);
const CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// A controller manager ends by itself when the API server takes longer than 10 s to start.
const MAX_RESTARTS: u32 = 5;

impl ControlPlane {
    /// Waits until everything listens; what has ended by itself is started again, a bounded number of times.
    pub(super) async fn verify_listening(&self) -> Result<()> {
        let started = Instant::now();
        let mut restarts = 0;
        loop {
            let missing = self.missing_ports();
            if missing.is_empty() {
                return Ok(());
            }
            let logs = self.log_tails();
            if logs.contains(components::PORT_TAKEN) || started.elapsed() > TIMEOUT {
                let missing = missing.join(", ");
                return failed(format!(
                    "the control plane does not listen: {missing}\n{logs}"
                ));
            }
            let ended = components::NAMES
                .iter()
                .any(|name| self.component(name).is_err());
            if ended && restarts < MAX_RESTARTS {
                restarts += 1;
                run_kwokctl(&self.guardian, &self.bin, &["start", "cluster"]).await?;
            }
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
    }

    fn missing_ports(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for name in components::NAMES {
            let component = self.component(name);
            let open = component
                .and_then(|c| c.process.listens_on())
                .unwrap_or_default();
            let closed = self.ports.of(name).into_iter();
            let closed = closed.filter(|port| !open.iter().any(|address| address.port() == *port));
            missing.extend(closed.map(|port| format!("{name} on {port}")));
        }
        missing
    }
}
