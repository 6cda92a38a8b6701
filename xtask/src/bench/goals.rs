//! What is to be reached. It is shown beside what was measured, and never decides anything.

use super::figure::{Figures, ratio};
use super::lab;
use super::subject::{BULKHEAD, NO_GUEST, QEMU};

/// A bound on a figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bound {
    /// At most this value, in the figure's unit.
    AtMost(f64),
    /// At most this many times what another subject has.
    TimesAtMost(f64, &'static str),
    /// At least this many times what another subject has.
    TimesAtLeast(f64, &'static str),
}

impl Bound {
    /// Whether the figures keep it; nothing where they do not tell.
    pub(crate) fn kept(self, figures: &Figures, group: &str, name: &str, subject: &str) -> Option<bool> {
        let figure = figures.find(group, name, subject)?;
        let times = |other| ratio(figure, figures.find(group, name, other)?);
        Some(match self {
            Self::AtMost(bound) => figure.median() <= bound,
            Self::TimesAtMost(bound, other) => times(other)? <= bound,
            Self::TimesAtLeast(bound, other) => times(other)? >= bound,
        })
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(bound) => write!(f, "≤ {bound}"),
            Self::TimesAtMost(bound, other) => write!(f, "≤ {bound} × {other}"),
            Self::TimesAtLeast(bound, other) => write!(f, "≥ {bound} × {other}"),
        }
    }
}

/// A row of what is to be reached.
#[derive(Debug)]
pub(crate) struct Goal {
    /// The figure's group.
    pub(crate) group: &'static str,
    /// The figure's name.
    pub(crate) name: &'static str,
    /// What it must be.
    pub(crate) must: Option<Bound>,
    /// What it should be.
    pub(crate) aim: Option<Bound>,
}

const fn goal(group: &'static str, name: &'static str, must: Option<Bound>, aim: Option<Bound>) -> Goal {
    Goal { group, name, must, aim }
}

/// All of them.
pub(crate) const GOALS: &[Goal] = &[
    goal("launch", "first byte", Some(Bound::TimesAtMost(0.34, QEMU)), Some(Bound::TimesAtMost(0.15, QEMU))),
    goal("launch", "gone after the first byte", Some(Bound::AtMost(2.0)), None),
    goal("memory", "private", Some(Bound::TimesAtMost(0.25, QEMU)), Some(Bound::AtMost(2.5))),
    goal("memory", "wake-ups of an idle guest", Some(Bound::AtMost(0.0)), None),
    goal("console", "host system calls, polled", Some(Bound::AtMost(2.1)), None),
    goal("disk", "4 KiB random read, depth 32", Some(Bound::TimesAtLeast(1.5, QEMU)), None),
    goal("disk", "4 KiB random write, depth 32", Some(Bound::TimesAtLeast(1.5, QEMU)), None),
    goal("disk", "1 MiB read, depth 32", Some(Bound::TimesAtLeast(0.9, NO_GUEST)), None),
    goal("disk", "1 MiB write, depth 32", Some(Bound::TimesAtLeast(0.9, NO_GUEST)), None),
    goal("disk costs", "system calls, 4 KiB random read, depth 32", None, Some(Bound::AtMost(1.0))),
    goal("disk costs", "system calls, 4 KiB random write, depth 32", None, Some(Bound::AtMost(1.0))),
    goal(lab::BOOT, "user space", Some(Bound::TimesAtMost(0.55, QEMU)), Some(Bound::TimesAtMost(0.48, QEMU))),
    goal(
        lab::DISK,
        "1 MiB sequential read",
        Some(Bound::TimesAtLeast(1.2, QEMU)),
        Some(Bound::TimesAtLeast(1.3, QEMU)),
    ),
    goal(lab::DISK, "1 MiB random read", Some(Bound::TimesAtLeast(1.2, QEMU)), Some(Bound::TimesAtLeast(1.3, QEMU))),
    goal(
        lab::DISK,
        "4 KiB sequential read",
        Some(Bound::TimesAtLeast(2.0, QEMU)),
        Some(Bound::TimesAtLeast(2.7, QEMU)),
    ),
    goal(lab::DISK, "4 KiB random read", Some(Bound::TimesAtLeast(2.0, QEMU)), Some(Bound::TimesAtLeast(2.7, QEMU))),
];

/// The goal of a figure of ours, if there is one.
pub(crate) fn of(group: &str, name: &str, subject: &str) -> Option<&'static Goal> {
    let ours = subject.starts_with(BULKHEAD);
    GOALS.iter().find(|goal| ours && (goal.group, goal.name) == (group, name))
}

#[cfg(test)]
mod tests {
    use super::super::figure::tests::figure;
    use super::*;

    #[test]
    fn bound_on_a_ratio_looks_at_both_subjects() {
        let figures = Figures(vec![figure(BULKHEAD, &[1.0, 2.0]), figure(QEMU, &[4.0, 8.0])]);
        let kept = |bound: Bound| bound.kept(&figures, "launch", "first byte", BULKHEAD);
        assert_eq!(kept(Bound::TimesAtMost(0.25, QEMU)), Some(true));
        assert_eq!(kept(Bound::TimesAtMost(0.24, QEMU)), Some(false));
        assert_eq!(kept(Bound::TimesAtLeast(0.26, QEMU)), Some(false));
        assert_eq!(kept(Bound::TimesAtLeast(0.1, NO_GUEST)), None);
        assert_eq!(kept(Bound::AtMost(1.5)), Some(true));
        assert_eq!(kept(Bound::AtMost(1.4)), Some(false));
    }

    #[test]
    fn goals_are_for_ours_only() {
        assert!(of("launch", "first byte", BULKHEAD).is_some());
        assert!(of("launch", "first byte", QEMU).is_none());
        assert!(of("launch", "another", BULKHEAD).is_none());
    }
}
