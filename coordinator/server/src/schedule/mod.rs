//! Timers: what is due is looked at now, and nothing that is due is ever forgotten.
//!
//! The durable truth is the table `wakeup`, and the table `slot`, which divides it into 256 parts among the instances. In memory
//! a [`Ring`] holds what falls due within the next two minutes. Short delays never wait for a read: whoever commits a wake-up
//! puts it into the ring at once, since it chose a slot that is served here. [`Leases`] keeps the slots, [`Scheduler`] reads
//! each window ahead, and once more after it has passed, [`fire`](fn@fire::fire) hands out what is due, and [`partitions`] makes and
//! drops the leaves of the table.
//!
//! Two races are closed by rule. *A wake-up commits behind the reader's cursor:* the ring's reads are announced before they
//! start, and the announcement is compared after a commit, so a wake-up is either in the read's snapshot or pushed by its
//! creator. *A commit stalls, and its wake-up becomes visible after its window was read for the last time:* a window closes
//! only on a read whose snapshot's xmin has passed a transaction number taken after the window's end. The watermark, which whoever serves
//! the slot next reads from, passes closed windows only.
//!
//! The engine decides what a wake-up means; only the drop of a partition asks what phase a transaction is in.

pub mod clock;
pub mod fire;
pub mod leases;
pub mod partitions;
pub mod ring;
pub mod scheduler;
pub mod timers;

pub use clock::Clock;
pub use fire::{Lanes, fire};
pub use leases::{Continuity, Leases, Unbroken};
pub use ring::{Entry, Ring};
pub use scheduler::Scheduler;
pub use timers::Timers;
