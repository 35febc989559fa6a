//! A part of a run: a network, the subjects that run in it by one route, and what is taken of them in turns.

use std::path::Path;

use peerage_bench::Result;
use peerage_bench::network::Network;

use crate::cache::Cache;
use crate::load;
use crate::measure::{Measure, until_answered};
use crate::subject::{Route, Running, Stage, Subject};
use peerage_bench::figures::Figures;

/// What every part needs.
pub struct Bench<'a> {
    pub cache: &'a Cache,
    pub peerage: &'a Path,
    pub itself: &'a Path,
    pub rounds: usize,
    pub subjects: &'a [Box<dyn Subject>],
}

/// Subjects that run, in one network.
pub struct Piece<'a> {
    rounds: usize,
    network: &'a Network,
    running: Vec<Active>,
    /// Holds the subjects' files.
    _folder: tempfile::TempDir,
}

struct Active {
    name: &'static str,
    running: Box<dyn Running>,
}

impl<'a> Piece<'a> {
    /// Starts all subjects that can go this way; of the others it is noted why not.
    pub fn start(bench: &Bench<'_>, network: &'a Network, route: Route, figures: &mut Figures) -> Result<Self> {
        load::serve(&network.server)?;
        let folder = tempfile::tempdir()?;
        let mut running = Vec::new();
        for (number, subject) in bench.subjects.iter().enumerate() {
            let own = folder.path().join(number.to_string());
            std::fs::create_dir(&own)?;
            let stage =
                Stage { network, cache: bench.cache, peerage: bench.peerage, itself: bench.itself, folder: own };
            match begin(&stage, subject.as_ref(), route) {
                Ok(active) => running.push(active),
                Err(why) => figures.not_run(subject.name(), route.name(), &why.to_string()),
            }
        }
        Ok(Self { rounds: bench.rounds, network, running, _folder: folder })
    }

    /// Takes one measure of each subject once, one after the other.
    pub fn once(&mut self, measure: &dyn Measure, figures: &mut Figures) {
        self.turns(0, measure, figures, &mut Vec::new());
    }

    /// Takes all measures in all rounds. What fails for a subject once is not tried with it again.
    pub fn rounds(&mut self, measures: &[Box<dyn Measure>], figures: &mut Figures) {
        let mut failed = Vec::new();
        for round in 0..self.rounds {
            for measure in measures {
                eprintln!("round {} of {}: {}", round + 1, self.rounds, measure.name());
                self.turns(round, measure.as_ref(), figures, &mut failed);
            }
        }
    }

    fn turns(
        &mut self,
        round: usize,
        measure: &dyn Measure,
        figures: &mut Figures,
        failed: &mut Vec<(&'static str, String)>,
    ) {
        let count = self.running.len();
        for turn in 0..count {
            // The order turns from round to round: who comes first has the warmer or the colder processor.
            let active = &mut self.running[(round + turn) % count];
            let this = (active.name, measure.name());
            if failed.contains(&this) {
                continue;
            }
            match measure.take(self.network, active.running.as_mut()) {
                Ok(taken) => taken.into_iter().for_each(|figure| figures.note(active.name, figure)),
                Err(why) => {
                    figures.not_run(active.name, &this.1, &why.to_string());
                    failed.push(this);
                }
            }
        }
    }
}

fn begin(stage: &Stage<'_>, subject: &dyn Subject, route: Route) -> Result<Active> {
    let running = subject.start(stage, route)?;
    until_answered(&stage.network.client, running.as_ref())?;
    running.settle()?;
    Ok(Active { name: subject.name(), running })
}
