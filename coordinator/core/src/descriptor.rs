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
}

/// One participant's part: an amount on one account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branch {
    /// What happens to the account.
    pub role: Role,
    /// Whose part it is.
    pub account: AccountId,
    /// How much.
    pub amount: Amount,
    /// Of what.
    pub currency: Currency,
}

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
        let debit = Branch { role: Role::Debit, account: payer, amount, currency: currency.clone() };
        let credit = Branch { role: Role::Credit, account: payee, amount, currency };
        Self { branches: vec![debit, credit], pivot: CREDIT, due_at, on_maturity, ..Self::at_once() }
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
        Self { branches: vec![Branch { role: Role::Issue, account, amount, currency }], ..Self::at_once() }
    }

    /// The reverse of an issue.
    #[must_use]
    pub fn burn(account: AccountId, amount: Amount, currency: Currency) -> Self {
        Self { branches: vec![Branch { role: Role::Burn, account, amount, currency }], ..Self::at_once() }
    }

    /// Nothing yet, without a due time.
    fn at_once() -> Self {
        Self {
            branches: Vec::new(),
            pivot: 0,
            due_at: Timestamp::UNIX_EPOCH,
            on_maturity: OnMaturity::Confirm,
            labels: Labels::default(),
            key: None,
        }
    }

    /// Whether it was due by any clock when it was created.
    #[must_use]
    pub fn is_due_at_once(&self) -> bool {
        self.due_at == Timestamp::UNIX_EPOCH
    }

    /// The name of the first field in which two descriptors differ, as it is called in the API.
    #[must_use]
    pub fn first_difference(&self, other: &Self) -> Option<&'static str> {
        if self.branches.len() != other.branches.len() || self.pivot != other.pivot {
            return Some("branches");
        }
        for (mine, theirs) in self.branches.iter().zip(&other.branches) {
            let account = match mine.role {
                Role::Debit => "payer",
                Role::Credit => "payee",
                Role::Issue | Role::Burn => "account",
            };
            let fields = [
                ("branches", mine.role != theirs.role),
                (account, mine.account != theirs.account),
                ("amount.value", mine.amount != theirs.amount),
                ("amount.currency", mine.currency != theirs.currency),
            ];
            if let Some((name, _)) = fields.into_iter().find(|(_, differs)| *differs) {
                return Some(name);
            }
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
        let branches = self.branches.iter().map(|branch| wire::Branch {
            role: match branch.role {
                Role::Debit => 1,
                Role::Credit => 2,
                Role::Issue => 3,
                Role::Burn => 4,
            },
            account: branch.account.as_str().to_owned(),
            amount: branch.amount.get(),
            currency: branch.currency.as_str().to_owned(),
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
        };
        descriptor.encode_to_vec()
    }

    fn decode(encoded: &[u8]) -> Result<Self, DescriptorError> {
        let descriptor = wire::Descriptor::decode(encoded)?;
        let branches = descriptor.branches.into_iter().map(|branch| {
            let role = match branch.role {
                1 => Role::Debit,
                2 => Role::Credit,
                3 => Role::Issue,
                4 => Role::Burn,
                _ => return Err(DescriptorError::Field("role")),
            };
            Ok(Branch {
                role,
                account: AccountId::parse(&branch.account)?,
                amount: Amount::new(branch.amount)?,
                currency: Currency::parse(&branch.currency)?,
            })
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
        })
    }
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
}
