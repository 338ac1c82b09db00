//! Faults: each begins, lasts and ends, and counts how often it took effect.

mod by_hand;
mod clocks;
mod control_plane;
mod crash_points;
mod forged_tokens;
mod network;
mod processes;
mod shard_table;
mod starve;

use anyhow::Result;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::environment::Environment;
use crate::evidence::{Injected, now_micros};
use crate::scenario::{Fault, Kind, Program, Then};

/// A fault that has begun.
pub struct Active {
    /// What is recorded about it so far.
    pub injected: Injected,
    undo: Undo,
}

/// How a fault ends.
enum Undo {
    /// It ends by itself.
    Nothing,
    /// Replacements for the killed replicas start.
    After(Vec<usize>, Then),
    /// The frozen replicas continue.
    Continue(Vec<usize>),
    /// The killed program of the control plane starts.
    StartControlPlane,
    /// The hanging program of the control plane continues.
    Resume(Program),
    /// The operator gets its rights back.
    GiveRights,
    /// The CRD is created again.
    MakeCrd,
    /// The forging stops, and the forged tokens are removed.
    RemoveForgeries(forged_tokens::Forger),
    /// The replica may write the shard table again.
    AllowTable(usize),
    /// The other client stops; the task returns how often it took effect.
    Stop(CancellationToken, JoinHandle<u64>),
    /// The network works again; `true`: the replicas had been cut off.
    FreeNetwork(Vec<usize>, u64, bool),
    /// The limits of the replica are removed.
    Feed(Vec<usize>, starve::Group),
}

/// Begins a fault. One that lasts no time is over when this returns.
///
/// # Errors
/// When it cannot be injected; then the run does not count.
pub async fn begin(environment: &mut Environment<'_>, fault: &Fault) -> Result<Active> {
    let mut active = Active {
        injected: Injected {
            kind: fault.label().to_owned(),
            from: now_micros(),
            bites: 1,
            ..Injected::default()
        },
        undo: Undo::Nothing,
    };
    match &fault.kind {
        Kind::Kill { who, then, .. } => {
            processes::kill(environment, &mut active, *who, *then).await?
        }
        Kind::Freeze { who, seconds } => {
            processes::freeze(environment, &mut active, *who, *seconds).await?
        }
        Kind::Roll {} => processes::roll(environment, &mut active).await?,
        Kind::Scale { to } => processes::scale(environment, &mut active, *to).await?,
        Kind::Flap {
            who,
            times,
            every_seconds,
        } => {
            processes::flap(environment, &mut active, *who, *times, *every_seconds).await?;
        }
        Kind::Outage { program, .. } => {
            control_plane::kill(environment, &mut active, *program).await?
        }
        Kind::Stall { program, .. } => control_plane::stall(environment, &mut active, *program)?,
        Kind::Leases { edit } => by_hand::edit_lease(environment, &mut active, *edit).await?,
        Kind::Rights { .. } => by_hand::take_rights(environment, &mut active).await?,
        Kind::Crd { .. } => by_hand::delete_crd(environment, &mut active).await?,
        Kind::ForgedTokens { per_second, .. } => {
            forged_tokens::begin(environment, &mut active, *per_second).await?;
        }
        Kind::Table {} => shard_table::delete(environment, &mut active).await?,
        Kind::TableRefused { who, .. } => {
            shard_table::refuse(environment, &mut active, *who).await?;
        }
        Kind::ConflictingWriter { per_second, .. } => {
            by_hand::write_against(environment, &mut active, *per_second);
        }
        Kind::Burst { clusters } => {
            active.injected.what = format!("{clusters} DatabaseClusters at once");
            active.injected.bites = environment.users.burst(*clusters).await?;
        }
        Kind::Starve {
            who,
            cpu_percent,
            memory_kib,
            ..
        } => {
            starve::begin(environment, &mut active, *who, *cpu_percent, *memory_kib).await?;
        }
        Kind::CrashPoints { by } => crash_points::run(environment, &mut active, *by).await?,
        Kind::Clocks { boot_seconds, rate } => {
            clocks::begin(environment, &mut active, *boot_seconds, *rate).await?;
        }
        Kind::Partition { .. }
        | Kind::Network { .. }
        | Kind::HoldWrites { .. }
        | Kind::Errors { .. }
        | Kind::Watch { .. } => network::begin(environment, &mut active, fault).await?,
    }
    environment
        .progress
        .report(format!("fault: {}", active.injected.what));
    Ok(active)
}

/// Ends a fault.
///
/// # Errors
/// When its effect cannot be undone; then the run does not count.
pub async fn end(environment: &mut Environment<'_>, active: Active) -> Result<Injected> {
    let Active { mut injected, undo } = active;
    match undo {
        Undo::Nothing => {}
        Undo::After(who, then) => {
            processes::come_again(environment, &mut injected, &who, then).await?
        }
        Undo::Continue(who) => processes::go_on(environment, &mut injected, &who)?,
        Undo::StartControlPlane => control_plane::start(environment, &mut injected).await?,
        Undo::Resume(program) => control_plane::resume(environment, &mut injected, program).await?,
        Undo::GiveRights => by_hand::give_rights(environment, &mut injected).await?,
        Undo::MakeCrd => by_hand::make_crd(environment, &mut injected).await?,
        Undo::RemoveForgeries(forger) => forger.end(environment, &mut injected).await?,
        Undo::AllowTable(who) => shard_table::allow(environment, &mut injected, who).await?,
        Undo::Stop(stop, task) => {
            stop.cancel();
            injected.bites = task.await?;
        }
        Undo::FreeNetwork(who, before, cut_off) => {
            network::end(environment, &mut injected, &who, before, cut_off)?;
        }
        Undo::Feed(who, group) => starve::end(environment, &mut injected, &who, &group)?,
    }
    injected.to = now_micros();
    Ok(injected)
}
