//! Writes of a shard's Lease without a response: which of them the checker treats as executed.

use serde_json::json;

use super::*;

impl Run {
    /// A healthy run in which `a` and then `b` create the Lease, and neither gets a response.
    fn created_at_once() -> Self {
        let mut run = Self::healthy();
        run.events.retain(|event| event.name != SHARD);
        for (at, pod) in [(-9.0, "a"), (-8.9, "b")] {
            run.unanswered(at, pod, pod, &format!("{pod}1"), 1, None);
            run.last().verb = "create".into();
        }
        run
    }

    /// `by` writes the Lease, on top of `basis`, and gets no response.
    fn unanswered(
        &mut self,
        at: f64,
        by: &str,
        holder: &str,
        incarnation: &str,
        epoch: i64,
        basis: Option<u64>,
    ) {
        self.lease(at, by, holder, incarnation, epoch);
        let event = self.last();
        event.code = 504;
        event.request = event.response.take();
        let basis = basis.map_or(json!(null), |basis| json!(basis.to_string()));
        event.request.as_mut().unwrap()["metadata"]["resourceVersion"] = basis;
    }

    /// `by` writes the Lease on top of `basis`.
    fn on_top_of(&mut self, basis: u64, at: f64, by: &str, holder: &str, epoch: i64) {
        self.lease(at, by, holder, &format!("{holder}1"), epoch);
        let request = self.last().request.as_mut().unwrap();
        request["metadata"]["resourceVersion"] = json!(basis.to_string());
    }

    fn without_tokens(&mut self) {
        self.events.retain(|event| event.resource == "leases");
    }

    /// The holders of the shard, one after the other.
    fn holders(&self) -> Vec<(String, i64)> {
        let spans = self.spans();
        let mut holders: Vec<_> = spans
            .iter()
            .map(|span| (span.holder.clone(), span.epoch))
            .collect();
        holders.dedup();
        holders
    }
}

fn terms(of: &[(&str, i64)]) -> Vec<(String, i64)> {
    of.iter()
        .map(|(holder, epoch)| ((*holder).to_owned(), *epoch))
        .collect()
}

#[test]
fn loser_of_a_lease_creation_race_leaves_no_shard_unheld() {
    let mut run = Run::created_at_once();
    run.evidence.lives[1].to = Some(micros(20.0));
    run.forget_renewals("b", 20.0);
    // Another holder was planned: the Lease's holder stays the same.
    run.on_top_of(9, 45.0, "a", "a", 1);
    assert_eq!(run.broken(), [""; 0]);
    assert_eq!(run.holders(), terms(&[("a", 1)]));
}

#[test]
fn next_write_reveals_which_creation_succeeded() {
    for winner in ["a", "b"] {
        let mut run = Run::created_at_once();
        run.without_tokens();
        run.on_top_of(9, 30.0, "fleet-leader", winner, 1);
        assert_eq!(run.holders(), terms(&[(winner, 1)]), "it goes on");

        let mut run = Run::created_at_once();
        run.without_tokens();
        run.on_top_of(9, 30.0, winner, "c", 2);
        assert_eq!(
            run.holders(),
            terms(&[(winner, 1), ("c", 2)]),
            "handed over"
        );

        let mut run = Run::created_at_once();
        run.without_tokens();
        run.evidence.lives[usize::from(winner == "b")].to = Some(micros(20.0));
        run.on_top_of(9, 26.0, "c", "c", 2);
        assert_eq!(run.holders(), terms(&[(winner, 1), ("c", 2)]), "it died");
    }
}

#[test]
fn tokens_and_final_state_reveal_which_creation_succeeded() {
    let mut run = Run::created_at_once();
    run.on_top_of(9, 30.0, "c", "c", 2);
    assert_eq!(
        run.holders(),
        terms(&[("a", 1), ("c", 2)]),
        "`a` has written"
    );
    for winner in ["a", "b"] {
        let mut run = Run::created_at_once();
        run.without_tokens();
        run.evidence.last.shards = vec![(SHARD.to_owned(), winner.to_owned(), 1)];
        assert_eq!(run.holders(), terms(&[(winner, 1)]));
    }
}

#[test]
fn at_most_one_of_two_updates_of_one_version_succeeded() {
    let known = |run: &Run| {
        let first = run.events.iter().find(|event| event.name == SHARD);
        let version = &first.unwrap().response.as_ref().unwrap()["metadata"]["resourceVersion"];
        version.as_str().unwrap().parse::<u64>().unwrap()
    };
    let mut run = Run::healthy();
    run.without_tokens();
    let basis = known(&run);
    run.unanswered(30.0, "b", "b", "b1", 2, Some(basis));
    run.unanswered(30.1, "c", "c", "c1", 2, Some(basis));
    run.on_top_of(basis + 1, 40.0, "b", "b", 2);
    assert_eq!(run.holders(), terms(&[("a", 1), ("b", 2)]));

    // A third one builds on the second: both were executed, and the third gets no response either.
    let mut run = Run::healthy();
    run.without_tokens();
    run.unanswered(30.0, "b", "b", "b1", 2, Some(basis));
    run.unanswered(31.0, "b", "c", "c1", 3, Some(basis + 1));
    run.on_top_of(basis + 2, 40.0, "c", "c", 3);
    assert_eq!(run.holders(), terms(&[("a", 1), ("b", 2), ("c", 3)]));

    // The next one builds on the known version: none was executed.
    let mut run = Run::healthy();
    run.without_tokens();
    run.unanswered(30.0, "b", "b", "b1", 2, Some(basis));
    run.on_top_of(basis, 40.0, "a", "a", 1);
    assert_eq!(run.holders(), terms(&[("a", 1)]));
}
