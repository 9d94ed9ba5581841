//! The whole transaction as it was created.
//!
//! Every fence keeps the descriptor's bytes and refuses an operation that comes with other bytes under the same id. So the
//! fences together can rebuild a transaction that the coordinator forgot, and no id can mean two things. The encoding is
//! protobuf with the fields of the private `wire` module: stable, compact (about 60 bytes), and the same bytes for the
//! same transaction.

use crate::{AccountId, Amount, Currency, MoneyError, Operation, Timestamp, TransactionId};
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
        Self { branches: vec![debit, credit], pivot: CREDIT, due_at, on_maturity }
    }

    /// An issue of units on one account, which takes effect at once.
    #[must_use]
    pub fn issue(account: AccountId, amount: Amount, currency: Currency) -> Self {
        let branch = Branch { role: Role::Issue, account, amount, currency };
        Self {
            branches: vec![branch],
            pivot: 0,
            due_at: Timestamp::UNIX_EPOCH,
            on_maturity: OnMaturity::Confirm,
        }
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
                Role::Issue => "account",
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
        let times =
            [("due_at", self.due_at != other.due_at), ("on_maturity", self.on_maturity != other.on_maturity)];
        times.into_iter().find(|(_, differs)| *differs).map(|(name, _)| name)
    }

    fn encode(&self) -> Vec<u8> {
        let branches = self.branches.iter().map(|branch| wire::Branch {
            role: match branch.role {
                Role::Debit => 1,
                Role::Credit => 2,
                Role::Issue => 3,
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
        })
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
