//! Compares what the operator may do (deploy/base/rbac.yaml) with what it did in the tests (their audit logs), both
//! ways: nothing granted that was never used, nothing used that is not granted. `make rights` runs the tests and then
//! this.

mod rules;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use testbed::audit::{self, AuditEvent};
use testbed::fleet::{OPERATOR_NAMESPACE, OPERATOR_USER};

use rules::{Right, Scope, granted};

/// Requests of the tests themselves under the operator's account carry another name.
const PROGRAM: &str = "databasecluster-operator/";

/// Rights that no audit log can show, and why they are granted.
const INVISIBLE: [(&str, &str); 3] = [
    (
        "update database.io/databaseclusters/finalizers",
        "asked for by OwnerReferencesPermissionEnforcement where a child blocks its owner's \
         deletion; tests/deploy/namespaced.rs runs with it",
    ),
    ("patch core/pods", HANGING),
    ("delete core/pods", HANGING),
];
const HANGING: &str = "for a Pod that hangs on a former template, which older StatefulSet \
    controllers wait for; the one of these tests replaces it by itself";

/// Rights that users grant where they choose to, and for which the operator asks in vain otherwise.
const GRANTED_BY_USERS: [(&str, &str); 1] = [(
    "get core/secrets",
    "for the Secret of spec.tls, one by one: docs/how-to/tls.md; tests/operator/tls.rs runs with and without it",
)];

/// Compares rights with audit logs.
#[derive(Parser)]
struct Arguments {
    /// The folder with the audit logs, one file for each control plane.
    logs: PathBuf,
    /// The rights.
    #[arg(long, default_value = "deploy/base/rbac.yaml")]
    rbac: PathBuf,
}

fn main() -> ExitCode {
    match compare(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("rights: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn compare(arguments: &Arguments) -> Result<bool> {
    let text =
        std::fs::read_to_string(&arguments.rbac).context(arguments.rbac.display().to_string())?;
    let granted = granted(&text)?;
    let (used, logs, requests) = used(arguments)?;
    if used.is_empty() {
        bail!(
            "no request of the operator in {logs} audit logs below {}",
            arguments.logs.display()
        );
    }
    println!(
        "{requests} requests of the operator in {logs} audit logs; {} rights",
        granted.len()
    );
    let mut good = true;
    for right in &granted {
        let invisible = INVISIBLE.iter().find(|(name, _)| *name == right.name());
        match (used.iter().any(|used| right.covers(used)), invisible) {
            (false, Some((name, why))) => println!("not to be seen: {name}: {why}"),
            (false, None) => {
                good = false;
                println!("granted and never used: {right}");
            }
            (true, _) => {}
        }
    }
    for used in &used {
        let by_users = GRANTED_BY_USERS
            .iter()
            .find(|(name, _)| *name == used.name());
        if granted.iter().any(|right| right.covers(used)) {
            continue;
        }
        match by_users {
            Some((name, why)) => println!("granted by users: {name}: {why}"),
            None => {
                good = false;
                println!("used and not granted: {used}");
            }
        }
    }
    if good {
        println!("what is granted is what is used");
    }
    Ok(good)
}

/// What the operator requested, allowed or not; the number of logs and requests.
fn used(arguments: &Arguments) -> Result<(BTreeSet<Right>, usize, usize)> {
    let (mut used, mut logs, mut requests) = (BTreeSet::new(), 0, 0);
    let folder = &arguments.logs;
    for entry in std::fs::read_dir(folder).context(folder.display().to_string())? {
        logs += 1;
        audit::for_each(&entry?.path(), |event| {
            if event.user != OPERATOR_USER
                || !event.user_agent.starts_with(PROGRAM)
                || event.resource.is_empty()
            {
                return;
            }
            requests += 1;
            used.extend(rights_of(&event));
        })?;
    }
    Ok((used, logs, requests))
}

/// A server-side apply of a missing object needs the right to create it too.
fn rights_of(event: &AuditEvent) -> Vec<Right> {
    let scope = if event.namespace == OPERATOR_NAMESPACE {
        Scope::Own
    } else {
        Scope::Elsewhere
    };
    let right = |verb: &str| Right {
        scope,
        group: event.group.clone(),
        resource: event.full_resource(),
        verb: verb.to_owned(),
    };
    let mut rights = vec![right(&event.verb)];
    if event.verb == "patch" && event.code == 201 {
        rights.push(right("create"));
    }
    rights
}
