//! Plots as inline SVG, drawn by hand: axes with round numbers, lines or stacked bars, and a legend.
//!
//! Colours are classes, so that the page decides about light and dark.

use crate::report::{Form, Plot, Series};
use std::fmt::Write as _;

/// The size of a plot.
const SIZE: (f64, f64) = (640.0, 300.0);
/// The corners of the area inside the axes.
const AREA: (f64, f64, f64, f64) = (64.0, 14.0, 626.0, 252.0);

/// Maps values to places inside the axes.
struct Scale {
    low: f64,
    high: f64,
    is_logarithmic: bool,
    from: f64,
    to: f64,
}

impl Scale {
    fn place(&self, value: f64) -> f64 {
        let share = if self.is_logarithmic {
            (value.max(self.low).ln() - self.low.ln()) / (self.high.ln() - self.low.ln())
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.from + share * (self.to - self.from)
    }
}

/// A plot as an SVG element.
#[must_use]
pub fn svg(plot: &Plot) -> String {
    let mut svg = format!(
        "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">",
        SIZE.0,
        SIZE.1,
        escape(&plot.title)
    );
    match plot.form {
        Form::Lines => lines(&mut svg, plot),
        Form::Percentiles => percentiles(&mut svg, plot),
        Form::Stack => stack(&mut svg, plot),
    }
    let (left, top, right, bottom) = AREA;
    let _ = write!(
        svg,
        "<path class=\"axis\" d=\"M{left} {top}V{bottom}H{right}\"/>\
         <text class=\"label\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\
         <text class=\"label\" transform=\"translate(13 {}) rotate(-90)\" text-anchor=\"middle\">{}</text></svg>",
        (left + right) / 2.0,
        SIZE.1 - 8.0,
        escape(&plot.x),
        (top + bottom) / 2.0,
        escape(&plot.y)
    );
    svg
}

/// The names of a plot's series, each with its colour.
#[must_use]
pub fn legend(plot: &Plot) -> String {
    plot.series.iter().enumerate().fold(String::new(), |mut all, (n, series)| {
        let _ = write!(all, "<span><i class=\"b{}\"></i>{}</span>", n % 5, escape(&series.name));
        all
    })
}

/// Text for HTML.
#[must_use]
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn lines(svg: &mut String, plot: &Plot) {
    let highest = |of: fn(&(f64, f64)) -> f64| all(&plot.series).map(of).fold(0.0, f64::max);
    let (x_step, y_step) = (round_step(highest(|p| p.0)), round_step(highest(|p| p.1)));
    let (x, y) = (x_scale(0.0, highest(|p| p.0).max(x_step)), y_scale(up_to(highest(|p| p.1), y_step)));
    grid_y(svg, &y, steps(y.high, y_step));
    grid_x(svg, &x, steps(x.high, x_step).into_iter().map(|at| (at, number(at))));
    draw(svg, &plot.series, &x, &y);
}

/// To the right the nines, upwards a logarithm.
fn percentiles(svg: &mut String, plot: &Plot) {
    let low = all(&plot.series).map(|p| p.1).fold(f64::INFINITY, f64::min).max(0.01);
    let high = all(&plot.series).map(|p| p.1).fold(0.0, f64::max).max(low * 10.0);
    let (low, high) = (10_f64.powf(low.log10().floor()), 10_f64.powf(high.log10().ceil()));
    let x = x_scale(0.0, 5.0);
    let y = Scale { low, high, is_logarithmic: true, from: AREA.3, to: AREA.1 };
    let decades = (high / low).log10().round() as i32;
    grid_y(svg, &y, (0..=decades).map(|n| low * 10_f64.powi(n)).collect());
    let names = ["0", "90", "99", "99.9", "99.99", "max"];
    grid_x(svg, &x, names.iter().enumerate().map(|(n, name)| (n as f64, (*name).to_owned())));
    draw(svg, &plot.series, &x, &y);
}

fn stack(svg: &mut String, plot: &Plot) {
    let height = |bar: usize| -> f64 {
        plot.series.iter().flat_map(|series| &series.points).filter(|p| p.0 == bar as f64).map(|p| p.1).sum()
    };
    let highest = (0..plot.bars.len()).map(height).fold(0.0, f64::max);
    let step = round_step(highest);
    let y = y_scale(up_to(highest, step));
    grid_y(svg, &y, steps(y.high, step));
    let slot = (AREA.2 - AREA.0) / plot.bars.len().max(1) as f64;
    let width = (slot * 0.6).min(90.0);
    for (bar, name) in plot.bars.iter().enumerate() {
        let middle = AREA.0 + slot * (bar as f64 + 0.5);
        let mut below = 0.0;
        for (n, series) in plot.series.iter().enumerate() {
            let Some((_, value)) = series.points.iter().find(|p| p.0 == bar as f64) else { continue };
            let (top, bottom) = (y.place(below + value), y.place(below));
            let _ = write!(
                svg,
                "<rect class=\"f{}\" x=\"{:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{:.1}\"><title>{}: {}</title></rect>",
                n % 5,
                middle - width / 2.0,
                (bottom - top).max(0.0),
                escape(&series.name),
                number(*value)
            );
            below += value;
        }
        let _ = write!(
            svg,
            "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text x=\"{middle:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            y.place(below) - 4.0,
            number(below),
            AREA.3 + 16.0,
            escape(name)
        );
    }
}

fn draw(svg: &mut String, series: &[Series], x: &Scale, y: &Scale) {
    for (n, series) in series.iter().enumerate() {
        let mut path = String::new();
        for (index, (at, value)) in series.points.iter().enumerate() {
            let command = if index == 0 { 'M' } else { 'L' };
            let _ = write!(path, "{command}{:.1} {:.1}", x.place(*at), y.place(*value));
        }
        let _ = write!(
            svg,
            "<path class=\"s{}\" d=\"{path}\"><title>{}</title></path>",
            n % 5,
            escape(&series.name)
        );
    }
}

fn grid_y(svg: &mut String, y: &Scale, values: Vec<f64>) {
    for value in values {
        let at = y.place(value);
        let _ = write!(
            svg,
            "<path class=\"grid\" d=\"M{} {at:.1}H{}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            AREA.0,
            AREA.2,
            AREA.0 - 6.0,
            at + 4.0,
            number(value)
        );
    }
}

fn grid_x(svg: &mut String, x: &Scale, values: impl Iterator<Item = (f64, String)>) {
    for (value, name) in values {
        let at = x.place(value);
        let _ =
            write!(svg, "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{name}</text>", AREA.3 + 16.0);
    }
}

fn x_scale(low: f64, high: f64) -> Scale {
    Scale { low, high, is_logarithmic: false, from: AREA.0, to: AREA.2 }
}

fn y_scale(high: f64) -> Scale {
    Scale { low: 0.0, high, is_logarithmic: false, from: AREA.3, to: AREA.1 }
}

fn all(series: &[Series]) -> impl Iterator<Item = &(f64, f64)> {
    series.iter().flat_map(|series| &series.points)
}

/// 1, 2 or 5 times a power of ten, so that four to ten of them reach `highest`.
fn round_step(highest: f64) -> f64 {
    let raw = highest.max(1e-9) / 5.0;
    let power = 10_f64.powf(raw.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= raw).unwrap_or(10.0);
    factor * power
}

fn up_to(highest: f64, step: f64) -> f64 {
    ((highest / step).ceil() * step).max(step)
}

fn steps(high: f64, step: f64) -> Vec<f64> {
    (0..=(high / step + 1e-6) as u32).map(|n| f64::from(n) * step).collect()
}

/// With thousands as k.
fn number(value: f64) -> String {
    let (value, unit) = if value.abs() >= 1_000.0 { (value / 1_000.0, "k") } else { (value, "") };
    format!("{}{unit}", crate::goals::short(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round_and_few() {
        assert_eq!(round_step(9_700.0), 2_000.0);
        assert_eq!(steps(up_to(9_700.0, 2_000.0), 2_000.0), [0.0, 2e3, 4e3, 6e3, 8e3, 1e4]);
        assert!(round_step(0.0) > 0.0);
    }

    #[test]
    fn names_are_text_and_no_markup() {
        let series = vec![Series { name: "<b>".into(), points: vec![(0.0, 1.0), (1.0, 2.0)] }];
        let plot = |form| Plot {
            title: "a & b".into(),
            x: "x".into(),
            y: "y".into(),
            form,
            series: series.clone(),
            bars: vec!["1".into(), "2".into()],
        };

        for form in [Form::Lines, Form::Percentiles, Form::Stack] {
            let drawn = svg(&plot(form));

            assert!(
                drawn.contains("&lt;b&gt;") && !drawn.contains("<b>") && !drawn.contains("NaN"),
                "{drawn}"
            );
        }
    }
}
