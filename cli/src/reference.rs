//! The pages that say what can be typed and what is answered, held to it.

use clap::CommandFactory;
use peerage_agent::control::view::Event;
use peerage_agent::control::{Code, Request};
use peerage_docs::{Page, options, options_of, words_of};
use serde_json::{from_str, from_value, json};

use crate::args::Cli;

const PAGE: &str = "docs/reference/cli.md";

#[test]
fn the_reference_has_every_option() {
    let command = Cli::command().mut_subcommand("relay", |relay| relay.hide(true));
    Page::at(PAGE).holds("options", &options("peerage", command));
}

#[test]
fn the_reference_has_every_option_of_a_relay() {
    let relay = Cli::command().find_subcommand("relay").expect("there is such a command").clone();
    Page::at("docs/reference/relay.md").holds("options", &options_of(relay));
}

#[test]
fn the_reference_says_what_each_command_does() {
    let command = Cli::command();
    Page::at(PAGE).has_rows("Commands", command.get_subcommands().map(clap::Command::get_name));
}

#[test]
fn the_reference_has_every_code() {
    let codes = words_of(&from_str::<Code>("\"?\"").expect_err("no such code"));
    // The one that is answered before an agent is asked.
    Page::at(PAGE).has_rows("Codes", codes.into_iter().chain(["usage".to_owned()]));
}

#[test]
fn the_reference_has_every_event() {
    let events = words_of(&from_value::<Event>(json!({"event": "?"})).expect_err("no such event"));
    // The one that `up` says itself.
    Page::at(PAGE).has_rows("Events", events.into_iter().chain(["started".to_owned()]));
}

#[test]
fn the_reference_has_every_request_of_the_control_socket() {
    let requests = words_of(&from_value::<Request>(json!({"request": "?"})).expect_err("no such request"));
    Page::at(PAGE).names("The control socket", requests);
}
