//! Lives and faults of the replicas, and the checker's verdict on the audit log.

use chaos::checker::{History, Verdict, check_protocol};
use chaos::evidence::{Evidence, Injected, Life, Micros, now_micros};
use chaos::scenario::Scenario;
use testbed::{ControlPlane, Fleet, table};

use crate::DERIVE;

/// Rules that must have been checked.
const RULES: [&str; 9] = [
    "one-writer",
    "no-older-after-newer",
    "token-in-force",
    "lease-before-entry",
    "table-moves-forward",
    "leases-compared",
    "epochs-rise",
    "right-had-not-lapsed",
    "held",
];

#[derive(Default)]
pub(crate) struct Record {
    begun: Micros,
    lives: Vec<Life>,
    faults: Vec<Injected>,
    evidence: Option<Evidence>,
}

impl Record {
    pub(crate) fn begin(&mut self) {
        self.begun = now_micros();
    }

    /// `from`: a moment before the process existed.
    pub(crate) fn started(&mut self, pod: &str, from: Micros) {
        self.lives.push(Life {
            pod: pod.to_owned(),
            from,
            to: None,
            absent: Vec::new(),
        });
    }

    fn life(&mut self, pod: &str) -> &mut Life {
        let mut lives = self.lives.iter_mut().rev();
        lives.find(|life| life.pod == pod).unwrap()
    }

    pub(crate) fn ended(&mut self, pod: &str) {
        self.life(pod).to = Some(now_micros());
    }

    /// A fault that takes these replicas out; its number.
    pub(crate) fn takes_out(&mut self, pods: &[&str]) -> usize {
        let now = now_micros();
        self.faults.push(Injected {
            kind: "kill".to_owned(),
            what: format!("a kill and a freeze of {}", pods.join(" and ")),
            pods: pods.iter().map(|pod| (*pod).to_owned()).collect(),
            from: now,
            to: now,
            recover_from: Some(now),
            takes_out: true,
            bites: 1,
            ..Injected::default()
        });
        self.faults.len() - 1
    }

    pub(crate) fn continued(&mut self, pod: &str, fault: usize) {
        let (from, now) = (self.faults[fault].from, now_micros());
        self.faults[fault].to = now;
        self.life(pod).absent.push((from, now));
    }

    /// A time in which shards move as planned; its number.
    pub(crate) fn moves(&mut self, what: &str) -> usize {
        let now = now_micros();
        self.faults.push(Injected {
            kind: "scale".to_owned(),
            what: what.to_owned(),
            from: now,
            to: now,
            bites: 1,
            ..Injected::default()
        });
        self.faults.len() - 1
    }

    pub(crate) fn moved(&mut self, fault: usize) {
        let now = now_micros();
        self.faults[fault].to = now;
        self.faults[fault].recover_from = Some(now);
    }

    /// Records the final state.
    pub(crate) async fn end(&mut self, fleet: &Fleet<'_>) {
        let about = "about = \"the library's example\"\nsets = [\"full\"]\n";
        let now = now_micros();
        let mut evidence = Evidence {
            scenario: Scenario::parse("library", about).unwrap(),
            begun: self.begun,
            load_ended: now,
            converged: Some(now),
            quiet: None,
            lives: std::mem::take(&mut self.lives),
            faults: std::mem::take(&mut self.faults),
            asked: chaos::evidence::Asked::default(),
            last: chaos::evidence::LastState::default(),
            samples: Vec::new(),
            problem: None,
        };
        let client = fleet.control_plane().client();
        evidence.last.table = table::get_of(&client, &DERIVE).await.unwrap();
        self.evidence = Some(evidence);
    }

    /// Checks the audit log: every rule is kept, and the operator uses no right that its manifest lacks.
    pub(crate) fn check(&self, control_plane: &ControlPlane) {
        let log = control_plane.audit_log().unwrap();
        let history = History::from_log_of(&log, DERIVE).unwrap();
        let verdicts = check_protocol(self.evidence.as_ref().unwrap(), &history);
        let text = |verdict: &Verdict| {
            let Verdict {
                rule,
                kept,
                summary,
                details,
            } = verdict;
            format!("{rule}: kept {kept}, {summary} {details:?}")
        };
        let lines: Vec<String> = verdicts.iter().map(text).collect();
        println!("{}", lines.join("\n"));
        assert!(verdicts.iter().all(|verdict| verdict.kept), "{lines:#?}");
        for rule in RULES {
            assert!(
                verdicts.iter().any(|verdict| verdict.rule == rule),
                "{rule}"
            );
        }
        let events = control_plane.audit().unwrap();
        let own = events.iter().filter(|event| DERIVE.is_user(&event.user));
        let (forbidden, rest): (Vec<_>, Vec<_>) = own.partition(|event| event.refused_by_rbac);
        assert!(forbidden.is_empty(), "{:#?}", forbidden.first());
        let written = |event: &&&testbed::audit::AuditEvent| {
            event.resource == "configmaps" && event.is_accepted_write()
        };
        let written = rest.iter().filter(written).count();
        assert!(written > 100, "only {written} writes were checked");
    }
}
