//! What a program takes on its command line, as clap knows it.

use std::fmt::Write as _;

use clap::{Arg, Command};

/// A heading and a table for each subcommand that takes anything; what all of them take stands before.
#[must_use]
pub fn options(program: &str, mut command: Command) -> String {
    command.build();
    let mut page = table(command.get_arguments().filter(|arg| arg.is_global_set()), " every command takes ");
    for subcommand in command.get_subcommands().filter(|one| !one.is_hide_set() && one.get_name() != "help") {
        let own = subcommand.get_arguments().filter(|arg| !arg.is_global_set());
        let table = table(own, " ");
        if !table.is_empty() {
            put(&mut page, format_args!("\n### `{program} {}`\n\n{table}", subcommand.get_name()));
        }
    }
    page
}

/// One table, of a program or a subcommand by itself.
#[must_use]
pub fn options_of(mut command: Command) -> String {
    command.build();
    table(command.get_arguments().filter(|arg| !arg.is_global_set()), " ")
}

fn table<'a>(arguments: impl Iterator<Item = &'a Arg>, head: &str) -> String {
    let shown = |arg: &&Arg| !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version");
    let rows: String = arguments.filter(shown).map(row).collect();
    match rows.is_empty() {
        true => rows,
        false => format!("|{head}| |\n|---|---|\n{rows}"),
    }
}

fn row(arg: &Arg) -> String {
    let about = arg.get_long_help().or_else(|| arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let mut about = about.split_whitespace().collect::<Vec<_>>().join(" ");
    let words: Vec<_> = arg.get_possible_values().iter().filter(|word| !word.is_hide_set()).map(value).collect();
    if !words.is_empty() && arg.get_action().takes_values() {
        put(&mut about, format_args!(": {}", words.join(", ")));
    }
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if !defaults.is_empty() && arg.get_action().takes_values() {
        put(&mut about, format_args!("; `{}` unless said", defaults.join(" ")));
    }
    if let Some(variable) = arg.get_env() {
        put(&mut about, format_args!(" (`{}`)", variable.to_string_lossy()));
    }
    format!("| {} | {} |\n", name(arg), about.replace('|', "\\|"))
}

/// A word that an option takes, with what it means.
fn value(word: &clap::builder::PossibleValue) -> String {
    match word.get_help() {
        Some(about) => format!("`{}` ({about})", word.get_name()),
        None => format!("`{}`", word.get_name()),
    }
}

/// As it is typed: `-c`, `--count N`.
fn name(arg: &Arg) -> String {
    let values = arg.get_value_names().unwrap_or_default().join(" ");
    let optional = arg.get_num_args().is_some_and(|count| count.min_values() == 0);
    let values = match (arg.get_action().takes_values(), optional, arg.is_require_equals_set()) {
        (false, ..) => String::new(),
        (true, true, _) => format!("[={values}]"),
        (true, false, true) => format!("={values}"),
        (true, false, false) => format!(" {values}"),
    };
    let short = arg.get_short().map(|short| format!("`-{short}`, ")).unwrap_or_default();
    let typed = match arg.get_long() {
        Some(long) => format!("{short}`--{long}{values}`"),
        None if arg.is_positional() => format!("`{}`", values.trim()),
        None => short.trim_end_matches(", ").to_owned(),
    };
    typed.replace('|', "\\|")
}

fn put(page: &mut String, text: std::fmt::Arguments<'_>) {
    page.write_fmt(text).expect("a String takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_shown_as_it_is_typed_with_default_and_variable() {
        let count = Arg::new("count").long("count").short('c').value_name("N").default_value("4").help("How\noften");
        let wait = Arg::new("wait").long("wait").value_name("TIME").num_args(0..=1).env("WAIT").help("Waits");
        let name = Arg::new("name").value_name("A|B").required(true).help("Whom");
        let hidden = Arg::new("hidden").long("hidden").hide(true);
        let said = options_of(Command::new("x").args([count, wait, name, hidden]));
        let wanted = "| | |\n|---|---|\n| `-c`, `--count N` | How often; `4` unless said |\n\
                      | `--wait[=TIME]` | Waits (`WAIT`) |\n| `A\\|B` | Whom |\n";
        assert_eq!(said, wanted);
    }

    #[test]
    fn what_every_command_takes_stands_once() {
        let json = Arg::new("json").long("json").global(true).action(clap::ArgAction::SetTrue).help("As JSON");
        let up = Command::new("up").arg(Arg::new("name").long("name").value_name("NAME").help("Its name"));
        let said = options("x", Command::new("x").arg(json).subcommands([up, Command::new("down")]));
        assert_eq!(said.matches("--json").count(), 1);
        assert!(said.contains("### `x up`") && !said.contains("down"), "{said}");
    }
}
