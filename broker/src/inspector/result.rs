//! What an inspector found: its verdict, for a person in lines, for a program as JSON.

use serde_json::{Value, json};
use wire::report::{Fact, Finding, Severity};

/// What an inspector said, and whether that is all.
#[derive(Debug, Default, Clone)]
pub(crate) struct Inspection {
    /// What is so.
    pub(crate) facts: Vec<Fact>,
    /// What is wrong.
    pub(crate) findings: Vec<Finding>,
    /// Why it did not come to its end, if it did not.
    pub(crate) cannot_tell: Option<String>,
    /// Whether that was for want of time.
    pub(crate) out_of_time: bool,
}

/// What an inspection comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing is wrong.
    Clean,
    /// It may fail.
    Warnings,
    /// It will not boot.
    WillNotBoot,
    /// It could not be looked at, or is nothing that is known.
    CannotTell,
}

impl Verdict {
    /// The exit code.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Clean => 0,
            Self::Warnings => 1,
            Self::WillNotBoot => 2,
            Self::CannotTell => 3,
        }
    }

    /// The name in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Warnings => "warnings",
            Self::WillNotBoot => "will-not-boot",
            Self::CannotTell => "cannot-tell",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Clean => "nothing is wrong with it, as far as that can be seen",
            Self::Warnings => "it may fail",
            Self::WillNotBoot => "it will not boot",
            Self::CannotTell => "whether it boots cannot be told",
        }
    }
}

impl Inspection {
    /// One that came to nothing because of `why`.
    pub(crate) fn failed(why: impl Into<String>) -> Self {
        Self { cannot_tell: Some(why.into()), ..Self::default() }
    }

    /// What it comes to.
    pub(crate) fn verdict(&self) -> Verdict {
        if self.cannot_tell.is_some() || (self.facts.is_empty() && self.findings.is_empty()) {
            return Verdict::CannotTell;
        }
        let unseen = self.findings.iter().any(|finding| UNSEEN.contains(&finding.id.as_str()));
        match self.findings.iter().map(|finding| finding.severity).max() {
            Some(Severity::Fatal) => Verdict::WillNotBoot,
            _ if unseen => Verdict::CannotTell,
            None | Some(Severity::Note) => Verdict::Clean,
            Some(Severity::Warning) => Verdict::Warnings,
        }
    }

    /// All of it in lines, of what is called `subject`.
    pub(crate) fn lines(&self, subject: &str) -> Vec<String> {
        let verdict = self.verdict();
        let mut lines = vec![format!("{subject}: {}", verdict.words())];
        lines.extend(self.why_not().map(|why| format!("  {why}")));
        lines.extend(self.fact_lines());
        lines.extend(self.findings.iter().flat_map(finding_lines));
        lines
    }

    /// The facts in lines.
    pub(super) fn fact_lines(&self) -> Vec<String> {
        let name = |fact: &Fact| match fact.of.is_empty() {
            true => fact.name.to_string(),
            false => format!("{}, {}", fact.of, fact.name),
        };
        let width = self.facts.iter().map(|fact| name(fact).chars().count()).max().unwrap_or(0).min(40);
        self.facts.iter().map(|fact| format!("  {:width$}  {}", name(fact), fact.value)).collect()
    }

    /// The facts, the findings, the verdict with its exit code, and why it cannot tell.
    pub(crate) fn json(&self) -> Value {
        let verdict = self.verdict();
        json!({ "facts": self.facts_json(), "findings": self.findings_json(), "verdict": verdict.name(), "exit_code": verdict.code(),
                "message": self.why_not() })
    }

    /// The facts.
    pub(super) fn facts_json(&self) -> Vec<Value> {
        let one = |fact: &Fact| json!({ "name": fact.name.as_str(), "of": fact.of.to_string(), "value": fact.value.to_string() });
        self.facts.iter().map(one).collect()
    }

    /// Why it cannot tell, if it cannot.
    fn why_not(&self) -> Option<&str> {
        let known = self.findings.iter().any(|finding| !is_unrecognised(finding));
        let why = if known { PARTLY_SEEN } else { UNKNOWN };
        self.cannot_tell.as_deref().or((self.verdict() == Verdict::CannotTell).then_some(why))
    }

    /// The findings.
    pub(crate) fn findings_json(&self) -> Vec<Value> {
        self.findings.iter().map(finding_json).collect()
    }
}

/// The finding that a thing is of no format that is known.
const UNRECOGNISED: &str = "not-recognised";
/// Findings that something could not be looked at, so that whether it boots cannot be told.
const UNSEEN: [&str; 6] =
    [UNRECOGNISED, "cannot-look-inside", "cannot-read", "image-corrupt", "init-not-seen", "too-large-to-look-at"];
/// What is said of a thing of which an inspector says nothing.
const UNKNOWN: &str = "it is nothing that is known here";
/// What is said of a thing of which a part stayed closed.
const PARTLY_SEEN: &str = "a part of it could not be looked at: see the findings";

/// Whether a finding says that a thing is of no format that is known.
pub(crate) fn is_unrecognised(finding: &Finding) -> bool {
    finding.id.as_str() == UNRECOGNISED
}

/// A finding in lines: what, why, the evidence, the remedy, and how sure it is.
pub(crate) fn finding_lines(finding: &Finding) -> Vec<String> {
    let (severity, confidence) = (finding.severity.name(), finding.confidence.name());
    let mut lines = vec![format!("{severity}: {} [{}, {confidence}]", finding.what, finding.id)];
    let part = |name: &str, text: &wire::Text| (!text.is_empty()).then(|| format!("  {name:<9} {text}"));
    lines.extend(part("why", &finding.why));
    let evidence = finding.evidence.get().iter().enumerate();
    lines.extend(evidence.map(|(at, line)| format!("  {:<9} | {line}", if at == 0 { "evidence" } else { "" })));
    lines.extend(part("remedy", &finding.remedy));
    lines
}

fn finding_json(finding: &Finding) -> Value {
    let evidence: Vec<_> = finding.evidence.get().iter().map(ToString::to_string).collect();
    json!({
        "id": finding.id.as_str(), "severity": finding.severity.name(), "confidence": finding.confidence.name(),
        "what": finding.what.to_string(), "why": finding.why.to_string(), "evidence": evidence,
        "remedy": finding.remedy.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::Text;
    use wire::report::{Confidence, EvidenceLines, FindingId};

    fn finding(severity: Severity) -> Finding {
        Finding {
            id: FindingId::try_from("init-missing").unwrap(),
            severity,
            confidence: Confidence::Certain,
            what: Text::truncated("there is no init"),
            why: Text::truncated(""),
            evidence: EvidenceLines::truncated(["/sbin/init \x1b[2J", "/etc/init"]),
            remedy: Text::truncated("put one there"),
        }
    }

    fn of(severities: &[Severity]) -> Inspection {
        let findings = severities.iter().copied().map(finding).collect();
        let name = FindingId::try_from("format").unwrap();
        let facts = vec![Fact { name, of: Text::truncated(""), value: Text::truncated("ext4") }];
        Inspection { facts, findings, ..Inspection::default() }
    }

    #[test]
    fn worst_finding_decides() {
        assert_eq!(of(&[]).verdict(), Verdict::Clean);
        assert_eq!(of(&[Severity::Note]).verdict(), Verdict::Clean);
        assert_eq!(of(&[Severity::Warning, Severity::Note]).verdict(), Verdict::Warnings);
        assert_eq!(of(&[Severity::Note, Severity::Fatal, Severity::Warning]).verdict(), Verdict::WillNotBoot);
    }

    #[test]
    fn inspector_that_failed_or_said_nothing_cannot_tell() {
        assert_eq!(Inspection::default().verdict(), Verdict::CannotTell);
        let failed = Inspection { cannot_tell: Some("it was killed".to_owned()), ..of(&[Severity::Fatal]) };
        assert_eq!(failed.verdict(), Verdict::CannotTell);
        assert_eq!(failed.json()["exit_code"], 3);
    }

    #[test]
    fn thing_of_no_known_format_cannot_be_told_of() {
        let id = FindingId::try_from(UNRECOGNISED).unwrap();
        let unknown = Inspection { findings: vec![Finding { id, ..finding(Severity::Warning) }], ..of(&[]) };
        assert_eq!(unknown.verdict(), Verdict::CannotTell);
        assert_eq!(unknown.json()["message"], UNKNOWN);
    }

    #[test]
    fn thing_that_was_seen_in_part_cannot_be_told_of_unless_that_part_is_fatal() {
        let id = FindingId::try_from("cannot-look-inside").unwrap();
        let unseen = Finding { id, ..finding(Severity::Warning) };
        let mut inspection = of(&[Severity::Note]);
        inspection.findings.push(unseen);
        assert_eq!(inspection.verdict(), Verdict::CannotTell);
        inspection.findings.push(finding(Severity::Fatal));
        assert_eq!(inspection.verdict(), Verdict::WillNotBoot);
    }

    #[test]
    fn finding_is_told_with_its_evidence_and_drives_no_terminal() {
        let lines = of(&[Severity::Fatal]).lines("a.img");
        let wanted = [
            "a.img: it will not boot",
            "  format  ext4",
            "fatal: there is no init [init-missing, certain]",
            "  evidence  | /sbin/init \\u{1b}[2J",
            "            | /etc/init",
            "  remedy    put one there",
        ];
        assert_eq!(lines, wanted);
    }
}
