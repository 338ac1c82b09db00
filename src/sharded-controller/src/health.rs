//! Liveness and readiness of this replica, check by check, with reasons.

use std::fmt::{Display, Write as _};

use parking_lot::Mutex;
use serde::Serialize;

use crate::text::safe;

/// Name of the check that fails while the API server does not serve one of the operator's kinds.
pub const KIND_CHECK: &str = "crd";

const REASON_CHARS_MAX: usize = 300;

/// One check of a replica.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CheckView {
    /// Its name.
    pub name: &'static str,
    /// Whether readiness depends on it.
    pub gate: bool,
    /// Why it failed; none: it passed.
    pub problem: Option<String>,
}

#[derive(Clone, Debug)]
struct Check {
    name: &'static str,
    gate: bool,
    /// The problem; none: the check is ok.
    problem: Option<String>,
}

/// The named checks of this process. Names are constants of the program, so their number is bounded.
#[derive(Debug, Default)]
pub struct Health {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    checks: Vec<Check>,
    beyond_recovery: Option<String>,
}

/// The answer to one probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the probe passes.
    pub ok: bool,
    /// The result as text, line by line.
    pub text: String,
}

impl Health {
    /// A health that is not ready before each of `gates` was set.
    #[must_use]
    pub fn new(gates: &[&'static str]) -> Self {
        let health = Self::default();
        for gate in gates {
            health.set(gate, Err("not checked yet"));
        }
        health
    }

    /// Sets a check that readiness depends on.
    pub fn set<E: Display>(&self, name: &'static str, result: Result<(), E>) {
        self.record(name, true, result.err().map(|problem| problem.to_string()));
    }

    /// Marks a check that readiness depends on as ok.
    pub fn ok(&self, name: &'static str) {
        self.record(name, true, None);
    }

    /// Sets an informational check, which does not affect readiness.
    pub(crate) fn inform<E: Display>(&self, name: &'static str, result: Result<(), E>) {
        self.record(name, false, result.err().map(|problem| problem.to_string()));
    }

    /// Reports that this process cannot recover by itself and must be restarted. This is final.
    pub(crate) fn give_up(&self, reason: impl Display) {
        let reason = safe(&reason.to_string(), REASON_CHARS_MAX);
        let mut state = self.state.lock();
        state.beyond_recovery.get_or_insert(reason);
    }

    /// Liveness: whether to restart this process. External failures do not count: a restart does not
    /// repair an API server.
    #[must_use]
    pub fn livez(&self) -> Verdict {
        let state = self.state.lock();
        match &state.beyond_recovery {
            None => Verdict {
                ok: true,
                text: "[+] alive ok\nlivez check passed\n".to_owned(),
            },
            Some(reason) => Verdict {
                ok: false,
                text: format!("[-] alive: {reason}\nlivez check failed\n"),
            },
        }
    }

    /// Readiness: whether this replica does its work, and why not.
    #[must_use]
    pub fn readyz(&self) -> Verdict {
        let state = self.state.lock();
        let mut text = String::new();
        let mut ok = true;
        if let Some(reason) = &state.beyond_recovery {
            ok = false;
            text.push_str("[-] alive: ");
            text.push_str(reason);
            text.push('\n');
        }
        for check in &state.checks {
            let mark = match (&check.problem, check.gate) {
                (None, _) => '+',
                (Some(_), true) => '-',
                (Some(_), false) => ' ',
            };
            ok &= mark != '-';
            // Writing into a String cannot fail.
            let _ = match &check.problem {
                None => writeln!(text, "[{mark}] {} ok", check.name),
                Some(problem) => writeln!(text, "[{mark}] {}: {problem}", check.name),
            };
        }
        text.push_str(if ok {
            "readyz check passed\n"
        } else {
            "readyz check failed\n"
        });
        Verdict { ok, text }
    }

    /// Each check, for the fleet page.
    #[must_use]
    pub fn checks(&self) -> Vec<CheckView> {
        let state = self.state.lock();
        let alive = state.beyond_recovery.clone().map(|problem| CheckView {
            name: "alive",
            gate: true,
            problem: Some(problem),
        });
        let checks = state.checks.iter().map(|check| CheckView {
            name: check.name,
            gate: check.gate,
            problem: check.problem.clone(),
        });
        alive.into_iter().chain(checks).collect()
    }

    fn record(&self, name: &'static str, gate: bool, problem: Option<String>) {
        let problem = problem.map(|problem| safe(&problem, REASON_CHARS_MAX));
        let mut state = self.state.lock();
        let check = Check {
            name,
            gate,
            problem,
        };
        match state.checks.iter_mut().find(|known| known.name == name) {
            Some(known) => *known = check,
            None => state.checks.push(check),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_ready_before_every_check_has_reported() {
        let health = Health::new(&["heartbeat", "api-server"]);
        assert_eq!(
            health.readyz(),
            Verdict {
                ok: false,
                text: "[-] heartbeat: not checked yet\n[-] api-server: not checked yet\n\
                       readyz check failed\n"
                    .into()
            }
        );
        health.ok("heartbeat");
        assert!(!health.readyz().ok);
        health.ok("api-server");
        assert_eq!(
            health.readyz(),
            Verdict {
                ok: true,
                text: "[+] heartbeat ok\n[+] api-server ok\nreadyz check passed\n".into()
            }
        );
    }

    #[test]
    fn failed_check_reports_its_reason_on_one_line() {
        let health = Health::new(&[]);
        health.ok("heartbeat");
        health.set("api-server", Err("connection\nrefused"));
        health.inform("fence", Err("not installed"));
        assert_eq!(
            health.readyz(),
            Verdict {
                ok: false,
                text: "[+] heartbeat ok\n[-] api-server: connection?refused\n\
                       [ ] fence: not installed\nreadyz check failed\n"
                    .into()
            }
        );
        health.ok("api-server");
        assert!(health.readyz().ok, "information alone fails nothing");
    }

    #[test]
    fn only_a_fatal_error_fails_liveness() {
        let health = Health::new(&["api-server"]);
        health.set("api-server", Err("away"));
        assert!(health.livez().ok);
        health.give_up("the queue task ended");
        health.give_up("a later reason");
        assert_eq!(
            health.livez().text,
            "[-] alive: the queue task ended\nlivez check failed\n"
        );
        assert!(!health.readyz().ok);
        let checks = health.checks();
        assert_eq!((checks[0].name, checks[1].name), ("alive", "api-server"));
        assert!(checks.iter().all(|check| check.problem.is_some()));
    }
}
