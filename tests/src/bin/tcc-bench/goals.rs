//! P1 to P13: what must be reached, and whether it was.
//!
//! A goal has one bound or more, each over a figure that an experiment leaves under the bound's name.

use crate::report::Figures;
use std::fmt::Write as _;

/// One of the goals.
pub struct Goal {
    /// `P1` and so on.
    pub id: &'static str,
    /// What is measured.
    pub what: &'static str,
    /// What must hold, all of it.
    pub bounds: &'static [Bound],
}

/// A bound of a figure.
pub struct Bound {
    /// The figure's name.
    pub figure: &'static str,
    /// On which side of the limit it must be.
    pub side: Side,
    /// The limit.
    pub limit: f64,
    /// The unit of both.
    pub unit: &'static str,
}

/// Which side of a limit is good.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The limit or more.
    AtLeast,
    /// The limit or less.
    AtMost,
}

/// What became of a goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All its bounds hold.
    Met,
    /// One does not.
    Missed,
    /// A figure is missing.
    NotRun,
}

const fn at_least(figure: &'static str, limit: f64, unit: &'static str) -> Bound {
    Bound { figure, side: Side::AtLeast, limit, unit }
}

const fn at_most(figure: &'static str, limit: f64, unit: &'static str) -> Bound {
    Bound { figure, side: Side::AtMost, limit, unit }
}

/// All of them, in order.
pub const GOALS: [Goal; 13] = [
    Goal {
        id: "P1",
        what: "lifecycles against pgbench's local transfer",
        bounds: &[at_least("P1", 1.5, "x")],
    },
    Goal {
        id: "P2",
        what: "lifecycles against PREPARE/COMMIT PREPARED",
        bounds: &[at_least("P2", 3.5, "x")],
    },
    Goal {
        id: "P3",
        what: "create, open loop 5,000/s + 2,500 cancel/s: p99, errors",
        bounds: &[at_most("P3 p99", 50.0, "ms"), at_most("P3 errors", 0.0, "errors")],
    },
    Goal { id: "P4", what: "create, one idle caller: p50", bounds: &[at_most("P4", 2.0, "ms")] },
    Goal {
        id: "P5",
        what: "300,000 due in the same second: last one paid after",
        bounds: &[at_most("P5", 15.0, "s")],
    },
    Goal { id: "P6", what: "the same to one payee, against P5", bounds: &[at_most("P6", 1.15, "x")] },
    Goal {
        id: "P7",
        what: "due to paid, idle and at 5,000 create/s: p99; paid early",
        bounds: &[
            at_most("P7 idle", 50.0, "ms"),
            at_most("P7 loaded", 250.0, "ms"),
            at_most("P7 early", 0.0, "early"),
        ],
    },
    Goal { id: "P8", what: "durable commits per lifecycle", bounds: &[at_most("P8", 0.1, "")] },
    Goal {
        id: "P9",
        what: "CPU per lifecycle with 2, 4, 8 shards: most against least",
        bounds: &[at_most("P9", 1.10, "x")],
    },
    Goal {
        id: "P10",
        what: "create rate over 10 million open holds against an empty system",
        bounds: &[at_least("P10", 0.9, "x")],
    },
    Goal {
        id: "P11",
        what: "memory of tccd with 1 million holds in the hot window",
        bounds: &[at_most("P11", 250.0, "MB")],
    },
    Goal { id: "P12", what: "WAL per lifecycle", bounds: &[at_most("P12", 2.5, "kB")] },
    Goal {
        id: "P13",
        what: "disk per open hold, per final hold",
        bounds: &[at_most("P13 open", 1.5, "kB"), at_most("P13 final", 1.5, "kB")],
    },
];

impl Goal {
    /// Whether it is reached by these figures.
    #[must_use]
    pub fn verdict(&self, figures: &Figures) -> Verdict {
        let holds = |bound: &Bound| {
            figures.get(bound.figure).map(|figure| match bound.side {
                Side::AtLeast => *figure >= bound.limit,
                Side::AtMost => *figure <= bound.limit,
            })
        };
        let all: Option<Vec<bool>> = self.bounds.iter().map(holds).collect();
        match all {
            None => Verdict::NotRun,
            Some(all) if all.iter().all(|holds| *holds) => Verdict::Met,
            Some(_) => Verdict::Missed,
        }
    }

    /// What must hold, for people.
    #[must_use]
    pub fn goal_text(&self) -> String {
        let text = |bound: &Bound| {
            let sign = if bound.side == Side::AtLeast { ">=" } else { "<=" };
            format!("{sign} {} {}", short(bound.limit), bound.unit).trim_end().to_owned()
        };
        self.bounds.iter().map(text).collect::<Vec<_>>().join(", ")
    }

    /// What was measured, for people; `-` for what was not.
    #[must_use]
    pub fn figure_text(&self, figures: &Figures) -> String {
        let text = |bound: &Bound| match figures.get(bound.figure) {
            Some(figure) => format!("{} {}", short(*figure), bound.unit).trim_end().to_owned(),
            None => "-".to_owned(),
        };
        self.bounds.iter().map(text).collect::<Vec<_>>().join(", ")
    }
}

impl Verdict {
    /// In a word or two.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "MISSED",
            Self::NotRun => "not run",
        }
    }
}

/// The table of all goals.
#[must_use]
pub fn table(figures: &Figures) -> String {
    let mut table = format!("{:<4} {:<64} {:<34} {:<34} verdict\n", "", "what", "goal", "figure");
    for goal in &GOALS {
        let (bound, figure, verdict) =
            (goal.goal_text(), goal.figure_text(figures), goal.verdict(figures).text());
        let _ = writeln!(table, "{:<4} {:<64} {bound:<34} {figure:<34} {verdict}", goal.id, goal.what);
    }
    table
}

/// The line that programs look for.
#[must_use]
pub fn last_line(figures: &Figures, failed: &[&str]) -> String {
    let mut line = String::from("bench:");
    for goal in GOALS.iter().filter(|goal| goal.verdict(figures) != Verdict::NotRun) {
        let values: Vec<String> = goal.bounds.iter().map(|bound| short(figures[bound.figure])).collect();
        let _ = write!(line, " {}={}", goal.id, values.join("/"));
    }
    let list = |verdict| {
        let ids: Vec<&str> =
            GOALS.iter().filter(|goal| goal.verdict(figures) == verdict).map(|goal| goal.id).collect();
        if ids.is_empty() { "none".to_owned() } else { ids.join(",") }
    };
    let failed = if failed.is_empty() { "none".to_owned() } else { failed.join(",") };
    let _ =
        write!(line, " failed={failed} misses={} not_run={}", list(Verdict::Missed), list(Verdict::NotRun));
    line
}

/// Three digits or so.
#[must_use]
pub fn short(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 0.1 || v == 0.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_met_only_if_all_its_bounds_hold() {
        let figures =
            |p99, errors| Figures::from([("P3 p99".to_owned(), p99), ("P3 errors".to_owned(), errors)]);
        let goal = &GOALS[2];

        assert_eq!(goal.verdict(&figures(50.0, 0.0)), Verdict::Met);
        assert_eq!(goal.verdict(&figures(49.0, 1.0)), Verdict::Missed);
        assert_eq!(goal.verdict(&Figures::from([("P3 p99".to_owned(), 1.0)])), Verdict::NotRun);
    }

    #[test]
    fn the_last_line_names_figures_misses_and_what_was_not_run() {
        let figures = Figures::from([("P1".to_owned(), 1.62), ("P2".to_owned(), 3.4)]);

        let line = last_line(&figures, &[]);

        assert!(line.starts_with("bench: P1=1.62 P2=3.4 failed=none misses=P2 not_run=P3,P4,"), "{line}");
    }

    #[test]
    fn goals_are_numbered_in_order() {
        assert!(GOALS.iter().enumerate().all(|(index, goal)| goal.id == format!("P{}", index + 1)));
    }
}
