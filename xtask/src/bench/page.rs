//! docs/PERFORMANCE.md: a person writes what the figures mean, this writes the figures between two marks.

use super::json::Findings;
use super::{plot, table};
use crate::paths;
use anyhow::{Context, Result, bail};
use std::fmt::Write;

const PAGE: &str = "docs/PERFORMANCE.md";
/// Beside the page.
const PLOTS: &str = "performance";
const BEGIN: &str = "<!-- What follows is made by `cargo xtask bench --write`. -->\n";
const END: &str = "<!-- The end of what is made. -->\n";

/// Writes the tables into the page, and the plots beside it.
///
/// # Errors
/// When the page cannot be read or written, or lacks the marks.
pub(crate) fn write(findings: &Findings) -> Result<()> {
    let path = paths::repository().join(PAGE);
    let page = std::fs::read_to_string(&path).with_context(|| format!("cannot read {PAGE}"))?;
    let plots = plot::all(findings, &paths::repository().join("docs").join(PLOTS))?;
    paths::write_atomically(&path, replaced(&page, &made(findings, &plots)?)?.as_bytes())
}

/// The page with something else between the marks.
fn replaced(page: &str, made: &str) -> Result<String> {
    let parts = page.split_once(BEGIN).and_then(|(head, rest)| Some((head, rest.split_once(END)?.1)));
    let Some((head, tail)) = parts else {
        bail!("{PAGE} must have the lines {BEGIN:?} and {END:?}, in this order");
    };
    Ok(format!("{head}{BEGIN}{made}{END}{tail}"))
}

fn made(findings: &Findings, plots: &[String]) -> Result<String> {
    let mut text = format!("\nMeasured on {}.\n", findings.host);
    for group in findings.figures.groups() {
        write!(text, "\n### {group}\n\n{}", table::of_group(&findings.figures, group))?;
        let plot = plot::name(group);
        if plots.contains(&plot) {
            write!(text, "\n![{group}]({PLOTS}/{plot})\n")?;
        }
        if group == "launch" && plots.iter().any(|name| name == plot::STEPS) {
            write!(text, "\n![the steps of a launch]({PLOTS}/{})\n", plot::STEPS)?;
        }
    }
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::super::figure::Figures;
    use super::super::figure::tests::figure;
    use super::super::subject::BULKHEAD;
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let page = format!("head\n{BEGIN}old\n{END}tail\n");
        assert_eq!(replaced(&page, "new\n").unwrap(), format!("head\n{BEGIN}new\n{END}tail\n"));
        assert!(replaced(&format!("{END}{BEGIN}"), "new").is_err());
    }

    #[test]
    fn page_of_the_repository_has_the_marks() {
        let page = std::fs::read_to_string(paths::repository().join(PAGE)).unwrap();
        assert_eq!(replaced(&page, "").unwrap().matches(BEGIN).count(), 1);
    }

    #[test]
    fn each_group_has_its_table_and_its_plot() {
        let findings = Findings { figures: Figures(vec![figure(BULKHEAD, &[1.0])]), ..Findings::default() };
        let text = made(&findings, &[plot::name("launch"), plot::STEPS.to_owned()]).unwrap();
        assert!(text.contains("### launch\n\n| what"));
        assert!(text.contains("(performance/launch.svg)") && text.contains("(performance/steps.svg)"));
    }
}
