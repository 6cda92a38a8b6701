//! Figures as a table in Markdown, which is aligned so that it can be read as text.

use super::figure::{Better, Figure, Figures, ratio};
use super::goals;
use super::subject::QEMU;

const HEAD: [&str; 8] = ["what", "of", "median", "min", "max", "× QEMU", "must", "aim"];

/// The table of a group.
pub(crate) fn of_group(figures: &Figures, group: &str) -> String {
    let names = figures.names(group);
    let of =
        |name: &str| figures.0.iter().filter(move |one| one.group == group && one.name == name).collect::<Vec<_>>();
    let rows: Vec<_> = names.into_iter().flat_map(of).map(|figure| row(figures, figure)).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row.get(column).map_or(0, |cell| cell.chars().count()));
        cells.chain(HEAD.get(column).map(|head| head.chars().count())).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..HEAD.len()).map(width).collect();
    let line = |cells: &[String]| {
        let cells: Vec<_> = cells.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let rule: Vec<_> = widths.iter().map(|&width| "-".repeat(width)).collect();
    let mut text = line(&HEAD.map(str::to_owned));
    text.push_str(&line(&rule));
    text.extend(rows.iter().map(|row| line(row)));
    text
}

fn row(figures: &Figures, figure: &Figure) -> [String; 8] {
    let Figure { group, name, subject, unit, .. } = figure;
    let other = figures.find(group, name, QEMU).filter(|_| subject != QEMU);
    let times = other.and_then(|other| ratio(figure, other)).map_or_else(String::new, number);
    let goal = goals::of(group, name, subject);
    let shown = |bound: Option<goals::Bound>| {
        let Some(bound) = bound else { return String::new() };
        match bound.kept(figures, group, name, subject) {
            Some(true) => format!("{bound}: yes"),
            Some(false) => format!("{bound}: no"),
            None => bound.to_string(),
        }
    };
    let better = match figure.better {
        Better::Lower => "↓",
        Better::Higher => "↑",
    };
    [
        format!("{name} ({unit} {better})"),
        subject.clone(),
        number(figure.median()),
        number(figure.min()),
        number(figure.max()),
        times,
        shown(goal.and_then(|goal| goal.must)),
        shown(goal.and_then(|goal| goal.aim)),
    ]
}

/// A number with three digits that count.
pub(crate) fn number(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 || size == 0.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::super::figure::tests::figure;
    use super::super::subject::BULKHEAD;
    use super::*;

    #[test]
    fn numbers_have_three_digits_that_count() {
        let shown = [12345.6, 123.4, 12.34, 1.234, 0.1234, 0.0].map(number);
        assert_eq!(shown, ["12346", "123", "12.3", "1.23", "0.123", "0"]);
    }

    #[test]
    fn row_shows_ratio_and_whether_the_goals_are_reached() {
        let figures = Figures(vec![figure(BULKHEAD, &[1.0, 2.0]), figure(QEMU, &[4.0, 8.0])]);
        let text = of_group(&figures, "launch");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[2].contains("| 0.250"), "{text}");
        assert!(lines[2].contains("≤ 0.34 × qemu microvm: yes") && lines[2].contains("≤ 0.15 × qemu microvm: no"));
        assert!(!lines[3].contains('≤'));
        let lengths: Vec<_> = lines.iter().map(|line| line.chars().count()).collect();
        assert!(lengths.iter().all(|length| *length == lengths[0]), "{text}");
    }
}
