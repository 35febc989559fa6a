//! `peerage run` as the tests need it: names and redirects come from the arguments.
//!
//! `peerage-run-as [--name NAME=IP]… [--names-file PATH] [--map IP:PORT=IP:PORT]… [--dns IP:PORT]
//! [--end-leftovers] -- COMMAND…`. The names file holds lines `NAME=IP` and is read at each look-up.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use peerage_run::{Directory, Leftovers, Names, Program, Redirect, Transport};

#[derive(Default)]
struct Fixed {
    names: Vec<(String, IpAddr)>,
    names_file: Option<PathBuf>,
    map: BTreeMap<SocketAddr, SocketAddr>,
    dns: Option<SocketAddr>,
}

impl Directory for Fixed {
    fn names(&self) -> Names {
        let mut hosts = self.names.clone();
        if let Some(text) = self.names_file.as_ref().and_then(|path| std::fs::read_to_string(path).ok()) {
            hosts.extend(text.lines().map(name));
        }
        Names { hosts }
    }
}

impl Redirect for Fixed {
    fn redirect(&self, to: SocketAddr, _: Transport) -> Option<SocketAddr> {
        self.map.get(&to).copied()
    }

    fn dns(&self) -> Option<SocketAddr> {
        self.dns
    }
}

fn main() -> ExitCode {
    let mut fixed = Fixed::default();
    let mut leftovers = Leftovers::Wait;
    let mut arguments = std::env::args_os().skip(1);
    while let Some(option) = arguments.next() {
        let mut value = || arguments.next().and_then(|value| value.into_string().ok()).expect("an option's value");
        match option.to_str() {
            Some("--name") => fixed.names.push(name(&value())),
            Some("--names-file") => fixed.names_file = Some(value().into()),
            Some("--map") => {
                let value = value();
                let (from, to) = value.split_once('=').expect("FROM=TO");
                fixed.map.insert(from.parse().expect("an address"), to.parse().expect("an address"));
            }
            Some("--dns") => fixed.dns = Some(value().parse().expect("an address")),
            Some("--end-leftovers") => leftovers = Leftovers::End,
            Some("--") => break,
            other => panic!("unknown option {other:?}"),
        }
    }
    let mut command = Command::new(arguments.next().expect("a command"));
    command.args(arguments);
    let fixed = Arc::new(fixed);
    let mut program = Program::new(command, fixed.clone(), fixed);
    program.leftovers = leftovers;
    program.on_waiting = Some(Box::new(|_| eprintln!("waiting for what is left")));
    match peerage_run::run(program) {
        Ok(status) => peerage_run::exit_code(status).into(),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            eprintln!("{error}{cause}\nhint: {}", error.hint());
            error.exit_code().into()
        }
    }
}

fn name(text: &str) -> (String, IpAddr) {
    let (name, address) = text.split_once('=').expect("NAME=IP");
    (name.to_owned(), address.parse().expect("an address"))
}
