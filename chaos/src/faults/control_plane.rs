//! Faults of the control plane's own programs: killed and restarted, or hanging.

use std::time::Duration;

use anyhow::Result;

use super::{Active, Undo};
use crate::environment::Environment;
use crate::evidence::{Injected, now_micros};
use crate::scenario::Program;

const SERVING_TIMEOUT: Duration = Duration::from_secs(90);

pub(super) async fn kill(
    environment: &mut Environment<'_>,
    active: &mut Active,
    program: Program,
) -> Result<()> {
    active.injected.what = format!("{} is killed", program.name());
    environment.control_plane.kill(program.name()).await?;
    active.injected.hides_requests = true;
    active.injected.delays_requests = true;
    active.undo = Undo::StartControlPlane;
    Ok(())
}

pub(super) async fn start(
    environment: &mut Environment<'_>,
    injected: &mut Injected,
) -> Result<()> {
    environment.control_plane.start_again().await?;
    injected.recover_from = Some(now_micros());
    environment
        .progress
        .report("the control plane serves again");
    Ok(())
}

pub(super) fn stall(
    environment: &mut Environment<'_>,
    active: &mut Active,
    program: Program,
) -> Result<()> {
    active.injected.what = format!("{} hangs", program.name());
    environment.control_plane.pause(program.name())?;
    active.injected.delays_requests = true;
    active.undo = Undo::Resume(program);
    Ok(())
}

pub(super) async fn resume(
    environment: &mut Environment<'_>,
    injected: &mut Injected,
    program: Program,
) -> Result<()> {
    environment.control_plane.resume(program.name())?;
    environment
        .control_plane
        .wait_until_serving(SERVING_TIMEOUT)
        .await?;
    injected.recover_from = Some(now_micros());
    Ok(())
}
