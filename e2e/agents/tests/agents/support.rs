//! What the tests share: privileges, one at a time, and the programs under test.

use std::path::Path;
use std::process::Command;
use std::sync::{PoisonError, RwLock};

use peerage_e2e::{Agent, Failed, Nats, Programs, World};
use peerage_netlab::{command_inside, explain, is_privileged};

/// Who measures has the machine alone; others share it.
static TURN: RwLock<()> = RwLock::new(());

/// Runs `test` with privileges over the network: here, or in this program once more within a user namespace.
pub fn inside(name: &str, test: impl FnOnce(&Programs) -> Result<(), Failed>) {
    let _turn = TURN.read().unwrap_or_else(PoisonError::into_inner);
    run(name, test);
}

/// As [`inside`], with no other test beside it.
pub fn alone(name: &str, test: impl FnOnce(&Programs) -> Result<(), Failed>) {
    let _turn = TURN.write().unwrap_or_else(PoisonError::into_inner);
    run(name, test);
}

fn run(name: &str, test: impl FnOnce(&Programs) -> Result<(), Failed>) {
    let programs = Programs::of_this_build(Path::new(env!("CARGO_BIN_EXE_peerage-e2e")));
    if is_privileged() {
        return test(&programs).unwrap_or_else(|failed| panic!("{failed}"));
    }
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.args([name, "--exact", "--nocapture"]);
    programs.pass_on(&mut command);
    let mut child = command_inside(command).spawn().map_err(explain).expect("user namespaces are permitted");
    assert!(child.wait().expect("a child").success(), "{name} failed inside its namespace");
}

/// Two agents behind home routers that trust each other.
pub fn acquainted(programs: &Programs) -> Result<(World, Agent, Agent), Failed> {
    let world = World::new(programs, Nats::home_routers(), 1)?;
    let (client, server) = world.acquainted()?;
    Ok((world, client, server))
}

/// Waits until the client's path is a direct one.
pub fn until_direct(client: &Agent) -> Result<(), Failed> {
    let direct = |status: &serde_json::Value| {
        status["peers"][0]["path"].as_str().is_some_and(|path| path == "direct" || path == "punched")
    };
    client.until_status("a direct path", direct).map(drop)
}
