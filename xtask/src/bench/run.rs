//! Runs a case: its entrants round by round in changing order, each proxy with several lives. If an entrant
//! fails, it leaves this case with the reason, and the others go on.

use std::collections::HashMap;

use serde::Deserialize;

use super::cases::{self, BODIES, Case, Entrant, What};
use super::load::Held;
use super::measure::{self, COMPLETIONS, ENTERS, Figures, SERVED};
use super::peers::{Kind, Origin, Program, Proxy, Setup};
use super::progress::Progress;
use super::results::{CaseResult, Entry};
use super::stage::Stage;

/// The parts of a run that all cases share.
pub(super) struct Runner<'a> {
    pub(super) stage: &'a Stage,
    pub(super) origin: Origin,
    /// The program of each kind, or the reason why it is missing. Kinds that were not asked for are absent.
    pub(super) programs: HashMap<Kind, Result<Program, String>>,
    pub(super) rounds: usize,
    pub(super) seconds: f64,
    pub(super) progress: Progress,
}

/// An entrant's place in a case.
struct Slot<'a> {
    entrant: &'a Entrant,
    program: Option<Program>,
    proxy: Option<Proxy>,
    held: Option<Held>,
    /// Rounds of the present life so far.
    age: usize,
    /// How many idle connections the entrant is known to take.
    idle: usize,
    rounds: Vec<Figures>,
    failed: Option<String>,
}

impl Runner<'_> {
    /// Runs a case. An error ends the whole run: the user interrupted it, or the origin died.
    pub(super) fn run(&mut self, case: &Case) -> Result<CaseResult, String> {
        let mut slots: Vec<Slot<'_>> =
            case.entrants.iter().filter_map(|entrant| self.slot(entrant, case.tls)).collect();
        for round in 0..self.rounds {
            for turn in 0..slots.len() {
                let at = cases::turn(round, turn, slots.len());
                let slot = &mut slots[at];
                if slot.failed.is_some() {
                    continue;
                }
                self.progress.show(&format!(
                    "{}: round {} of {}: {}",
                    case.name,
                    round + 1,
                    self.rounds,
                    slot.entrant.name
                ));
                match self.turn(case, slot) {
                    Ok(figures) => slot.rounds.push(figures),
                    Err(error) => {
                        self.stage.check()?;
                        self.origin.check()?;
                        slot.failed = Some(error);
                        slot.held = None;
                        slot.proxy = None;
                    }
                }
            }
        }
        for slot in &mut slots {
            self.end_life(slot)?;
        }
        self.progress.clear();
        let entries = slots
            .into_iter()
            .map(|slot| Entry { name: slot.entrant.name.clone(), rounds: slot.rounds, failed: slot.failed })
            .collect();
        Ok(CaseResult { name: case.name.clone(), title: case.title.clone(), figure: case.figure(), entries })
    }

    fn slot<'a>(&self, entrant: &'a Entrant, tls: bool) -> Option<Slot<'a>> {
        let (program, failed) = match self.programs.get(&entrant.kind)? {
            Ok(program) => (Some(program.clone()), None),
            Err(reason) => (None, Some(format!("missing: {reason}"))),
        };
        let (rounds, age, idle) = (Vec::new(), 0, if tls { cases::IDLE_TLS } else { cases::IDLE });
        Some(Slot { entrant, program, proxy: None, held: None, age, idle, rounds, failed })
    }

    fn turn(&mut self, case: &Case, slot: &mut Slot<'_>) -> Result<Figures, String> {
        if slot.age >= case.rounds_a_life() {
            self.end_life(slot)?;
        }
        self.begin_life(case, slot)?;
        slot.age += 1;
        let (stage, seconds) = (self.stage, self.seconds);
        let Some(proxy) = &slot.proxy else { return Err("was not started".into()) };
        let figures = match (&case.what, case.wrk()) {
            (What::Down { body, .. }, Some(wrk)) => {
                measure::downloads(stage, &mut self.origin, proxy, (&wrk, BODIES[*body].1), seconds)
            }
            (_, Some(wrk)) => measure::requests(stage, &mut self.origin, proxy, &wrk, seconds),
            (What::Up { body, connections }, _) => {
                let file = self.origin.files.join(BODIES[*body].0);
                measure::uploads(stage, proxy, &file, *connections, seconds)
            }
            (What::Rate { rate, connections }, _) => {
                measure::latency(stage, proxy, *rate, *connections, (seconds * 2.0).max(2.0))
            }
            (What::Probe { storm, connections }, _) => {
                measure::probe(stage, proxy, *connections, *storm, (seconds * 2.0).max(3.0))
            }
            (_, None) => return self.idle(case, slot),
        }?;
        if slot.entrant.guard {
            // The guard on `lo` must not see packets of another entrant's turn.
            self.end_life(slot)?;
        }
        Ok(figures)
    }

    /// Measures with as many idle connections as the proxy takes, up to the case's number.
    fn idle(&self, case: &Case, slot: &mut Slot<'_>) -> Result<Figures, String> {
        for _ in 0..3 {
            let Some(proxy) = &slot.proxy else { return Err("was not started".into()) };
            match measure::idle_memory(self.stage, proxy, slot.idle)? {
                Ok(figures) => return Ok(figures),
                Err(fewer) => slot.idle = fewer,
            }
            self.end_life(slot)?;
            self.begin_life(case, slot)?;
            slot.age += 1;
        }
        Err(format!("kept {} idle connections, and then fewer", slot.idle))
    }

    fn begin_life(&self, case: &Case, slot: &mut Slot<'_>) -> Result<(), String> {
        if slot.proxy.is_some() {
            return Ok(());
        }
        let Some(program) = &slot.program else { return Err("has no program".into()) };
        let upstream =
            if matches!(case.what, What::Up { .. }) { self.origin.sink } else { self.origin.address };
        let routes = case.wrk().map_or(0, |wrk| wrk.routes);
        let setup = Setup {
            upstream,
            routes,
            guard: slot.entrant.guard,
            connections: case.connections(),
            tls: case.tls,
        };
        let proxy = Proxy::start(self.stage, program, &setup)?;
        if slot.entrant.beside {
            let (held, open) = Held::open(self.stage, proxy.address, cases::BESIDE, case.tls)?;
            if open < cases::BESIDE {
                let asked = cases::thousands(cases::BESIDE as u64);
                return Err(format!("kept {} of {asked} idle connections", cases::thousands(open as u64)));
            }
            slot.held = Some(held);
        }
        slot.proxy = Some(proxy);
        slot.age = 0;
        Ok(())
    }

    /// Stops the proxy. The relay then prints its counters.
    fn end_life(&self, slot: &mut Slot<'_>) -> Result<(), String> {
        slot.held = None;
        let Some(proxy) = slot.proxy.take() else { return Ok(()) };
        if proxy.kind != Kind::Relay {
            return Ok(());
        }
        let printed = match proxy.stop(self.stage) {
            Ok(printed) => printed,
            Err(error) => {
                self.stage.check()?;
                slot.failed.get_or_insert(error);
                return Ok(());
            }
        };
        let first = slot.rounds.len().saturating_sub(slot.age);
        count_relay(&printed, &mut slot.rounds[first..]);
        Ok(())
    }
}

/// The counters that the relay prints at its end.
#[derive(Deserialize)]
struct RelayCounters {
    enters: u64,
    completions: u64,
}

/// Spreads the relay's counters over the requests of its life's rounds. If the relay prints none, the rounds
/// get none.
fn count_relay(printed: &str, rounds: &mut [Figures]) {
    let Some(counters) = printed.lines().find_map(|line| serde_json::from_str::<RelayCounters>(line).ok())
    else {
        return;
    };
    let served: f64 = rounds.iter().filter_map(|round| round.get(SERVED)).sum();
    if served > 0.0 {
        for round in rounds {
            round.insert(ENTERS, counters.enters as f64 / served);
            round.insert(COMPLETIONS, counters.completions as f64 / served);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_relays_counters_become_figures_of_its_rounds() {
        let mut rounds = vec![Figures::from([(SERVED, 100.0)]), Figures::from([(SERVED, 300.0)])];
        count_relay("hello\n{\"enters\":200,\"completions\":1600}\n", &mut rounds);
        assert!(rounds.iter().all(|round| round[ENTERS] == 0.5 && round[COMPLETIONS] == 4.0));
        let mut none = vec![Figures::from([(SERVED, 100.0)])];
        count_relay("", &mut none);
        assert!(!none[0].contains_key(ENTERS));
    }
}
