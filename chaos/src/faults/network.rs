//! Faults of the network and of the API server's answers, by the proxies.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{Active, Undo};
use crate::environment::Environment;
use crate::evidence::{Injected, now_micros};
use crate::proxy::{Proxy, Rules};
use crate::scenario::{Answer, Fault, Kind};

pub(super) async fn begin(
    environment: &mut Environment<'_>,
    active: &mut Active,
    fault: &Fault,
) -> Result<()> {
    let who = fault.who().context("this fault names no replica")?;
    let chosen = environment.choose(who).await?;
    let (rules, words) = rules(&fault.kind);
    let cut_off = rules.partition.is_some() || rules.hold_writes;
    let injected = &mut active.injected;
    injected.pods = environment.names(&chosen);
    injected.what = format!(
        "{}: {words} for {} s",
        injected.pods.join(", "),
        fault.seconds()
    );
    injected.from = now_micros();
    // Dropped responses belong to requests that arrive; all other requests may arrive late or not at all.
    injected.delays_requests = rules.hold_writes || !rules.late.is_zero();
    let before = bites(environment, &chosen)?;
    let seed = environment.scenario.seed;
    for index in &chosen {
        let seed = seed.wrapping_mul(1_000).wrapping_add(*index as u64);
        proxy(environment, *index)?.set(Rules {
            seed,
            ..rules.clone()
        });
    }
    let others = environment.alive().len() > chosen.len();
    let long = fault.seconds() > environment.scenario.takeover_seconds();
    injected.takes_out = cut_off && others && long;
    injected.recover_from = (cut_off && others).then_some(injected.from);
    active.undo = Undo::FreeNetwork(chosen, before, cut_off);
    Ok(())
}

pub(super) fn end(
    environment: &mut Environment<'_>,
    injected: &mut Injected,
    hit: &[usize],
    before: u64,
    cut_off: bool,
) -> Result<()> {
    injected.bites = bites(environment, hit)?.saturating_sub(before);
    let now = now_micros();
    for index in hit {
        proxy(environment, *index)?.set(Rules::default());
        if cut_off {
            environment.was_absent(*index, injected.from, now)?;
        }
    }
    injected.recover_from.get_or_insert(now);
    Ok(())
}

fn proxy<'a>(environment: &'a Environment<'_>, index: usize) -> Result<&'a Proxy> {
    let proxy = environment.proxies.get(index).and_then(Option::as_ref);
    proxy.with_context(|| format!("replica {index} has no proxy"))
}

fn bites(environment: &Environment<'_>, who: &[usize]) -> Result<u64> {
    who.iter()
        .map(|index| Ok(proxy(environment, *index)?.bites()))
        .sum()
}

fn rules(kind: &Kind) -> (Rules, String) {
    let mut rules = Rules::default();
    let words = match kind {
        Kind::Partition { direction, .. } => {
            rules.partition = Some(*direction);
            match direction {
                crate::scenario::Direction::Both => "cut off".to_owned(),
                crate::scenario::Direction::AnswersOnly => "gets no answers".to_owned(),
                crate::scenario::Direction::LeasesOnly => {
                    "cut off from Leases and shard table".to_owned()
                }
            }
        }
        Kind::HoldWrites { .. } => {
            rules.hold_writes = true;
            "cut off, its writes held back".to_owned()
        }
        Kind::Network {
            late_ms,
            hang_percent,
            cut_percent,
            ..
        } => {
            rules.late = Duration::from_millis(*late_ms);
            rules.hang_percent = *hang_percent;
            rules.cut_percent = *cut_percent;
            format!("requests {late_ms} ms late, {hang_percent} % hang, {cut_percent} % cut")
        }
        Kind::Errors {
            answer, percent, ..
        } => {
            rules.error = Some((*answer, *percent));
            let code = match answer {
                Answer::TooManyRequests => 429,
                Answer::InternalError => 500,
                Answer::Conflict => 409,
                Answer::Gone => 410,
            };
            format!("{percent} % of the answers are {code}")
        }
        Kind::Watch { how, ms, .. } => {
            rules.watches = Some((*how, Duration::from_millis(*ms)));
            format!("watches {how:?} ({ms} ms)").to_lowercase()
        }
        _ => String::new(),
    };
    (rules, words)
}
