//! What pages say, typed as they say it.
//!
//! A block of commands begins with the machine that it is typed on, `# on db`. What an earlier command printed stands for its
//! placeholder, and the laboratory's addresses for a name in public DNS; everything else is the page's own words.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use peerage_e2e::{Failed, Machine, Nats, Programs, Running, Trying, World, until};
use serde_json::Value;

use crate::support::inside;

/// The machines of a page, and what its commands have printed.
struct Reader<'a> {
    machines: BTreeMap<&'static str, &'a Machine>,
    said: Vec<(&'static str, String)>,
    running: Vec<Running>,
    /// What each command printed that was started by `peerage run`, in their order.
    answers: Vec<String>,
}

#[test]
fn the_quickstart_works_as_it_is_printed() {
    inside("pages::the_quickstart_works_as_it_is_printed", |programs| {
        let world = World::new(programs, Nats::home_routers(), 1)?;
        let mut reader =
            Reader::of(&[("the relay", world.relay_machine()), ("db", &world.server), ("planner", &world.client)]);
        let (_, place) = world.relay().split_once('@').expect("it is KEY@HOST:PORT");
        reader.say("relay.example.com", place.split(':').next().expect("it has a host"));
        reader.read("docs/quickstart.md", "Two machines in five minutes")?;
        // Once by ticket, and once by name.
        assert_eq!(reader.answers, ["hello\n", "hello\n"]);
        Ok(())
    });
}

#[test]
fn a_pipeline_over_three_places_works_as_it_is_printed() {
    inside("pages::a_pipeline_over_three_places_works_as_it_is_printed", |programs| {
        let (world, answers) = recipe(programs, "A pipeline over three places")?;
        assert_eq!(answers, ["reporter has it\n"]);
        let report = fs::read_to_string(world.server.home().join("report.txt")).trying("read the report")?;
        assert_eq!(report, "lines 3, words 9, longest word `hostname`\n");
        Ok(())
    });
}

#[test]
fn plain_sockets_work_as_they_are_printed() {
    inside("pages::plain_sockets_work_as_they_are_printed", |programs| {
        let (_world, answers) = recipe(programs, "Plain sockets")?;
        assert_eq!(answers, ["HELLO\n"]);
        Ok(())
    });
}

/// Types what is below a heading of the recipes, where the machines are called what they are there.
fn recipe(programs: &Programs, heading: &str) -> Result<(World, Vec<String>), Failed> {
    let world = World::new(programs, Nats::home_routers(), 1)?;
    let relay = world.relay().to_owned();
    let mut reader = Reader::of(&[
        ("scraper", &world.client),
        ("analyzer", world.relay_machine()),
        ("reporter", &world.server),
        ("caller", &world.client),
        ("upper", &world.server),
    ]);
    reader.say("RELAY", &relay);
    reader.read("docs/recipes.md", heading)?;
    let answers = std::mem::take(&mut reader.answers);
    drop(reader);
    Ok((world, answers))
}

impl<'a> Reader<'a> {
    fn of(machines: &[(&'static str, &'a Machine)]) -> Self {
        Self { machines: machines.iter().copied().collect(), said: vec![], running: vec![], answers: vec![] }
    }

    /// What stands for this word from here on.
    fn say(&mut self, word: &'static str, text: &str) {
        self.said.retain(|(known, _)| *known != word);
        self.said.push((word, text.to_owned()));
    }

    fn read(&mut self, page: &str, heading: &str) -> Result<(), Failed> {
        let blocks = blocks(&top().join(page), heading)?;
        assert!(blocks.len() > 2, "{page} has {} blocks of commands below `{heading}`", blocks.len());
        for (machine, lines) in blocks {
            let machine = *self.machines.get(machine.as_str()).unwrap_or_else(|| panic!("no machine `{machine}`"));
            for line in lines {
                self.type_in(machine, &line)?;
            }
        }
        Ok(())
    }

    fn type_in(&mut self, machine: &Machine, line: &str) -> Result<(), Failed> {
        let line = self.said.iter().fold(line.to_owned(), |line, (word, text)| line.replace(word, text));
        let line = line.replace("docs/examples/", &format!("{}/", top().join("docs/examples").display()));
        wait_as_a_person_would(machine, &line)?;
        if line.starts_with("peerage relay ") || line.ends_with(" &") {
            let mut running =
                machine.start(machine.shell(&format!("exec {}", line.trim_end_matches(" &"))), "shell")?;
            let mut first = String::new();
            BufReader::new(running.stdout()).read_line(&mut first).trying("read a program's first line")?;
            assert!(!first.is_empty(), "`{line}` ended: {}", machine.log("shell"));
            self.running.push(running);
            if line.starts_with("peerage relay ") {
                self.say("RELAY", first.trim());
            }
            return Ok(());
        }
        let finished = machine.finish(machine.shell(&line), &line)?;
        if !finished.status.success() {
            return Err(Failed::new(format!("`{line}`: {}", finished.said())));
        }
        if line.starts_with("peerage invite") {
            self.say("TICKET", finished.stdout.trim());
        }
        if line.starts_with("peerage run ") {
            self.answers.push(finished.stdout);
        }
        Ok(())
    }
}

/// Agents that were left in the background end with the test, however it ends.
impl Drop for Reader<'_> {
    fn drop(&mut self) {
        for machine in self.machines.values() {
            // Most have ended, as their page says.
            let _ = machine.attempt(&["down"]);
        }
    }
}

/// A person types the next command after having seen what the last one led to.
fn wait_as_a_person_would(machine: &Machine, line: &str) -> Result<(), Failed> {
    let status = |what: &str, wanted: &dyn Fn(&Value) -> bool| {
        let mut last = Value::Null;
        let found = until(what, || {
            last = machine.ask(&["status"])?;
            Ok(wanted(&last).then_some(()))
        });
        found.map_err(|failed| Failed::new(format!("before `{line}`: {failed}; the status is {last:#}")))
    };
    if line.starts_with("peerage run ") {
        let peer = line.split("http://").nth(1).and_then(|rest| rest.split('/').next());
        status("a peer with a port", &|status| {
            let peers = status["peers"].as_array().into_iter().flatten();
            let mut wanted = peers.filter(|one| peer.is_none_or(|peer| one["name"] == peer));
            wanted.any(|one| one["state"] == "connected" && one["ports"][0].is_string())
        })?;
    }
    if line.starts_with("peerage requests") {
        status("a request", &|status| status["requests"].as_u64() > Some(0))?;
    }
    if line.starts_with("peerage invite") {
        status("a relay", &|status| status["relays"][0]["up"] == true)?;
    }
    if line == "peerage status" {
        status("an open mailbox", &|status| status["relays"][0]["mailbox"] == true)?;
    }
    Ok(())
}

/// Blocks of commands below a heading: the machine, and its lines.
fn blocks(page: &Path, heading: &str) -> Result<Vec<(String, Vec<String>)>, Failed> {
    let text = fs::read_to_string(page).trying("read a page")?;
    let level = |line: &str| line.chars().take_while(|letter| *letter == '#').count();
    let mut lines = text.lines().skip_while(|line| level(line) == 0 || line.trim_start_matches('#').trim() != heading);
    let own = lines.next().map_or(0, level);
    let (mut blocks, mut in_block, mut in_other) = (Vec::<(String, Vec<String>)>::new(), false, false);
    for line in lines {
        match line {
            "```" => (in_block, in_other) = (false, false),
            "```sh" => in_block = true,
            _ if line.starts_with("```") => in_other = true,
            _ if in_block => match line.strip_prefix("# on ") {
                Some(machine) => blocks.push((machine.to_owned(), Vec::new())),
                None => {
                    blocks.last_mut().ok_or_else(|| Failed::new("a block names no machine"))?.1.push(line.to_owned())
                }
            },
            _ if !in_other && level(line) > 0 && level(line) <= own => break,
            _ => {}
        }
    }
    Ok(blocks)
}

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("this crate lies in e2e/agents")
}
