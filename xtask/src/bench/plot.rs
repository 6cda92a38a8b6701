//! Pictures of figures: one SVG for each group, with a bar for each median and a line from the least value to the
//! largest; and one of the steps of a launch.

use super::figure::{Better, Figure, Figures};
use super::json::Findings;
use super::subject::{BULKHEAD, FLOOR, NO_GUEST, QEMU};
use super::table::number;
use crate::paths;
use anyhow::Result;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// Widths and heights in pixels.
const WIDTH: f64 = 760.0;
const LABELS: f64 = 210.0;
const VALUES: f64 = 90.0;
const ROW: f64 = 20.0;
const MARGIN: f64 = 12.0;
const TITLE: f64 = 30.0;

/// The file of the steps of a launch.
pub(crate) const STEPS: &str = "steps.svg";

/// The file of a group.
pub(crate) fn name(group: &str) -> String {
    format!("{}.svg", group.replace(' ', "-"))
}

/// Draws everything into a folder; the names of the files, in order.
///
/// # Errors
/// When a file cannot be written.
pub(crate) fn all(findings: &Findings, folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let mut put = |name: String, picture: String| {
        paths::write_atomically(&folder.join(&name), picture.as_bytes())?;
        names.push(name);
        anyhow::Ok(())
    };
    for group in findings.figures.groups() {
        put(name(group), bars(&findings.figures, group))?;
    }
    if let Some(picture) = findings.timings.as_ref().and_then(steps) {
        put(STEPS.to_owned(), picture)?;
    }
    Ok(names)
}

/// The bars of a group: each figure has a scale of its own.
pub(crate) fn bars(figures: &Figures, group: &str) -> String {
    let mut body = String::new();
    let mut y = MARGIN;
    for name in figures.names(group) {
        let of_name: Vec<_> = figures.0.iter().filter(|one| one.group == group && one.name == name).collect();
        let Some(first) = of_name.first() else { continue };
        let better = if first.better == Better::Lower { "less is better" } else { "more is better" };
        y += ROW;
        text(&mut body, MARGIN, y, "b", &format!("{name}, {}, {better}", first.unit));
        y += 6.0;
        let top = of_name.iter().map(|figure| figure.max()).fold(f64::MIN_POSITIVE, f64::max);
        for figure in of_name {
            bar(&mut body, figure, y, (WIDTH - LABELS - VALUES - MARGIN) / top);
            y += ROW;
        }
    }
    document(&body, y + MARGIN)
}

/// One bar, from `y` on, with so many pixels to a unit.
fn bar(body: &mut String, figure: &Figure, y: f64, scale: f64) {
    // A difference may be negative, where what was to be seen is less than what others do meanwhile.
    let [median, min, max] = [figure.median(), figure.min(), figure.max()].map(|value| value.max(0.0) * scale);
    let middle = y + ROW / 2.0;
    text(body, MARGIN, middle + 4.0, "", &figure.subject);
    rectangle(body, (LABELS, y + 3.0), (median, ROW - 6.0), color(&figure.subject), "");
    line(body, (LABELS + min, middle), (LABELS + max, middle));
    text(body, LABELS + max.max(median) + 6.0, middle + 4.0, "", &number(figure.median()));
}

/// The steps of a launch as bars in time, a row for each step and a color for each process; nothing of what is no list
/// of `{ "process", "step", "from_us", "to_us" }`.
pub(crate) fn steps(timings: &Value) -> Option<String> {
    let mut rows = Vec::new();
    for one in timings.as_array()? {
        let word = |key: &str| one.get(key).and_then(Value::as_str);
        let time = |key: &str| one.get(key).and_then(Value::as_f64);
        rows.push((word("process")?, word("step")?, time("from_us")?, time("to_us")?));
    }
    rows.sort_by(|one, other| one.2.total_cmp(&other.2));
    let end = rows.iter().map(|row| row.3).fold(1.0, f64::max);
    let scale = (WIDTH - LABELS - VALUES - MARGIN) / end;
    let mut body = String::new();
    text(&mut body, MARGIN, MARGIN + ROW, "b", "steps of a launch, in milliseconds from the exec of the broker");
    let bottom = MARGIN + TITLE + ROW * f64::from(u32::try_from(rows.len()).ok()?);
    for tick in 0..=8 {
        let at = end / 8.0 * f64::from(tick);
        let x = LABELS + at * scale;
        line(&mut body, (x, MARGIN + TITLE), (x, bottom));
        text(&mut body, x + 2.0, bottom + 14.0, "", &number(at / 1e3));
    }
    let mut colors = BTreeMap::new();
    let mut y = MARGIN + TITLE;
    for (process, step, from, to) in rows {
        let next = colors.len();
        let number_of = *colors.entry(process).or_insert(next);
        let fill = PALETTE.get(number_of % PALETTE.len()).copied().unwrap_or(GREY);
        text(&mut body, MARGIN, y + ROW / 2.0 + 4.0, "", &format!("{process}: {step}"));
        let hint = format!("{process}: {step}, {from} to {to} µs");
        rectangle(
            &mut body,
            (LABELS + from * scale, y + 3.0),
            (((to - from) * scale).max(1.0), ROW - 6.0),
            fill,
            &hint,
        );
        text(&mut body, LABELS + to * scale + 6.0, y + ROW / 2.0 + 4.0, "", &number((to - from) / 1e3));
        y += ROW;
    }
    Some(document(&body, bottom + TITLE))
}

const GREY: &str = "#9a9a9a";
const PALETTE: [&str; 6] = ["#2f6f9f", "#c8702a", "#4f8f4f", "#8a5aa8", "#a84a4a", "#6f6f3f"];

fn color(subject: &str) -> &'static str {
    match subject {
        QEMU => "#c8702a",
        FLOOR => GREY,
        _ if subject.starts_with(NO_GUEST) => GREY,
        _ if subject.starts_with(BULKHEAD) => "#2f6f9f",
        _ => "#8a5aa8",
    }
}

fn document(body: &str, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{body}</svg>\n"
    )
}

fn text(body: &mut String, x: f64, y: f64, style: &str, words: &str) {
    let weight = if style == "b" { " font-weight=\"bold\"" } else { "" };
    add(body, format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\"{weight}>{}</text>\n", escaped(words)));
}

fn rectangle(body: &mut String, (x, y): (f64, f64), (width, height): (f64, f64), fill: &str, hint: &str) {
    let title = if hint.is_empty() { String::new() } else { format!("<title>{}</title>", escaped(hint)) };
    add(
        body,
        format_args!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\">{title}</rect>\n"
        ),
    );
}

fn line(body: &mut String, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
    add(
        body,
        format_args!(
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"#333333\" opacity=\"0.6\"/>\n"
        ),
    );
}

fn add(body: &mut String, piece: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    body.write_fmt(piece).unwrap_or(());
}

fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::figure::tests::figure;
    use super::*;
    use serde_json::json;

    #[test]
    fn longest_bar_is_that_of_the_largest_value() {
        let figures = Figures(vec![figure(BULKHEAD, &[1.0]), figure(QEMU, &[4.0])]);
        let picture = bars(&figures, "launch");
        let widths: Vec<f64> = picture
            .lines()
            .filter(|line| line.starts_with("<rect x"))
            .map(|line| line.split("width=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!(widths.len(), 2);
        assert!((widths[1] - 4.0 * widths[0]).abs() < 0.5, "{widths:?}");
        assert!(widths[1] <= WIDTH - LABELS - VALUES);
    }

    #[test]
    fn bar_of_a_negative_value_has_no_width() {
        let picture = bars(&Figures(vec![figure(BULKHEAD, &[-1.0]), figure(QEMU, &[4.0])]), "launch");
        assert!(picture.contains("width=\"0.0\"") && !picture.contains("width=\"-"), "{picture}");
    }

    #[test]
    fn words_cannot_end_an_element() {
        let mut body = String::new();
        text(&mut body, 0.0, 0.0, "", "a < b & c");
        assert!(body.contains("a &lt; b &amp; c"));
    }

    #[test]
    fn steps_stand_in_the_order_in_which_they_began() {
        let timings = json!([
            {"process": "vmm", "step": "machine", "from_us": 500, "to_us": 900},
            {"process": "broker", "step": "config", "from_us": 0, "to_us": 200},
        ]);
        let picture = steps(&timings).unwrap();
        assert!(picture.find("broker: config").unwrap() < picture.find("vmm: machine").unwrap());
        assert!(steps(&json!([{"step": "config"}])).is_none());
        assert!(steps(&json!({})).is_none());
    }
}
