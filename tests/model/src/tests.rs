use crate::claims::{NO_UNIT_IS_CREATED, broken};
use crate::{Search, Step};
use stateright::{Checker as _, HasDiscoveries, Model as _};

/// `make model` searches what happens when commits are lost, too: hundreds of times as many states.
#[test]
fn nothing_that_can_happen_to_a_hold_breaks_a_claim() {
    let search = Search { commits_are_lost: false, ..Search::product() };

    let checker = search.checker().finish_when(HasDiscoveries::AnyFailures).threads(2).spawn_bfs().join();

    assert_eq!(broken(&checker), [""; 0]);
    assert!(checker.unique_state_count() > 5_000, "{}", checker.unique_state_count());
}

#[test]
fn if_the_row_alone_decides_not_even_a_database_that_loses_nothing_would_do() {
    let search = Search { pivot_rule: false, commits_are_lost: false, ..Search::product() };

    let path = search.shortest_way_to_break(NO_UNIT_IS_CREATED).expect("the row alone is not enough");

    let end = path.last_state();
    assert_eq!((end.books.payer_available, end.books.payee_available), (1, 1));
    // A request is admitted, and what it asks for is under way when the due time or an operator asks for something else.
    let steps = path.into_actions();
    let asked = steps.contains(&Step::CancelHold) || steps.contains(&Step::ConfirmHold);
    let turned = steps.contains(&Step::TimePasses) || steps.contains(&Step::ForceCancel);
    assert!(asked && turned, "{steps:?}");
}

#[test]
fn if_an_unknown_effect_could_be_cancelled_a_unit_would_be_created() {
    let search = Search { cancel_waits: false, commits_are_lost: false, ..Search::product() };

    let path = search.shortest_way_to_break(NO_UNIT_IS_CREATED).expect("a cancel has to wait");

    assert!(path.into_actions().contains(&Step::TakeEffect));
}
