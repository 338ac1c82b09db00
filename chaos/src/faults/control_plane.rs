//! The control plane's own programs: killed and started again, or hanging.

use std::time::Duration;

use anyhow::Result;

use super::{Active, Undo};
use crate::arena::Arena;
use crate::evidence::{Injected, now_micros};
use crate::scenario::Program;

const SERVING_TIMEOUT: Duration = Duration::from_secs(90);

pub(super) async fn kill(
    arena: &mut Arena<'_>,
    active: &mut Active,
    program: Program,
) -> Result<()> {
    active.injected.what = format!("{} is killed", program.name());
    arena.control_plane.kill(program.name()).await?;
    active.injected.hides_requests = true;
    active.injected.delays_requests = true;
    active.undo = Undo::StartControlPlane;
    Ok(())
}

pub(super) async fn start(arena: &mut Arena<'_>, injected: &mut Injected) -> Result<()> {
    arena.control_plane.start_again().await?;
    injected.recover_from = Some(now_micros());
    arena.progress.tell("the control plane serves again");
    Ok(())
}

pub(super) fn stall(arena: &mut Arena<'_>, active: &mut Active, program: Program) -> Result<()> {
    active.injected.what = format!("{} hangs", program.name());
    arena.control_plane.pause(program.name())?;
    active.injected.delays_requests = true;
    active.undo = Undo::Resume(program);
    Ok(())
}

pub(super) async fn resume(
    arena: &mut Arena<'_>,
    injected: &mut Injected,
    program: Program,
) -> Result<()> {
    arena.control_plane.resume(program.name())?;
    arena
        .control_plane
        .wait_until_serving(SERVING_TIMEOUT)
        .await?;
    injected.recover_from = Some(now_micros());
    Ok(())
}
