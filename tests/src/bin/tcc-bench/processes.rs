//! CPU time and memory of processes, as Linux tells them in `/proc`.
//!
//! A PostgreSQL server is its postmaster and one child per connection or helper. A child that ends is reaped by the
//! postmaster, whose "children" times then contain it; until then it has times of its own. So the sum over the postmaster
//! with its reaped children and the living children's own times counts everything once, and never goes back.

use anyhow::Context as _;
use std::fs;

/// Linux counts CPU time for user space in hundredths of a second on every machine that PostgreSQL supports.
const TICKS_PER_SECOND: f64 = 100.0;

struct Stat {
    parent: u32,
    /// Own user and system time, in ticks.
    own: u64,
    /// The same of children that have ended.
    reaped: u64,
}

/// CPU seconds of one process, without its children.
///
/// # Errors
///
/// If there is no such process.
pub fn cpu_of(process: u32) -> anyhow::Result<f64> {
    let stat = read(process).with_context(|| format!("reading the CPU time of process {process}"))?;
    Ok(stat.own as f64 / TICKS_PER_SECOND)
}

/// CPU seconds of servers: postmasters, and all children they have or had.
///
/// # Errors
///
/// If a postmaster is gone, or there is no `/proc`.
pub fn cpu_of_servers(postmasters: &[u32]) -> anyhow::Result<f64> {
    let mut ticks = 0;
    for &postmaster in postmasters {
        let stat = read(postmaster).with_context(|| format!("server process {postmaster} is gone"))?;
        ticks += stat.own + stat.reaped;
    }
    for entry in fs::read_dir("/proc").context("reading /proc")? {
        let name = entry.context("reading /proc")?.file_name();
        let Some(stat) = name.to_str().and_then(|name| name.parse().ok()).and_then(read) else { continue };
        if postmasters.contains(&stat.parent) {
            ticks += stat.own;
        }
    }
    Ok(ticks as f64 / TICKS_PER_SECOND)
}

/// Memory of a process in bytes: what it has now, and the most it ever had.
///
/// # Errors
///
/// If there is no such process.
pub fn resident(process: u32) -> anyhow::Result<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{process}/status"))
        .with_context(|| format!("reading the memory of process {process}"))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let kib =
            line.and_then(|rest| rest.split_whitespace().next()).and_then(|kib| kib.parse::<u64>().ok());
        kib.map(|kib| kib * 1024).with_context(|| format!("{name} is missing"))
    };
    Ok((field("VmRSS:")?, field("VmHWM:")?))
}

fn read(process: u32) -> Option<Stat> {
    parse(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?)
}

/// Fields are counted from behind the name, which may contain spaces and brackets: proc(5) has them from 3 on.
fn parse(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat {
        parent: u32::try_from(number(4)?).ok()?,
        own: number(14)? + number(15)?,
        reaped: number(16)? + number(17)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let stat = parse("7 (a) b) S 4 7 7 0 -1 0 0 0 0 0 10 20 300 400 20 0 1 0 5 6 7").unwrap();

        assert_eq!((stat.parent, stat.own, stat.reaped), (4, 30, 700));
    }

    #[test]
    fn this_process_has_used_memory() {
        let (now, most) = resident(std::process::id()).unwrap();

        assert!(0 < now && now <= most);
    }
}
