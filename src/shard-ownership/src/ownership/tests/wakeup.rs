//! When the machine asks for the time.

use super::world::World;
use super::*;
use crate::lease::MemberChange;

/// A replica of a fleet at rest, cut off from all news but the answers to its own renewals.
fn at_rest() -> (World, Ownership) {
    let mut world = World::balanced_three();
    world.run(3_000);
    let machine = world.node("a").machine.clone();
    assert!(machine.is_at_rest());
    (world, machine)
}

/// Ticks the machine when it asks for that, answers its renewals, and returns how often it was ticked
/// until it did something else, with the time and what it did.
fn until_it_acts(world: &mut World, mut machine: Ownership) -> (usize, u64, Action) {
    let mut ticks = 0;
    loop {
        let now_ms = machine.next_wakeup_ms();
        ticks += 1;
        for action in machine.handle(now_ms, Event::Tick) {
            match action {
                Action::WriteMember(id, write)
                    if matches!(write.change, MemberChange::Renew { .. }) =>
                {
                    let node = world.nodes.remove("a").unwrap();
                    let written = world.server.write_member(&write, &node);
                    world.nodes.insert("a".to_owned(), node);
                    for action in machine.handle(now_ms, Event::MemberWritten(id, written)) {
                        assert!(matches!(action, Action::ValidUntil(_)), "{action:?}");
                    }
                }
                other => return (ticks, now_ms, other),
            }
        }
    }
}

#[test]
fn fleet_at_rest_needs_the_time_a_few_times_a_second() {
    let (mut world, machine) = at_rest();
    let begun_ms = world.now_ms;
    let (ticks, ended_ms, _) = until_it_acts(&mut world, machine);
    let seconds = (ended_ms - begun_ms) as f64 / 1000.0;
    assert!(
        ticks as f64 <= 3.0 * seconds,
        "{ticks} ticks in {seconds} s"
    );
}

#[test]
fn silent_replica_is_declared_dead_in_the_millisecond_in_which_its_lifetime_ends() {
    let (mut world, machine) = at_rest();
    let of_others = |name: &str| world.nodes[name].machine.last_renewal_ms().unwrap();
    let renewed_ms = of_others("b").min(of_others("c"));
    let (_, at_ms, action) = until_it_acts(&mut world, machine);
    assert!(
        matches!(action, Action::WriteMember(_, write) if write.change == MemberChange::Vacate)
    );
    // It has learnt of the renewal a step of this world later at most.
    assert!(
        (renewed_ms + 6_000..=renewed_ms + 6_025).contains(&at_ms),
        "{renewed_ms} {at_ms}"
    );
}

#[test]
fn unanswered_renewal_keeps_nobody_asleep() {
    let (mut world, mut machine) = at_rest();
    // The renewal is sent, and neither answered nor refused.
    let until_ms = world.node("a").until_ms;
    let mut halted = false;
    while !halted {
        let now_ms = machine.next_wakeup_ms();
        let actions = machine.handle(now_ms, Event::Tick);
        halted = actions
            .iter()
            .any(|action| matches!(action, Action::Halt(_, Reason::Lapsed)));
        assert!(now_ms <= until_ms + 100, "works beyond its validity");
    }
}
