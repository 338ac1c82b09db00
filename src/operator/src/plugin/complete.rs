//! Completion for kubectl: the candidates for the last word, in the form of cobra's `__complete`, which kubectl reads.

use std::time::Duration;

use clap::{Arg, ArgAction, Command};
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::ListParams;
use kube::config::Kubeconfig;

use super::access::Session;
use super::args::Access;
use super::clusters;
use super::fleet;

/// No file names, and candidates in the order in which they are printed.
const DIRECTIVE: &str = ":36";
/// A shell waits for this.
const AT_MOST: Duration = Duration::from_secs(3);
const CANDIDATES_MAX: usize = 200;

/// What the last word may be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    /// One of these, each with its description.
    These(Vec<(String, String)>),
    Clusters,
    Replicas,
    Shards,
    Namespaces,
    Contexts,
    Nothing,
}

/// The candidates for the last of these words, one a line, and the directive.
pub(crate) async fn complete(command: &Command, words: &[String], access: &Access) -> String {
    let (wanted, current, access) = wanted(command, words, access);
    let found = tokio::time::timeout(AT_MOST, candidates(wanted, &access)).await;
    let mut text = String::new();
    let fitting = found.unwrap_or_default().into_iter();
    for (name, about) in fitting
        .filter(|(name, _)| name.starts_with(&current))
        .take(CANDIDATES_MAX)
    {
        text.push_str(&match about.is_empty() {
            true => format!("{name}\n"),
            false => format!("{name}\t{about}\n"),
        });
    }
    text.push_str(DIRECTIVE);
    text.push('\n');
    text
}

/// What is wanted for the last word, that word, and the access flags among the others.
fn wanted(command: &Command, words: &[String], access: &Access) -> (Wanted, String, Access) {
    let (current, before) = words
        .split_last()
        .map_or(("", &[][..]), |(last, before)| (last.as_str(), before));
    let mut access = access.clone();
    let mut chosen = command;
    let mut positionals = 0;
    let mut awaits: Option<&Arg> = None;
    for word in before {
        if let Some(flag) = awaits.take() {
            remember(&mut access, flag, word);
        } else if word == "--" {
            return (Wanted::Nothing, current.to_owned(), access);
        } else if word.starts_with('-') {
            let (name, value) = word
                .split_once('=')
                .map_or((word.as_str(), None), |(name, value)| (name, Some(value)));
            let found = flag(command, chosen, name).filter(|flag| takes_value(flag));
            match (found, value) {
                (Some(flag), Some(value)) => remember(&mut access, flag, value),
                (found, _) => awaits = found,
            }
        } else if std::ptr::eq(chosen, command) {
            match command.find_subcommand(word) {
                Some(found) => chosen = found,
                None => return (Wanted::Nothing, current.to_owned(), access),
            }
        } else {
            positionals += 1;
        }
    }
    let wanted = match awaits {
        Some(flag) => values(flag),
        None if current.starts_with('-') => flags(command, chosen),
        None if std::ptr::eq(chosen, command) => subcommands(command),
        None => positional(chosen.get_name(), positionals),
    };
    (wanted, current.to_owned(), access)
}

fn remember(access: &mut Access, flag: &Arg, value: &str) {
    let value = value.to_owned();
    match flag.get_id().as_str() {
        "namespace" => access.namespace = Some(value),
        "operator_namespace" => access.operator_namespace = value,
        "context" => access.context = Some(value),
        "kubeconfig" => access.kubeconfig = Some(value.into()),
        "cluster" => access.cluster = Some(value),
        "user" => access.user = Some(value),
        _ => {}
    }
}

fn all_flags<'a>(root: &'a Command, chosen: &'a Command) -> impl Iterator<Item = &'a Arg> {
    let globals = root.get_arguments().filter(|arg| arg.is_global_set());
    let own = chosen
        .get_arguments()
        .filter(|arg| !arg.is_global_set() && !arg.is_positional());
    own.chain(globals)
}

fn flag<'a>(root: &'a Command, chosen: &'a Command, name: &str) -> Option<&'a Arg> {
    all_flags(root, chosen).find(|arg| match name.strip_prefix("--") {
        Some(long) => arg.get_long() == Some(long),
        None => arg.get_short() == name.chars().nth(1),
    })
}

fn takes_value(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
}

fn flags(root: &Command, chosen: &Command) -> Wanted {
    let named = all_flags(root, chosen).filter_map(|arg| {
        let about = arg.get_help().map(ToString::to_string);
        Some((format!("--{}", arg.get_long()?), about.unwrap_or_default()))
    });
    Wanted::These(named.collect())
}

fn subcommands(root: &Command) -> Wanted {
    let shown = root
        .get_subcommands()
        .filter(|command| !command.is_hide_set());
    let named = shown.map(|command| {
        let about = command.get_about().map(ToString::to_string);
        (command.get_name().to_owned(), about.unwrap_or_default())
    });
    Wanted::These(named.collect())
}

fn values(flag: &Arg) -> Wanted {
    match flag.get_id().as_str() {
        "namespace" | "operator_namespace" => Wanted::Namespaces,
        "context" => Wanted::Contexts,
        _ => {
            let values = flag.get_possible_values().into_iter();
            Wanted::These(
                values
                    .map(|value| (value.get_name().to_owned(), String::new()))
                    .collect(),
            )
        }
    }
}

fn positional(command: &str, number: usize) -> Wanted {
    match (command, number) {
        ("status" | "explain" | "report", _) => Wanted::Clusters,
        ("logs" | "psql" | "pause" | "resume" | "restart", 0) => Wanted::Clusters,
        ("drain", 0) | ("move", 1) => Wanted::Replicas,
        ("move", 0) => Wanted::Shards,
        _ => Wanted::Nothing,
    }
}

/// The candidates, as far as the API server answers: completion reports no errors.
async fn candidates(wanted: Wanted, access: &Access) -> Vec<(String, String)> {
    let is_about_fleet = matches!(wanted, Wanted::Replicas | Wanted::Shards);
    match wanted {
        Wanted::These(these) => return these,
        Wanted::Nothing => return Vec::new(),
        Wanted::Contexts => return contexts(access),
        Wanted::Clusters | Wanted::Replicas | Wanted::Shards | Wanted::Namespaces => {}
    }
    let Ok(session) = Session::open(access, is_about_fleet).await else {
        return Vec::new();
    };
    let plain = |name: String| (name, String::new());
    let some = ListParams::default().limit(500);
    let client = session.client.clone();
    match wanted {
        Wanted::Clusters => {
            let found = clusters::api(client, &session.namespace)
                .list_metadata(&some)
                .await;
            let found = found.map(|list| list.items).unwrap_or_default();
            found
                .into_iter()
                .filter_map(|object| object.metadata.name)
                .map(plain)
                .collect()
        }
        Wanted::Namespaces => {
            let found = Api::<Namespace>::all(client).list_metadata(&some).await;
            let found = found.map(|list| list.items).unwrap_or_default();
            found
                .into_iter()
                .filter_map(|object| object.metadata.name)
                .map(plain)
                .collect()
        }
        Wanted::Replicas | Wanted::Shards => {
            let found = fleet::read(client, &session.operator_namespace, "-n").await;
            let view = found.unwrap_or_default();
            match wanted {
                Wanted::Replicas => view
                    .members
                    .into_iter()
                    .map(|m| (m.identity, format!("{} shards", m.held)))
                    .collect(),
                _ => {
                    let held = |shard: crate::telemetry::fleet_view::ShardView| {
                        Some((shard.shard?.to_string(), shard.holder.unwrap_or_default()))
                    };
                    view.shards.into_iter().filter_map(held).collect()
                }
            }
        }
        Wanted::These(_) | Wanted::Contexts | Wanted::Nothing => Vec::new(),
    }
}

fn contexts(access: &Access) -> Vec<(String, String)> {
    let read = match &access.kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let contexts = read
        .map(|kubeconfig| kubeconfig.contexts)
        .unwrap_or_default();
    contexts
        .into_iter()
        .map(|context| (context.name, String::new()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::args::Cli;
    use super::*;
    use clap::CommandFactory as _;

    fn wanted_for(words: &[&str]) -> (Wanted, Access) {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let command = Cli::command();
        let (wanted, _, access) = wanted(&command, &words, &Access::default());
        (wanted, access)
    }

    fn names(words: &[&str]) -> Vec<String> {
        match wanted_for(words).0 {
            Wanted::These(these) => these.into_iter().map(|(name, _)| name).collect(),
            other => vec![format!("{other:?}")],
        }
    }

    #[test]
    fn commands_flags_and_values_come_from_the_command_line_itself() {
        let commands = names(&["st"]);
        assert!(commands.contains(&"status".to_owned()), "{commands:?}");
        assert!(!commands.contains(&"__complete".to_owned()), "it is hidden");
        let flags = names(&["status", "--"]);
        for flag in ["--watch", "--all-namespaces", "--namespace", "--context"] {
            assert!(flags.contains(&flag.to_owned()), "{flag}: {flags:?}");
        }
        assert_eq!(
            names(&["status", "-o", ""]),
            ["wide", "json", "yaml", "name"]
        );
    }

    #[test]
    fn names_are_of_the_kind_that_the_command_takes() {
        for (words, wanted) in [
            (&["status", ""][..], Wanted::Clusters),
            (&["status", "a", "b"], Wanted::Clusters),
            (&["logs", "a", ""], Wanted::Nothing),
            (&["drain", ""], Wanted::Replicas),
            (&["move", ""], Wanted::Shards),
            (&["move", "7", ""], Wanted::Replicas),
            (&["status", "-n", ""], Wanted::Namespaces),
            (&["status", "--context", ""], Wanted::Contexts),
            (&["psql", "a", "--", "-c", ""], Wanted::Nothing),
        ] {
            assert_eq!(wanted_for(words).0, wanted, "{words:?}");
        }
    }

    #[test]
    fn namespace_and_context_of_the_line_are_used() {
        let (wanted, access) = wanted_for(&["status", "-n", "shop", "--context=test", ""]);
        assert_eq!(wanted, Wanted::Clusters);
        assert_eq!(access.namespace.as_deref(), Some("shop"));
        assert_eq!(access.context.as_deref(), Some("test"));
    }
}
