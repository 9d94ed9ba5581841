//! Searches everything that can happen to one hold, and says whether a claim broke; see the library.
//!
//! The last line is `model: ok states=<n> violations=0` (exit 0) or begins with `model: FAILED` (exit 1). Above a failure
//! stands the shortest way to it.

use stateright::report::{ReportData, ReportDiscovery, Reporter};
use stateright::{Checker as _, Expectation, HasDiscoveries, Model};
use std::collections::BTreeMap;
use std::process::ExitCode;
use tcc_model::{Search, claims, pair::Pair};

fn main() -> ExitCode {
    let search = Search::product();
    // One thread: with two, they mostly wait for each other at the checker's list of discoveries.
    let builder = search.checker().finish_when(HasDiscoveries::AnyFailures);
    let checker = builder.spawn_bfs().join_and_report(&mut Progress);
    let states = checker.unique_state_count();

    let broken = claims::broken(&checker);
    if !broken.is_empty() {
        broken.iter().for_each(|claim| print_shortest_way(search, claim));
        println!("model: FAILED states={states} violations={}: {}", broken.len(), broken.join("; "));
        return ExitCode::FAILURE;
    }
    let unseen = claims::unseen(&checker);
    if !unseen.is_empty() {
        println!("model: FAILED states={states} violations=0, but never seen: {}", unseen.join("; "));
        return ExitCode::FAILURE;
    }
    println!("two holds of one payer:");
    let pair = Pair.checker().spawn_bfs().join_and_report(&mut Progress);
    let wrong: Vec<&str> = Pair
        .properties()
        .iter()
        .filter(|claim| {
            (claim.expectation == Expectation::Sometimes) != pair.discoveries().contains_key(claim.name)
        })
        .map(|claim| claim.name)
        .collect();
    let states = states + pair.unique_state_count();
    if !wrong.is_empty() {
        println!("model: FAILED states={states} two holds of one payer: {}", wrong.join("; "));
        return ExitCode::FAILURE;
    }
    println!("model: ok states={states} violations=0");
    ExitCode::SUCCESS
}

fn print_shortest_way(search: Search, claim: &'static str) {
    println!("This broke: {claim}. The shortest way to it:");
    for (world, step) in search.shortest_way_to_break(claim).into_iter().flat_map(|path| path.into_vec()) {
        println!("  {world}");
        step.into_iter().for_each(|step| println!("    {step:?}"));
    }
}

/// Prints one line per second.
struct Progress;

impl<M: Model> Reporter<M> for Progress {
    fn report_checking(&mut self, data: ReportData) {
        let ReportData { total_states, unique_states, max_depth, duration, .. } = data;
        println!("{duration:>4.0?}: {unique_states} states, {total_states} steps, up to {max_depth} deep");
    }

    fn report_discoveries(&mut self, _: &M, _: BTreeMap<&'static str, ReportDiscovery<M>>) {}
}
