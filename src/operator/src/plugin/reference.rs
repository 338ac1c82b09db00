//! The reference of the plugin's command line, generated from its definition.

use clap::{Arg, Command, CommandFactory as _};

use super::args::Cli;

/// Commands and flags as Markdown. A test compares docs/reference/kubectl-plugin.md with it.
#[must_use]
pub fn reference() -> String {
    let mut command = Cli::command();
    command.build();
    let mut text = String::from("\n### Flags of every command\n\n");
    table(
        command.get_arguments().filter(|arg| arg.is_global_set()),
        &mut text,
    );
    for sub in command
        .get_subcommands()
        .filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
    {
        text.push_str(&format!("\n### `kubectl dbc {}`\n\n", usage(sub)));
        let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
        text.push_str(&format!("{about}\n"));
        let own: Vec<&Arg> = sub
            .get_arguments()
            .filter(|arg| !arg.is_global_set() && !is_of_clap(arg))
            .collect();
        if !own.is_empty() {
            text.push('\n');
            table(own.into_iter(), &mut text);
        }
    }
    text.push('\n');
    text
}

fn is_of_clap(arg: &Arg) -> bool {
    matches!(arg.get_id().as_str(), "help" | "version")
}

/// Name and positional arguments of a command.
fn usage(command: &Command) -> String {
    let mut text = command.get_name().to_owned();
    for arg in command.get_positionals() {
        let name = placeholder(arg);
        let is_many = arg
            .get_num_args()
            .is_some_and(|number| number.max_values() > 1);
        let name = if is_many { format!("{name}...") } else { name };
        let name = if arg.is_last_set() {
            format!("-- {name}")
        } else {
            name
        };
        text.push_str(&match arg.is_required_set() {
            true => format!(" {name}"),
            false => format!(" [{name}]"),
        });
    }
    text
}

fn placeholder(arg: &Arg) -> String {
    let names = arg.get_value_names().and_then(|names| names.first());
    names.map(ToString::to_string).unwrap_or_default()
}

fn table<'a>(args: impl Iterator<Item = &'a Arg>, text: &mut String) {
    text.push_str("| argument | default | meaning |\n| --- | --- | --- |\n");
    for arg in args.filter(|arg| !is_of_clap(arg)) {
        let name = match (arg.get_long(), arg.get_short()) {
            (Some(long), Some(short)) => format!("`--{long}`, `-{short}`"),
            (Some(long), None) => format!("`--{long}`"),
            (None, _) => format!("`{}`", placeholder(arg)),
        };
        let takes_value = arg.get_action().takes_values();
        let defaults = arg.get_default_values().iter().filter(|_| takes_value);
        let defaults: Vec<String> = defaults
            .map(|value| format!("`{}`", value.to_string_lossy()))
            .collect();
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let values: Vec<String> = arg
            .get_possible_values()
            .iter()
            .filter(|_| takes_value)
            .map(|value| format!("`{}`", value.get_name()))
            .collect();
        let mut help = help.replace('|', "\\|");
        if !values.is_empty() {
            help.push_str(&format!("; one of {}", values.join(", ")));
        }
        if let Some(variable) = arg.get_env() {
            help.push_str(&format!("; also `{}`", variable.to_string_lossy()));
        }
        text.push_str(&format!("| {name} | {} | {help} |\n", defaults.join(", ")));
    }
}
