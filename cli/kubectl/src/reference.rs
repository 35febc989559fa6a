//! The page that says what can be typed and what is answered, held to it.

use clap::CommandFactory;
use peerage_docs::{Page, options, words_of};

use crate::args::Cli;
use crate::failure::Code;

const PAGE: &str = "docs/reference/kubectl.md";

#[test]
fn the_reference_has_every_option() {
    Page::at(PAGE).holds("options", &options("kubectl peerage", Cli::command()));
}

#[test]
fn the_reference_says_what_each_command_does() {
    let command = Cli::command();
    Page::at(PAGE).has_rows("Commands", command.get_subcommands().map(clap::Command::get_name));
}

#[test]
fn the_reference_has_every_code() {
    Page::at(PAGE).has_rows("Codes", words_of(&serde_json::from_str::<Code>("\"?\"").expect_err("no such code")));
}
