//! The conformance kit: what is right passes, and each mistake that others have made is found and named.

use std::sync::Arc;
use tcc_participant::conformance::{Finding, Kit, Mistake, Options, Part, Report, Subject, verify};
use tcc_tests::memory::{Flaw, Memory};

const FEW: Options = Options { seed: 1, schedules: 60, meetings: 10 };

fn subject(address: std::net::SocketAddr) -> Subject {
    let vetoed = Some(Part::Payload("vetoed-%n".into()));
    Subject { vetoed, ..Subject::new(&format!("http://{address}"), Part::Payload("unit-%n".into())) }
}

async fn report_on(flaw: Option<Flaw>, options: &Options) -> Report {
    let running = Memory::new(flaw).serve().await.unwrap();
    verify(subject(running.address), options).await.unwrap()
}

fn only(report: &Report) -> &Finding {
    assert_eq!(report.findings.len(), 1, "{report}");
    &report.findings[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_participant_passes_and_every_cell_was_met() {
    let report = report_on(None, &FEW).await;

    assert!(report.is_ok(), "{report}");
    assert_eq!(report.cells.len(), 21, "{:?}", report.cells);
    assert_eq!(report.passed, 84 + 140 + 60);
    assert_eq!(report.effects_seen, report.passed);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_five_mistakes_is_found_and_named() {
    for (flaw, mistake) in Flaw::NAMED {
        let report = report_on(Some(flaw), &FEW).await;

        assert_eq!(report.findings[0].mistake, mistake, "{flaw:?}: {report}");
        // Where there is no fence, everything else about it is wrong, too.
        assert!(report.findings.len() == 1 || flaw == Flaw::NoTombstone, "{flaw:?}: {report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shortest_schedule_that_shows_a_mistake_is_told() {
    let twice = report_on(Some(Flaw::ConfirmTakesTwice), &FEW).await;
    let late = report_on(Some(Flaw::LateTrySucceeds), &FEW).await;
    let other = report_on(Some(Flaw::OtherBodyAccepted), &FEW).await;

    assert_eq!(only(&twice).schedule, "Try A/0, then Confirm A/0, then Confirm A/0");
    assert_eq!(only(&late).schedule, "Cancel A/0, then Try A/0");
    assert_eq!(only(&other).schedule, "Try A/0, then Try A/0 with another body");
    assert_eq!(only(&other).what, "DONE to Try A/0 with another body, where OTHER_DESCRIPTOR is right");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_random_schedule_meets_is_met_again_with_its_seed() {
    let random = Options { meetings: 0, schedules: 200, ..FEW };
    let found = report_on(Some(Flaw::CancelsAllBranches), &random).await;
    let seed = found.findings[0].seed.expect("a random schedule has a seed");

    let again = report_on(Some(Flaw::CancelsAllBranches), &Options { seed, schedules: 1, meetings: 0 }).await;

    assert_eq!(only(&again).seed, Some(seed));
    assert_eq!(again.passed, 84, "the cells alone do not show it");
}

#[tokio::test(flavor = "multi_thread")]
async fn fences_that_are_forgotten_are_noticed_when_they_are_asked_for_again() {
    let memory = Memory::new(None);
    let running = memory.serve().await.unwrap();
    let mut kept = Kit::connect(subject(running.address)).await.unwrap();
    kept.run(&FEW).await;
    kept.recall().await;
    let mut lost = Kit::connect(Subject { first: 1_000_000, ..subject(running.address) }).await.unwrap();
    lost.run(&FEW).await;

    Arc::clone(&memory).forget();
    lost.recall().await;

    let (kept, lost) = (kept.into_report(), lost.into_report());
    assert!(kept.is_ok(), "{kept}");
    assert_eq!(only(&lost).mistake, Mistake::Forgotten);
}
