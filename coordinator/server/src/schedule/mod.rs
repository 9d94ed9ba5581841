//! Timers: what is due is looked at now, and nothing that is due is ever forgotten.
//!
//! The durable truth is the table `wakeup`. In memory a [`ring::Ring`] holds what falls due within the next two minutes.
//! Short delays never wait for a read: whoever commits a wake-up puts it into the ring at once. [`Scheduler`] does the rest,
//! on one connection: it reads ahead, fires, and reads each window once more after it has passed.
//!
//! Two races are closed by rule. *A wake-up commits behind the reader's cursor:* the ring's `loading_until` is set before a
//! read starts and compared after a commit, so a wake-up is either in the read's snapshot or pushed by its creator. *A commit
//! stalls, and its wake-up becomes visible after its window was read for the last time:* a window closes only on a read
//! whose snapshot's xmin has passed the xmax taken after the window's end. The watermark, which a restart reads from, passes
//! closed windows only.
//!
//! The engine decides what a wake-up means; this module never looks at a phase.

pub mod clock;
pub mod ring;
pub mod scheduler;
pub mod slots;

pub use clock::Clock;
pub use ring::{Entry, Ring, Timers};
pub use scheduler::Scheduler;
