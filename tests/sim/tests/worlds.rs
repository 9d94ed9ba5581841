//! A few worlds in every test run; `make sim` runs more, `make sim-nightly` a million transactions.

use tcc_sim::{bugs::Bug, faults::Counts, run, run_with};

#[test]
fn in_no_world_is_a_unit_lost_or_created_or_a_promise_broken() {
    let mut counts = Counts::default();
    for seed in 1..=20 {
        let report = run(seed, 100);

        assert!(report.violations.is_empty(), "seed {seed}: {:#?}", report.violations);
        counts.merge(&report.counts);
    }
    assert!(counts.total() > 5_000, "{}", counts.table());
}

#[test]
fn a_seed_makes_the_same_world_again() {
    let (one, again, other) = (run(7, 60), run(7, 60), run(8, 60));

    assert_eq!((one.trace, &one.counts), (again.trace, &again.counts));
    assert_ne!(one.trace, other.trace);
}

#[test]
fn every_mistake_that_is_put_in_is_noticed() {
    // Few worlds have what some of them need; those are among these.
    let first = |bug| match bug {
        Bug::VetoIsNotSticky => 198,
        Bug::CancelWithoutTombstone => 31,
        Bug::DueByAnotherClock => 7,
        Bug::IdIgnoresBody => 5,
        _ => 1,
    };
    let is_noticed =
        |bug| (first(bug)..first(bug) + 60).any(|seed| !run_with(seed, 200, Some(bug)).violations.is_empty());
    std::thread::scope(|scope| {
        let searches = Bug::ALL.map(|bug| (bug, scope.spawn(move || is_noticed(bug))));
        for (bug, search) in searches {
            assert!(search.join().expect("a world does not panic"), "{bug:?}");
        }
    });
}
