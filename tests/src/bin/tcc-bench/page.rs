//! `report.html`: one page that needs nothing else. First the table of goals, then each experiment's plots and facts.

use crate::{
    goals::{GOALS, Verdict},
    plot,
    report::{Figures, Part},
};
use std::{collections::BTreeMap, fmt::Write as _};

const STYLE: &str = "
:root{--paper:#fbfbf9;--ink:#1d2327;--dim:#6a737b;--line:#dcdfe0;--good:#1a7f4b;--bad:#b3261e;
--c0:#2563a8;--c1:#d9722e;--c2:#3b8f5a;--c3:#8a4fa3;--c4:#b08d00}
@media(prefers-color-scheme:dark){:root{--paper:#16191c;--ink:#e6e8ea;--dim:#98a1a8;--line:#343a3f;--good:#5fcf94;
--bad:#ff8a80;--c0:#6aa9ee;--c1:#f0955a;--c2:#6cc48d;--c3:#c08bd8;--c4:#e0bf45}}
body{background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif;max-width:1340px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2.2rem 0 .4rem}h3{font-size:.95rem;margin:.2rem 0}
p,.dim{color:var(--dim)}table{border-collapse:collapse;width:100%}
td,th{text-align:left;padding:.3rem .7rem .3rem 0;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--dim);font-weight:500}.met{color:var(--good)}.missed{color:var(--bad);font-weight:600}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,520px),1fr));gap:1.2rem}
figure{margin:0}svg{width:100%;height:auto}svg text{fill:var(--dim);font-size:11px}svg .label{font-size:12px}
.axis{fill:none;stroke:var(--dim)}.grid{stroke:var(--line);fill:none}
.legend span{margin-right:1.1rem;font-size:.85rem;color:var(--dim)}.legend i{display:inline-block;width:.8em;height:.8em;
margin-right:.35em;border-radius:2px}
.s0,.s1,.s2,.s3,.s4{fill:none;stroke-width:2;stroke-linejoin:round}
.s0{stroke:var(--c0)}.s1{stroke:var(--c1)}.s2{stroke:var(--c2)}.s3{stroke:var(--c3)}.s4{stroke:var(--c4)}
.f0{fill:var(--c0)}.f1{fill:var(--c1)}.f2{fill:var(--c2)}.f3{fill:var(--c3)}.f4{fill:var(--c4)}
.b0{background:var(--c0)}.b1{background:var(--c1)}.b2{background:var(--c2)}.b3{background:var(--c3)}.b4{background:var(--c4)}
";

/// The page.
#[must_use]
pub fn render(machine: &BTreeMap<String, String>, parts: &BTreeMap<String, Part>) -> String {
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>tcc-bench</title>\
         <style>{STYLE}</style><h1>tcc-bench</h1><p>"
    );
    let facts: Vec<String> =
        machine.iter().map(|(name, value)| plot::escape(&format!("{name}: {value}"))).collect();
    page.push_str(&facts.join(" · "));
    page.push_str("<br>Servers, coordinator and load generator share the machine. fsync, synchronous_commit and full_page_writes are on.</p>");
    goals(&mut page, &parts.values().flat_map(|part| part.figures.clone()).collect());
    for (name, part) in parts {
        let _ = write!(
            page,
            "<h2>{} <span class=\"dim\">{}</span></h2>",
            plot::escape(name),
            plot::escape(&part.measured_at)
        );
        page.push_str("<div class=\"plots\">");
        for each in &part.plots {
            let _ = write!(
                page,
                "<figure><h3>{}</h3><div class=\"legend\">{}</div>{}</figure>",
                plot::escape(&each.title),
                plot::legend(each),
                plot::svg(each)
            );
        }
        page.push_str("</div><table>");
        for fact in &part.facts {
            let _ = write!(
                page,
                "<tr><th>{}</th><td>{}</td></tr>",
                plot::escape(&fact.name),
                plot::escape(&fact.value)
            );
        }
        page.push_str("</table>");
    }
    page.push_str("</html>\n");
    page
}

fn goals(page: &mut String, figures: &Figures) {
    page.push_str("<table><tr><th></th><th>what</th><th>goal</th><th>figure</th><th>verdict</th></tr>");
    for goal in &GOALS {
        let verdict = goal.verdict(figures);
        let class = match verdict {
            Verdict::Met => "met",
            Verdict::Missed => "missed",
            Verdict::NotRun => "dim",
        };
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"{class}\">{}</td></tr>",
            goal.id,
            plot::escape(goal.what),
            plot::escape(&goal.goal_text()),
            plot::escape(&goal.figure_text(figures)),
            verdict.text()
        );
    }
    page.push_str("</table>");
}
