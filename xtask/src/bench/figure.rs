//! What was measured: figures with all their values, and the ratio of two subjects.
//!
//! Runs of several subjects are interleaved, so that the nth values of two of them were measured side by side, and what
//! disturbs the machine for a while disturbs both.

/// Which way a figure should go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    /// Less is better.
    Lower,
    /// More is better.
    Higher,
}

/// One thing, measured of one subject.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Figure {
    /// What it belongs to: a part of the benchmark.
    pub(crate) group: String,
    /// What was measured, the same for all subjects.
    pub(crate) name: String,
    /// Of whom.
    pub(crate) subject: String,
    /// What one of the values is.
    pub(crate) unit: String,
    /// Which way it should go.
    pub(crate) better: Better,
    /// One value for each run; never none.
    pub(crate) values: Vec<f64>,
}

impl Figure {
    /// The middle value, or the mean of the two in the middle.
    pub(crate) fn median(&self) -> f64 {
        median(&self.values)
    }

    /// The smallest value.
    pub(crate) fn min(&self) -> f64 {
        self.values.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// The largest value.
    pub(crate) fn max(&self) -> f64 {
        self.values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }
}

/// The middle of some values, or the mean of the two in the middle; NaN of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = |at: usize| sorted.get(at).copied().unwrap_or(f64::NAN);
    let half = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        f64::midpoint(middle(half.wrapping_sub(1)), middle(half))
    } else {
        middle(half)
    }
}

/// How many times as much one subject has as another one: the median of the ratios of runs that were made side by side.
///
/// Nothing for figures of different things, and where the other one's are zero.
pub(crate) fn ratio(of: &Figure, to: &Figure) -> Option<f64> {
    if (&of.group, &of.name, &of.unit) != (&to.group, &to.name, &to.unit) || to.values.contains(&0.0) {
        return None;
    }
    let pairs: Vec<_> = of.values.iter().zip(&to.values).map(|(of, to)| of / to).collect();
    Some(median(&pairs)).filter(|ratio| ratio.is_finite())
}

/// Figures as they are collected: values of the same thing come together, in the order in which the things came first.
#[derive(Debug, Default)]
pub(crate) struct Figures(pub(crate) Vec<Figure>);

impl Figures {
    /// Adds one run's value.
    pub(crate) fn add(&mut self, group: &str, (name, unit, better): Kind<'_>, subject: &str, value: f64) {
        let same =
            |one: &&mut Figure| (one.group.as_str(), one.name.as_str(), one.subject.as_str()) == (group, name, subject);
        if let Some(figure) = self.0.iter_mut().find(same) {
            figure.values.push(value);
            return;
        }
        let (group, name, subject, unit) = (group.to_owned(), name.to_owned(), subject.to_owned(), unit.to_owned());
        self.0.push(Figure { group, name, subject, unit, better, values: vec![value] });
    }

    /// What was measured of a subject.
    pub(crate) fn find(&self, group: &str, name: &str, subject: &str) -> Option<&Figure> {
        self.0
            .iter()
            .find(|one| (one.group.as_str(), one.name.as_str(), one.subject.as_str()) == (group, name, subject))
    }

    /// The groups, in order.
    pub(crate) fn groups(&self) -> Vec<&str> {
        let mut groups: Vec<&str> = Vec::new();
        for figure in &self.0 {
            if !groups.contains(&figure.group.as_str()) {
                groups.push(&figure.group);
            }
        }
        groups
    }

    /// The names of a group, in order.
    pub(crate) fn names(&self, group: &str) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for figure in self.0.iter().filter(|figure| figure.group == group) {
            if !names.contains(&figure.name.as_str()) {
                names.push(&figure.name);
            }
        }
        names
    }

    /// Takes the place of the groups of older figures that it has as well, and leaves their others.
    pub(crate) fn over(self, older: Self) -> Self {
        let new: Vec<String> = self.groups().into_iter().map(str::to_owned).collect();
        let mut all: Vec<_> = older.0.into_iter().filter(|figure| !new.contains(&figure.group)).collect();
        all.extend(self.0);
        Self(all)
    }
}

/// A kind of figure: its name, its unit, and which way it should go.
pub(crate) type Kind<'a> = (&'a str, &'a str, Better);

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn figure(subject: &str, values: &[f64]) -> Figure {
        Figure {
            group: "launch".to_owned(),
            name: "first byte".to_owned(),
            subject: subject.to_owned(),
            unit: "ms".to_owned(),
            better: Better::Lower,
            values: values.to_vec(),
        }
    }

    #[test]
    fn median_is_the_middle_or_between_the_two_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[7.0]), 7.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn extremes_are_those_of_the_values() {
        let one = figure("bulkhead", &[3.0, 1.0, 2.0]);
        assert_eq!((one.median(), one.min(), one.max()), (2.0, 1.0, 3.0));
    }

    #[test]
    fn ratio_is_the_median_of_pairs_not_the_ratio_of_medians() {
        // Both were slow in the second run.
        let (ours, theirs) = (figure("a", &[1.0, 30.0, 2.0]), figure("b", &[2.0, 60.0, 3.0]));
        assert_eq!(ratio(&ours, &theirs), Some(0.5));
    }

    #[test]
    fn ratio_to_zero_or_to_something_else_is_none() {
        let (one, zero) = (figure("a", &[1.0, 1.0]), figure("b", &[1.0, 0.0]));
        assert_eq!(ratio(&one, &zero), None);
        let other = Figure { name: "gone".to_owned(), ..figure("b", &[1.0, 1.0]) };
        assert_eq!(ratio(&one, &other), None);
        assert_eq!(ratio(&one, &Figure { values: Vec::new(), ..one.clone() }), None);
    }

    #[test]
    fn values_of_the_same_thing_come_together() {
        let mut figures = Figures::default();
        for value in [1.0, 2.0] {
            figures.add("launch", ("first byte", "ms", Better::Lower), "bulkhead", value);
            figures.add("launch", ("first byte", "ms", Better::Lower), "floor", value * 2.0);
        }
        figures.add("memory", ("private", "MiB", Better::Lower), "floor", 1.0);
        assert_eq!(figures.find("launch", "first byte", "floor").unwrap().values, [2.0, 4.0]);
        assert_eq!(figures.groups(), ["launch", "memory"]);
        assert_eq!(figures.names("launch"), ["first byte"]);
    }

    #[test]
    fn new_figures_replace_older_ones_of_their_groups_only() {
        let older = Figures(vec![figure("a", &[1.0]), Figure { group: "lab".to_owned(), ..figure("a", &[5.0]) }]);
        let all = Figures(vec![figure("a", &[2.0])]).over(older);
        let values: Vec<_> = all.0.iter().map(|one| (one.group.as_str(), one.values[0])).collect();
        assert_eq!(values, [("lab", 5.0), ("launch", 2.0)]);
    }
}
