//! The whole transaction as it was created.
//!
//! Every fence keeps the descriptor's bytes and refuses an operation that comes with other bytes under the same id. So the
//! fences together can rebuild a transaction that the coordinator forgot, and no id can mean two things. The encoding is
//! protobuf with the fields of the private `wire` module: stable, compact (about 60 bytes), and the same bytes for the
//! same transaction.

use crate::{
    AccountId, Amount, Currency, IdempotencyKey, LabelError, Labels, MoneyError, Operation, Timestamp,
    TransactionId, caller::KeyError,
};
use prost::Message as _;
use std::{collections::BTreeMap, fmt, sync::Arc};

/// One global transaction: its id, its descriptor, and the descriptor's bytes. Immutable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// The id; not part of the bytes.
    pub id: TransactionId,
    /// The body.
    pub descriptor: Descriptor,
    /// The body's encoding, which fences compare.
    pub encoded: Vec<u8>,
}

/// What a transaction is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// Its branches; a branch's index is its position.
    pub branches: Vec<Branch>,
    /// The index of the branch whose fence decides.
    pub pivot: u16,
    /// When it does what `on_maturity` says. Whole microseconds.
    pub due_at: Timestamp,
    /// What it does then.
    pub on_maturity: OnMaturity,
    /// What its caller attached to it.
    pub labels: Labels,
    /// The key by which its caller may ask for it again, if it was created by one.
    pub key: Option<IdempotencyKey>,
    /// Who created it and decides about it, if it is a transaction of any branches. About a hold its payer does.
    pub owner: Option<String>,
}

/// One participant's part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Branch {
    /// The ledger's: an amount on one account.
    Ledger(Leg),
    /// Another participant's: what is asked of it.
    Other(Request),
}

/// What a branch does to one account of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leg {
    /// What happens to the account.
    pub role: Role,
    /// Which account.
    pub account: AccountId,
    /// How much.
    pub amount: Amount,
    /// Of what.
    pub currency: Currency,
}

/// What a branch asks of a participant that is no ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Whom.
    pub participant: ParticipantName,
    /// Which of the things that it can do, in its own words; it may be empty.
    pub operation: String,
    /// With what.
    pub payload: Vec<u8>,
}

/// The name of a participant that is no ledger: a lower-case letter, then up to 62 of `a-z`, `0-9`, `_`, `.` and `-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParticipantName(Arc<str>);

/// A text that names no participant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the name of a participant is a lower-case letter, then up to 62 of a-z, 0-9, _, . and -")]
pub struct ParticipantNameError;

/// What a branch does to its account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Freeze, then take.
    Debit,
    /// Give.
    Credit,
    /// Create units, at once: a transaction of its own.
    Issue,
    /// Destroy units, likewise.
    Burn,
}

/// What happens at the due time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OnMaturity {
    /// Pay.
    Confirm,
    /// Release.
    Cancel,
}

/// Why bytes are no descriptor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    /// Not the protobuf encoding.
    #[error("descriptor does not decode: {0}")]
    Encoding(#[from] prost::DecodeError),
    /// An account, amount or currency out of its form.
    #[error("descriptor holds an invalid value: {0}")]
    Money(#[from] MoneyError),
    /// Labels out of their form.
    #[error("descriptor holds invalid labels: {0}")]
    Labels(#[from] LabelError),
    /// A key out of its form.
    #[error("descriptor holds an invalid key: {0}")]
    Key(#[from] KeyError),
    /// A participant's name out of its form.
    #[error("descriptor holds an invalid name: {0}")]
    Participant(#[from] ParticipantNameError),
    /// An unknown role or action, a pivot that is no branch, a time out of range.
    #[error("descriptor has no valid {0}")]
    Field(&'static str),
}

/// The index of a hold's debit branch.
pub const DEBIT: u16 = 0;
/// The index of a hold's credit branch, its pivot.
pub const CREDIT: u16 = 1;

impl Transaction {
    /// Puts an id on a descriptor.
    #[must_use]
    pub fn new(id: TransactionId, descriptor: Descriptor) -> Self {
        let encoded = descriptor.encode();
        Self { id, descriptor, encoded }
    }

    /// Reads back what [`Transaction::new`] encoded.
    ///
    /// # Errors
    ///
    /// [`DescriptorError`], if the bytes are anything else.
    pub fn decode(id: TransactionId, encoded: Vec<u8>) -> Result<Self, DescriptorError> {
        let descriptor = Descriptor::decode(&encoded)?;
        Ok(Self { id, descriptor, encoded })
    }

    /// A branch by its index, which must be one of this transaction's.
    #[must_use]
    pub fn branch(&self, index: u16) -> &Branch {
        &self.descriptor.branches[usize::from(index)]
    }

    /// What a branch does to an account, if it is the ledger's.
    #[must_use]
    pub fn leg(&self, index: u16) -> Option<&Leg> {
        self.descriptor.branches.get(usize::from(index)).and_then(Branch::leg)
    }
}

impl Branch {
    /// What it does to an account, if it is the ledger's.
    #[must_use]
    pub fn leg(&self) -> Option<&Leg> {
        match self {
            Self::Ledger(leg) => Some(leg),
            Self::Other(_) => None,
        }
    }
}

impl ParticipantName {
    /// Checks the form.
    ///
    /// # Errors
    ///
    /// [`ParticipantNameError`].
    pub fn parse(text: &str) -> Result<Self, ParticipantNameError> {
        let form = |(n, byte): (usize, u8)| match byte {
            b'a'..=b'z' => true,
            b'0'..=b'9' | b'_' | b'.' | b'-' => n > 0,
            _ => false,
        };
        if (1..=63).contains(&text.len()) && text.bytes().enumerate().all(form) {
            Ok(Self(text.into()))
        } else {
            Err(ParticipantNameError)
        }
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ParticipantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ParticipantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Descriptor {
    /// A hold: the payer's debit, and the payee's credit as the pivot. With the credit as pivot the payee is paid while the
    /// payer's funds are still frozen, so the money is at no instant spendable twice.
    #[must_use]
    pub fn hold(
        payer: AccountId,
        payee: AccountId,
        amount: Amount,
        currency: Currency,
        due_at: Timestamp,
        on_maturity: OnMaturity,
    ) -> Self {
        let debit = Leg { role: Role::Debit, account: payer, amount, currency: currency.clone() };
        let credit = Leg { role: Role::Credit, account: payee, amount, currency };
        Self {
            branches: vec![Branch::Ledger(debit), Branch::Ledger(credit)],
            pivot: CREDIT,
            due_at,
            on_maturity,
            ..Self::at_once()
        }
    }

    /// A hold that is due by any clock when it is created. Its due time is no time of day: whoever repeats it must come to the
    /// same descriptor.
    #[must_use]
    pub fn transfer(payer: AccountId, payee: AccountId, amount: Amount, currency: Currency) -> Self {
        Self::hold(payer, payee, amount, currency, Timestamp::UNIX_EPOCH, OnMaturity::Confirm)
    }

    /// An issue of units on one account, which takes effect at once.
    #[must_use]
    pub fn issue(account: AccountId, amount: Amount, currency: Currency) -> Self {
        let leg = Leg { role: Role::Issue, account, amount, currency };
        Self { branches: vec![Branch::Ledger(leg)], ..Self::at_once() }
    }

    /// The reverse of an issue.
    #[must_use]
    pub fn burn(account: AccountId, amount: Amount, currency: Currency) -> Self {
        let leg = Leg { role: Role::Burn, account, amount, currency };
        Self { branches: vec![Branch::Ledger(leg)], ..Self::at_once() }
    }

    /// Nothing yet, without a due time: due by any clock.
    #[must_use]
    pub fn at_once() -> Self {
        Self {
            branches: Vec::new(),
            pivot: 0,
            due_at: Timestamp::UNIX_EPOCH,
            on_maturity: OnMaturity::Confirm,
            labels: Labels::default(),
            key: None,
            owner: None,
        }
    }

    /// What its branches do to accounts, with their indexes.
    pub fn legs(&self) -> impl Iterator<Item = (u16, &Leg)> {
        self.branches.iter().zip(0..).filter_map(|(branch, index)| Some((index, branch.leg()?)))
    }

    /// Payer's and payee's parts, if it is a hold.
    #[must_use]
    pub fn as_hold(&self) -> Option<(&Leg, &Leg)> {
        match self.branches.as_slice() {
            [Branch::Ledger(debit), Branch::Ledger(credit)] if self.owner.is_none() => Some((debit, credit)),
            _ => None,
        }
    }

    /// The branch of the ledger that goes before its others: the pivot, or, if that is another participant's, the first
    /// credit, or else the first debit.
    ///
    /// If the pivot were not what it should be, and took its decision back, some branches of the ledger could be confirmed and
    /// others cancelled, which would create or lose money. So they follow one of their own: what that one's fence has answered
    /// stays so.
    #[must_use]
    pub fn lead(&self) -> Option<u16> {
        let credit = || self.legs().find(|(_, leg)| leg.role == Role::Credit);
        let first = || self.legs().next();
        let is_pivot =
            self.branches.get(usize::from(self.pivot)).is_some_and(|branch| branch.leg().is_some());
        if is_pivot { Some(self.pivot) } else { credit().or_else(first).map(|(index, _)| index) }
    }

    /// How much more its credits give than its debits take, by currency: empty, if it is balanced.
    #[must_use]
    pub fn imbalance(&self) -> BTreeMap<&Currency, i128> {
        let mut sums: BTreeMap<&Currency, i128> = BTreeMap::new();
        for (_, leg) in self.legs() {
            let amount = i128::from(leg.amount.get());
            *sums.entry(&leg.currency).or_default() += match leg.role {
                Role::Credit | Role::Issue => amount,
                Role::Debit | Role::Burn => -amount,
            };
        }
        sums.retain(|_, sum| *sum != 0);
        sums
    }

    /// Whether it was due by any clock when it was created.
    #[must_use]
    pub fn is_due_at_once(&self) -> bool {
        self.due_at == Timestamp::UNIX_EPOCH
    }

    /// The name of the first field in which two descriptors differ, as it is called in the API.
    #[must_use]
    pub fn first_difference(&self, other: &Self) -> Option<&'static str> {
        if self.owner != other.owner {
            return Some("id");
        }
        match (self.as_hold(), other.as_hold()) {
            (Some(mine), Some(theirs)) => {
                let field = difference(mine.0, theirs.0, "payer").or(difference(mine.1, theirs.1, "payee"));
                if field.is_some() {
                    return field;
                }
            }
            _ => match (self.branches.as_slice(), other.branches.as_slice()) {
                ([Branch::Ledger(mine)], [Branch::Ledger(theirs)]) if self.owner.is_none() => {
                    if let Some(field) = difference(mine, theirs, "account") {
                        return Some(field);
                    }
                }
                (mine, theirs) if mine != theirs => return Some("branches"),
                _ => {}
            },
        }
        if self.pivot != other.pivot {
            return Some("pivot");
        }
        let rest = [
            ("due_at", self.due_at != other.due_at),
            ("on_maturity", self.on_maturity != other.on_maturity),
            ("labels", self.labels != other.labels),
            ("idempotency_key", self.key != other.key),
        ];
        rest.into_iter().find(|(_, differs)| *differs).map(|(name, _)| name)
    }

    fn encode(&self) -> Vec<u8> {
        let branches = self.branches.iter().map(|branch| match branch {
            Branch::Ledger(leg) => wire::Branch {
                role: match leg.role {
                    Role::Debit => 1,
                    Role::Credit => 2,
                    Role::Issue => 3,
                    Role::Burn => 4,
                },
                account: leg.account.as_str().to_owned(),
                amount: leg.amount.get(),
                currency: leg.currency.as_str().to_owned(),
                ..wire::Branch::default()
            },
            Branch::Other(request) => wire::Branch {
                participant: request.participant.as_str().to_owned(),
                payload: request.payload.clone(),
                operation: request.operation.clone(),
                ..wire::Branch::default()
            },
        });
        let descriptor = wire::Descriptor {
            branches: branches.collect(),
            pivot: u32::from(self.pivot),
            due_at: self.due_at.as_microsecond(),
            on_maturity: match self.on_maturity {
                OnMaturity::Confirm => 1,
                OnMaturity::Cancel => 2,
            },
            caller: self.key.as_ref().map(|key| key.caller().to_owned()).unwrap_or_default(),
            key: self.key.as_ref().map(|key| key.key().to_owned()).unwrap_or_default(),
            labels: self.labels.clone().into_map(),
            owner: self.owner.clone(),
        };
        descriptor.encode_to_vec()
    }

    fn decode(encoded: &[u8]) -> Result<Self, DescriptorError> {
        let descriptor = wire::Descriptor::decode(encoded)?;
        let branches = descriptor.branches.into_iter().map(|branch| {
            let role = match branch.role {
                0 => {
                    let participant = ParticipantName::parse(&branch.participant)?;
                    let wire::Branch { operation, payload, .. } = branch;
                    return Ok(Branch::Other(Request { participant, operation, payload }));
                }
                1 => Role::Debit,
                2 => Role::Credit,
                3 => Role::Issue,
                4 => Role::Burn,
                _ => return Err(DescriptorError::Field("role")),
            };
            Ok(Branch::Ledger(Leg {
                role,
                account: AccountId::parse(&branch.account)?,
                amount: Amount::new(branch.amount)?,
                currency: Currency::parse(&branch.currency)?,
            }))
        });
        let branches: Vec<_> = branches.collect::<Result<_, _>>()?;
        let pivot = u16::try_from(descriptor.pivot).ok().filter(|pivot| usize::from(*pivot) < branches.len());
        let on_maturity = match descriptor.on_maturity {
            1 => OnMaturity::Confirm,
            2 => OnMaturity::Cancel,
            _ => return Err(DescriptorError::Field("on_maturity")),
        };
        Ok(Self {
            branches,
            pivot: pivot.ok_or(DescriptorError::Field("pivot"))?,
            due_at: Timestamp::from_microsecond(descriptor.due_at)
                .map_err(|_| DescriptorError::Field("due_at"))?,
            on_maturity,
            labels: Labels::new(descriptor.labels)?,
            key: match descriptor.key.as_str() {
                "" => None,
                key => Some(IdempotencyKey::new(&descriptor.caller, key)?),
            },
            owner: descriptor.owner,
        })
    }
}

/// The name of the first field in which two legs differ, the account being called so.
fn difference(mine: &Leg, theirs: &Leg, account: &'static str) -> Option<&'static str> {
    let fields = [
        ("branches", mine.role != theirs.role),
        (account, mine.account != theirs.account),
        ("amount.value", mine.amount != theirs.amount),
        ("amount.currency", mine.currency != theirs.currency),
    ];
    fields.into_iter().find(|(_, differs)| *differs).map(|(name, _)| name)
}

impl Role {
    /// Whether it takes effect at once, as a transaction of its own, which the coordinator has no row of.
    #[must_use]
    pub fn is_at_once(self) -> bool {
        matches!(self, Self::Issue | Self::Burn)
    }
}

impl OnMaturity {
    /// What the branches are asked for then.
    #[must_use]
    pub fn operation(self) -> Operation {
        match self {
            Self::Confirm => Operation::Confirm,
            Self::Cancel => Operation::Cancel,
        }
    }

    /// The number in the tables: 1 or 2.
    #[must_use]
    pub fn number(self) -> i16 {
        match self {
            Self::Confirm => 1,
            Self::Cancel => 2,
        }
    }
}

mod wire {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Descriptor {
        #[prost(message, repeated, tag = "1")]
        pub branches: Vec<Branch>,
        #[prost(uint32, tag = "2")]
        pub pivot: u32,
        /// Microseconds since the Unix epoch.
        #[prost(int64, tag = "3")]
        pub due_at: i64,
        #[prost(uint32, tag = "4")]
        pub on_maturity: u32,
        /// Whose key it is; only with one.
        #[prost(string, tag = "5")]
        pub caller: String,
        #[prost(string, tag = "6")]
        pub key: String,
        /// In the order of the keys, so that the bytes are the same for the same labels.
        #[prost(btree_map = "string, string", tag = "7")]
        pub labels: std::collections::BTreeMap<String, String>,
        /// Not of a hold. It may be empty.
        #[prost(string, optional, tag = "8")]
        pub owner: Option<String>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Branch {
        #[prost(uint32, tag = "1")]
        pub role: u32,
        #[prost(string, tag = "2")]
        pub account: String,
        #[prost(int64, tag = "3")]
        pub amount: i64,
        #[prost(string, tag = "4")]
        pub currency: String,
        /// Of a branch that is not the ledger's, which has no role.
        #[prost(string, tag = "5")]
        pub participant: String,
        #[prost(bytes = "vec", tag = "6")]
        pub payload: Vec<u8>,
        #[prost(string, tag = "7")]
        pub operation: String,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hold(payer: &str, payee: &str, amount: i64, due_us: i64, on_maturity: OnMaturity) -> Descriptor {
        Descriptor::hold(
            AccountId::parse(payer).unwrap(),
            AccountId::parse(payee).unwrap(),
            Amount::new(amount).unwrap(),
            Currency::parse("GOLD").unwrap(),
            Timestamp::from_microsecond(due_us).unwrap(),
            on_maturity,
        )
    }

    proptest! {
        #[test]
        fn what_was_encoded_reads_back(payer in "[!-~]{1,64}", payee in "[!-~]{1,64}", amount in 1..=Amount::MAX,
                                       due_us in 0..4_000_000_000_000_000_i64, confirm: bool) {
            let on_maturity = if confirm { OnMaturity::Confirm } else { OnMaturity::Cancel };
            let id = TransactionId::mint(Timestamp::UNIX_EPOCH, [1; 10]);
            let transaction = Transaction::new(id, hold(&payer, &payee, amount, due_us, on_maturity));

            prop_assert_eq!(Transaction::decode(id, transaction.encoded.clone()).unwrap(), transaction);
        }

        #[test]
        fn garbage_is_an_error_and_no_panic(bytes: Vec<u8>) {
            let _ = Descriptor::decode(&bytes);
        }
    }

    #[test]
    fn the_encoding_is_pinned() {
        let descriptor = hold("alice", "bob", 250, 1_790_000_000_000_000, OnMaturity::Confirm);

        let hex: String = descriptor.encode().iter().map(|byte| format!("{byte:02x}")).collect();

        assert_eq!(
            hex,
            "0a1208011205616c69636518fa012204474f4c44\
             0a1008021203626f6218fa012204474f4c44\
             10011880c097d1edff96032001"
        );
    }

    #[test]
    fn the_encoding_of_what_a_caller_attached_is_pinned() {
        let pairs = [("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())];
        let plain = hold("alice", "bob", 250, 1_790_000_000_000_000, OnMaturity::Confirm);
        let descriptor = Descriptor {
            labels: Labels::new(pairs).unwrap(),
            key: Some(IdempotencyKey::new("shop", "k1").unwrap()),
            ..plain.clone()
        };

        let encoded = descriptor.encode();

        let attached: String =
            encoded[plain.encode().len()..].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(attached, "2a0473686f7032026b313a060a01611201313a060a0162120132");
        assert_eq!(Descriptor::decode(&encoded).unwrap(), descriptor);
        assert_eq!(plain.first_difference(&descriptor), Some("labels"));
        assert_eq!(
            plain.first_difference(&Descriptor { labels: Labels::default(), ..descriptor }),
            Some("idempotency_key")
        );
    }

    fn leg(role: Role, account: &str, amount: i64, currency: &str) -> Branch {
        Branch::Ledger(Leg {
            role,
            account: AccountId::parse(account).unwrap(),
            amount: Amount::new(amount).unwrap(),
            currency: Currency::parse(currency).unwrap(),
        })
    }

    fn seat(payload: &str) -> Branch {
        let participant = ParticipantName::parse("seats").unwrap();
        Branch::Other(Request { participant, operation: "reserve".into(), payload: payload.into() })
    }

    fn of(branches: Vec<Branch>, pivot: u16) -> Descriptor {
        Descriptor { branches, pivot, owner: Some("shop".into()), ..Descriptor::at_once() }
    }

    #[test]
    fn the_encoding_of_any_branches_is_pinned() {
        let descriptor = of(vec![seat("A1")], 0);

        let encoded = descriptor.encode();

        let hex: String = encoded.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "0a142a0573656174733202413\
13a0772657365727665200142\
0473686f70"
        );
        assert_eq!(Descriptor::decode(&encoded).unwrap(), descriptor);
        let nobody = Descriptor { owner: Some(String::new()), ..descriptor };
        assert_eq!(Descriptor::decode(&nobody.encode()).unwrap(), nobody);
    }

    #[test]
    fn what_credits_give_and_debits_do_not_take_shows_by_currency() {
        let gold = Currency::parse("GOLD").unwrap();
        let (debit, credit) = (leg(Role::Debit, "a", 5, "GOLD"), leg(Role::Credit, "b", 5, "GOLD"));

        let balanced = of(vec![debit.clone(), seat("A1"), credit.clone()], 1);
        let lone = of(vec![credit.clone(), seat("A1")], 1);
        let crossed = of(vec![debit, leg(Role::Credit, "b", 5, "RUBY")], 1);

        assert!(balanced.imbalance().is_empty());
        assert_eq!(lone.imbalance(), BTreeMap::from([(&gold, 5)]));
        assert_eq!(crossed.imbalance().into_values().collect::<Vec<_>>(), [-5, 5]);
        let most = of(vec![leg(Role::Credit, "b", Amount::MAX, "GOLD"); 64], 1);
        assert_eq!(most.imbalance()[&gold], 64 * i128::from(Amount::MAX), "nothing overflows");
    }

    #[test]
    fn the_ledger_follows_the_pivot_or_a_credit_of_its_own() {
        let (debit, credit) = (leg(Role::Debit, "a", 5, "GOLD"), leg(Role::Credit, "b", 5, "GOLD"));

        assert_eq!(of(vec![debit.clone(), credit.clone()], 0).lead(), Some(0));
        assert_eq!(of(vec![debit.clone(), credit, seat("A1")], 2).lead(), Some(1));
        assert_eq!(of(vec![seat("A1"), debit], 0).lead(), Some(1));
        assert_eq!(of(vec![seat("A1")], 0).lead(), None);
    }

    #[test]
    fn a_hold_and_a_transaction_of_the_same_branches_are_not_the_same() {
        let one = hold("a", "b", 1, 1_000, OnMaturity::Confirm);
        let other = Descriptor { owner: Some(String::new()), ..one.clone() };

        assert!(one.as_hold().is_some() && other.as_hold().is_none());
        assert_eq!(one.first_difference(&other), Some("id"));
        assert_eq!(of(vec![seat("A1")], 0).first_difference(&of(vec![seat("A2")], 0)), Some("branches"));
    }

    #[test]
    fn the_first_difference_is_named_as_in_the_api() {
        let one = hold("a", "b", 1, 1_000, OnMaturity::Confirm);

        assert_eq!(one.first_difference(&one.clone()), None);
        assert_eq!(one.first_difference(&hold("x", "b", 1, 1_000, OnMaturity::Confirm)), Some("payer"));
        assert_eq!(one.first_difference(&hold("a", "x", 1, 1_000, OnMaturity::Confirm)), Some("payee"));
        assert_eq!(
            one.first_difference(&hold("a", "b", 2, 1_000, OnMaturity::Confirm)),
            Some("amount.value")
        );
        assert_eq!(one.first_difference(&hold("a", "b", 1, 2_000, OnMaturity::Confirm)), Some("due_at"));
        assert_eq!(one.first_difference(&hold("a", "b", 1, 1_000, OnMaturity::Cancel)), Some("on_maturity"));
    }

    #[test]
    fn what_is_no_hold_differs_in_its_branches_or_as_a_hold_does() {
        let seats = of(vec![seat("A1")], 0);
        let later = Descriptor { due_at: Timestamp::from_second(1).unwrap(), ..seats.clone() };
        let (mine, theirs) = (leg(Role::Issue, "a", 1, "GOLD"), leg(Role::Issue, "b", 1, "GOLD"));
        let issue = |branch: &Branch| Descriptor { branches: vec![branch.clone()], ..Descriptor::at_once() };

        assert_eq!(seats.first_difference(&later), Some("due_at"));
        assert_eq!(issue(&mine).first_difference(&issue(&theirs)), Some("account"));
        assert_eq!(of(vec![mine], 0).first_difference(&of(vec![theirs], 0)), Some("branches"));
    }

    #[test]
    fn issues_and_burns_read_back_and_have_one_leg_that_takes_effect_at_once() {
        let parts =
            || (AccountId::parse("a").unwrap(), Amount::new(5).unwrap(), Currency::parse("GOLD").unwrap());
        let id = TransactionId::mint(Timestamp::UNIX_EPOCH, [1; 10]);
        let (account, amount, currency) = parts();
        let issue = Descriptor::issue(account, amount, currency);
        let (account, amount, currency) = parts();
        let burn = Descriptor::burn(account, amount, currency);

        for (descriptor, role) in [(issue, Role::Issue), (burn, Role::Burn)] {
            let transaction = Transaction::decode(id, descriptor.encode()).unwrap();

            assert_eq!(transaction.descriptor, descriptor);
            assert_eq!(transaction.leg(0).map(|leg| (leg.role, leg.amount.get())), Some((role, 5)));
            assert_eq!(transaction.leg(1), None);
            assert!(role.is_at_once());
        }
        assert!(!Role::Debit.is_at_once() && !Role::Credit.is_at_once());
    }

    #[test]
    fn a_pivot_is_one_of_the_branches() {
        let beyond = Descriptor { pivot: 1, ..of(vec![seat("A1")], 0) };

        assert!(matches!(Descriptor::decode(&beyond.encode()), Err(DescriptorError::Field("pivot"))));
    }

    #[test]
    fn what_is_due_by_any_clock_is_a_transfer_and_no_hold() {
        let (payer, payee) = (AccountId::parse("a").unwrap(), AccountId::parse("b").unwrap());
        let transfer =
            Descriptor::transfer(payer, payee, Amount::new(5).unwrap(), Currency::parse("GOLD").unwrap());

        assert!(transfer.is_due_at_once());
        assert!(!hold("a", "b", 5, 1_000, OnMaturity::Confirm).is_due_at_once());
    }

    #[test]
    fn what_happens_at_maturity_has_the_number_that_is_in_the_tables() {
        assert_eq!((OnMaturity::Confirm.number(), OnMaturity::Cancel.number()), (1, 2));
        assert_eq!(OnMaturity::Confirm.operation(), Operation::Confirm);
        assert_eq!(OnMaturity::Cancel.operation(), Operation::Cancel);
    }

    #[test]
    fn a_participants_name_has_up_to_63_small_letters_digits_and_marks_and_begins_with_a_letter() {
        let longest = "a".repeat(63);

        for good in ["a", "z", "seats", "a0", "a9", "eu.seats-2_x", &longest] {
            assert_eq!(ParticipantName::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "0a", "_a", ".a", "-a", "A", "aB", "a b", "ä", "a/b", &"a".repeat(64)] {
            assert!(ParticipantName::parse(bad).is_err(), "{bad}");
        }
    }
}
