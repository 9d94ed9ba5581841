//! Searches everything that can happen to one hold; see the library. The last line says `model: ok` or `model: FAILED`.

use stateright::report::{ReportData, ReportDiscovery, Reporter};
use stateright::{Checker as _, Model as _};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;
use tcc_model::Search;

fn main() -> ExitCode {
    let t = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(2);
    let checker = Search::product().checker().threads(t).spawn_bfs().join_and_report(&mut Progress);
    for p in checker.model().properties() {
        match checker.discovery(p.name) {
            None => println!("{:?} {} none", p.expectation, p.name),
            Some(path) => println!("{:?} {} {}", p.expectation, p.name, path.into_actions().len()),
        }
    }
    println!("{}", checker.unique_state_count());
    ExitCode::SUCCESS
}
struct Progress;
impl Reporter<Search> for Progress {
    fn report_checking(&mut self, data: ReportData) {
        println!("{} {} depth {} {:?}", data.total_states, data.unique_states, data.max_depth, data.duration);
    }
    fn report_discoveries(&mut self, _: &Search, _: BTreeMap<&'static str, ReportDiscovery<Search>>) {}
    fn delay(&self) -> Duration {
        Duration::from_secs(1)
    }
}
