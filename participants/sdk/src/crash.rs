//! Points at which a process can be told to die, so that a test can prove that the next one goes on from there.
//!
//! Every statement of a [`Session`](crate::Session) is a point, named as the statement, and stands before it is sent; what
//! lies between a commit and its answer is one, too, named `NAME committed` after the connection. `TCC_CRASH_AT="take_fences 2"`
//! makes the process abort when it gets to that point for the second time.
//!
//! Debug builds only: a release neither reads the variable nor holds the points.

/// Passes a point, or never returns.
#[inline]
pub fn point(name: &str) {
    #[cfg(debug_assertions)]
    armed::pass(name);
    #[cfg(not(debug_assertions))]
    let _ = name;
}

/// Passes the point of a statement, whose first line is `-- NAME`.
#[inline]
pub fn statement(sql: &str) {
    #[cfg(debug_assertions)]
    if let Some(name) = sql.strip_prefix("-- ").and_then(|rest| rest.lines().next()) {
        armed::pass(name);
    }
    #[cfg(not(debug_assertions))]
    let _ = sql;
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    };

    struct Armed {
        point: String,
        /// So many passes are left, this one included.
        left: AtomicU32,
    }

    static ARMED: LazyLock<Option<Armed>> = LazyLock::new(|| {
        let variable = std::env::var("TCC_CRASH_AT").ok()?;
        let (point, nth) = variable.rsplit_once(' ').expect("TCC_CRASH_AT is a point and a number");
        let left = nth.parse().expect("TCC_CRASH_AT ends with a number");
        Some(Armed { point: point.to_owned(), left: AtomicU32::new(left) })
    });

    pub(super) fn pass(name: &str) {
        if let Some(armed) = &*ARMED
            && armed.point == name
            && armed.left.fetch_sub(1, Ordering::SeqCst) == 1
        {
            std::process::abort();
        }
    }
}
