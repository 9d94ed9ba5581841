use crate::claims::{NO_UNIT_IS_CREATED, broken};
use crate::world::Loss;
use crate::{Search, Step};
use stateright::{Checker as _, HasDiscoveries, Model as _};

#[test]
fn nothing_that_can_happen_to_a_hold_breaks_a_claim() {
    let search = Search::product();

    let checker = search.checker().finish_when(HasDiscoveries::AnyFailures).threads(2).spawn_bfs().join();

    checker.assert_properties();
}

#[test]
fn if_the_row_alone_decides_a_lost_commit_creates_money() {
    let search = Search { pivot_rule: false, ..Search::product() };

    let path = search.shortest_way_to_break(NO_UNIT_IS_CREATED).expect("the row alone is not enough");

    let end = path.last_state();
    assert_eq!((end.books.payer_available, end.books.payee_available), (1, 1));
    assert_eq!(end.loss, Loss::LastCommits);
    let losses =
        path.into_actions().into_iter().filter(|step| matches!(step, Step::Rewind(_) | Step::Vanish));
    assert_eq!(losses.count(), 1);
}

#[test]
fn if_the_row_alone_decides_and_no_commit_is_lost_no_money_is_created() {
    let search = Search { pivot_rule: false, commits_are_lost: false };

    let checker = search.checker().spawn_bfs().join();

    assert!(!broken(&checker).contains(&NO_UNIT_IS_CREATED));
}
