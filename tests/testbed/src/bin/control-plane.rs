//! Starts a control plane, prints its kubeconfig, and keeps it until Ctrl-C, SIGTERM, or its own death.

use std::io::Write;

use anyhow::Result;
use clap::Parser;
use testbed::{AuditLevel, ControlPlane, ControlPlaneOptions};
use tokio::signal::unix::{SignalKind, signal};

/// Keeps a local control plane until it is interrupted; everything goes with it.
#[derive(Parser)]
struct Arguments {
    /// Turn the API server's feature gate ShardedListAndWatch off.
    #[arg(long)]
    no_sharded_watch: bool,
    /// Write an audit log.
    #[arg(long)]
    audit: bool,
    /// For scale runs: no Pods, a StatefulSet is ready at once, and no limit of requests per second.
    #[arg(long)]
    scale: bool,
    /// Fake nodes.
    #[arg(long, default_value_t = 3)]
    nodes: u32,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let options = ControlPlaneOptions {
        sharded_list_and_watch: !arguments.no_sharded_watch,
        audit: if arguments.audit {
            AuditLevel::Metadata
        } else {
            AuditLevel::Off
        },
        nodes: arguments.nodes,
        statefulset_stage: arguments.scale,
        lift_client_limits: arguments.scale,
        ..ControlPlaneOptions::default()
    };
    let keep = async {
        let control_plane = ControlPlane::start(options).await?;
        let text = format!(
            "export KUBECONFIG={}\n{} get nodes\n",
            control_plane.kubeconfig().display(),
            control_plane.kubectl().display()
        );
        // In one piece; a reader that is content with the first line is no failure.
        let _written = std::io::stdout().write_all(text.as_bytes());
        std::future::pending::<()>().await;
        drop(control_plane);
        anyhow::Ok(())
    };
    // Dropping what is under way ends the control plane, however far it has come.
    tokio::select! {
        result = keep => result,
        _ = interrupted.recv() => Ok(()),
        _ = terminated.recv() => Ok(()),
    }
}
