//! Signals to replicas: killed, frozen, replaced one by one, scaled, flapping.

use std::time::Duration;

use anyhow::{Result, bail};
use testbed::fleet::ReplicaOptions;

use super::{Active, Undo};
use crate::environment::{Environment, READY_TIMEOUT};
use crate::evidence::{Injected, now_micros};
use crate::scenario::{Then, Who};

/// Records the replicas that are hit from now on.
fn strike(
    environment: &Environment<'_>,
    injected: &mut Injected,
    chosen: &[usize],
    what: impl FnOnce(&str) -> String,
) {
    injected.pods = environment.names(chosen);
    injected.what = what(&injected.pods.join(", "));
    injected.from = now_micros();
}

/// Starts a replica and waits until it is ready.
async fn one_more(environment: &mut Environment<'_>) -> Result<()> {
    let fresh = environment.start(ReplicaOptions::default()).await?;
    let replica = environment.fleet.replica(fresh)?;
    replica.wait_ready(READY_TIMEOUT).await?;
    Ok(())
}

pub(super) async fn kill(
    environment: &mut Environment<'_>,
    active: &mut Active,
    who: Who,
    then: Then,
) -> Result<()> {
    let chosen = environment.choose(who).await?;
    let injected = &mut active.injected;
    strike(environment, injected, &chosen, |pods| {
        format!("SIGKILL of {pods}")
    });
    for index in &chosen {
        environment.kill(*index).await?;
    }
    injected.bites = chosen.len() as u64;
    injected.takes_out = true;
    // When no replica is left, the clock of the promise starts when one joins.
    injected.recover_from = (!environment.alive().is_empty()).then_some(injected.from);
    active.undo = Undo::After(chosen, then);
    Ok(())
}

/// The replacement of the killed replicas.
pub(super) async fn come_again(
    environment: &mut Environment<'_>,
    injected: &mut Injected,
    killed: &[usize],
    then: Then,
) -> Result<()> {
    for (index, pod) in killed.iter().zip(injected.pods.clone()) {
        match then {
            Then::Nothing => {}
            Then::Restart => environment.restart(*index).await?,
            Then::Replace => {
                environment.fleet.delete_pod(&pod).await?;
                environment.start(ReplicaOptions::default()).await?;
            }
        }
    }
    injected.recover_from.get_or_insert(now_micros());
    Ok(())
}

pub(super) async fn freeze(
    environment: &mut Environment<'_>,
    active: &mut Active,
    who: Who,
    seconds: f64,
) -> Result<()> {
    let chosen = environment.choose(who).await?;
    let injected = &mut active.injected;
    strike(environment, injected, &chosen, |pods| {
        format!("SIGSTOP of {pods} for {seconds} s")
    });
    for index in &chosen {
        environment.fleet.replica(*index)?.stop()?;
    }
    injected.bites = chosen.len() as u64;
    injected.takes_out = seconds > environment.scenario.takeover_seconds();
    let others = environment.alive().len() > chosen.len();
    injected.recover_from = others.then_some(injected.from);
    active.undo = Undo::Continue(chosen);
    Ok(())
}

pub(super) fn go_on(
    environment: &mut Environment<'_>,
    injected: &mut Injected,
    frozen: &[usize],
) -> Result<()> {
    for index in frozen {
        environment.fleet.replica(*index)?.cont()?;
        environment.was_absent(*index, injected.from, now_micros())?;
    }
    injected.recover_from.get_or_insert(now_micros());
    Ok(())
}

/// As a Deployment does: one more replica starts, and when it is ready an old one stops.
pub(super) async fn roll(environment: &mut Environment<'_>, active: &mut Active) -> Result<()> {
    let old = environment.alive();
    active.injected.pods = environment.names(&old);
    active.injected.what = format!("a rolling update of {} replicas", old.len());
    active.injected.bites = 0;
    environment.revision += 1;
    for index in old {
        one_more(environment).await?;
        environment.term(&[index]).await?;
        active.injected.bites += 1;
    }
    Ok(())
}

pub(super) async fn scale(
    environment: &mut Environment<'_>,
    active: &mut Active,
    to: usize,
) -> Result<()> {
    let alive = environment.alive();
    active.injected.what = format!("scaled from {} to {to} replicas", alive.len());
    if alive.len() == to {
        bail!("the fleet has {to} replicas already: nothing is scaled");
    }
    active.injected.bites = alive.len().abs_diff(to) as u64;
    for _ in alive.len()..to {
        one_more(environment).await?;
    }
    // The youngest stop first.
    let surplus = alive.get(to..).unwrap_or_default().to_vec();
    active.injected.pods = environment.names(&surplus);
    environment.term(&surplus).await
}

/// A process that crashes soon after each start, in one Pod.
pub(super) async fn flap(
    environment: &mut Environment<'_>,
    active: &mut Active,
    who: Who,
    times: u32,
    every_seconds: f64,
) -> Result<()> {
    let chosen = environment.choose(who).await?;
    active.injected.pods = environment.names(&chosen);
    active.injected.what = format!(
        "{} crashes {times} times, {every_seconds} s after each start",
        active.injected.pods.join(", ")
    );
    active.injected.bites = 0;
    active.injected.from = now_micros();
    for _ in 0..times {
        for index in &chosen {
            environment.kill(*index).await?;
            environment.restart(*index).await?;
            active.injected.bites += 1;
        }
        tokio::time::sleep(Duration::from_secs_f64(every_seconds)).await;
    }
    active.injected.recover_from = Some(now_micros());
    Ok(())
}
